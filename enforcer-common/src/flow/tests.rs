//! The word arithmetic of the judged bytes, held against the plain way to say it.

use super::{Policy, Window, low_bytes, spread};
use crate::{Mode, Reason};

#[test]
fn low_bytes_fill_from_the_bottom() {
    let expected =
        [0, 0xff, 0xffff, 0xff_ffff, 0xffff_ffff, 0xff_ffff_ffff, 0xffff_ffff_ffff, 0xff_ffff_ffff_ffff];
    for (count, expected) in (0..).zip(expected) {
        assert_eq!(low_bytes(count), expected);
    }
}

#[test]
fn every_bit_becomes_a_byte() {
    for bits in 0..0x80_u8 {
        let expected =
            (0..7).filter(|bit| bits >> bit & 1 == 1).fold(0_u64, |word, bit| word | 0xff << (bit * 8));
        assert_eq!(spread(bits), expected, "{bits:#b}");
    }
}

/// Every window of the first six bytes: only bytes that the segment has, each at its place.
#[test]
fn windows_put_bytes_at_their_offset() {
    let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
    for offset in 0..6_u32 {
        for count in 1..=6 - offset {
            let window = Window::new(offset, count, bytes);
            let mut expected = [0; 8];
            let range = offset as usize..(offset + count) as usize;
            expected[range.clone()].copy_from_slice(&bytes[..count as usize]);
            assert_eq!(window.word.to_le_bytes(), expected);
            let mut mask = [0; 8];
            mask[range].fill(0xff);
            assert_eq!(window.mask().to_le_bytes(), mask);
        }
    }
    assert_eq!(Window::default().mask(), 0);
}

#[test]
fn only_strict_without_an_exemption_refuses() {
    for mode in [Mode::DISABLE, Mode::PERMISSIVE, Mode::STRICT] {
        for exempt in [Reason::NONE, Reason::EXEMPT_PORT, Reason::EXEMPT_SOURCE, Reason::PROBE] {
            let policy = Policy { mode, exempt, blocked: false, generation: 0 };
            assert_eq!(policy.is_enforced(), mode == Mode::STRICT && exempt == Reason::NONE);
        }
    }
}
