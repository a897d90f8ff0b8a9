//! Reading records: bytes that anybody may have written become a record or an error.

use core::fmt;

use bytemuck::checked::try_pod_read_unaligned;
use bytemuck::{CheckedBitPattern, NoUninit};

use super::{CHUNK_BYTES, Event, EventKind, HEAD_BYTES, HelloHeader};

/// One record of `EVENTS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record<'a> {
    /// A verdict fell.
    Verdict(Event),
    /// A connection ended.
    End(Event),
    /// Bytes of a client that speaks TLS.
    Hello(Hello<'a>),
}

/// Bytes of a client that speaks TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello<'a> {
    /// Which bytes these are.
    pub header: HelloHeader,
    /// The bytes, at `header.offset` of the client's stream.
    pub bytes: &'a [u8],
}

/// Bytes that are no record: something other than this version wrote them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InvalidRecord {
    /// The record ends before its kind says.
    Short {
        /// Its bytes.
        len: usize,
    },
    /// A field holds a value that it cannot have.
    Field,
    /// A length field says more than there is room for.
    Length,
}

impl fmt::Display for InvalidRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { len } => write!(f, "a record of {len} bytes is too short for its kind"),
            Self::Field => f.write_str("a record holds a value that its field cannot have"),
            Self::Length => f.write_str("a record says that it holds more bytes than it has room for"),
        }
    }
}

impl core::error::Error for InvalidRecord {}

impl Event {
    /// The first payload bytes of the packet that decided.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        self.head.get(..usize::from(self.head_len)).unwrap_or(&self.head)
    }
}

/// Reads one record as it stands in the ring buffer. Bytes behind it are ignored: the buffer rounds lengths up.
///
/// # Errors
/// When the bytes are no record of this layout.
pub fn decode(bytes: &[u8]) -> Result<Record<'_>, InvalidRecord> {
    match read::<EventKind>(bytes)? {
        kind @ (EventKind::VERDICT | EventKind::END) => {
            let event: Event = read(bytes)?;
            if usize::from(event.head_len) > HEAD_BYTES {
                return Err(InvalidRecord::Length);
            }
            Ok(if kind == EventKind::END { Record::End(event) } else { Record::Verdict(event) })
        }
        EventKind::HELLO => {
            let header: HelloHeader = read(bytes)?;
            let len = usize::from(header.len);
            if len > CHUNK_BYTES {
                return Err(InvalidRecord::Length);
            }
            let data = bytes.get(size_of::<HelloHeader>()..).unwrap_or_default();
            let bytes = data.get(..len).ok_or(InvalidRecord::Short { len: bytes.len() })?;
            Ok(Record::Hello(Hello { header, bytes }))
        }
    }
}

/// The beginning of the bytes as a value of this type.
fn read<T: CheckedBitPattern + NoUninit>(bytes: &[u8]) -> Result<T, InvalidRecord> {
    let exact = bytes.get(..size_of::<T>()).ok_or(InvalidRecord::Short { len: bytes.len() })?;
    try_pod_read_unaligned(exact).map_err(|_| InvalidRecord::Field)
}

#[cfg(test)]
mod tests;
