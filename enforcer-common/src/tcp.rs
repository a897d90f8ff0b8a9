//! The parts of a TCP segment that verdicts rest on (RFC 9293).

/// TCP flag FIN.
pub const FIN: u8 = 0x01;
/// TCP flag SYN.
pub const SYN: u8 = 0x02;
/// TCP flag RST.
pub const RST: u8 = 0x04;
/// TCP flag ACK.
pub const ACK: u8 = 0x10;
/// TCP flag URG.
pub const URG: u8 = 0x20;

/// One TCP segment; numbers in host byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number; meaningful with [`ACK`].
    pub ack: u32,
    /// Payload bytes; up to a whole GSO packet.
    pub payload_len: u32,
    /// Flags, the low eight bits.
    pub flags: u8,
}

impl Segment {
    /// Whether any of these flags is set.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}

/// The part of a segment that falls on the first bytes of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overlap {
    /// Offset in the segment's payload where it begins.
    pub index: u32,
    /// Offset in the stream where it begins, below the limit.
    pub offset: u32,
    /// How many bytes, at least one, at most the limit.
    pub count: u32,
}

/// The part of a payload of `payload_len` bytes at `seq` that falls on the first `limit` bytes of the stream that
/// starts at sequence number `start`. Numbers wrap (RFC 9293, section 3.4).
#[inline(always)]
#[must_use]
pub const fn overlap(start: u32, seq: u32, payload_len: u32, limit: u32) -> Option<Overlap> {
    let distance = seq.wrapping_sub(start);
    let (index, offset) = if is_before(seq, start) { (distance.wrapping_neg(), 0) } else { (0, distance) };
    if offset >= limit || index >= payload_len {
        return None;
    }
    let available = payload_len - index;
    let wanted = limit - offset;
    Some(Overlap { index, offset, count: if available < wanted { available } else { wanted } })
}

/// Whether sequence number `a` comes before `b`, in the arithmetic of RFC 9293, section 3.4.
#[inline(always)]
#[must_use]
pub const fn is_before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) & 0x8000_0000 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_wraps() {
        assert!(is_before(u32::MAX, 0));
        assert!(is_before(0, 1));
        assert!(!is_before(1, 1));
        assert!(!is_before(5, u32::MAX));
    }

    #[test]
    fn overlap_agrees_with_counting_byte_by_byte() {
        for start in [0_u32, 1000, u32::MAX - 2] {
            for shift in -12_i32..12 {
                for len in 0_u32..20 {
                    let seq = start.wrapping_add_signed(shift);
                    let mut expected: Option<Overlap> = None;
                    for index in 0..len {
                        let at = shift + index.cast_signed();
                        if (0..6).contains(&at) {
                            match &mut expected {
                                Some(overlap) => overlap.count += 1,
                                None => {
                                    expected = Some(Overlap { index, offset: at.unsigned_abs(), count: 1 });
                                }
                            }
                        }
                    }
                    assert_eq!(
                        overlap(start, seq, len, 6),
                        expected,
                        "start {start} shift {shift} len {len}"
                    );
                }
            }
        }
    }
}
