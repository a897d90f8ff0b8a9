//! Which packets the programs touch, what they count and what they report.

use enforcer_common::event::{Event, EventKind};
use enforcer_common::map::{Counter, Endpoint, ExemptKind, FlowState, TrafficClass, endpoint_flags};
use enforcer_common::settings::{OWN_PROBE_MARK, Settings};
use enforcer_common::tcp::{ACK, SYN};
use enforcer_common::{Direction, Mode, Reason, Verdict};

use super::frame::{Extension, Frame};
use super::rig::{NEXT, REDIRECT, Rig, SHOT, WORKLOAD, v4, v6, with_rig};

const HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
const ANSWER: &[u8] = &[0x16, 3, 3, 0, 122, 2, 0, 0, 118];

fn data(client_port: u16) -> Frame {
    Frame::new(v4(client_port), Direction::TO_POD, ACK, 1001, 2001, b"GET / HTTP/1.1\r\n\r\n")
}

fn data6(extensions: Vec<Extension>) -> Frame {
    Frame { extensions, key: v6(5), ..data(5) }
}

/// The packet passes unchanged, and nothing is counted.
#[track_caller]
fn untouched(rig: &mut Rig, frame: &Frame) {
    let before = rig.counts();
    let outcome = rig.run(frame);
    assert_eq!((outcome.code, &outcome.frame), (NEXT, &frame.bytes()), "{frame:?}");
    assert_eq!(rig.counts(), before);
    assert_eq!(rig.events(), []);
}

/// The packet is dropped for this reason, counted and reported.
#[track_caller]
fn dropped(rig: &mut Rig, frame: &Frame, reason: Reason) {
    // It belongs to no connection, so it is told of once a second.
    rig.client_resets.remove(&frame.key.client).expect("CLIENT_RESETS");
    let before = rig.counter(Verdict::DROP, reason, frame.direction);
    assert_eq!(rig.run(frame).code, SHOT, "{frame:?}");
    let after = rig.counter(Verdict::DROP, reason, frame.direction);
    assert_eq!((after.packets, after.connections), (before.packets + 1, before.connections + 1));
    let events = rig.events();
    assert_eq!(
        events.iter().map(|event| (event.verdict, event.reason)).collect::<Vec<_>>(),
        [(Verdict::DROP, reason)]
    );
    let before = rig.counter(Verdict::DROP, reason, frame.direction);
    assert_eq!(rig.run(frame).code, SHOT, "{frame:?}");
    let after = rig.counter(Verdict::DROP, reason, frame.direction);
    assert_eq!((after.packets, after.connections), (before.packets + 1, before.connections));
    assert!(rig.events().is_empty());
}

#[test]
fn what_is_not_a_meshed_pods_passes_untouched() {
    with_rig(|rig| {
        untouched(rig, &data(1));
        untouched(rig, &data6(Vec::new()));
        let (v4, v6) = (v4(1).pod, v6(1).pod);
        let strict = Endpoint {
            workload: WORKLOAD,
            generation: 1,
            mode: Mode::STRICT,
            flags: endpoint_flags::ANY_STRICT,
            ifindex: 0,
            netns_id: 0,
        };
        for pod in [v4, v6] {
            let elsewhere = Endpoint { ifindex: rig.ifindex() + 1, ..strict };
            rig.endpoints.insert(&pod, &elsewhere).expect("an endpoint");
        }
        untouched(rig, &data(1));
        untouched(rig, &data6(Vec::new()));
        for pod in [v4, v6] {
            let not_meshed = Endpoint { flags: strict.flags | endpoint_flags::NOT_MESHED, ..strict };
            rig.endpoints.insert(&pod, &not_meshed).expect("an endpoint");
        }
        untouched(rig, &data(1));
        untouched(rig, &Frame { fragment: 0x2000, ..data(1) });
        for pod in [v4, v6] {
            let here = Endpoint { ifindex: rig.ifindex(), ..strict };
            rig.endpoints.insert(&pod, &here).expect("an endpoint");
        }
        for protocol in [1, 17, 47, 58, 132] {
            untouched(rig, &Frame { protocol, ..data(1) });
            untouched(rig, &Frame { protocol, ..data6(Vec::new()) });
            untouched(rig, &Frame { protocol, ..data6(vec![(0, vec![0, 1, 4, 0, 0, 0, 0])]) });
        }
        let mut arp = data(1).bytes();
        arp[13] = 6;
        assert_eq!(rig.run_bytes(Direction::TO_POD, &arp, 1).0.code, NEXT);
        // What pads a short frame is no data of the connection.
        untouched(rig, &Frame { payload: Vec::new(), padding: 6, ..data(1) });
        untouched(rig, &Frame { payload: Vec::new(), padding: 6, ..data6(Vec::new()) });
        // And what is, does not.
        assert_eq!(rig.run(&data(1)).code, REDIRECT);
    });
}

