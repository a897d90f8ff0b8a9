//! The packets that the programs make: resets for both ends, and SYNs without their data.

use std::net::IpAddr;

use enforcer_common::map::{FlowKey, FlowState};
use enforcer_common::settings::{Action, Enforcement, Settings, UnknownPods};
use enforcer_common::tcp::{ACK, RST, SYN};
use enforcer_common::{Direction, Mode, Reason, Verdict};

use super::frame::{CLIENT_MAC, Frame, POD_MAC, Seen, read};
use super::rig::{NEXT, REDIRECT, Rig, SHOT, v4, v6, with_rig};

const CLIENT_ISN: u32 = 0xffff_fff0;
const POD_ISN: u32 = 0x7fff_fffe;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: frontend\r\n\r\n";
const HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

/// Makes packets of one kind for a connection.
type Shape = fn(Frame) -> Frame;

/// Every kind of packet whose TCP header the programs find: a name, the family, and what is special.
fn shapes() -> Vec<(&'static str, bool, Shape)> {
    vec![
        ("IPv4", false, |frame| frame),
        ("IPv4 with time stamps", false, |frame| Frame {
            options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            ..frame
        }),
        ("IPv4 with options", false, |frame| Frame { ip_options: vec![148, 4, 0, 0, 1, 1, 1, 0], ..frame }),
        ("IPv4 with all options", false, |frame| Frame {
            ip_options: vec![1; 40],
            options: vec![1; 40],
            ..frame
        }),
        ("IPv4, padded", false, |frame| Frame { padding: 6, ..frame }),
        ("IPv4 in a VLAN", false, |frame| Frame { tags: vec![(0x8100, 42)], ..frame }),
        ("IPv4 in two VLANs", false, |frame| Frame { tags: vec![(0x88a8, 7), (0x8100, 42)], ..frame }),
        ("IPv6", true, |frame| frame),
        ("IPv6 in a VLAN", true, |frame| Frame { tags: vec![(0x8100, 42)], ..frame }),
        ("IPv6 with hop-by-hop options", true, |frame| Frame {
            extensions: vec![(0, vec![0, 1, 4, 0, 0, 0, 0])],
            ..frame
        }),
        ("IPv6 with extension headers", true, |frame| {
            let mut long = vec![2];
            long.resize(23, 0);
            let done = vec![0, 0, 0, 1, 4, 0, 0];
            Frame { extensions: vec![(0, vec![0, 1, 4, 0, 0, 0, 0]), (43, done), (60, long)], ..frame }
        }),
    ]
}

/// What a reset must look like; `like`: the packet it answers.
fn expected(
    like: &Seen,
    from: (&IpAddr, u16),
    to: (&IpAddr, u16),
    macs: [[u8; 6]; 2],
    seq: u32,
    ack: u32,
) -> Seen {
    Seen {
        macs,
        tags: like.tags.clone(),
        source: *from.0,
        destination: *to.0,
        ttl: 64,
        between: like.between.clone(),
        ports: [from.1, to.1],
        seq,
        ack,
        flags: if ack == 0 { RST } else { RST | ACK },
        options: Vec::new(),
        payload: Vec::new(),
    }
}

/// Holds what came of one refused packet against both exact resets.
pub(super) fn check_resets(
    rig: &mut Rig,
    key: FlowKey,
    offending: &Frame,
    client_seq: u32,
    pod_seq: u32,
    pod_ack: u32,
) {
    rig.sent();
    let outcome = rig.run(offending);
    let (client, pod) = (IpAddr::from(key.client), IpAddr::from(key.pod));
    let like = read(&Frame { padding: 0, ..offending.clone() }.bytes()).expect("TCP");
    let (client_end, pod_end) = ((&client, key.client_port), (&pod, key.pod_port));
    let mut to_client = expected(&like, pod_end, client_end, [CLIENT_MAC, POD_MAC], client_seq, 0);
    let mut to_pod = expected(&like, client_end, pod_end, [POD_MAC, CLIENT_MAC], pod_seq, pod_ack);
    // The receiving end of the wire takes the outer tag off before anybody sees the frame.
    let sent = if rig.inside.is_some() { &mut to_client } else { &mut to_pod };
    sent.tags = std::mem::take(&mut sent.tags).into_iter().skip(1).collect();
    let leaves = (offending.direction == Direction::TO_POD) != rig.inside.is_some();
    assert_eq!(outcome.code, if leaves { REDIRECT } else { NEXT });
    let (left, sent) = (read(&outcome.frame).expect("TCP"), rig.sent());
    let found = if rig.inside.is_some() { (left, sent) } else { (sent[0].clone(), vec![left]) };
    assert_eq!(found, (to_pod, vec![to_client]), "to the pod, and to the client");
}

