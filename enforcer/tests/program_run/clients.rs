//! What user space gets to know of clients: their first bytes, and who they are.

use enforcer_common::event::{HELLO_LIMIT, HELLO_PARTS};
use enforcer_common::map::{ClientKey, ExemptKind, TrafficClass};
use enforcer_common::settings::{OWN_PROBE_MARK, Settings};
use enforcer_common::tcp::ACK;
use enforcer_common::{Direction, Mode, Reason, Verdict};

use super::frame::Frame;
use super::rig::{Rig, WORKLOAD, v4, v6, with_rig};

/// A hello of this many bytes.
fn hello(len: usize) -> Vec<u8> {
    let mut bytes = vec![0x16, 3, 1, 0x0f, 0xff, 1];
    bytes.extend((6..len).map(|n| u8::try_from(n % 251).expect("a byte")));
    bytes
}

/// Sends a hello in segments of this size and gives what user space gets of it.
fn sent(rig: &mut Rig, client_port: u16, bytes: &[u8], size: usize) -> Vec<u8> {
    let key = v4(client_port);
    rig.handshake(key, 1000, 2000);
    let mut seq = 1001;
    for piece in bytes.chunks(size) {
        rig.run(&Frame::new(key, Direction::TO_POD, ACK, seq, 2001, piece));
        seq += u32::try_from(piece.len()).expect("short");
    }
    let opened = rig.flow(&key).expect("a flow").0.opened_ns;
    let mut got = Vec::new();
    for (header, bytes) in rig.records().hellos {
        assert_eq!((header.key, header.opened_ns, header.workload), (key, opened, WORKLOAD));
        assert_eq!(usize::try_from(header.offset).expect("an offset"), got.len());
        got.extend(bytes);
    }
    got
}

#[test]
fn a_hello_reaches_user_space_in_whatever_segments_it_comes() {
    with_rig(|rig| {
        rig.list(v4(1).pod, Mode::STRICT);
        for (port, (len, size)) in (1..).zip([
            (6, 6),
            (517, 517),
            (30, 1),
            (1800, 1448),
            (1800, 60),
            (1015, 1015),
            (1016, 999),
            (2033, 67),
        ]) {
            let bytes = hello(len);
            assert!(sent(rig, port, &bytes, size) == bytes, "{len} bytes in segments of {size}");
        }
    });
}

#[test]
fn no_more_of_a_stream_than_the_limit_reaches_user_space() {
    with_rig(|rig| {
        rig.list(v4(1).pod, Mode::STRICT);
        let limit = usize::try_from(HELLO_LIMIT).expect("a length");
        let bytes = hello(6000);
        for (port, size) in [(1, 1400), (2, 3000), (3, 2048), (4, 200)] {
            assert!(sent(rig, port, &bytes, size) == bytes[..limit], "in segments of {size}");
        }
        // The first five bytes are judged before anything is sent; then each packet is one part.
        assert!(sent(rig, 9, &bytes, 1) == bytes[..5 + usize::from(HELLO_PARTS)], "byte by byte");
        let settings = rig.settings.get().expect("settings");
        rig.set(Settings { hello_bytes: u32::MAX, ..settings });
        assert!(sent(rig, 5, &bytes, 1400) == bytes[..limit], "a limit beyond the highest");
        rig.set(Settings { hello_bytes: 100, ..settings });
        assert!(sent(rig, 6, &bytes, 1400) == bytes[..100], "a lower limit");
        rig.set(Settings { hello_bytes: 0, ..settings });
        assert!(sent(rig, 7, &bytes, 1400).is_empty(), "none");
        rig.set(Settings { events_per_second: 0, ..settings });
        assert!(sent(rig, 8, &bytes, 1400).is_empty(), "no budget");
    });
}

