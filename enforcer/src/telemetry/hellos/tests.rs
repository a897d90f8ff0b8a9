use std::sync::Arc;

use enforcer_common::event::EventKind;

use super::*;
use crate::telemetry::connections::Known;
use crate::telemetry::connections::tests::event;
use crate::telemetry::hello::Hello;

fn ready(class: TrafficClass, reason: Reason, alpn: Option<&str>, fresh: bool) -> Ready {
    let hello = alpn.map(|name| Arc::new(Hello { alpn: vec![name.into()], ..Hello::default() }));
    Ready {
        event: Event { class, reason, workload: 7, ..event(EventKind::VERDICT, 1) },
        known: Known { hello, protocol: None },
        fresh,
    }
}

#[test]
fn only_connections_that_the_table_of_clients_counts_as_tls_are_counted() {
    let counts = HelloCounts::default();
    let tls = TrafficClass::TLS;
    counts.note(&[
        ready(tls, Reason::TLS, Some("istio"), true),
        ready(tls, Reason::DISABLED, Some("h2"), true),
        ready(tls, Reason::TLS, Some("istio"), false),
        ready(tls, Reason::PROBE, Some("istio"), true),
        ready(tls, Reason::EXEMPT_PORT, Some("istio"), true),
        ready(TrafficClass::MESH_TLS, Reason::MESH_TLS, Some("istio"), true),
        ready(TrafficClass::PLAINTEXT, Reason::PLAINTEXT, None, true),
    ]);
    assert_eq!(counts.totals(), [(7, Tally { mesh: 1, other: 1 })].into());
    let client = IpAddr::from(event(EventKind::VERDICT, 1).key.client);
    let fresh = counts.take();
    assert_eq!(fresh.of(7, event(EventKind::VERDICT, 1).key.pod_port, client), Tally { mesh: 1, other: 1 });
    assert_eq!(fresh.of(7, 1, client), Tally::default());
    assert_eq!(counts.take(), Hellos::default(), "taken once");
    assert_eq!(counts.totals().len(), 1, "the totals stay");
}

#[test]
fn no_tally_is_more_than_the_connections() {
    let mut tally = Tally::default();
    tally.add(Tally { mesh: 3, other: 4 }, 5);
    assert_eq!(tally, Tally { mesh: 3, other: 2 });
    tally.add(Tally { mesh: u64::MAX, other: u64::MAX }, 6);
    assert_eq!(tally, Tally { mesh: 6, other: 0 });
}

#[test]
fn memory_is_bounded() {
    let mut hellos = Hellos::default();
    for client in 0..70_000_u32 {
        let address = IpAddr::from(client.to_be_bytes());
        assert_eq!(hellos.count(1, 80, address, true), client < 65_536);
    }
    assert!(hellos.count(1, 80, IpAddr::from([0, 0, 0, 0]), false), "who is there goes on");
}
