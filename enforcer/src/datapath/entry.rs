//! The entry program of a pod's own device: a few instructions that stamp a packet with the pod's network namespace and go on
//! in the program that all pods share. A device's index says little in a pod, whose device has the same one as those of
//! others; without the stamp one pod could speak in the name of another.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use enforcer_common::map::POD_STAMP_WORD;

use super::attach::Way;
use super::pin::Pins;
use super::sys;

/// The pinned array of the programs that all pods share, in the order of [`Way::BOTH`].
pub(super) const PROGRAMS: &str = "POD_PROGRAMS";

/// `BPF_FUNC_tail_call`.
const TAIL_CALL: i32 = 12;
/// `TC_ACT_SHOT`: without the program behind it nothing is judged, so nothing passes.
const DROP: i32 = 2;
/// Offset of `__sk_buff.cb`.
const CONTROL_BUFFER: usize = 48;

/// Opens the array, or makes and pins it.
pub(super) fn array(pins: &Pins) -> io::Result<OwnedFd> {
    let path = pins.maps().join(PROGRAMS);
    match sys::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let array = sys::program_array(PROGRAMS, 2)?;
    sys::pin(array.as_fd(), &path)?;
    Ok(array)
}

/// The place of a direction's program in the array.
pub(super) const fn index(way: Way) -> u32 {
    match way {
        Way::ToPod => 0,
        Way::FromPod => 1,
    }
}

/// Loads the entry program of a direction for the pod whose namespace has this stamp.
pub(super) fn load(way: Way, array: BorrowedFd<'_>, stamp: u32) -> io::Result<OwnedFd> {
    sys::load_classifier(way.program(), &code(way, array, stamp))
}

/// The low half of a namespace's cookie. Cookies are given out in order, so that no two of a node share it.
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
pub(super) const fn stamp(cookie: u64) -> u32 {
    cookie as u32
}

fn code(way: Way, array: BorrowedFd<'_>, stamp: u32) -> [[u8; 8]; 8] {
    use std::os::fd::AsRawFd as _;
    let field = i16::try_from(CONTROL_BUFFER + POD_STAMP_WORD * 4).unwrap_or_default();
    [
        // The stamp goes into the packet's control buffer: r2 = stamp; *(u32 *)(r1 + field) = r2.
        instruction(0xb4, 2, 0, 0, stamp.cast_signed()),
        instruction(0x63, 1, 2, field, 0),
        // r2 = the array, in two instructions; r3 = the index; the tail call returns only where there is no program.
        instruction(0x18, 2, 1, 0, array.as_raw_fd()),
        instruction(0, 0, 0, 0, 0),
        instruction(0xb7, 3, 0, 0, index(way).cast_signed()),
        instruction(0x85, 0, 0, 0, TAIL_CALL),
        instruction(0xb7, 0, 0, 0, DROP),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

/// `struct bpf_insn`.
fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let [low, high] = offset.to_ne_bytes();
    let [a, b, c, d] = immediate.to_ne_bytes();
    [code, to | from << 4, low, high, a, b, c, d]
}
