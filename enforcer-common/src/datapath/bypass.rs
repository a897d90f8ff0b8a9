//! Telling that packets reach the pod past the hook of `to_pod`, as where a data path delivers with `bpf_redirect_peer`: the pod
//! acknowledges bytes of a client that were never seen here.
//!
//! The evidence must not lie. What the pod has received came by `to_pod` or past it; a packet lost on the way is not
//! acknowledged, and an entry that was pushed out is no half-open one any more. Data of a SYN (TCP fast open) is part of what
//! the pod's SYN-ACK acknowledges, and so of the half-open entry.

use crate::map::{Flow, FlowState};
use crate::tcp::{ACK, Segment};

/// Half the space of sequence numbers: from there on a number lies before, not behind.
const BEHIND: u32 = 1 << 31;

/// The pod acknowledges bytes behind `start`, the client's first.
#[inline(always)]
pub(super) fn acknowledges_unseen(segment: &Segment, start: u32) -> bool {
    segment.has(ACK) && (1..BEHIND).contains(&segment.ack.wrapping_sub(start))
}

/// No packet of the client was seen since the pod's SYN-ACK, and one should have been before the pod acknowledges any byte.
/// Of a connection that was open before nothing is known.
#[inline(always)]
pub(super) fn is_unheard(flow: &Flow) -> bool {
    flow.packets_to_pod == 0 && !matches!(flow.state, FlowState::EXISTING)
}
