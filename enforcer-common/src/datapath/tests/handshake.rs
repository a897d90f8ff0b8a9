//! Who opened the flow.

use super::conversation::{REQUEST, allowed, passes, reset, waits};
use super::{CLIENT_ISN, Conversation, HELLO, Model, POD_ISN, SERVER_HELLO};
use crate::datapath::{Act, Decision};
use crate::map::{FlowState, endpoint_flags, flow_flags};
use crate::settings::Enforcement;
use crate::tcp::{ACK, FIN, RST, SYN, URG};
use crate::{Mode, Reason, Verdict};

#[test]
fn only_the_exact_acknowledgement_makes_a_flow() {
    for wrong in [POD_ISN, POD_ISN + 2, POD_ISN.wrapping_neg(), 0] {
        let talk = Conversation::new(Mode::STRICT);
        talk.to_pod(SYN, CLIENT_ISN, 0, &[]);
        talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]);
        // Under SYN cookies it might open a connection of other numbers.
        waits(talk.to_pod(ACK, CLIENT_ISN + 1, wrong, &[]));
        assert_eq!(talk.model.flow_entry(&talk.key), None);
        assert!(talk.model.half_open_entry(&talk.key).is_some());
        // Data with such an acknowledgement is data of a connection that is not known.
        reset(talk.to_pod(ACK, CLIENT_ISN + 1, wrong, HELLO), Reason::MIDSTREAM);
        passes(talk.client(0, &[]));
        assert_eq!(talk.flow().state, FlowState::OPEN);
        assert_eq!(talk.model.half_open_entry(&talk.key), None);
    }
}

#[test]
fn an_acknowledgement_number_without_the_flag_makes_no_flow() {
    let talk = Conversation::new(Mode::STRICT);
    talk.to_pod(SYN, CLIENT_ISN, 0, &[]);
    talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]);
    reset(talk.to_pod(0, CLIENT_ISN + 1, POD_ISN + 1, HELLO), Reason::MIDSTREAM);
    assert_eq!(talk.model.flow_entry(&talk.key), None);
}

#[test]
fn the_acknowledgement_may_carry_the_first_data() {
    let talk = Conversation::new(Mode::STRICT);
    talk.to_pod(SYN, CLIENT_ISN, 0, &[]);
    talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]);
    allowed(talk.client(0, HELLO), Reason::TLS);
    let talk = Conversation::new(Mode::STRICT);
    talk.to_pod(SYN, CLIENT_ISN, 0, &[]);
    talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]);
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
}

#[test]
fn a_flood_of_syns_enters_no_flow() {
    let mut talk = Conversation::new(Mode::STRICT);
    for port in 1..1000 {
        talk.key.client_port = port;
        passes(talk.to_pod(SYN, CLIENT_ISN, 0, &[]));
        passes(talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]));
        assert_eq!(talk.model.flow_entry(&talk.key), None);
    }
}

#[test]
fn what_the_pod_opened_itself_is_never_judged() {
    let talk = Conversation::new(Mode::STRICT);
    passes(talk.pod_sends(SYN, POD_ISN, 0, &[]));
    assert_eq!(talk.model.outbound_entry(&talk.key).map(|entry| entry.pod_isn), Some(POD_ISN));
    passes(talk.to_pod(SYN | ACK, CLIENT_ISN, POD_ISN + 1, &[]));
    passes(talk.pod(0, REQUEST));
    passes(talk.client(0, b"HTTP/1.1 200 OK\r\n"));
    passes(talk.client_fin(17));
    assert_eq!(talk.model.flow_entry(&talk.key), None);
}

/// Both ends call each other at once: the pod answers the client's SYN, so the client opened the connection too.
#[test]
fn a_simultaneous_open_is_judged() {
    let talk = Conversation::new(Mode::STRICT);
    passes(talk.pod_sends(SYN, POD_ISN, 0, &[]));
    passes(talk.to_pod(SYN, CLIENT_ISN, 0, &[]));
    passes(talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]));
    assert_eq!(talk.model.outbound_entry(&talk.key), None);
    passes(talk.client(0, &[]));
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
}

