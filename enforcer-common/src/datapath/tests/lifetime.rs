//! Where flows are kept, and how they end.

use super::conversation::{REQUEST, passes, reset};
use super::{Conversation, HELLO, POD_ISN, SERVER_HELLO};
use crate::datapath::{Act, Decision, end_of_socket};
use crate::map::{FlowState, SocketTag, TrafficClass, flow_flags};
use crate::settings::Enforcement;
use crate::tcp::{ACK, FIN, RST, SYN};
use crate::{Mode, Reason, Verdict};

fn is_protected(talk: &Conversation) -> bool {
    talk.model.protected_entry(&talk.key).is_some()
}

/// The one report of the end of a TLS connection.
fn ended(decision: Decision) {
    assert!(decision.end, "{decision:?}");
    assert_eq!((decision.act, decision.verdict, decision.report), (Act::Pass, Verdict::NONE, false));
    assert_eq!(
        (decision.last_verdict, decision.last_reason, decision.state, decision.class),
        (Verdict::ALLOW, Reason::TLS, FlowState::TLS, TrafficClass::TLS)
    );
    assert_eq!((decision.carried.bytes_to_pod, decision.carried.bytes_from_pod), (11, 9));
}

#[test]
fn only_tls_that_the_pod_answered_is_protected() {
    let talk = Conversation::new(Mode::STRICT);
    talk.handshake();
    assert!(!is_protected(&talk));
    talk.client(0, HELLO);
    assert!(!is_protected(&talk), "a hello alone costs an attacker nothing");
    talk.pod(0, SERVER_HELLO);
    assert!(is_protected(&talk));
    for mode in [Mode::STRICT, Mode::PERMISSIVE] {
        let talk = Conversation::new(mode);
        talk.handshake();
        talk.client(0, REQUEST);
        talk.pod(0, REQUEST);
        assert!(!is_protected(&talk), "plaintext under {mode}");
    }
}

#[test]
fn without_room_the_first_answer_waits_and_nothing_is_pushed_out() {
    let mut talk = Conversation::new(Mode::STRICT);
    talk.model.room = 0;
    talk.handshake();
    talk.client(0, HELLO);
    for _ in 0..2 {
        let decision = talk.pod(0, SERVER_HELLO);
        assert_eq!(
            (decision.act, decision.verdict, decision.reason),
            (Act::Drop, Verdict::DROP, Reason::UNDECIDED)
        );
        assert_eq!(talk.flow().bytes_from_pod, 0);
    }
    talk.model.room = 1;
    passes(talk.pod(0, SERVER_HELLO));
    assert!(is_protected(&talk));
}

#[test]
fn where_nothing_is_enforced_a_full_table_stops_nobody() {
    for (mode, enforcement) in [(Mode::PERMISSIVE, Enforcement::ENFORCE), (Mode::STRICT, Enforcement::AUDIT)]
    {
        let mut talk = Conversation::new(mode);
        (talk.model.room, talk.model.settings.enforcement) = (0, enforcement);
        talk.handshake();
        talk.client(0, HELLO);
        passes(talk.pod(0, SERVER_HELLO));
        // And what was let through once is not stopped when the policy turns.
        talk.model.settings.enforcement = Enforcement::ENFORCE;
        talk.model.set_mode(Mode::STRICT);
        passes(talk.pod(9, SERVER_HELLO));
    }
}

#[test]
fn a_fin_of_each_end_is_the_end_once() {
    let talk = Conversation::tls(Mode::STRICT);
    assert!(is_protected(&talk));
    passes(talk.client_fin(11));
    assert!(is_protected(&talk));
    ended(talk.pod_sends(FIN | ACK, POD_ISN + 10, talk.client_isn + 13, &[]));
    assert!(!is_protected(&talk));
    // What is still on its way finds what was known.
    passes(talk.pod_sends(FIN | ACK, POD_ISN + 10, talk.client_isn + 13, &[]));
    passes(talk.client_fin(11));
    passes(talk.client(11, b"again"));
    assert_eq!(talk.flow().state, FlowState::TLS);
}

#[test]
fn a_rst_of_the_client_is_the_end_with_the_exact_number_only() {
    let talk = Conversation::tls(Mode::STRICT);
    for seq in [11, 13, 0, 1, 1] {
        passes(talk.to_pod(RST, talk.client_isn + seq, 0, &[]));
        assert!(is_protected(&talk), "{seq}");
    }
    // After a forged one the pod has to acknowledge something first.
    passes(talk.pod(9, &[]));
    passes(talk.pod(9, &[]));
    ended(talk.to_pod(RST, talk.client_isn + 12, 0, &[]));
    assert!(!is_protected(&talk));
    let mut talk = Conversation::new(Mode::STRICT);
    talk.model.sockets = true;
    talk.handshake();
    talk.client(0, HELLO);
    talk.pod_acks(11);
    talk.pod(0, SERVER_HELLO);
    passes(talk.to_pod(RST, talk.client_isn + 12, 0, &[]));
    assert!(is_protected(&talk), "its socket will say so");
}

#[test]
fn a_rst_of_the_pod_is_the_end() {
    let talk = Conversation::tls(Mode::STRICT);
    ended(talk.pod_sends(RST | ACK, POD_ISN + 10, talk.client_isn + 12, &[]));
    assert!(!is_protected(&talk));
    passes(talk.pod_sends(RST | ACK, POD_ISN + 10, talk.client_isn + 12, &[]));
}

#[test]
fn a_tagged_socket_tells_the_end_itself() {
    let mut talk = Conversation::new(Mode::STRICT);
    talk.model.sockets = true;
    talk.handshake();
    talk.client(0, HELLO);
    talk.pod_acks(11);
    talk.pod(0, SERVER_HELLO);
    assert_eq!(talk.flow().flags & flow_flags::TAGGED, flow_flags::TAGGED);
    passes(talk.client_fin(11));
    passes(talk.pod_sends(FIN | ACK, POD_ISN + 10, talk.client_isn + 13, &[]));
    passes(talk.pod_sends(RST | ACK, POD_ISN + 10, talk.client_isn + 12, &[]));
    assert!(is_protected(&talk));
    let tag = SocketTag { key: talk.key, pod_start: talk.flow().pod_start };
    let other = SocketTag { pod_start: tag.pod_start.wrapping_add(1), ..tag };
    assert_eq!(end_of_socket(&talk.model, &other), Decision::PASS, "of an earlier connection");
    ended(end_of_socket(&talk.model, &tag));
    assert_eq!(end_of_socket(&talk.model, &tag), Decision::PASS);
    assert!(!is_protected(&talk));
}

#[test]
fn a_reset_connection_has_no_other_end() {
    let talk = Conversation::new(Mode::STRICT);
    talk.handshake();
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
    let tag = SocketTag { key: talk.key, pod_start: talk.flow().pod_start };
    assert_eq!(end_of_socket(&talk.model, &tag), Decision::PASS);
}

#[test]
fn what_was_protected_does_not_speak_for_the_next_connection_of_its_tuple() {
    let mut talk = Conversation::tls(Mode::STRICT);
    assert!(is_protected(&talk));
    (talk.client_isn, talk.pod_isn, talk.received, talk.answered) =
        (talk.client_isn + 70_000, POD_ISN + 90_000, 0, 0);
    passes(talk.to_pod(SYN, talk.client_isn, 0, &[]));
    passes(talk.pod_sends(SYN | ACK, talk.pod_isn, talk.client_isn + 1, &[]));
    passes(talk.client(0, &[]));
    assert!(!is_protected(&talk));
    assert_eq!(talk.flow().state, FlowState::OPEN);
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
}
