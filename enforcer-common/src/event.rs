//! Records of the ring buffer `EVENTS`. Two kinds of [`Event`], one per verdict and one per end of a connection, and the
//! first bytes of TLS clients in [`HelloChunk`]s. None is sent per packet. All begin with the same fields, the kind first.

use crate::map::{FlowKey, FlowState, TrafficClass, map_type};
use crate::{Direction, Reason, Verdict};

#[cfg(feature = "user")]
mod decode;
#[cfg(feature = "user")]
pub use decode::{Hello, InvalidRecord, Record, decode};

/// How many payload bytes of the deciding packet an event carries at most.
pub const HEAD_BYTES: usize = 64;
/// How many bytes of a client's stream one [`HelloChunk`] carries at most.
pub const CHUNK_BYTES: usize = 1024;
/// How many bytes of a client's stream are sent in chunks at most.
pub const HELLO_LIMIT: u32 = 4096;
/// From how many packets of one connection they are taken at most, so that no client makes a record of every byte.
pub const HELLO_PARTS: u8 = 32;

/// What a record of `EVENTS` tells.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "user", derive(bytemuck::CheckedBitPattern, bytemuck::NoUninit))]
pub enum EventKind {
    /// An [`Event`]: a verdict fell.
    VERDICT = 1,
    /// An [`Event`]: a connection ended.
    END = 2,
    /// A [`HelloChunk`]: bytes of a client that speaks TLS.
    HELLO = 3,
}

map_type! {
    /// One verdict, or the end of one connection.
    pub struct Event {
        /// [`EventKind::VERDICT`] or [`EventKind::END`].
        pub kind: EventKind,
        /// Index of the pod's interface; 0 when it is not known.
        pub ifindex: u32,
        /// When it happened, `CLOCK_MONOTONIC` ns.
        pub time_ns: u64,
        /// When the handshake completed, `CLOCK_MONOTONIC` ns; 0 where there is no flow, or its opening was not seen. With
        /// `key` it names one connection: a tuple may be used again.
        pub opened_ns: u64,
        /// The connection.
        pub key: FlowKey,
        /// The workload's id; 0 when the pod is not known.
        pub workload: u32,
        /// What was done; at the end of a connection: its last verdict.
        pub verdict: Verdict,
        /// Why.
        pub reason: Reason,
        /// Direction of the packet that decided; at the end of a connection: of the packet that ended it, if any.
        pub direction: Direction,
        /// What was known of the flow then; [`FlowState::OPEN`] where there is no flow.
        pub state: FlowState,
        /// Payload bytes towards the pod that were let through so far.
        pub bytes_to_pod: u64,
        /// Payload bytes from the pod that were let through so far.
        pub bytes_from_pod: u64,
        /// Packets towards the pod so far, refused ones included.
        pub packets_to_pod: u64,
        /// Packets from the pod so far, refused ones included.
        pub packets_from_pod: u64,
        /// What the client speaks.
        pub class: TrafficClass,
        /// Payload bytes of the packet that decided; 0 at the end of a connection.
        pub payload_len: u32,
        /// Generation of the policy that decided.
        pub generation: u16,
        /// How many bytes of `head` are set; 0 at the end of a connection.
        pub head_len: u16,
        /// Zero.
        pub reserved: u32,
        /// The first payload bytes of the packet that decided.
        pub head: [u8; HEAD_BYTES],
    }
}

map_type! {
    /// What every [`HelloChunk`] begins with.
    pub struct HelloHeader {
        /// [`EventKind::HELLO`].
        pub kind: EventKind,
        /// Index of the pod's interface.
        pub ifindex: u32,
        /// When the packet came, `CLOCK_MONOTONIC` ns.
        pub time_ns: u64,
        /// As in [`Event::opened_ns`].
        pub opened_ns: u64,
        /// The connection.
        pub key: FlowKey,
        /// The workload's id.
        pub workload: u32,
        /// Offset in the client's stream of the first byte. Chunks of one connection follow each other without overlap; one
        /// that the rate limit or a full buffer swallowed leaves a gap.
        pub offset: u32,
        /// How many bytes are set.
        pub len: u16,
        /// Zero.
        pub reserved: u16,
    }
}

map_type! {
    /// Bytes of the stream of a client that speaks TLS, from its first one on, until the pod answers or [`HELLO_LIMIT`] is
    /// reached: what user space reads server name, ALPN and versions from.
    pub struct HelloChunk {
        /// Which bytes these are.
        pub header: HelloHeader,
        /// The bytes, as far as `header.len` says; what follows is undefined.
        pub data: [u8; CHUNK_BYTES],
    }
}
