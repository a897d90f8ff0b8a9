//! What the bytes of a flow say under STRICT.

use super::conversation::{REQUEST, allowed, passes, reset, waits};
use super::{CLIENT_ISN, Conversation, HELLO, POD_ISN, SERVER_HELLO};
use crate::datapath::Act;
use crate::map::{FlowState, flow_flags};
use crate::tcp::{ACK, FIN, URG};
use crate::{Mode, Reason, Verdict};

const SECOND: u64 = 1_000_000_000;

#[test]
fn tls_passes_in_one_piece_and_byte_by_byte() {
    for size in 1..=HELLO.len() {
        let mut talk = Conversation::open(Mode::STRICT);
        let mut offset = 0;
        for piece in HELLO.chunks(size) {
            let decision = talk.client(offset, piece);
            let end = offset + i32::try_from(piece.len()).expect("a few bytes");
            if offset < 6 && end >= 6 {
                allowed(decision, Reason::TLS);
            } else {
                passes(decision);
            }
            offset = end;
            passes(talk.pod_acks(offset.cast_unsigned()));
        }
        for (offset, byte) in (0..).zip(SERVER_HELLO) {
            passes(talk.pod(offset, &[*byte]));
        }
        let flow = talk.flow();
        assert_eq!(
            (flow.state, flow.flags),
            (FlowState::TLS, flow_flags::PREFIX_ACKED | flow_flags::SETTLED | flow_flags::PROTECTED)
        );
        assert_eq!((flow.bytes_to_pod, flow.bytes_from_pod), (11, 9));
    }
}

#[test]
fn plaintext_is_reset_at_its_first_wrong_byte() {
    for wrong in 0..6 {
        let mut bytes = HELLO.to_vec();
        bytes[wrong] = if wrong == 4 { 0 } else { 0xff };
        if wrong == 4 {
            bytes[3] = 0;
        }
        let talk = Conversation::open(Mode::STRICT);
        for (offset, byte) in (0..).zip(&bytes[..wrong]) {
            passes(talk.client(offset, &[*byte]));
        }
        reset(talk.client(i32::try_from(wrong).expect("below 6"), &bytes[wrong..=wrong]), Reason::PLAINTEXT);
        let talk = Conversation::open(Mode::STRICT);
        reset(talk.client(0, &bytes), Reason::PLAINTEXT);
    }
}

/// One connection is counted and reported once, and what it still sends is refused for the same reason.
#[test]
fn a_refused_connection_stays_refused() {
    let talk = Conversation::open(Mode::STRICT);
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
    for decision in [
        talk.client(0, REQUEST),
        talk.client(18, HELLO),
        talk.client(0, HELLO),
        talk.pod(0, SERVER_HELLO),
        talk.client(18, &[]),
    ] {
        assert_eq!(
            (decision.act, decision.verdict, decision.reason),
            (Act::Reset, Verdict::RESET, Reason::PLAINTEXT)
        );
        assert!(!decision.report);
    }
    assert_eq!(talk.flow().bytes_to_pod, 0);
    assert_eq!((talk.flow().packets_to_pod, talk.flow().packets_from_pod), (6, 1));
}

#[test]
fn resets_carry_the_numbers_that_each_end_expects() {
    let mut talk = Conversation::open(Mode::STRICT);
    passes(talk.client(0, &HELLO[..3]));
    talk.pod_acks(3);
    let decision = talk.client(3, b"XYZ");
    reset(decision, Reason::PLAINTEXT);
    let numbers = (
        decision.numbers.client_seq,
        decision.numbers.pod_seq,
        decision.numbers.pod_ack,
        decision.numbers.client_ack,
    );
    assert_eq!(numbers, (POD_ISN + 1, CLIENT_ISN + 4, POD_ISN + 1, 0));
    // A copy that begins before what the pod expects: the pod takes only its own next number.
    let mut talk = Conversation::open(Mode::STRICT);
    passes(talk.client(0, &HELLO[..3]));
    talk.pod_acks(3);
    let decision = talk.client(2, b"\x01XYZ");
    assert_eq!((decision.act, decision.numbers.pod_seq), (Act::Reset, CLIENT_ISN + 4));
    // The answer of the pod decides.
    let mut talk = Conversation::open(Mode::STRICT);
    talk.client(0, HELLO);
    talk.received = 11;
    let decision = talk.pod(0, b"HTTP/1.1 200 OK");
    reset(decision, Reason::SERVER_NOT_TLS);
    assert_eq!(
        (decision.numbers.client_seq, decision.numbers.pod_seq, decision.numbers.pod_ack),
        (POD_ISN + 1, CLIENT_ISN + 12, POD_ISN + 1)
    );
}

