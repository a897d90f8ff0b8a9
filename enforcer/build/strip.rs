//! Takes the DWARF sections out of the eBPF object: three quarters of it, and the kernel reads only BTF.
//!
//! A dropped section keeps its place in the section table as an empty one, so that every index elsewhere in the
//! file (symbols, relocations, links) stays what it was.

use std::ops::Range;

const HEADER: usize = 64;
const SECTION_HEADER: usize = 64;
const SHT_NOBITS: u32 = 8;

/// The object without debug sections; `None` when it is no little-endian 64-bit ELF file or its tables lie.
pub(crate) fn strip(object: &[u8]) -> Option<Vec<u8>> {
    // Magic, class 64 bits, little endian.
    if !object.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = number(object, 0x28, 8)?;
    let count = number(object, 0x3c, 2)?;
    let section = |index: usize| {
        let start = table.checked_add(index.checked_mul(SECTION_HEADER)?)?;
        object.get(start..start.checked_add(SECTION_HEADER)?)
    };
    let names = content(section(number(object, 0x3e, 2)?)?)?;

    let mut stripped = object.get(..HEADER)?.to_vec();
    let mut headers = Vec::new();
    for index in 0..count {
        let mut header = section(index)?.to_vec();
        let name = object.get(names.clone())?.get(number(&header, 0, 4)?..)?;
        if [b".debug_".as_slice(), b".rel.debug_"].iter().any(|prefix| name.starts_with(prefix)) {
            headers.push(vec![0; SECTION_HEADER]);
            continue;
        }
        let bytes = object.get(content(&header)?)?;
        stripped.resize(stripped.len().next_multiple_of(number(&header, 0x30, 8)?.max(1)), 0);
        header[0x18..0x20].copy_from_slice(&u64::try_from(stripped.len()).ok()?.to_le_bytes());
        stripped.extend_from_slice(bytes);
        headers.push(header);
    }
    stripped.resize(stripped.len().next_multiple_of(8), 0);
    let table = u64::try_from(stripped.len()).ok()?;
    stripped[0x28..0x30].copy_from_slice(&table.to_le_bytes());
    stripped.extend(headers.concat());
    Some(stripped)
}

/// Where a section's content lies in the file.
fn content(header: &[u8]) -> Option<Range<usize>> {
    let start = number(header, 0x18, 8)?;
    let empty = number(header, 4, 4)? == usize::try_from(SHT_NOBITS).ok()?;
    let size = if empty { 0 } else { number(header, 0x20, 8)? };
    Some(start..start.checked_add(size)?)
}

/// A little-endian number of `size` bytes at `at`.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<usize> {
    let mut value = [0; 8];
    value[..size].copy_from_slice(bytes.get(at..at.checked_add(size)?)?);
    usize::try_from(u64::from_le_bytes(value)).ok()
}
