use enforcer_common::event::{Event, EventKind};
use enforcer_common::map::PortMode;
use enforcer_common::{Address, Mode};

use super::*;
use crate::agent::state::State;
use crate::datapath::desired::Desired;
use crate::object::{ObjectName, Objects, Pod};
use crate::policy::compose::Level;
use crate::telemetry::Snapshot;
use crate::telemetry::connections::tests::event;
use crate::telemetry::hello::Hello;
use crate::telemetry::names::Index;

pub(crate) fn plan(mode: Mode, policy: &str) -> EndpointPlan {
    let decision = |level, policy: &str, mode, port| Decision {
        level,
        policy: ObjectName::new("shop", policy),
        mode,
        port,
    };
    EndpointPlan {
        pod: ObjectName::new("shop", "web-6d4-abc"),
        workload: 7,
        mode,
        ports: [(9090, PortMode { mode: Mode::DISABLE, flags: 0, reserved: 0 })].into(),
        ifindex: 3,
        netns_id: 0,
        inside: None,
        meshed: true,
        decided_by: vec![
            decision(Level::Mesh, "mesh", Mode::PERMISSIVE, None),
            decision(Level::Workload, policy, mode, None),
            decision(Level::Port, policy, Mode::DISABLE, Some(9090)),
        ],
    }
}

fn view(generation: u16, mode: Mode, policy: &str) -> Arc<View> {
    let address = IpAddr::from([10, 0, 0, 1]);
    let mut objects = Objects::default();
    for (name, address) in [("web-6d4-abc", address), ("sleep", IpAddr::from([10, 0, 0, 9]))] {
        let labels = [("pod-template-hash".to_owned(), "6d4".to_owned())].into();
        let name = ObjectName::new("shop", name);
        objects.pods.insert(name.clone(), Pod { name, labels, addresses: vec![address], ..Pod::default() });
    }
    let wanted =
        Desired { endpoints: [(Address::from(address), plan(mode, policy))].into(), ..Desired::default() };
    Arc::new(View {
        index: Arc::new(Index::new(&objects)),
        snapshot: Snapshot {
            objects: Arc::new(objects),
            wanted: Arc::new(wanted),
            generations: [(Address::from(address), generation)].into(),
            node_addresses: Arc::new([IpAddr::from([10, 0, 0, 254])].into()),
            state: State {
                workloads: [("shop/web-6d4-abc".to_owned(), 7), ("shop/old-6d4-xyz".to_owned(), 6)].into(),
                owners: [("shop/old-6d4-xyz".to_owned(), "old".to_owned())].into(),
                ..State::default()
            },
            ..Snapshot::default()
        },
    })
}

fn flow_of(event: Event, known: Known, ended: bool) -> Flow {
    let views = [view(2, Mode::STRICT, "new"), view(1, Mode::PERMISSIVE, "old")];
    let plans = Plans::default();
    let address = Address::from(IpAddr::from([10, 0, 0, 1]));
    plans.enter(0, [(address, 1, &plan(Mode::PERMISSIVE, "old"))].into_iter());
    plans.enter(1, [(address, 2, &plan(Mode::STRICT, "new"))].into_iter());
    let describer = Describer {
        views: &views,
        plans: &plans,
        remote: &Remote::new(None, 0),
        epoch: "2026-01-01T00:00:00Z".parse().expect("a time"),
        now: Instant::now(),
    };
    describer.flow(&Ready { event, known, fresh: false }, ended)
}

fn reset() -> Event {
    let mut head = [0; enforcer_common::event::HEAD_BYTES];
    head[..16].copy_from_slice(b"GET / HTTP/1.1\r\n");
    Event {
        verdict: Verdict::RESET,
        reason: Reason::PLAINTEXT,
        class: TrafficClass::PLAINTEXT,
        generation: 2,
        head_len: 16,
        head,
        payload_len: 80,
        ..event(EventKind::VERDICT, 4000)
    }
}