#[test]
fn what_comes_early_waits_under_strict_only() {
    for gap in 1..40 {
        let talk = Conversation::open(Mode::STRICT);
        waits(talk.client(gap, REQUEST));
        assert_eq!((talk.flow().client_mask, talk.flow().bytes_to_pod), (0, 0));
        allowed(talk.client(0, HELLO), Reason::TLS);
        for mode in [Mode::PERMISSIVE, Mode::DISABLE] {
            let talk = Conversation::open(mode);
            assert_eq!(talk.client(gap, REQUEST).act, Act::Pass);
        }
    }
    let talk = Conversation::open(Mode::STRICT);
    passes(talk.client(0, &HELLO[..2]));
    waits(talk.client(3, &HELLO[3..]));
    passes(talk.client(2, &HELLO[2..3]));
    allowed(talk.client(3, &HELLO[3..]), Reason::TLS);
    let mut talk = Conversation::open(Mode::STRICT);
    talk.model.settings.enforcement = crate::settings::Enforcement::AUDIT;
    passes(talk.client(8, &HELLO[8..]));
    allowed(talk.client(0, HELLO), Reason::TLS);
}

/// Pieces in every order, each sent again until the datapath took it: TLS arrives, plaintext does not.
#[test]
fn every_order_of_pieces_ends_in_the_same_verdict() {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for mode in [Mode::STRICT, Mode::PERMISSIVE] {
        for stream in [HELLO, REQUEST] {
            for order in orders {
                let talk = Conversation::open(mode);
                let pieces = [(0, &stream[..2]), (2, &stream[2..5]), (5, &stream[5..])];
                for _ in 0..3 {
                    for index in order {
                        let (offset, piece) = pieces[index];
                        talk.client(offset, piece);
                    }
                }
                let flow = talk.flow();
                let expected = match (stream == HELLO, mode) {
                    (true, _) => (Verdict::ALLOW, Reason::TLS),
                    (false, Mode::STRICT) => (Verdict::RESET, Reason::PLAINTEXT),
                    (false, _) => (Verdict::ALLOW, Reason::PLAINTEXT_PERMITTED),
                };
                assert_eq!((flow.verdict, flow.reason), expected, "{mode} {order:?}");
            }
        }
    }
}

/// Until the pod has acknowledged a byte, a first copy may have been discarded by its stack.
#[test]
fn a_changed_copy_is_refused_until_the_pod_acknowledged_the_byte() {
    for (offset, byte, reason) in [
        (0, b'G', Reason::PLAINTEXT),
        (1, 2, Reason::PLAINTEXT),
        (2, 3, Reason::MALFORMED),
        (3, 3, Reason::MALFORMED),
        (4, 9, Reason::MALFORMED),
        (5, 2, Reason::PLAINTEXT),
    ] {
        let talk = Conversation::open(Mode::STRICT);
        allowed(talk.client(0, HELLO), Reason::TLS);
        reset(talk.client(offset, &[byte]), reason);

        let mut talk = Conversation::open(Mode::STRICT);
        allowed(talk.client(0, HELLO), Reason::TLS);
        // All bytes before it are acknowledged, it is not.
        passes(talk.pod_acks(offset.cast_unsigned()));
        reset(talk.client(offset, &[byte]), reason);

        let mut talk = Conversation::open(Mode::STRICT);
        allowed(talk.client(0, HELLO), Reason::TLS);
        passes(talk.pod_acks(offset.cast_unsigned() + 1));
        passes(talk.client(offset, &[byte]));
        assert_eq!(talk.flow().client_prefix, HELLO[..6], "what counts is what the pod took");
    }
}

#[test]
fn a_changed_copy_of_an_incomplete_prefix_is_refused() {
    let talk = Conversation::open(Mode::STRICT);
    passes(talk.client(0, &HELLO[..4]));
    passes(talk.client(0, &HELLO[..4]));
    reset(talk.client(2, &[0]), Reason::MALFORMED);
}

/// The pod answered, so it read a hello; as long as it did not acknowledge all of it a copy may still replace bytes.
#[test]
fn a_changed_copy_after_the_answer_is_refused_when_it_was_not_acknowledged() {
    let mut talk = Conversation::open(Mode::STRICT);
    allowed(talk.client(0, HELLO), Reason::TLS);
    talk.received = 0;
    passes(talk.pod(0, SERVER_HELLO));
    assert_eq!(talk.flow().state, FlowState::TLS);
    reset(talk.client(0, REQUEST), Reason::PLAINTEXT);
}