/// The pod uses the tuple of an old inbound connection for one of its own: what was known of the old one is void.
#[test]
fn the_pods_own_connection_is_not_judged_by_an_old_flow_of_the_same_tuple() {
    let talk = Conversation::open(Mode::STRICT);
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
    passes(talk.pod_sends(SYN, POD_ISN + 77, 0, &[]));
    passes(talk.to_pod(SYN | ACK, CLIENT_ISN + 99, POD_ISN + 78, &[]));
    passes(talk.pod_sends(ACK, POD_ISN + 78, CLIENT_ISN + 100, REQUEST));
    passes(talk.to_pod(ACK, CLIENT_ISN + 100, POD_ISN + 78, b"HTTP/1.1 200 OK"));
}

#[test]
fn data_of_a_syn_is_trimmed() {
    for mode in [Mode::STRICT, Mode::PERMISSIVE] {
        let talk = Conversation::new(mode);
        let decision = talk.to_pod(SYN, CLIENT_ISN, 0, REQUEST);
        assert_eq!(
            (decision.act, decision.verdict, decision.reason),
            (Act::TrimSyn, Verdict::WAIT, Reason::SYN_DATA_TRIMMED)
        );
        assert!(!decision.report);
        talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]);
        passes(talk.client(0, &[]));
        assert_eq!(talk.flow().client_mask, 0);
    }
    let mut talk = Conversation::new(Mode::STRICT);
    talk.model.settings.enforcement = Enforcement::AUDIT;
    passes(talk.to_pod(SYN, CLIENT_ISN, 0, REQUEST));
}

/// Whatever is sent with SYN or RST set, and whatever else is set beside: the entry stays byte for byte.
#[test]
fn what_is_over_of_the_pods_own_makes_room_and_still_passes() {
    let own = |talk: &Conversation| {
        let (live, over) = (talk.model.outbound_entry(&talk.key), talk.model.outbound_ended_entry(&talk.key));
        (live.is_some(), over.is_some())
    };
    let talk = Conversation::new(Mode::STRICT);
    let (pod, peer) = (POD_ISN + 1, CLIENT_ISN + 1);
    passes(talk.pod_sends(SYN, POD_ISN, 0, &[]));
    passes(talk.to_pod(SYN | ACK, CLIENT_ISN, pod, &[]));
    passes(talk.pod_sends(ACK, pod, peer, REQUEST));
    passes(talk.to_pod(ACK | FIN, peer, pod + 18, b"answer"));
    passes(talk.to_pod(RST, peer + 6, 0, &[]));
    passes(talk.to_pod(RST | ACK, peer + 6, pod + 18, &[]));
    assert_eq!(own(&talk), (true, false), "half closed, or a forged reset");
    passes(talk.pod_sends(ACK | FIN, pod + 18, peer + 7, &[]));
    assert_eq!(own(&talk), (false, true));
    // Sent again because the pod's acknowledgement was lost.
    passes(talk.to_pod(ACK | FIN, peer, pod + 18, b"answer"));
    // The tuple again, by the pod and then by the client.
    passes(talk.pod_sends(SYN, POD_ISN + 500, 0, &[]));
    assert_eq!(own(&talk), (true, true));
    passes(talk.to_pod(RST | ACK, 0, POD_ISN + 501, &[]));
    assert_eq!(own(&talk), (false, true), "refused");
    talk.handshake();
    assert_eq!(own(&talk), (false, false));
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
    let talk = Conversation::new(Mode::STRICT);
    passes(talk.pod_sends(SYN, POD_ISN, 0, &[]));
    passes(talk.pod_sends(RST | ACK, pod, peer, &[]));
    assert_eq!(own(&talk), (false, true), "aborted");
}