#[test]
fn a_reset_names_everything() {
    let flow = flow_of(reset(), Known { hello: None, protocol: protocol(&reset()) }, false);
    assert_eq!(flow.time.to_string(), "2026-01-01T00:00:02Z");
    assert_eq!(flow.client.pod_name().as_deref(), Some("shop/sleep"));
    assert_eq!(
        (flow.pod.label(), flow.pod.workload.as_deref()),
        ("shop/web-6d4-abc:8080".to_owned(), Some("web"))
    );
    assert_eq!((&*flow.class, flow.protocol.as_deref()), ("plaintext", Some("http/1")));
    assert_eq!((&*flow.verdict, &*flow.reason), ("reset", "PLAINTEXT"));
    assert_eq!(flow.remedy, Reason::PLAINTEXT.remedy());
    assert_eq!((flow.policy.as_deref(), flow.level.as_deref()), (Some("shop/new"), Some("workload")));
    assert_eq!((flow.mode.as_deref(), flow.generation), (Some("STRICT"), 2));
    assert_eq!((flow.bytes_to_pod, flow.bytes_from_pod, flow.duration_seconds), (80, 0, None));
}

#[test]
fn an_event_is_held_against_the_policy_of_its_generation() {
    let older = Event { generation: 1, ..reset() };
    let flow = flow_of(older, Known::default(), false);
    assert_eq!((flow.policy.as_deref(), flow.mode.as_deref()), (Some("shop/old"), Some("PERMISSIVE")));
    // Not known: rather no policy than a wrong one, and the pod by its id.
    let flow = flow_of(Event { generation: 9, ..reset() }, Known::default(), false);
    assert_eq!((flow.policy, flow.level, flow.mode), (None, None, None));
    assert_eq!(flow.pod.pod.as_deref(), Some("web-6d4-abc"));
}

#[test]
fn a_port_has_its_own_decision() {
    let mut event = reset();
    event.key.pod_port = 9090;
    let flow = flow_of(event, Known::default(), false);
    assert_eq!((flow.level.as_deref(), flow.mode.as_deref()), (Some("port"), Some("DISABLE")));
}

#[test]
fn only_the_hello_tells_a_mesh_client() {
    let tls = Event { generation: 2, ..event(EventKind::END, 4000) };
    let hello = |alpn: &[&str]| {
        let hello = Hello {
            sni: Some("web".into()),
            alpn: alpn.iter().map(|name| (*name).into()).collect(),
            versions: vec!["1.3".into()],
        };
        Known { hello: Some(Arc::new(hello)), protocol: None }
    };
    let flow = flow_of(tls, hello(&["istio"]), true);
    assert_eq!((&*flow.class, &*flow.reason), ("mesh_tls", "TLS"));
    assert_eq!(flow.sni.as_deref(), Some("web"));
    assert_eq!(flow_of(tls, hello(&["h2"]), true).class, "tls");
    assert_eq!(flow_of(tls, Known::default(), true).class, "tls");
}

#[test]
fn the_end_has_what_passed() {
    let end = Event { bytes_to_pod: 10, bytes_from_pod: 20, payload_len: 0, ..event(EventKind::END, 4000) };
    let flow = flow_of(end, Known::default(), true);
    assert_eq!((flow.bytes_to_pod, flow.bytes_from_pod, flow.duration_seconds), (10, 20, Some(1.0)));
    assert_eq!(flow_of(Event { opened_ns: 0, ..end }, Known::default(), true).duration_seconds, None);
}

#[test]
fn pods_that_are_gone_and_clients_without_name() {
    let mut old = Event { workload: 6, ..reset() };
    old.key.pod = Address::from(IpAddr::from([10, 0, 0, 77]));
    old.key.client = Address::from(IpAddr::from([192, 0, 2, 1]));
    let flow = flow_of(old, Known::default(), false);
    assert_eq!((flow.pod.pod.as_deref(), flow.pod.workload.as_deref()), (Some("old-6d4-xyz"), Some("old")));
    assert_eq!((flow.policy, flow.client.label()), (None, "192.0.2.1:4000".to_owned()));
    old.key.client = Address::from(IpAddr::from([10, 0, 0, 254]));
    let flow = flow_of(old, Known::default(), false);
    assert!(flow.client.node);
    assert_eq!(flow.client.label(), "node 10.0.0.254:4000");
}
