//! Packets that reach the pod past the hook, and everything that only looks like it.

use super::conversation::{REQUEST, allowed, passes, reset};
use super::{CLIENT_ISN, Conversation, HELLO, POD_ISN, SERVER_HELLO};
use crate::datapath::FlowTables as _;
use crate::map::{Flow, FlowState, HalfOpen, endpoint_flags};
use crate::settings::Enforcement;
use crate::tcp::{ACK, FIN, SYN};
use crate::{Mode, Reason};

/// The pod's SYN-ACK was seen; whatever the client sends is not.
fn deaf(mode: Mode) -> Conversation {
    let talk = Conversation::new(mode);
    passes(talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]));
    talk
}

fn noted(talk: &Conversation) -> u64 {
    talk.model.bypassed.get()
}

#[test]
fn a_pod_that_acknowledges_unseen_bytes_is_bypassed() {
    for mode in [Mode::STRICT, Mode::PERMISSIVE, Mode::DISABLE] {
        let mut talk = deaf(mode);
        passes(talk.pod_acks(18));
        assert_eq!(noted(&talk), 1, "{mode}");
        let answer = talk.pod(0, b"HTTP/1.1 200 OK\r\n");
        // No plaintext answer leaves a STRICT pod, and nothing is said of a connection of which nothing is known.
        if mode == Mode::STRICT {
            reset(answer, Reason::MIDSTREAM)
        } else {
            passes(answer)
        }
        assert_eq!((noted(&talk), talk.model.flow_entry(&talk.key)), (2, None), "{mode}");
    }
}

#[test]
fn an_end_that_was_not_seen_is_evidence_too() {
    let mut talk = deaf(Mode::STRICT);
    passes(talk.pod_acks(1));
    assert_eq!(noted(&talk), 1);
}

/// The server speaks first: no different from TCP fast open until it acknowledges something.
#[test]
fn a_server_that_speaks_first_is_bypassed_once_it_acknowledges_more() {
    for mode in [Mode::STRICT, Mode::PERMISSIVE] {
        let mut talk = deaf(mode);
        let banner = talk.pod(0, b"220 mail\r\n");
        match mode {
            Mode::STRICT => reset(banner, Reason::SERVER_FIRST),
            _ => allowed(banner, Reason::PLAINTEXT_PERMITTED),
        }
        assert_eq!(noted(&talk), 0, "{mode}");
        talk.received = 6;
        talk.pod(10, b"250 ok\r\n");
        talk.pod(18, b"250 ok\r\n");
        assert_eq!(noted(&talk), 2, "{mode}");
    }
}

#[test]
fn what_came_by_the_hook_is_no_evidence() {
    for mode in [Mode::STRICT, Mode::PERMISSIVE] {
        let mut talk = Conversation::open(mode);
        // Its SYN-ACK again, for an ACK that was lost behind the hook.
        passes(talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]));
        allowed(talk.client(0, HELLO), Reason::TLS);
        passes(talk.pod_acks(11));
        passes(talk.pod(0, SERVER_HELLO));
        talk.answered = 9;
        passes(talk.client_fin(11));
        let _ = talk.pod_sends(ACK | FIN, POD_ISN + 10, CLIENT_ISN + 13, &[]);
        assert_eq!(noted(&talk), 0, "{mode}");
    }
    let mut talk = Conversation::open(Mode::STRICT);
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
    // A retransmission that the pod took before the reset came.
    let _ = talk.pod_acks(18);
    assert_eq!(noted(&talk), 0);
}

#[test]
fn a_lost_acknowledgement_is_no_evidence() {
    let mut talk = deaf(Mode::STRICT);
    // Nothing of the client came: the pod asks again.
    passes(talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]));
    passes(talk.pod_acks(0));
    allowed(talk.client(0, HELLO), Reason::TLS);
    passes(talk.pod_acks(11));
    passes(talk.pod(0, SERVER_HELLO));
    assert_eq!(noted(&talk), 0);
}

/// Data of a SYN passes in audit mode: the SYN-ACK acknowledges it.
#[test]
fn fast_open_is_no_evidence() {
    let mut talk = Conversation::new(Mode::STRICT);
    talk.model.settings.enforcement = Enforcement::AUDIT;
    passes(talk.to_pod(SYN, CLIENT_ISN, 0, REQUEST));
    passes(talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 19, &[]));
    talk.received = 18;
    let _ = talk.pod(0, b"HTTP/1.1 200 OK\r\n");
    talk.answered = 17;
    let _ = talk.client(18, &[]);
    let _ = talk.client(18, REQUEST);
    talk.received = 36;
    let _ = talk.pod(17, b"HTTP/1.1 200 OK\r\n");
    assert_eq!(noted(&talk), 0);
}

#[test]
fn an_entry_that_was_pushed_out_is_no_evidence() {
    let mut talk = Conversation::open(Mode::PERMISSIVE);
    allowed(talk.client(0, REQUEST), Reason::PLAINTEXT_PERMITTED);
    talk.model.forget_flow(&talk.key);
    passes(talk.pod_acks(18));
    assert_eq!(noted(&talk), 0);
}

/// Where data passes because nothing is enforced, a full table is no other path.
#[test]
fn a_full_table_is_no_evidence() {
    for (mode, learning) in [(Mode::PERMISSIVE, false), (Mode::STRICT, true)] {
        let mut talk = Conversation::new(mode);
        talk.model.capacity = 0;
        talk.model.endpoint.flags |= if learning { endpoint_flags::LEARNING } else { 0 };
        talk.handshake();
        passes(talk.client(0, REQUEST));
        passes(talk.pod_acks(18));
        passes(talk.pod(0, b"HTTP/1.1 200 OK\r\n"));
        assert_eq!(noted(&talk), 0, "{mode}");
    }
}

/// Two handshakes of one tuple: only the one whose numbers are known says something.
#[test]
fn another_handshake_of_the_tuple_is_no_evidence() {
    let talk = deaf(Mode::PERMISSIVE);
    passes(talk.pod_sends(ACK, POD_ISN + 500, CLIENT_ISN + 700, &[]));
    passes(talk.pod_sends(ACK, POD_ISN + 1, CLIENT_ISN - 700, &[]));
    assert_eq!(noted(&talk), 0);
}

#[test]
fn a_connection_that_was_open_before_is_no_evidence() {
    let mut talk = Conversation::new(Mode::STRICT);
    let open = Flow::open(&HalfOpen { client_isn: 0, pod_isn: 0, flags: 0 }, 7, 1, 0);
    talk.model.insert_flow(&talk.key, &Flow { state: FlowState::EXISTING, ..open });
    talk.received = 99;
    allowed(talk.pod(40, REQUEST), Reason::EXISTING);
    assert_eq!(noted(&talk), 0);
}