#[test]
fn fake_syn_and_rst_change_nothing() {
    for talk in [Conversation::open(Mode::STRICT), Conversation::tls(Mode::STRICT)] {
        let before = talk.flow();
        for flags in 0..=u8::MAX {
            if flags & (SYN | RST) == 0 {
                continue;
            }
            for (seq, ack) in [(CLIENT_ISN, 0), (CLIENT_ISN + 1, POD_ISN + 1), (99, 77)] {
                for payload in [&[][..], HELLO, REQUEST] {
                    let decision = talk.to_pod(flags, seq, ack, payload);
                    let trimmed = flags & (SYN | RST | ACK) == SYN && !payload.is_empty();
                    assert_eq!(
                        decision.act,
                        if trimmed { Act::TrimSyn } else { Act::Pass },
                        "flags {flags:#x}"
                    );
                }
            }
            // One of the pod's own stack is the end of a judged flow.
            if flags & RST != 0 && before.verdict == Verdict::NONE {
                assert_eq!(talk.pod_sends(flags, POD_ISN + 5, CLIENT_ISN + 9, REQUEST), Decision::PASS);
            }
        }
        assert_eq!(talk.flow(), before);
        assert_eq!(talk.model.half_open_entry(&talk.key), None);
    }
}

#[test]
fn a_syn_ack_that_is_sent_again_changes_nothing() {
    let talk = Conversation::open(Mode::STRICT);
    allowed(talk.client(0, HELLO), Reason::TLS);
    let before = talk.flow();
    passes(talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]));
    assert_eq!(talk.flow(), before);
    assert_eq!(talk.model.half_open_entry(&talk.key), None);
}

/// A cookie is the same again for a minute: with it the pod answers the SYN of another connection.
#[test]
fn a_syn_ack_with_the_numbers_of_a_confirmed_connection_begins_another() {
    let talk = Conversation::tls(Mode::STRICT);
    let told = talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]);
    assert_eq!((told.act, told.end, told.last_reason), (Act::Pass, true, Reason::TLS));
    assert_eq!(talk.model.flow_entry(&talk.key), None);
    passes(talk.to_pod(ACK, CLIENT_ISN + 1, POD_ISN + 1, &[]));
    reset(talk.to_pod(ACK, CLIENT_ISN + 1, POD_ISN + 1, REQUEST), Reason::PLAINTEXT);
}

#[test]
fn a_syn_ack_of_the_client_is_no_handshake() {
    let talk = Conversation::new(Mode::STRICT);
    passes(talk.to_pod(SYN | ACK, CLIENT_ISN, POD_ISN + 1, &[]));
    assert_eq!(talk.model.half_open_entry(&talk.key), None);
    reset(talk.client(0, HELLO), Reason::MIDSTREAM);
}

#[test]
fn the_tuple_can_be_opened_again() {
    let mut talk = Conversation::tls(Mode::STRICT);
    talk.client_fin(11);
    let old = talk.flow();
    (talk.client_isn, talk.pod_isn, talk.received, talk.answered) =
        (CLIENT_ISN + 70_000, POD_ISN + 90_000, 0, 0);
    passes(talk.to_pod(SYN, talk.client_isn, 0, &[]));
    assert_eq!(talk.flow().flags, old.flags, "a SYN alone says nothing");
    passes(talk.pod_sends(SYN | ACK, talk.pod_isn, talk.client_isn + 1, &[]));
    assert_eq!(talk.model.flow_entry(&talk.key), None);
    // Not before the exact acknowledgement is there anything to judge by.
    reset(talk.to_pod(ACK, talk.client_isn + 1, POD_ISN + 1, REQUEST), Reason::MIDSTREAM);
    passes(talk.client(0, &[]));
    let new = talk.flow();
    assert_eq!((new.state, new.verdict, new.flags, new.client_mask), (FlowState::OPEN, Verdict::NONE, 0, 0));
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
}

/// A cookie opens a connection for several sequence numbers: only the place that is judged may, until the pod has answered.
#[test]
fn a_cookie_opens_at_the_judged_place_only() {
    let mut talk = Conversation::new(Mode::STRICT);
    talk.model.cookies = true;
    talk.to_pod(SYN, CLIENT_ISN, 0, &[]);
    talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]);
    for place in [-3, -1, 1, 3, 500, -70_000, 1 << 24] {
        waits(talk.client(place, &[]));
        waits(talk.client(place, REQUEST));
    }
    passes(talk.client(0, &[]));
    for place in [-3, -1, 1, 3, 500, -70_000, 1 << 24] {
        waits(talk.client(place, &[]));
        waits(talk.client(place, REQUEST));
    }
    allowed(talk.client(0, HELLO), Reason::TLS);
    for place in [-3, -1, 1, 3, 6, 11, 500, -70_000, 1 << 24] {
        waits(talk.client(place, &[]));
        waits(talk.client(place, REQUEST));
    }
    talk.pod_acks(11);
    passes(talk.client(11, REQUEST));
    // Without one nothing waits that comes in order.
    let talk = Conversation::open(Mode::STRICT);
    allowed(talk.client(0, HELLO), Reason::TLS);
    passes(talk.client(11, REQUEST));
    passes(talk.client(4000, REQUEST));
}

