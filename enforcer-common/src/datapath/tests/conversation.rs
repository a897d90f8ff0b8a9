//! One connection in offsets of its streams instead of sequence numbers.

use super::model::{Model, Packet};
use crate::datapath::{Act, Decision};
use crate::map::{Flow, FlowKey, FlowState};
use crate::tcp::{ACK, FIN, SYN};
use crate::{Address, Direction, Mode, Reason, Verdict};

/// The first bytes of a client that speaks TLS.
pub(super) const HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
/// The first bytes of a pod that answers in TLS.
pub(super) const SERVER_HELLO: &[u8] = &[0x16, 3, 3, 0, 122, 2, 0, 0, 118];
/// Initial sequence number of the client.
pub(super) const CLIENT_ISN: u32 = 0x1000_0000;
/// Initial sequence number of the pod.
pub(super) const POD_ISN: u32 = 0x8000_0000;

/// What a client sends that speaks plaintext.
pub(super) const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

/// A client, a pod and the datapath between them.
pub(super) struct Conversation {
    /// The datapath.
    pub model: Model,
    /// The connection.
    pub key: FlowKey,
    /// Initial sequence number of the client.
    pub client_isn: u32,
    /// Initial sequence number of the pod.
    pub pod_isn: u32,
    /// Bytes that the pod received in order so far, as its acknowledgements say.
    pub received: u32,
    /// Bytes that the client received so far.
    pub answered: u32,
}

impl Conversation {
    /// Nothing sent yet.
    pub(super) fn new(mode: Mode) -> Self {
        Self::numbered(mode, CLIENT_ISN, POD_ISN)
    }

    /// The same with given initial sequence numbers.
    pub(super) fn numbered(mode: Mode, client_isn: u32, pod_isn: u32) -> Self {
        let key = FlowKey {
            client: Address::from_v4([10, 0, 0, 1]),
            pod: Address::from_v4([10, 0, 0, 2]),
            client_port: 40000,
            pod_port: 8080,
        };
        Self { model: Model::new(mode), key, client_isn, pod_isn, received: 0, answered: 0 }
    }

    /// After the handshake.
    pub(super) fn open(mode: Mode) -> Self {
        let this = Self::new(mode);
        this.handshake();
        this
    }

    /// After both ends sent their first record of TLS.
    pub(super) fn tls(mode: Mode) -> Self {
        let mut this = Self::open(mode);
        assert_eq!(this.client(0, HELLO).act, Act::Pass);
        this.received = 11;
        assert_eq!(this.pod(0, SERVER_HELLO).act, Act::Pass);
        this.answered = 9;
        assert_eq!(this.flow().state, FlowState::TLS);
        this
    }

    /// SYN, SYN-ACK, ACK: none of them is ever held or counted.
    pub(super) fn handshake(&self) {
        assert_eq!(self.to_pod(SYN, self.client_isn, 0, &[]), Decision::PASS);
        assert_eq!(
            self.pod_sends(SYN | ACK, self.pod_isn, self.client_isn.wrapping_add(1), &[]),
            Decision::PASS
        );
        assert_eq!(self.client(0, &[]), Decision::PASS);
    }

    /// A packet towards the pod.
    pub(super) fn to_pod(&self, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Decision {
        let packet = Packet { direction: Direction::TO_POD, flags, seq, ack, payload: payload.into() };
        self.model.run(&self.key, &packet)
    }

    /// A packet from the pod.
    pub(super) fn pod_sends(&self, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Decision {
        let packet = Packet { direction: Direction::FROM_POD, flags, seq, ack, payload: payload.into() };
        self.model.run(&self.key, &packet)
    }

    /// Bytes of the client at an offset of its stream; -1 is the byte before the first.
    pub(super) fn client(&self, offset: i32, payload: &[u8]) -> Decision {
        self.client_flagged(0, offset, payload)
    }

    /// The same with more flags than ACK.
    pub(super) fn client_flagged(&self, flags: u8, offset: i32, payload: &[u8]) -> Decision {
        let seq = self.client_isn.wrapping_add(1).wrapping_add_signed(offset);
        self.to_pod(ACK | flags, seq, self.pod_isn.wrapping_add(1).wrapping_add(self.answered), payload)
    }

    /// Bytes of the pod at an offset of its stream.
    pub(super) fn pod(&self, offset: i32, payload: &[u8]) -> Decision {
        let seq = self.pod_isn.wrapping_add(1).wrapping_add_signed(offset);
        self.pod_sends(ACK, seq, self.client_isn.wrapping_add(1).wrapping_add(self.received), payload)
    }

    /// A bare acknowledgement of the pod for `received` bytes of the client.
    pub(super) fn pod_acks(&mut self, received: u32) -> Decision {
        self.received = received;
        self.pod(0, &[])
    }

    /// A FIN of the client behind `offset` bytes.
    pub(super) fn client_fin(&self, offset: i32) -> Decision {
        self.client_flagged(FIN, offset, &[])
    }

    /// The entry in the table of flows; there must be one.
    pub(super) fn flow(&self) -> Flow {
        self.model.flow_entry(&self.key).expect("the flow is in the table")
    }
}

/// The packet passes, and nothing is counted.
#[track_caller]
pub(super) fn passes(decision: Decision) {
    assert_eq!((decision.act, decision.verdict), (Act::Pass, Verdict::NONE), "{decision:?}");
}

/// The packet passes, and the connection is counted as allowed for this reason.
#[track_caller]
pub(super) fn allowed(decision: Decision, reason: Reason) {
    let expected = (Act::Pass, Verdict::ALLOW, reason, true);
    assert_eq!((decision.act, decision.verdict, decision.reason, decision.report), expected, "{decision:?}");
}

/// Both ends are reset, and the connection is counted.
#[track_caller]
pub(super) fn reset(decision: Decision, reason: Reason) {
    let expected = (Act::Reset, Verdict::RESET, reason, true);
    assert_eq!((decision.act, decision.verdict, decision.reason, decision.report), expected, "{decision:?}");
}

/// The packet is dropped so that it is sent again.
#[track_caller]
pub(super) fn waits(decision: Decision) {
    let expected = (Act::Drop, Verdict::WAIT, Reason::OUT_OF_ORDER, false);
    assert_eq!((decision.act, decision.verdict, decision.reason, decision.report), expected, "{decision:?}");
}