#[test]
fn bytes_that_were_sent_are_not_sent_again_and_none_after_the_answer() {
    with_rig(|rig| {
        let key = v4(1);
        rig.list(key.pod, Mode::STRICT);
        let bytes = hello(900);
        assert!(sent(rig, 1, &bytes[..500], 500) == bytes[..500]);
        let to_pod = |seq, bytes: &[u8]| Frame::new(key, Direction::TO_POD, ACK, seq, 2001, bytes);
        rig.run(&to_pod(1001, &bytes[..500]));
        assert!(rig.records().hellos.is_empty(), "a copy");
        rig.run(&to_pod(1301, &bytes[300..600]));
        let [(header, got)] = &rig.records().hellos[..] else { panic!("one record") };
        assert_eq!((header.offset, &got[..]), (500, &bytes[500..600]));
        rig.run(&to_pod(1801, &bytes[800..]));
        assert!(rig.records().hellos.is_empty(), "behind a gap");
        rig.run(&Frame::new(key, Direction::FROM_POD, ACK, 2001, 1601, &[0x16, 3, 3, 0, 100, 2]));
        rig.run(&to_pod(1601, &bytes[600..]));
        assert!(rig.records().hellos.is_empty(), "the pod has answered");
    });
}

/// Opens a connection, sends these bytes and gives the entries of `CLIENTS`: class, connections, verdict, reason.
fn talk(rig: &mut Rig, client_port: u16, bytes: &[u8]) -> Vec<(TrafficClass, u64, Verdict, Reason)> {
    let key = v4(client_port);
    rig.handshake(key, 1000, 2000);
    for _ in 0..3 {
        rig.run(&Frame::new(key, Direction::TO_POD, ACK, 1001, 2001, bytes));
    }
    let entries = rig.client_entries();
    for (entry, client) in &entries {
        let ClientKey { workload, client: address, port, .. } = *entry;
        assert_eq!((workload, address, port), (WORKLOAD, key.client, key.pod_port));
        assert!(0 < client.first_ns && client.first_ns <= client.last_ns);
    }
    entries.iter().map(|(key, e)| (key.class, e.connections, e.verdict, e.reason)).collect()
}

#[test]
fn clients_are_counted_by_what_they_speak() {
    with_rig(|rig| {
        let pod = v4(1).pod;
        rig.list(pod, Mode::PERMISSIVE);
        let permitted = (Verdict::ALLOW, Reason::PLAINTEXT_PERMITTED);
        let plaintext = |n, (verdict, reason)| (TrafficClass::PLAINTEXT, n, verdict, reason);
        assert_eq!(talk(rig, 1, b"GET /"), [plaintext(1, permitted)]);
        assert_eq!(talk(rig, 2, b"GET /"), [plaintext(2, permitted)]);
        let tls = (TrafficClass::TLS, 1, Verdict::ALLOW, Reason::TLS);
        assert_eq!(talk(rig, 3, &hello(20)), [plaintext(2, permitted), tls]);
        rig.list(pod, Mode::STRICT);
        let reset = (Verdict::RESET, Reason::PLAINTEXT);
        assert_eq!(talk(rig, 4, b"GET /"), [plaintext(3, reset), tls]);
        // A new verdict of a connection that is counted already.
        let endpoint = rig.endpoints.get(&pod).expect("ENDPOINTS").expect("an endpoint");
        let changed = enforcer_common::map::Endpoint { generation: 2, ..endpoint };
        rig.endpoints.insert(&pod, &changed).expect("ENDPOINTS");
        let key = v4(1);
        rig.run(&Frame::new(key, Direction::TO_POD, ACK, 1006, 2001, b" HTTP"));
        let entries = rig.client_entries();
        assert_eq!((entries[0].1.connections, entries[0].1.reason), (3, Reason::POLICY_CHANGED));
    });
}

#[test]
fn own_checks_exempt_sources_and_unknown_connections_are_no_clients() {
    with_rig(|rig| {
        for mode in [Mode::PERMISSIVE, Mode::STRICT] {
            rig.list(v4(1).pod, mode);
            rig.mark = OWN_PROBE_MARK;
            assert_eq!(talk(rig, 1, b"GET /"), []);
            rig.mark = 0;
            rig.exempt.insert(v4(1).client, ExemptKind::SOURCE).expect("EXEMPT");
            assert_eq!(talk(rig, 2, b"GET /"), []);
            rig.exempt.remove(v4(1).client).expect("EXEMPT");
        }
        rig.list(v6(1).pod, Mode::STRICT);
        rig.run(&Frame::new(v6(3), Direction::TO_POD, ACK, 1001, 2001, b"GET /"));
        assert!(rig.client_entries().is_empty());
    });
}