#[test]
fn both_ends_get_an_exact_reset() {
    with_rig(|rig| {
        for (number, (name, is_v6, shape)) in (0..).zip(shapes()) {
            println!("{name}");
            let key = if is_v6 { v6(20_000 + number) } else { v4(20_000 + number) };
            rig.list(key.pod, Mode::STRICT);
            rig.handshake(key, CLIENT_ISN, POD_ISN);
            let frame = shape(Frame::new(
                key,
                Direction::TO_POD,
                ACK,
                CLIENT_ISN.wrapping_add(1),
                POD_ISN.wrapping_add(1),
                REQUEST,
            ));
            check_resets(
                rig,
                key,
                &frame,
                POD_ISN.wrapping_add(1),
                CLIENT_ISN.wrapping_add(1),
                POD_ISN.wrapping_add(1),
            );
            let flow = rig.flow(&key).expect("a flow").0;
            assert_eq!(
                (flow.state, flow.verdict, flow.reason),
                (FlowState::PLAINTEXT, Verdict::RESET, Reason::PLAINTEXT)
            );
            // From the pod, whose acknowledgement is the number that it expects next.
            let (seq, ack) = (POD_ISN.wrapping_add(1), CLIENT_ISN.wrapping_add(30));
            let frame = shape(Frame::new(key, Direction::FROM_POD, ACK, seq, ack, b"HTTP/1.1 200 OK\r\n"));
            check_resets(rig, key, &frame, seq, ack, seq);
        }
    });
}

/// Payloads of every length, odd ones included: the checksum of the reset owes nothing to what was cut off.
#[test]
fn resets_for_payloads_of_every_length() {
    with_rig(|rig| {
        rig.list(v4(1).pod, Mode::STRICT);
        for len in (1..70).chain([512, 1399, 1400, 1447, 1448]) {
            let key = v4(1000 + len);
            rig.handshake(key, CLIENT_ISN, POD_ISN);
            let payload = vec![b'x'; usize::from(len)];
            let (seq, ack) = (CLIENT_ISN.wrapping_add(1), POD_ISN.wrapping_add(1));
            let frame = Frame::new(key, Direction::TO_POD, ACK, seq, ack, &payload);
            check_resets(rig, key, &frame, ack, seq, ack);
        }
    });
}

/// An overlapping segment: the RST to the pod carries what the pod acknowledged last, not the segment's own number.
#[test]
fn the_pod_is_reset_at_its_own_next_number() {
    with_rig(|rig| {
        let key = v4(30_000);
        rig.list(key.pod, Mode::STRICT);
        rig.handshake(key, CLIENT_ISN, POD_ISN);
        let (start, ack) = (CLIENT_ISN.wrapping_add(1), POD_ISN.wrapping_add(1));
        assert_eq!(rig.run(&Frame::new(key, Direction::TO_POD, ACK, start, ack, &HELLO[..3])).code, NEXT);
        assert_eq!(
            rig.run(&Frame::new(key, Direction::FROM_POD, ACK, ack, start.wrapping_add(3), &[])).code,
            NEXT
        );
        let frame = Frame::new(key, Direction::TO_POD, ACK, start.wrapping_add(1), ack, b"\x03\x01GET");
        check_resets(rig, key, &frame, ack, start.wrapping_add(3), ack);
    });
}

/// A client in SYN-SENT takes a RST only for what it acknowledges.
#[test]
fn a_syn_to_an_unknown_pod_is_answered() {
    with_rig(|rig| {
        let settings = rig.settings.get().expect("settings");
        for (number, payload) in (0..).zip([&b""[..], b"early data"]) {
            for (is_v6, key) in [(false, v4(31_000 + number)), (true, v6(31_000 + number))] {
                rig.set(Settings { unknown_pods: UnknownPods::ALLOW, ..settings });
                let frame = Frame::new(key, Direction::TO_POD, SYN, CLIENT_ISN, 0, payload);
                assert_eq!(rig.run(&frame).code, NEXT, "v6: {is_v6}");
                rig.set(Settings { unknown_pods: UnknownPods::STRICT, ..settings });
                let outcome = rig.run(&frame);
                assert_eq!(outcome.code, REDIRECT);
                let seen = read(&outcome.frame).expect("TCP");
                let taken =
                    CLIENT_ISN.wrapping_add(1).wrapping_add(u32::try_from(payload.len()).expect("short"));
                assert_eq!((seen.flags, seen.seq, seen.ack), (RST | ACK, 0, taken));
                assert_eq!((seen.source, seen.ports), (key.pod.into(), [8080, key.client_port]));
                let later = Frame::new(key, Direction::TO_POD, ACK, CLIENT_ISN, 7, REQUEST);
                assert_eq!(rig.run(&later).code, NEXT);
            }
        }
        assert_eq!(rig.counter(Verdict::RESET, Reason::UNKNOWN_POD, Direction::TO_POD).connections, 4);
    });
}