/// An old stack probes an idle connection with one byte of garbage that the other end has acknowledged.
#[test]
fn keepalive_garbage_survives() {
    let mut talk = Conversation::open(Mode::STRICT);
    passes(talk.client(-1, &[0]));
    passes(talk.pod(-1, &[0]));
    passes(talk.client(0, &HELLO[..3]));
    passes(talk.pod_acks(3));
    passes(talk.client(2, &[0xff]));
    passes(talk.client(3, &HELLO[3..5]));
    passes(talk.pod_acks(5));
    allowed(talk.client(5, &HELLO[5..]), Reason::TLS);
    talk.received = 11;
    passes(talk.pod(0, SERVER_HELLO));
    passes(talk.client(10, &[0]));
    passes(talk.pod(8, &[0]));
    assert_eq!(talk.flow().verdict, Verdict::ALLOW);
}

#[test]
fn numbers_wrap_within_the_judged_bytes() {
    for back in 0..12_u32 {
        for (stream, verdict) in [(HELLO, Verdict::ALLOW), (REQUEST, Verdict::RESET)] {
            let mut talk =
                Conversation::numbered(Mode::STRICT, 0_u32.wrapping_sub(back), 0_u32.wrapping_sub(back / 2));
            talk.handshake();
            for (offset, byte) in (0..).zip(stream) {
                let decision = talk.client(offset, &[*byte]);
                if decision.act == Act::Pass {
                    talk.pod_acks(offset.cast_unsigned() + 1);
                }
            }
            assert_eq!(talk.flow().verdict, verdict, "back {back}");
            if verdict == Verdict::ALLOW {
                passes(talk.pod(0, SERVER_HELLO));
                assert_eq!(talk.flow().state, FlowState::TLS);
            }
        }
    }
}

/// After 2^32 bytes the sequence numbers of the first bytes come again, for bytes that are not the first.
#[test]
fn numbers_come_again_after_four_gigabytes() {
    for flip in [false, true] {
        let mut talk = Conversation::tls(Mode::STRICT);
        for quarter in 1..=4_u32 {
            talk.received = quarter.wrapping_mul(1 << 30);
            passes(talk.pod(9, &[]));
        }
        talk.answered = 0;
        if flip {
            talk.model.set_mode(Mode::PERMISSIVE);
            passes(talk.client(11, b"x"));
            talk.model.set_mode(Mode::STRICT);
        }
        passes(talk.client(0, b"not a hello"));
        passes(talk.pod(0, b"nor an answer"));
        assert_eq!(talk.flow().verdict, Verdict::ALLOW);
    }
}

#[test]
fn urgent_data_in_the_first_bytes_is_refused() {
    let talk = Conversation::open(Mode::STRICT);
    reset(talk.client_flagged(URG, 0, HELLO), Reason::MALFORMED);
    let talk = Conversation::open(Mode::STRICT);
    passes(talk.client(0, &HELLO[..3]));
    reset(talk.client_flagged(URG, 3, &HELLO[3..]), Reason::MALFORMED);
    let talk = Conversation::open(Mode::STRICT);
    allowed(talk.client(0, HELLO), Reason::TLS);
    reset(talk.client_flagged(URG, 0, HELLO), Reason::MALFORMED);
    // Later urgent data is the application's own matter.
    let talk = Conversation::tls(Mode::STRICT);
    passes(talk.client_flagged(URG, 11, b"!"));
}

#[test]
fn an_end_before_the_sixth_byte_is_undecided() {
    for sent in 1..6_usize {
        let end = i32::try_from(sent).expect("below 6");
        let talk = Conversation::open(Mode::STRICT);
        passes(talk.client(0, &HELLO[..sent]));
        reset(talk.client_fin(end), Reason::UNDECIDED);
        let talk = Conversation::open(Mode::STRICT);
        reset(talk.client_flagged(FIN, 0, &HELLO[..sent]), Reason::UNDECIDED);
        // A FIN behind bytes that have not come is not the end yet.
        let talk = Conversation::open(Mode::STRICT);
        passes(talk.client(0, &HELLO[..sent]));
        passes(talk.client_fin(end + 3));
        assert_eq!(talk.flow().state, FlowState::OPEN);
    }
    let talk = Conversation::open(Mode::STRICT);
    passes(talk.client_fin(0));
    let talk = Conversation::open(Mode::STRICT);
    allowed(talk.client_flagged(FIN, 0, &HELLO[..6]), Reason::TLS);
    let talk = Conversation::open(Mode::PERMISSIVE);
    allowed(talk.client_flagged(FIN, 0, &HELLO[..2]), Reason::PLAINTEXT_PERMITTED);
}

