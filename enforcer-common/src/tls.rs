//! Telling TLS from plaintext by the first bytes of a stream, one byte at a time.
//!
//! A TLS connection opens with a handshake record that holds a `ClientHello` (RFC 8446, sections 4 and 5.1; RFC 5246,
//! section 6.2.1): content type 22, version 3.x, a length of 1 to 2^14, handshake type 1. Each byte has a rule of
//! its own, so that a byte can be judged whatever came of the others.

/// How many bytes of the client's stream are judged.
pub const CLIENT_PREFIX: u32 = 6;
/// How many bytes of the pod's stream are judged.
pub const POD_PREFIX: u32 = 5;

/// Content type of a handshake record.
const HANDSHAKE: u8 = 0x16;
/// Content type of an alert record.
const ALERT: u8 = 0x15;
/// Major version of SSL 3.0 and every TLS.
const MAJOR: u8 = 3;
/// Highest minor version: TLS 1.3 itself writes 1 or 3 here, 4 is tolerated.
const MAX_MINOR: u8 = 4;
/// Largest length of a plaintext record.
const MAX_PLAINTEXT: u16 = 1 << 14;
/// Its high byte.
const MAX_PLAINTEXT_HIGH: u8 = 0x40;
/// High byte of the largest length of a protected record, 2^14 + 2048 (RFC 5246, section 6.2.3).
const MAX_RECORD_HIGH: u8 = 0x48;
/// Handshake type of a `ClientHello`.
const CLIENT_HELLO: u8 = 1;

/// Whether `byte` may stand at `offset` (0 to 5) of a stream that opens with a `ClientHello`.
///
/// The two bytes of the record length are judged one by one here and together by [`client_length_fits`].
#[inline(always)]
#[must_use]
pub const fn client_byte_fits(offset: u32, byte: u8) -> bool {
    match offset {
        0 => byte == HANDSHAKE,
        1 => byte == MAJOR,
        2 => byte <= MAX_MINOR,
        3 => byte <= MAX_PLAINTEXT_HIGH,
        5 => byte == CLIENT_HELLO,
        _ => true,
    }
}

/// Whether both bytes of the record length make a length of 1 to 2^14.
#[inline(always)]
#[must_use]
pub const fn client_length_fits(high: u8, low: u8) -> bool {
    let length = u16::from_be_bytes([high, low]);
    length >= 1 && length <= MAX_PLAINTEXT
}

/// Whether `byte` may stand at `offset` (0 to 4) of a server's answer to a `ClientHello`: a handshake or an alert record.
#[inline(always)]
#[must_use]
pub const fn pod_byte_fits(offset: u32, byte: u8) -> bool {
    match offset {
        0 => byte == HANDSHAKE || byte == ALERT,
        1 => byte == MAJOR,
        2 => byte <= MAX_MINOR,
        3 => byte <= MAX_RECORD_HIGH,
        _ => true,
    }
}

/// The bytes of a `ClientHello` that have one right value each, in a word of six bytes, first byte lowest.
const CLIENT_FIXED: u64 = u64::from_le_bytes([HANDSHAKE, MAJOR, 0, 0, 0, CLIENT_HELLO, 0, 0]);
/// Where those bytes are.
const CLIENT_FIXED_MASK: u64 = 0xff00_0000_ffff;

/// [`client_byte_fits`] for several bytes at once: a word of six bytes, first byte lowest, of which `mask` (0xff a byte)
/// says which are there. One expression instead of a loop, for the kernel's verifier.
#[inline(always)]
#[must_use]
pub const fn client_word_fits(word: u64, mask: u64) -> bool {
    let word = word & mask;
    (word ^ CLIENT_FIXED) & CLIENT_FIXED_MASK & mask == 0
        && (word >> 16) & 0xff <= MAX_MINOR as u64
        && (word >> 24) & 0xff <= MAX_PLAINTEXT_HIGH as u64
}

/// [`pod_byte_fits`] for several bytes at once, as [`client_word_fits`].
#[inline(always)]
#[must_use]
pub const fn pod_word_fits(word: u64, mask: u64) -> bool {
    let word = word & mask;
    let first = word & 0xff;
    (mask.trailing_zeros() >= 8 || first == HANDSHAKE as u64 || first == ALERT as u64)
        && (word ^ ((MAJOR as u64) << 8)) & 0xff00 & mask == 0
        && (word >> 16) & 0xff <= MAX_MINOR as u64
        && (word >> 24) & 0xff <= MAX_RECORD_HIGH as u64
}

/// What a stream's first bytes say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Every byte so far fits; more are needed.
    Incomplete,
    /// A TLS client hello.
    Tls,
    /// Anything else.
    Plaintext,
}

/// Judges the first bytes of a client's stream, for user space and tests; the kernel side judges byte by byte.
#[must_use]
pub fn classify(stream: &[u8]) -> Class {
    for (offset, byte) in (0..CLIENT_PREFIX).zip(stream) {
        if !client_byte_fits(offset, *byte) {
            return Class::Plaintext;
        }
    }
    match *stream {
        [_, _, _, high, low, ..] if !client_length_fits(high, low) => Class::Plaintext,
        [_, _, _, _, _, _, ..] => Class::Tls,
        _ => Class::Incomplete,
    }
}

#[cfg(test)]
mod tests;