/// After a RST of the client an old third packet may make a socket of the cookie again.
#[test]
fn a_cookie_played_again_is_looked_at_again() {
    let judged = || {
        let mut talk = Conversation::new(Mode::STRICT);
        talk.model.cookies = true;
        talk.handshake();
        allowed(talk.client(0, HELLO), Reason::TLS);
        talk.received = 11;
        passes(talk.pod(0, SERVER_HELLO));
        talk.answered = 9;
        passes(talk.to_pod(RST, CLIENT_ISN + 77, 0, &[]));
        talk
    };
    // The connection that is known goes on, whatever was forged.
    let mut talk = judged();
    passes(talk.client_flagged(URG, 0, REQUEST));
    passes(talk.client(11, REQUEST));
    talk.received = 29;
    passes(talk.pod(9, REQUEST));
    assert_eq!(talk.flow().flags & flow_flags::LOOK_AGAIN, 0);
    // A new one has nothing to acknowledge yet: its first bytes are judged, at the known place only, and the reset fits it.
    let mut talk = judged();
    talk.answered = 0;
    passes(talk.client(0, &[]));
    waits(talk.client(11, REQUEST));
    let refused = talk.client(0, REQUEST);
    reset(refused, Reason::PLAINTEXT);
    assert_eq!(refused.numbers.pod_seq, CLIENT_ISN + 1);
    // That of the known one fits that one.
    let mut talk = judged();
    talk.model.set_mode(Mode::PERMISSIVE);
    passes(talk.client(11, REQUEST));
    assert_eq!(talk.flow().pod_ack, CLIENT_ISN + 12);
    // Without a cookie nothing can be played again, so that a forged RST has no effect at all.
    let talk = Conversation::tls(Mode::STRICT);
    let before = talk.flow();
    passes(talk.to_pod(RST, CLIENT_ISN + 77, 0, &[]));
    assert_eq!(talk.flow(), before);
}

#[test]
fn a_refused_tuple_can_be_opened_again() {
    let mut talk = Conversation::open(Mode::STRICT);
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
    (talk.client_isn, talk.pod_isn) = (CLIENT_ISN + 70_000, POD_ISN + 90_000);
    talk.handshake();
    allowed(talk.client(0, HELLO), Reason::TLS);
    talk.received = 11;
    passes(talk.pod(0, SERVER_HELLO));
}

#[test]
fn data_of_an_unknown_connection_is_midstream() {
    let talk = Conversation::new(Mode::STRICT);
    for flags in [ACK, ACK | FIN, 0] {
        passes(talk.to_pod(flags, CLIENT_ISN + 500, POD_ISN + 600, &[]));
        let decision = talk.to_pod(flags, CLIENT_ISN + 500, POD_ISN + 600, HELLO);
        reset(decision, Reason::MIDSTREAM);
        let numbers = (
            decision.numbers.client_seq,
            decision.numbers.pod_seq,
            decision.numbers.pod_ack,
            decision.numbers.client_ack,
        );
        assert_eq!(numbers, (POD_ISN + 600, CLIENT_ISN + 500, POD_ISN + 600, 0));
    }
    let decision = talk.pod_sends(ACK, POD_ISN + 600, CLIENT_ISN + 500, SERVER_HELLO);
    reset(decision, Reason::MIDSTREAM);
    let numbers = (decision.numbers.client_seq, decision.numbers.pod_seq, decision.numbers.pod_ack);
    assert_eq!(numbers, (POD_ISN + 600, CLIENT_ISN + 500, POD_ISN + 600));
    for mode in [Mode::PERMISSIVE, Mode::DISABLE] {
        let talk = Conversation::new(mode);
        passes(talk.client(500, REQUEST));
        passes(talk.pod(500, REQUEST));
    }
}

