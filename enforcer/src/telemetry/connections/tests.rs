use std::net::IpAddr;

use enforcer_common::event::{EventKind, HEAD_BYTES};
use enforcer_common::map::{FlowState, TrafficClass};
use enforcer_common::{Address, Direction, Reason, Verdict};

use super::*;

pub(crate) fn event(kind: EventKind, port: u16) -> Event {
    Event {
        kind,
        ifindex: 3,
        time_ns: 2_000_000_000,
        opened_ns: 1_000_000_000,
        key: FlowKey {
            client: Address::from(IpAddr::from([10, 0, 0, 9])),
            pod: Address::from(IpAddr::from([10, 0, 0, 1])),
            client_port: port,
            pod_port: 8080,
        },
        workload: 7,
        verdict: Verdict::ALLOW,
        reason: Reason::TLS,
        direction: Direction::TO_POD,
        state: FlowState::TLS,
        bytes_to_pod: 0,
        bytes_from_pod: 0,
        packets_to_pod: 1,
        packets_from_pod: 0,
        class: TrafficClass::TLS,
        payload_len: 200,
        generation: 1,
        head_len: 0,
        reserved: 0,
        head: [0; HEAD_BYTES],
    }
}

/// A hello with the name `a.b` and nothing else.
fn hello() -> Vec<u8> {
    let name = b"\0\0\0\x08\0\x06\0\0\x03a.b";
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend(b"\0\0\x02\x13\x01\x01\0\0\x0c");
    body.extend(name);
    let mut stream = vec![0x16, 3, 1, 0];
    stream.push(u8::try_from(body.len() + 4).expect("a short hello"));
    stream.extend([1, 0, 0]);
    stream.push(u8::try_from(body.len()).expect("a short hello"));
    stream.extend(body);
    stream
}

fn id(port: u16) -> Id {
    Id::new(&event(EventKind::VERDICT, port).key, 1_000_000_000)
}

fn names(ready: &[Ready]) -> Vec<Option<&str>> {
    ready.iter().map(|ready| ready.known.hello.as_ref().and_then(|hello| hello.sni.as_deref())).collect()
}

#[test]
fn a_verdict_waits_for_its_hello_whatever_comes_first() {
    let now = Instant::now();
    let stream = hello();
    let (front, back) = stream.split_at(20);
    let verdict = event(EventKind::VERDICT, 1);
    // Chunks around the verdict.
    let mut open = Connections::new(8);
    assert!(open.chunk(id(1), 0, front).is_empty());
    assert!(open.verdict(id(1), verdict, true, None, now).is_empty());
    assert_eq!(names(&open.chunk(id(1), 20, back)), [Some("a.b")]);
    // The whole hello before it.
    assert!(open.chunk(id(2), 0, &stream).is_empty());
    assert_eq!(names(&open.verdict(id(2), verdict, true, None, now)), [Some("a.b")]);
    // The end has the name too, and the connection is forgotten.
    assert_eq!(names(&open.end(id(2), event(EventKind::END, 2))), [Some("a.b")]);
    assert_eq!(open.len(), 1);
    assert_eq!(names(&open.end(id(2), event(EventKind::END, 2))), [None]);
}

#[test]
fn a_hello_that_never_comes_is_not_waited_for() {
    let now = Instant::now();
    let mut open = Connections::new(8);
    let verdict = event(EventKind::VERDICT, 1);
    assert!(open.verdict(id(1), verdict, true, None, now).is_empty());
    assert!(open.overdue(now + PATIENCE / 2).is_empty());
    assert_eq!(names(&open.overdue(now + PATIENCE)), [None]);
    assert!(open.overdue(now + PATIENCE * 2).is_empty(), "once");
    // The end does not wait for it either, and comes last.
    assert!(open.verdict(id(2), verdict, true, None, now).is_empty());
    let ready = open.end(id(2), event(EventKind::END, 2));
    let kinds: Vec<_> = ready.iter().map(|ready| ready.event.kind).collect();
    assert_eq!(kinds, [EventKind::VERDICT, EventKind::END]);
}

#[test]
fn a_gap_leaves_what_came_before() {
    let now = Instant::now();
    let stream = hello();
    let mut open = Connections::new(8);
    assert!(open.verdict(id(1), event(EventKind::VERDICT, 1), true, None, now).is_empty());
    let (front, _) = stream.split_at(40);
    assert!(open.chunk(id(1), 0, front).is_empty());
    assert!(open.chunk(id(1), 45, b"more").is_empty());
    let ready = open.overdue(now + PATIENCE);
    let versions = ready[0].known.hello.as_ref().map(|hello| hello.versions.clone());
    assert_eq!((names(&ready), versions), (vec![None], Some(vec!["1.2".into()])));
}

#[test]
fn each_connection_says_once_what_its_whole_hello_said() {
    let now = Instant::now();
    let stream = hello();
    let fresh = |ready: &[Ready]| ready.iter().map(|ready| ready.fresh).collect::<Vec<_>>();
    let mut open = Connections::new(8);
    assert!(open.chunk(id(1), 0, &stream).is_empty());
    assert_eq!(fresh(&open.verdict(id(1), event(EventKind::VERDICT, 1), true, None, now)), [true]);
    assert_eq!(fresh(&open.verdict(id(1), event(EventKind::VERDICT, 1), true, None, now)), [false]);
    assert_eq!(fresh(&open.end(id(1), event(EventKind::END, 1))), [false]);
    // Its verdict was not told: then the end says it.
    assert!(open.chunk(id(2), 0, &stream).is_empty());
    assert_eq!(fresh(&open.end(id(2), event(EventKind::END, 2))), [true]);
    // Half a hello says nothing: what it offers may come later.
    assert!(open.chunk(id(3), 0, &stream[..45]).is_empty());
    assert!(open.verdict(id(3), event(EventKind::VERDICT, 3), true, None, now).is_empty());
    let ready = open.overdue(now + PATIENCE);
    assert!(ready[0].known.hello.is_some());
    assert_eq!(fresh(&ready), [false]);
}

#[test]
fn plaintext_waits_for_nothing_and_its_protocol_stays() {
    let mut open = Connections::new(8);
    let ready = open.verdict(id(1), event(EventKind::VERDICT, 1), false, Some("http/1"), Instant::now());
    assert_eq!(ready[0].known.protocol, Some("http/1"));
    assert_eq!(open.end(id(1), event(EventKind::END, 1))[0].known.protocol, Some("http/1"));
}

#[test]
fn what_has_no_flow_is_not_remembered() {
    let mut open = Connections::new(8);
    let id = Id::new(&event(EventKind::VERDICT, 1).key, 0);
    assert_eq!(open.verdict(id, event(EventKind::VERDICT, 1), true, None, Instant::now()).len(), 1);
    assert!(open.is_empty());
}

#[test]
fn the_oldest_make_room_and_lose_no_record() {
    let now = Instant::now();
    let mut open = Connections::new(2);
    for port in 1..=2 {
        assert!(open.verdict(id(port), event(EventKind::VERDICT, port), true, None, now).is_empty());
    }
    let ready = open.verdict(id(3), event(EventKind::VERDICT, 3), true, None, now);
    assert_eq!(ready.iter().map(|ready| ready.event.key.client_port).collect::<Vec<_>>(), [1]);
    assert_eq!(open.len(), 2);
    // Many connections that end leave nothing behind.
    for port in 10..1000 {
        open.verdict(id(port), event(EventKind::VERDICT, port), false, None, now);
        open.end(id(port), event(EventKind::END, port));
    }
    assert!(open.len() <= 2 && open.order.len() <= 2, "{open:?}");
}
