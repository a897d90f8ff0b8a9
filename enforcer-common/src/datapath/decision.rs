//! What is decided about one packet.

use crate::map::{Flow, FlowState, TrafficClass};
use crate::{Reason, Verdict};

/// What is to be done with a packet.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// Let it through.
    Pass = 0,
    /// Cut the data off a SYN and let it through.
    TrimSyn = 1,
    /// Drop it.
    Drop = 2,
    /// Drop it and reset both ends.
    Reset = 3,
}

/// Sequence numbers for the two resets that answer a packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResetNumbers {
    /// Sequence number of the RST to the client.
    pub client_seq: u32,
    /// Acknowledgement number of the RST to the client, where it answers a SYN; else 0.
    pub client_ack: u32,
    /// Sequence number of the RST to the pod, its next expected one.
    pub pod_seq: u32,
    /// Acknowledgement number of the RST to the pod.
    pub pod_ack: u32,
}

impl ResetNumbers {
    /// No reset.
    pub const NONE: Self = Self { client_seq: 0, client_ack: 0, pod_seq: 0, pod_ack: 0 };
}

/// What a flow had carried when it was reported.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Carried {
    /// When the handshake completed, ns; 0 where there is no flow.
    pub opened_ns: u64,
    /// Payload bytes towards the pod that were let through.
    pub bytes_to_pod: u64,
    /// Payload bytes from the pod that were let through.
    pub bytes_from_pod: u64,
    /// Packets towards the pod.
    pub packets_to_pod: u64,
    /// Packets from the pod.
    pub packets_from_pod: u64,
}

impl Carried {
    /// By no flow.
    pub const NOTHING: Self =
        Self { opened_ns: 0, bytes_to_pod: 0, bytes_from_pod: 0, packets_to_pod: 0, packets_from_pod: 0 };
}

/// The part of a packet that continues the bytes of a TLS client that user space has.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HelloPart {
    /// Offset in the stream of the part's first byte.
    pub offset: u32,
    /// Offset of that byte in the packet's payload.
    pub index: u32,
    /// How many bytes; 0: nothing to send.
    pub count: u32,
    /// These are the first bytes that are sent: the stream's bytes before `offset`, at most six, are those of `prefix`.
    pub first: bool,
    /// The stream's first six bytes, the first one lowest.
    pub prefix: u64,
}

impl HelloPart {
    /// Nothing to send.
    pub const NONE: Self = Self { offset: 0, index: 0, count: 0, first: false, prefix: 0 };
}

/// A decision about one packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// What is to be done.
    pub act: Act,
    /// The verdict; [`Verdict::NONE`] when there is nothing to count.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// What is known of the flow; [`FlowState::OPEN`] where there is none.
    pub state: FlowState,
    /// What the client speaks.
    pub class: TrafficClass,
    /// The verdict is new for this connection: it is counted as one connection and reported as one event.
    pub report: bool,
    /// The packet belongs to no connection that is known: it is told of once a second for each client, and counted as a
    /// connection as often.
    pub stray: bool,
    /// The client's bytes are let through and are not enough to tell: somebody must look again when its time is up.
    pub pending: bool,
    /// With `report`: the connection was not counted among those of its client and class before.
    pub new_client: bool,
    /// The connection ends with this packet, and nothing else will tell: it is reported as one event.
    pub end: bool,
    /// With `end`: the last verdict.
    pub last_verdict: Verdict,
    /// With `end`: why it fell.
    pub last_reason: Reason,
    /// For [`Act::Reset`].
    pub numbers: ResetNumbers,
    /// With `report`, `end` or `hello`: what the flow had carried, this packet included where it passes.
    pub carried: Carried,
    /// What of this packet goes to user space.
    pub hello: HelloPart,
}

impl Decision {
    /// Let it through, nothing to count.
    pub const PASS: Self = Self {
        act: Act::Pass,
        verdict: Verdict::NONE,
        reason: Reason::NONE,
        state: FlowState::OPEN,
        class: TrafficClass::UNKNOWN,
        report: false,
        stray: false,
        pending: false,
        new_client: false,
        end: false,
        last_verdict: Verdict::NONE,
        last_reason: Reason::NONE,
        numbers: ResetNumbers::NONE,
        carried: Carried::NOTHING,
        hello: HelloPart::NONE,
    };

    pub(super) const WAIT: Self =
        Self { act: Act::Drop, verdict: Verdict::WAIT, reason: Reason::OUT_OF_ORDER, ..Self::PASS };

    /// Nothing is to be done, counted or reported.
    #[inline(always)]
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.act == Act::Pass
            && self.verdict == Verdict::NONE
            && self.hello.count == 0
            && !self.end
            && !self.pending
    }

    /// Whether the client of a reported verdict is entered in `CLIENTS`.
    #[inline(always)]
    #[must_use]
    pub fn names_client(&self) -> bool {
        self.report
            && self.class != TrafficClass::UNKNOWN
            && !matches!(self.reason, Reason::PROBE | Reason::EXEMPT_SOURCE | Reason::EXEMPT_PORT)
    }
}

impl Flow {
    /// What the flow has carried so far.
    #[inline(always)]
    #[must_use]
    pub fn carried(&self) -> Carried {
        Carried {
            opened_ns: self.opened_ns,
            bytes_to_pod: self.bytes_to_pod,
            bytes_from_pod: self.bytes_from_pod,
            packets_to_pod: self.packets_to_pod,
            packets_from_pod: self.packets_from_pod,
        }
    }
}
