//! Records of the ring buffer `EVENTS`: one per verdict, not per packet.

use crate::map::{FlowKey, FlowState, map_type};
use crate::{Direction, Reason, Verdict};

/// How many payload bytes of the deciding packet an event carries at most.
pub const HEAD_BYTES: usize = 64;

map_type! {
    /// One verdict.
    pub struct Event {
        /// When it fell, `CLOCK_MONOTONIC` ns.
        pub time_ns: u64,
        /// The connection.
        pub key: FlowKey,
        /// Index of the interface.
        pub ifindex: u32,
        /// The workload's id; 0 when the pod is not known.
        pub workload: u32,
        /// What was done.
        pub verdict: Verdict,
        /// Why.
        pub reason: Reason,
        /// Direction of the packet that decided.
        pub direction: Direction,
        /// What was known of the flow then; [`FlowState::OPEN`] where there is no flow.
        pub state: FlowState,
        /// Payload bytes of the packet that decided.
        pub payload_len: u32,
        /// Zero.
        pub reserved: u32,
        /// Generation of the policy that decided.
        pub generation: u16,
        /// How many bytes of `head` are set.
        pub head_len: u16,
        /// The first payload bytes of the packet that decided.
        pub head: [u8; HEAD_BYTES],
    }
}