#[test]
fn fragments_are_dropped_where_anything_is_strict() {
    with_rig(|rig| {
        for fragment in [0x2000, 0x2001, 0x0001, 0x00b9, 0x1fff] {
            for (mode, strict) in [(Mode::STRICT, true), (Mode::PERMISSIVE, false), (Mode::DISABLE, false)] {
                rig.list(v4(1).pod, mode);
                let frame = Frame { fragment, ..data(1) };
                if strict {
                    dropped(rig, &frame, Reason::FRAGMENT);
                } else {
                    untouched(rig, &frame);
                }
                untouched(rig, &Frame { protocol: 17, ..frame });
            }
        }
        rig.list(v4(1).pod, Mode::STRICT);
        dropped(
            rig,
            &Frame { fragment: 0x2000, direction: Direction::FROM_POD, ..data(1) },
            Reason::FRAGMENT,
        );
        // "Don't fragment" is no fragment.
        assert_eq!(rig.run(&Frame { fragment: 0x4000, ..data(1) }).code, REDIRECT);
        assert_eq!(rig.events().len(), 1);
        // IPv6 says it in a header, whose first byte says what follows.
        let header = |more| vec![0, 0, more, 0, 0, 0, 9];
        for (mode, strict) in [(Mode::STRICT, true), (Mode::PERMISSIVE, false)] {
            rig.list(v6(1).pod, mode);
            for more in [0, 1] {
                let frame = data6(vec![(44, header(more))]);
                if strict {
                    dropped(rig, &frame, Reason::FRAGMENT);
                } else {
                    untouched(rig, &frame);
                }
                let behind = data6(vec![(0, vec![0, 1, 4, 0, 0, 0, 0]), (44, header(more))]);
                if strict {
                    dropped(rig, &behind, Reason::FRAGMENT);
                } else {
                    untouched(rig, &behind);
                }
                untouched(rig, &Frame { protocol: 17, ..frame });
            }
        }
    });
}

#[test]
fn what_cannot_be_read_is_dropped_under_strict() {
    with_rig(|rig| {
        for (mode, strict) in [(Mode::STRICT, true), (Mode::PERMISSIVE, false)] {
            rig.list(v4(1).pod, mode);
            rig.list(v6(1).pod, mode);
            let option = || (60, vec![0, 1, 4, 0, 0, 0, 0]);
            let source_route = |left| data6(vec![(43, vec![0, 0, left, 0, 0, 0, 0])]);
            let authentication = data6(vec![(51, vec![4, 0, 0, 0, 0, 0, 0])]);
            for frame in [source_route(1), source_route(255), authentication, data6(vec![option(); 9])] {
                if strict { dropped(rig, &frame, Reason::MALFORMED) } else { untouched(rig, &frame) }
            }
            // Headers whose lengths lie.
            let ip = 14;
            let tcp = ip + 20;
            for (at, value) in
                [(ip, 0x44), (ip, 0x4f), (ip + 3, 30), (ip + 2, 9), (tcp + 12, 0x40), (tcp + 12, 0xf0)]
            {
                let mut bytes = data(1).bytes();
                bytes[at] = value;
                let before = rig.counter(Verdict::DROP, Reason::MALFORMED, Direction::TO_POD).packets;
                let (outcome, _) = rig.run_bytes(Direction::TO_POD, &bytes, 1);
                let after = rig.counter(Verdict::DROP, Reason::MALFORMED, Direction::TO_POD).packets;
                assert_eq!(
                    (outcome.code, after - before),
                    if strict { (SHOT, 1) } else { (NEXT, 0) },
                    "byte {at} = {value:#x}"
                );
                rig.events();
            }
        }
        rig.list(v6(1).pod, Mode::STRICT);
        // With no segments left a routing header is spent.
        assert_eq!(rig.run(&data6(vec![(43, vec![0, 0, 0, 0, 0, 0, 0])])).code, REDIRECT);
    });
}

