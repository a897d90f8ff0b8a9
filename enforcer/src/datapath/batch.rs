//! Reading a whole map: many entries with one call where the kernel can (5.6 for hashes), else entry by entry.
//!
//! A full table has more than a hundred thousand entries. One call for each would keep a processor busy for a good part of a
//! second at every scrape, and begins anew whenever the entry at hand was pushed out.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use aya::maps::MapData;
use nix::libc;

use super::sys::{address, bpf, raw};

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// `ENOTSUPP`, which the kernel lets out for kinds of maps that have no batches.
const NOT_SUPPORTED: i32 = 524;

/// Entries per call.
const BATCH: u32 = 4096;

/// `include/uapi/linux/bpf.h`.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map: u32,
    padding: u32,
    key: u64,
    /// Or the next key.
    value: u64,
    flags: u64,
}

/// A map and the sizes of its entries as they cross to user space.
struct Shape<'a> {
    fd: BorrowedFd<'a>,
    key: usize,
    value: usize,
    capacity: u32,
}

impl<'a> Shape<'a> {
    fn of(map: &'a MapData) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        let size = |size: u32| usize::try_from(size).map_err(io::Error::other);
        let kind = info.map_type().map_err(io::Error::other)?;
        let mut value = size(info.value_size())?;
        if matches!(
            kind,
            aya::maps::MapType::PerCpuHash
                | aya::maps::MapType::LruPerCpuHash
                | aya::maps::MapType::PerCpuArray
        ) {
            let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
            value = value.next_multiple_of(8) * cpus;
        }
        Ok(Self { fd: map.fd().as_fd(), key: size(info.key_size())?, value, capacity: info.max_entries() })
    }
}

/// How a map is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reading {
    /// In batches of so many entries, more where the kernel needs room for more.
    Batches(u32),
    /// One after the other.
    Single,
}

/// Shows every entry of a hash or trie, as bytes; values of per-CPU maps one after the other, each in a multiple of 8 bytes.
/// What comes or goes meanwhile may be left out.
///
/// # Errors
/// When the kernel refuses.
pub fn scan(map: &MapData, mut each: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    match scan_by(map, Reading::Batches(BATCH), &mut each) {
        Err(error) if has_no_batches(&error) => scan_by(map, Reading::Single, each),
        result => result,
    }
}

/// The same in a given way.
///
/// # Errors
/// Also when the kernel does not know this way.
pub fn scan_by(map: &MapData, reading: Reading, mut each: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    let shape = Shape::of(map)?;
    match reading {
        Reading::Batches(size) => in_batches(&shape, size, &mut |keys: &[u8], values: &[u8]| {
            for (key, value) in keys.chunks_exact(shape.key).zip(values.chunks_exact(shape.value)) {
                each(key, value);
            }
        }),
        Reading::Single => one_by_one(&shape, &mut each),
    }
}

/// How many entries a hash or trie has.
///
/// # Errors
/// When the kernel refuses.
pub fn count(map: &MapData) -> io::Result<usize> {
    let shape = Shape::of(map)?;
    let mut count = 0;
    let batches =
        in_batches(&shape, BATCH, &mut |keys: &[u8], _: &[u8]| count += keys.len() / shape.key.max(1));
    match batches {
        Err(error) if has_no_batches(&error) => {
            count = 0;
            one_by_one(&shape, &mut |_: &[u8], _: &[u8]| count += 1)?;
            Ok(count)
        }
        result => result.map(|()| count),
    }
}

/// The kernel does not know batches, or not for this kind of map.
fn has_no_batches(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | NOT_SUPPORTED))
}

/// Shows keys and values of whole batches.
fn in_batches(shape: &Shape<'_>, first: u32, batch: &mut impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    let mut most = first.min(shape.capacity).max(1);
    // Where the next batch begins: a number for hashes, a key for tries.
    let (mut from, mut to) = (vec![0_u8; shape.key.max(8)], vec![0_u8; shape.key.max(8)]);
    let mut begun = false;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    loop {
        let room = usize::try_from(most).map_err(io::Error::other)?;
        keys.resize(room * shape.key, 0_u8);
        values.resize(room * shape.value, 0_u8);
        let mut attr = BatchAttr {
            from: if begun { address(from.as_ptr()) } else { 0 },
            to: address(to.as_mut_ptr()),
            keys: address(keys.as_mut_ptr()),
            values: address(values.as_mut_ptr()),
            count: most,
            map: raw(shape.fd),
            ..BatchAttr::default()
        };
        let ended = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Ok(_) => false,
            // The last batch.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // One bucket holds more than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && most < shape.capacity => {
                most = most.saturating_mul(2).min(shape.capacity);
                continue;
            }
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
            Err(error) => return Err(error),
        };
        let count = usize::try_from(attr.count).map_err(io::Error::other)?.min(room);
        let (keys, values) = (keys.get(..count * shape.key), values.get(..count * shape.value));
        batch(keys.unwrap_or_default(), values.unwrap_or_default());
        if ended {
            return Ok(());
        }
        std::mem::swap(&mut from, &mut to);
        begun = true;
    }
}

fn one_by_one(shape: &Shape<'_>, each: &mut impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    let (mut key, mut next) = (vec![0_u8; shape.key], vec![0_u8; shape.key]);
    let mut value = vec![0_u8; shape.value];
    // The kernel begins anew when a key has gone: without a bound that need not end.
    for step in 0..u64::from(shape.capacity) * 2 {
        let mut attr = ElementAttr {
            map: raw(shape.fd),
            key: if step == 0 { 0 } else { address(key.as_ptr()) },
            value: address(next.as_mut_ptr()),
            ..ElementAttr::default()
        };
        match bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
        std::mem::swap(&mut key, &mut next);
        let mut attr = ElementAttr {
            map: raw(shape.fd),
            key: address(key.as_ptr()),
            value: address(value.as_mut_ptr()),
            ..ElementAttr::default()
        };
        match bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) {
            Ok(_) => each(&key, &value),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