#[test]
fn the_data_of_a_syn_is_cut_off() {
    with_rig(|rig| {
        let options = vec![2, 4, 5, 0xb4, 4, 2, 8, 10, 9, 9, 9, 9, 0, 0, 0, 0, 1, 3, 3, 7];
        for (number, (name, is_v6, shape)) in (0..).zip(shapes()) {
            let key = if is_v6 { v6(32_000 + number) } else { v4(32_000 + number) };
            rig.list(key.pod, Mode::STRICT);
            for payload in [&b"G"[..], REQUEST] {
                for options in [Vec::new(), options.clone()] {
                    let plain = Frame::new(key, Direction::TO_POD, SYN, CLIENT_ISN, 0, payload);
                    let frame = shape(Frame { options, ..plain });
                    let outcome = rig.run(&frame);
                    assert_eq!(outcome.code, NEXT, "{name}");
                    let bare = Frame { payload: Vec::new(), padding: 0, ..frame };
                    assert_eq!(read(&outcome.frame), read(&bare.bytes()), "{name}");
                }
            }
        }
        let trimmed = rig.counter(Verdict::WAIT, Reason::SYN_DATA_TRIMMED, Direction::TO_POD);
        assert_eq!(trimmed.packets, 4 * u64::try_from(shapes().len()).expect("a few"));
        assert_eq!(trimmed.connections, 0);
    });
}

#[test]
fn the_action_drop_and_the_limit_of_resets_answer_nobody() {
    with_rig(|rig| {
        let key = v4(33_000);
        rig.list(key.pod, Mode::STRICT);
        let settings = rig.settings.get().expect("settings");
        let frame = Frame::new(key, Direction::TO_POD, ACK, 5, 6, REQUEST);
        rig.set(Settings { action: Action::DROP, ..settings });
        assert_eq!(rig.run(&frame).code, SHOT);
        assert_eq!(rig.counter(Verdict::DROP, Reason::MIDSTREAM, Direction::TO_POD).packets, 1);
        rig.set(Settings { resets_per_second: 0, ..settings });
        assert_eq!(rig.run(&frame).code, SHOT);
        assert_eq!(rig.counter(Verdict::DROP, Reason::RESET_LIMIT, Direction::TO_POD).packets, 1);
        assert_eq!(rig.sent(), []);
        rig.set(Settings { enforcement: Enforcement::AUDIT, ..settings });
        let outcome = rig.run(&frame);
        assert_eq!((outcome.code, outcome.frame), (NEXT, frame.bytes()));
        assert_eq!(rig.counter(Verdict::WOULD_RESET, Reason::MIDSTREAM, Direction::TO_POD).packets, 1);
        assert_eq!(rig.sent(), []);
        // Never a RST for a RST.
        rig.set(settings);
        let rst = Frame { flags: RST | ACK, ..frame };
        assert_eq!(rig.run(&rst).code, NEXT);
        assert_eq!(rig.sent(), []);
    });
}

#[test]
fn one_client_does_not_spend_the_resets_of_others() {
    with_rig(|rig| {
        let (one, other) = (v4(33_100), v6(33_100));
        rig.list(one.pod, Mode::STRICT);
        rig.list(other.pod, Mode::STRICT);
        let settings = rig.settings.get().expect("settings");
        rig.set(Settings { resets_per_second_per_client: 3, resets_per_second: 5, ..settings });
        let codes = |rig: &mut Rig, key, times: usize| -> Vec<i32> {
            let frame = Frame::new(key, Direction::TO_POD, ACK, 5, 6, REQUEST);
            (0..times).map(|_| rig.run(&frame).code).collect()
        };
        assert_eq!(codes(rig, one, 10), [&[REDIRECT; 3][..], &[SHOT; 7][..]].concat());
        // Its surplus took nothing from what is there for all.
        assert_eq!(codes(rig, other, 3), [REDIRECT, REDIRECT, SHOT]);
        let limited = rig.counter(Verdict::DROP, Reason::RESET_LIMIT, Direction::TO_POD);
        assert_eq!(limited.packets, 8);
    });
}