#[test]
fn a_verdict_is_counted_once_and_reported_once() {
    with_rig(|rig| {
        let key = v4(900);
        rig.list(key.pod, Mode::STRICT);
        rig.handshake(key, 1000, 2000);
        assert!(rig.counts().is_empty());
        for payload in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"again"] {
            rig.run(&Frame::new(key, Direction::TO_POD, ACK, 1001, 2001, payload));
        }
        rig.run(&Frame::new(key, Direction::FROM_POD, ACK, 2001, 1019, b"HTTP/1.1 "));
        let to_pod = rig.counter(Verdict::RESET, Reason::PLAINTEXT, Direction::TO_POD);
        assert_eq!(to_pod, Counter { connections: 1, packets: 2, bytes: 23 });
        let from_pod = rig.counter(Verdict::RESET, Reason::PLAINTEXT, Direction::FROM_POD);
        assert_eq!(from_pod, Counter { connections: 0, packets: 1, bytes: 9 });
        let events = rig.events();
        let [event] = events[..] else { panic!("one event: {events:?}") };
        let mut head = [0; 64];
        head[..18].copy_from_slice(b"GET / HTTP/1.1\r\n\r\n");
        let opened_ns = rig.flow(&key).expect("a flow").0.opened_ns;
        assert!(event.time_ns > opened_ns && opened_ns > 0);
        let expected = Event {
            kind: EventKind::VERDICT,
            time_ns: event.time_ns,
            opened_ns,
            key,
            ifindex: rig.ifindex(),
            workload: WORKLOAD,
            verdict: Verdict::RESET,
            reason: Reason::PLAINTEXT,
            direction: Direction::TO_POD,
            state: FlowState::PLAINTEXT,
            bytes_to_pod: 0,
            bytes_from_pod: 0,
            packets_to_pod: 2,
            packets_from_pod: 0,
            class: TrafficClass::PLAINTEXT,
            payload_len: 18,
            reserved: 0,
            generation: 1,
            head_len: 18,
            head,
        };
        assert_eq!(event, expected);
        let flow = rig.flow(&key).expect("a flow").0;
        assert_eq!(
            (flow.packets_to_pod, flow.packets_from_pod, flow.bytes_to_pod, flow.bytes_from_pod),
            (3, 1, 0, 0)
        );
    });
}

#[test]
fn events_carry_at_most_64_bytes_and_are_limited() {
    with_rig(|rig| {
        rig.list(v4(1).pod, Mode::STRICT);
        for len in [1, 63, 64, 65, 1400] {
            let payload: Vec<u8> = (0..len).map(|n| u8::try_from(n % 251).expect("a byte")).collect();
            rig.run(&Frame { payload: payload.clone(), ..data(1) });
            let events = rig.events();
            let [event] = events[..] else { panic!("one event: {events:?}") };
            let kept = payload.len().min(64);
            assert_eq!(
                (usize::from(event.head_len), event.payload_len),
                (kept, u32::try_from(len).expect("a length"))
            );
            assert_eq!(event.head[..kept], payload[..kept]);
            assert!(event.head[kept..].iter().all(|byte| *byte == 0));
        }
        let settings = rig.settings.get().expect("settings");
        rig.set(Settings { events_per_second: 0, ..settings });
        rig.run(&data(1));
        assert_eq!(rig.events(), []);
        assert_eq!(rig.counter(Verdict::RESET, Reason::MIDSTREAM, Direction::TO_POD).packets, 6);
    });
}

#[test]
fn tls_is_let_through_byte_for_byte() {
    with_rig(|rig| {
        for (key, size) in [(v4(1), 1), (v4(2), 11), (v6(1), 1), (v6(2), 4)] {
            rig.list(key.pod, Mode::STRICT);
            rig.handshake(key, u32::MAX - 3, u32::MAX - 1);
            let (mut client, mut pod) = (u32::MAX - 2, u32::MAX);
            let mut pass = |direction, client, pod, payload: &[u8]| {
                let (seq, ack) = if direction == Direction::TO_POD { (client, pod) } else { (pod, client) };
                let frame = Frame::new(key, direction, ACK, seq, ack, payload);
                let outcome = rig.run(&frame);
                assert_eq!((outcome.code, outcome.frame), (NEXT, frame.bytes()));
            };
            for piece in HELLO.chunks(size) {
                pass(Direction::TO_POD, client, pod, piece);
                client = client.wrapping_add(u32::try_from(piece.len()).expect("short"));
                pass(Direction::FROM_POD, client, pod, &[]);
            }
            for piece in ANSWER.chunks(size) {
                pass(Direction::FROM_POD, client, pod, piece);
                pod = pod.wrapping_add(u32::try_from(piece.len()).expect("short"));
            }
            pass(Direction::TO_POD, client, pod, b"\x17\x03\x03 anything");
            let flow = rig.flow(&key).expect("a flow").0;
            assert_eq!((flow.state, flow.reason, flow.bytes_from_pod), (FlowState::TLS, Reason::TLS, 9));
        }
        let allowed = rig.counter(Verdict::ALLOW, Reason::TLS, Direction::TO_POD);
        assert_eq!((allowed.connections, allowed.packets), (4, 4));
        assert_eq!(rig.counts().len(), 1);
    });
}

#[test]
fn exempt_sources_and_the_agents_own_checks() {
    with_rig(|rig| {
        for key in [v4(1), v6(1)] {
            rig.list(key.pod, Mode::STRICT);
            rig.exempt.insert(key.client, ExemptKind::SOURCE).expect("EXEMPT");
            untouched(rig, &Frame { key, ..data(1) });
            untouched(rig, &Frame { key, flags: SYN, ..data(1) });
            rig.exempt.remove(key.client).expect("EXEMPT");
            // Others write marks of theirs beside ours.
            rig.mark = OWN_PROBE_MARK | 0xffff_ef00;
            untouched(rig, &Frame { key, ..data(1) });
            rig.mark = 0;
            assert_eq!(rig.run(&Frame { key, ..data(1) }).code, REDIRECT);
            rig.events();
        }
    });
}