#[test]
fn unknown_connections_pass_while_the_endpoint_is_learned_or_outside_the_mesh() {
    for flag in [endpoint_flags::LEARNING, endpoint_flags::NOT_MESHED] {
        let mut talk = Conversation::new(Mode::STRICT);
        talk.model.endpoint.flags |= flag;
        passes(talk.client(500, REQUEST));
        passes(talk.pod(500, REQUEST));
    }
    // New connections are judged even while the endpoint is learned.
    let mut talk = Conversation::new(Mode::STRICT);
    talk.model.endpoint.flags |= endpoint_flags::LEARNING;
    talk.handshake();
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
    let mut talk = Conversation::new(Mode::STRICT);
    talk.model.endpoint.flags |= endpoint_flags::NOT_MESHED;
    talk.handshake();
    passes(talk.client(0, REQUEST));
    assert_eq!(talk.model.flow_entry(&talk.key), None);
}

#[test]
fn a_full_table_lets_no_data_through() {
    let full = |mode| {
        let mut talk = Conversation::new(mode);
        talk.model.capacity = 0;
        talk
    };
    let mut talk = full(Mode::STRICT);
    talk.handshake();
    let decision = talk.client(0, HELLO);
    assert_eq!(
        (decision.act, decision.verdict, decision.reason),
        (Act::Drop, Verdict::DROP, Reason::UNDECIDED)
    );
    // The half-open entry is still there for the next try.
    talk.model.capacity = 1;
    allowed(talk.client(0, HELLO), Reason::TLS);
    let talk = full(Mode::STRICT);
    talk.handshake();
    assert_eq!(talk.pod(0, REQUEST).reason, Reason::UNDECIDED);
    let mut talk = full(Mode::STRICT);
    talk.model.settings.enforcement = Enforcement::AUDIT;
    talk.handshake();
    assert_eq!((talk.client(0, HELLO).act, talk.client(0, HELLO).verdict), (Act::Pass, Verdict::WOULD_RESET));
    let talk = full(Mode::PERMISSIVE);
    talk.handshake();
    passes(talk.client(0, REQUEST));
}

/// Only a SYN of an unknown pod is refused, so that what is open goes on.
#[test]
fn new_connections_to_an_unknown_pod() {
    let model = Model::new(Mode::STRICT);
    let segment = |flags, payload_len| crate::tcp::Segment { seq: u32::MAX, ack: 0, payload_len, flags };
    let decision = super::super::unknown_pod(&model, &segment(SYN, 0));
    reset(decision, Reason::UNKNOWN_POD);
    assert_eq!(decision.numbers.client_ack, 0, "one past the SYN, wrapped");
    assert_eq!(super::super::unknown_pod(&model, &segment(SYN, 5)).numbers.client_ack, 5);
    for flags in [ACK, SYN | ACK, RST, SYN | RST, FIN | ACK, 0] {
        assert_eq!(super::super::unknown_pod(&model, &segment(flags, 9)), Decision::PASS);
    }
}

/// Under SYN cookies the pod keeps nothing of a handshake, so that two can be open for one tuple: only the one whose numbers
/// are known here may become a connection.
#[test]
fn a_second_handshake_of_one_tuple_speaks_for_no_other() {
    let shadow = CLIENT_ISN.wrapping_sub(1000);
    for pod_isn in [POD_ISN.wrapping_sub(1000), POD_ISN] {
        let talk = Conversation::new(Mode::STRICT);
        talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]);
        talk.pod_sends(SYN | ACK, pod_isn, shadow + 1, &[]);
        // The first handshake is completed, with and without data.
        waits(talk.to_pod(ACK, CLIENT_ISN + 1, POD_ISN + 1, &[]));
        let data = talk.to_pod(ACK, CLIENT_ISN + 1, POD_ISN + 1, REQUEST);
        assert_ne!(data.act, Act::Pass, "{data:?}");
        // The second is, by a packet that the pod discards; so is its hello.
        passes(talk.to_pod(ACK, shadow + 1, pod_isn + 1, &[]));
        allowed(talk.to_pod(ACK, shadow + 1, pod_isn + 1, HELLO), Reason::TLS);
        if pod_isn != POD_ISN {
            waits(talk.to_pod(ACK, CLIENT_ISN + 1, POD_ISN + 1, &[]));
            waits(talk.to_pod(ACK, CLIENT_ISN + 1, POD_ISN + 1, REQUEST));
        }
        // Once the pod has answered, its socket is the one of these numbers, and the client may acknowledge what came.
        passes(talk.pod_sends(ACK, pod_isn + 1, shadow + 1, &[]));
        passes(talk.to_pod(ACK, shadow + 1, pod_isn + 9, &[]));
    }
}

