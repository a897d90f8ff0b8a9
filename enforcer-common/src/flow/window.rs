//! The first bytes of a stream, as words.

/// The bytes of a segment that fall on the judged first bytes of its stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Window {
    /// Offset in the stream of the first byte.
    pub offset: u32,
    /// How many bytes; 0 when the segment does not touch the first bytes.
    pub count: u32,
    /// The bytes, each at its offset in the stream: the stream's first byte is the lowest of the word.
    pub word: u64,
}

impl Window {
    /// From the bytes of a segment: the first `count` of `bytes` stand at `offset` of the stream; together at most 6.
    #[inline(always)]
    #[must_use]
    pub const fn new(offset: u32, count: u32, bytes: [u8; 8]) -> Self {
        let kept = u64::from_le_bytes(bytes) & low_bytes(count);
        Self { offset, count, word: kept << ((offset & 7) * 8) }
    }

    /// Which bytes of the word are there, 0xff each.
    #[inline(always)]
    pub(super) const fn mask(&self) -> u64 {
        low_bytes(self.count) << ((self.offset & 7) * 8)
    }
}

/// A word whose lowest `count` (at most 7) bytes are 0xff.
#[inline(always)]
pub(super) const fn low_bytes(count: u32) -> u64 {
    (1 << ((count & 7) * 8)) - 1
}

/// Six bytes as a word, first byte lowest.
#[inline(always)]
pub(super) const fn word(bytes: [u8; 6]) -> u64 {
    let [content, major, minor, high, low, kind] = bytes;
    u64::from_le_bytes([content, major, minor, high, low, kind, 0, 0])
}

/// Spreads the seven lowest bits over the bytes of a word, 0xff for each that is set.
#[inline(always)]
pub(super) const fn spread(bits: u8) -> u64 {
    (((bits & 0x7f) as u64).wrapping_mul(0x0002_0408_1020_4081) & 0x0101_0101_0101_0101) * 0xff
}
