//! Which sequence numbers a flow's segments may have: what the pod acknowledged, and whether a segment might belong to another
//! connection of the same tuple (SYN cookies).

use crate::map::{Flow, FlowState, flow_flags};
use crate::tcp::{ACK, Segment, is_before};
use crate::tls::CLIENT_PREFIX;

use super::COMPLETE;

impl Flow {
    /// Whether nothing has come from the pod since the handshake: what was judged may have been discarded by its stack, and
    /// the client has nothing to acknowledge but the pod's initial sequence number. Where the tuple has a cookie, only an
    /// acknowledgement of the client's bytes counts: a request that is not a socket yet answers segments outside its window, too
    /// (`tcp_check_req`).
    #[inline(always)]
    #[must_use]
    pub fn is_unconfirmed(&self) -> bool {
        let cookie = self.flags & flow_flags::COOKIE != 0;
        matches!(self.state, FlowState::OPEN | FlowState::HELLO)
            && (self.packets_from_pod == 0 || (cookie && !is_before(self.client_start, self.pod_ack)))
    }

    /// Whether a segment might open a connection in the pod's stack that begins at another place than the one that is judged: for
    /// all we know, of another handshake that the pod answered for the same tuple. Under SYN cookies the stack has a
    /// socket only once it gets an acknowledgement of a cookie, and it takes the same cookie with several sequence numbers
    /// (`net/ipv4/syncookies.c`: one for each MSS that it may stand for, and others of the minute before).
    #[inline(always)]
    #[must_use]
    pub fn may_open_another(&self, segment: &Segment) -> bool {
        let acknowledges = segment.ack == self.pod_start;
        let elsewhere = segment.seq != self.client_start;
        if self.flags & flow_flags::LOOK_AGAIN != 0 {
            return acknowledges && elsewhere;
        }
        self.is_unconfirmed() && (!acknowledges || (elsewhere && self.flags & flow_flags::COOKIE != 0))
    }

    /// Keeps the pod's acknowledgement, the exact number for a reset towards it. Called for every segment of the pod.
    #[inline(always)]
    pub fn note_pod_ack(&mut self, segment: &Segment) {
        let again = self.flags & flow_flags::LOOK_AGAIN != 0;
        if segment.has(ACK) && (again || self.pod_ack_is_unknown() || is_before(self.pod_ack, segment.ack)) {
            self.flags &= !flow_flags::LOOK_AGAIN;
            self.pod_ack = segment.ack;
            if segment.ack.wrapping_sub(self.client_start) >= CLIENT_PREFIX && self.client_mask == COMPLETE {
                self.flags |= flow_flags::PREFIX_ACKED;
            }
        }
    }

    /// True until the pod has sent a packet of a connection that was open before: nothing was seen of it yet.
    #[inline(always)]
    #[must_use]
    pub fn pod_ack_is_unknown(&self) -> bool {
        matches!(self.state, FlowState::EXISTING) && self.pod_ack == 0
    }

    /// The sequence number that the pod expects next of this segment's connection: for an exact reset towards it.
    #[inline(always)]
    #[must_use]
    pub fn pod_expects(&self, segment: &Segment) -> u32 {
        if self.pod_ack_is_unknown() {
            segment.seq
        } else if self.flags & flow_flags::LOOK_AGAIN != 0 && segment.ack == self.pod_start {
            self.client_start
        } else {
            self.pod_ack
        }
    }

    /// The pod's socket may be closed. Of a SYN cookie an old third packet makes a new one, whose first bytes nobody has seen; so
    /// copies of the first bytes are held against what is known again, until the pod acknowledges more.
    #[inline(always)]
    pub fn look_again(&mut self) {
        let acked_cookie = flow_flags::PREFIX_ACKED | flow_flags::COOKIE;
        // Beyond that the numbers of the first bytes are about to come again.
        if self.flags & acked_cookie == acked_cookie && self.bytes_to_pod < 1 << 30 {
            self.flags &= !(flow_flags::PREFIX_ACKED | flow_flags::SETTLED);
            self.flags |= flow_flags::LOOK_AGAIN;
        }
    }
}