/// A first segment that overtakes the one before it waits for it; it does not make the flow.
#[test]
fn a_segment_that_overtakes_the_first_one_makes_no_flow() {
    let talk = Conversation::new(Mode::STRICT);
    talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]);
    waits(talk.client(6, HELLO));
    assert_eq!(talk.model.flow_entry(&talk.key), None);
    allowed(talk.client(0, HELLO), Reason::TLS);
    passes(talk.client(6, HELLO));
}

/// Under SYN cookies the third packet of a connection that has ended makes another one.
#[test]
fn a_handshake_played_again_after_a_reset_is_not_spoken_for() {
    let mut talk = Conversation::new(Mode::STRICT);
    talk.model.cookies = true;
    talk.handshake();
    let len = u32::try_from(HELLO.len()).expect("small");
    allowed(talk.client(0, HELLO), Reason::TLS);
    passes(talk.pod_sends(ACK, POD_ISN + 1, CLIENT_ISN + 1 + len, &[]));
    passes(talk.pod(0, SERVER_HELLO));
    // What the pod has acknowledged is its stack's affair while the connection lives, a forged RST or not.
    passes(talk.to_pod(RST, CLIENT_ISN + 9, 0, &[]));
    talk.answered = 9;
    passes(talk.client(len.cast_signed(), b"more"));
    talk.answered = 0;
    passes(talk.to_pod(RST, CLIENT_ISN + 1 + len, 0, &[]));
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
}

/// A tuple that the pod uses for a connection of its own is half open no more, and so what comes late of that one, once it is over,
/// is known.
#[test]
fn a_half_open_tuple_that_the_pod_uses_itself_is_its_own() {
    let talk = Conversation::new(Mode::STRICT);
    passes(talk.to_pod(SYN, CLIENT_ISN, 0, &[]));
    passes(talk.pod_sends(SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]));
    assert!(talk.model.half_open_entry(&talk.key).is_some());
    passes(talk.pod_sends(SYN, 70, 0, &[]));
    assert_eq!(talk.model.half_open_entry(&talk.key), None);
    passes(talk.pod_sends(FIN | ACK, 71, 900, &[]));
    passes(talk.to_pod(FIN | ACK, 900, 72, &[]));
    assert!(talk.model.outbound_ended_entry(&talk.key).is_some());
    passes(talk.to_pod(ACK, 899, 72, b"sent again"));
}

/// A tuple that was given a cookie stays one of a cookie, through an ordinary handshake and a flow; and an answer that acknowledges
/// no byte of the client does not say that what was judged has a socket.
#[test]
fn a_tuple_remembers_its_cookie() {
    let mut talk = Conversation::new(Mode::STRICT);
    talk.model.cookies = true;
    passes(talk.pod_sends(SYN | ACK, 70, CLIENT_ISN + 12, &[]));
    talk.model.cookies = false;
    talk.handshake();
    allowed(talk.client(0, HELLO), Reason::TLS);
    passes(talk.pod_sends(ACK, POD_ISN + 1, CLIENT_ISN + 1, &[]));
    waits(talk.to_pod(ACK, CLIENT_ISN + 12, 71, REQUEST));
    passes(talk.pod_sends(SYN | ACK, POD_ISN + 900, CLIENT_ISN + 901, &[]));
    let again = talk.model.half_open_entry(&talk.key).expect("a half-open connection");
    assert_eq!(again.flags, crate::map::half_open_flags::COOKIE);
}