#[test]
fn the_time_from_the_first_byte_to_the_sixth_is_bounded() {
    let talk = Conversation::open(Mode::STRICT);
    talk.model.now_ns.set(100 * SECOND);
    passes(talk.client(0, &HELLO[..1]));
    talk.model.now_ns.set(110 * SECOND);
    passes(talk.client(1, &HELLO[1..2]));
    talk.model.now_ns.set(110 * SECOND + 2);
    reset(talk.client(2, &HELLO[2..3]), Reason::UNDECIDED);
    // Silence before the first byte costs nothing, and the sixth byte ends the count.
    let talk = Conversation::open(Mode::STRICT);
    talk.model.now_ns.set(500 * SECOND);
    allowed(talk.client(0, HELLO), Reason::TLS);
    talk.model.now_ns.set(900 * SECOND);
    passes(talk.client(11, HELLO));
    // A segment that comes early does not stop the clock.
    let talk = Conversation::open(Mode::STRICT);
    passes(talk.client(0, &HELLO[..1]));
    talk.model.now_ns.set(500 * SECOND);
    reset(talk.client(7, REQUEST), Reason::UNDECIDED);
}

#[test]
fn the_server_speaks_first() {
    let talk = Conversation::open(Mode::STRICT);
    reset(talk.pod(0, b"220 mail ESMTP\r\n"), Reason::SERVER_FIRST);
    // An answer in TLS before the hello is complete is one too.
    let talk = Conversation::open(Mode::STRICT);
    passes(talk.client(0, &HELLO[..5]));
    reset(talk.pod(0, SERVER_HELLO), Reason::SERVER_FIRST);
    // Before the client's acknowledgement came by.
    let talk = Conversation::new(Mode::STRICT);
    talk.to_pod(crate::tcp::SYN, CLIENT_ISN, 0, &[]);
    talk.pod_sends(crate::tcp::SYN | ACK, POD_ISN, CLIENT_ISN + 1, &[]);
    reset(talk.pod(0, b"220 mail ESMTP\r\n"), Reason::SERVER_FIRST);
    // What was lost on its way here is no reason to let the rest out.
    let talk = Conversation::open(Mode::STRICT);
    reset(talk.pod(1400, b"more"), Reason::SERVER_FIRST);
    for mode in [Mode::PERMISSIVE, Mode::DISABLE] {
        let talk = Conversation::open(mode);
        let reason = if mode == Mode::DISABLE { Reason::DISABLED } else { Reason::PLAINTEXT_PERMITTED };
        allowed(talk.pod(0, b"220 mail ESMTP\r\n"), reason);
    }
}

#[test]
fn the_answer_must_be_tls_too() {
    let alert: &[u8] = &[0x15, 3, 1, 0, 2, 2, 40];
    for (answer, fits) in
        [(SERVER_HELLO, true), (alert, true), (&b"HTTP/"[..], false), (&[0x17, 3, 3, 0, 9], false)]
    {
        for size in 1..=5 {
            let mut talk = Conversation::open(Mode::STRICT);
            allowed(talk.client(0, HELLO), Reason::TLS);
            talk.received = 11;
            let decisions: std::vec::Vec<_> = answer
                .chunks(size)
                .scan(0, |offset, piece| {
                    let decision = talk.pod(*offset, piece);
                    *offset += i32::try_from(piece.len()).expect("a few bytes");
                    Some(decision)
                })
                .collect();
            if fits {
                decisions.into_iter().for_each(passes);
                assert_eq!(talk.flow().state, FlowState::TLS);
            } else {
                reset(decisions[0], Reason::SERVER_NOT_TLS);
                assert!(decisions.iter().all(|decision| decision.act == Act::Reset));
            }
        }
    }
    // The wrong byte is in the second piece.
    let mut talk = Conversation::open(Mode::STRICT);
    allowed(talk.client(0, HELLO), Reason::TLS);
    talk.received = 11;
    passes(talk.pod(0, &SERVER_HELLO[..1]));
    waits(talk.pod(3, &SERVER_HELLO[3..]));
    waits(talk.pod(5, &SERVER_HELLO[5..]));
    reset(talk.pod(1, b"TTP/1.1"), Reason::SERVER_NOT_TLS);
    // A permitted flow does not wait for its answer.
    let talk = Conversation::open(Mode::PERMISSIVE);
    allowed(talk.client(0, HELLO), Reason::TLS);
    passes(talk.pod(3, b"abc"));
    allowed(talk.pod(0, b"HTTP/"), Reason::PLAINTEXT_PERMITTED);
}
