use jiff::Timestamp;
use proptest::prelude::*;

use super::judge::{Criteria, Readiness, Workload, answer, judge};
use super::*;

const HOUR: i64 = 3600;
const NOW: i64 = 1_800_000_000;

/// Seconds before now.
pub(super) fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW - seconds).expect("in range")
}

pub(super) fn criteria() -> Criteria {
    Criteria {
        now: ago(0),
        window_seconds: 7 * 86400,
        min_watched_seconds: 86400,
        min_connections: 1,
        max_age_seconds: 3600,
        mesh_tls_only: false,
    }
}

/// A client; one of TLS is of the mesh, as all of its hellos said.
pub(super) fn client(port: u16, class: Class, last: u8, connections: u64, seconds_ago: i64) -> ClientData {
    ClientData {
        mesh_hellos: if class == Class::Tls { connections } else { 0 },
        other_hellos: 0,
        marks: Vec::new(),
        port,
        class,
        address: [10, 244, 0, last].into(),
        name: None,
        connections,
        first: ago(seconds_ago + 60),
        last: ago(seconds_ago),
    }
}

/// A pod of workload `cart` with port 8080, watched for two days.
pub(super) fn pod(name: &str, clients: Vec<ClientData>) -> PodData {
    PodData {
        namespace: "shop".into(),
        pod: name.into(),
        workload: "cart".into(),
        labels: [("app".into(), "cart".into())].into(),
        present: true,
        unwatched: None,
        data_plane: true,
        posture: Posture {
            mode: Mode::Permissive,
            ports: BTreeMap::new(),
            exempt: BTreeSet::new(),
            declared: [8080].into(),
            governed_by: None,
        },
        watched: Spans::one(ago(48 * HOUR), ago(0)),
        blind: Spans::default(),
        clients,
    }
}

pub(super) fn node(name: &str, pods: Vec<PodData>) -> NodeData {
    NodeData {
        time: ago(0),
        node: name.into(),
        looked: Some(ago(0)),
        watching: true,
        enforcing: true,
        notes: Vec::new(),
        pods,
        policies: BTreeMap::new(),
    }
}

fn one(pods: Vec<PodData>) -> Workload {
    let mut all = judge(&node("n1", pods).into(), &criteria());
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn verdict(clients: Vec<ClientData>) -> Readiness {
    one(vec![pod("cart-0", clients)]).verdict
}

#[test]
fn only_tls_over_long_enough_is_ready() {
    let answer = one(vec![pod(
        "cart-0",
        vec![client(8080, Class::Tls, 5, 7, 10), client(8080, Class::MeshTls, 6, 2, 10)],
    )]);
    assert_eq!(answer.verdict, Readiness::Ready, "{answer:?}");
    assert_eq!(answer.watched_seconds, 48 * 3600);
    let port = &answer.ports[0];
    assert_eq!((port.tls, port.mesh_tls, port.plaintext), (0, 9, 0));
    assert_eq!((port.first, port.last), (Some(ago(70)), Some(ago(10))));
}

#[test]
fn one_plaintext_client_is_enough_however_short_the_watch() {
    let mut young =
        pod("cart-0", vec![client(8080, Class::Tls, 5, 7, 10), client(8080, Class::Plaintext, 9, 3, 20)]);
    young.watched = Spans::one(ago(60), ago(0));
    let answer = one(vec![young]);
    assert_eq!(answer.verdict, Readiness::NotReady);
    let port = &answer.ports[0];
    assert_eq!(port.plaintext_clients.len(), 1);
    assert_eq!(port.plaintext_clients[0].connections, 3);
    assert_eq!(port.plaintext_clients[0].address.to_string(), "10.244.0.9");
    assert!(
        answer.why.contains("port 8080") && answer.why.contains("1 client speaks plaintext"),
        "{}",
        answer.why
    );
}

#[test]
fn no_plaintext_in_a_minute_is_not_ready() {
    let mut young = pod("cart-0", vec![client(8080, Class::Tls, 5, 7, 10)]);
    young.watched = Spans::one(ago(60), ago(0));
    let answer = one(vec![young]);
    assert_eq!(answer.verdict, Readiness::NotEnoughData);
    assert!(answer.why.contains("watched for 1m 0s of 1d 0h"), "{}", answer.why);
}

#[test]
fn silence_says_nothing_unless_it_is_asked_to() {
    assert_eq!(verdict(Vec::new()), Readiness::NotEnoughData);
    let nodes = Nodes::from(node("n1", vec![pod("cart-0", Vec::new())]));
    let answer = judge(&nodes, &Criteria { min_connections: 0, ..criteria() });
    assert_eq!(answer[0].verdict, Readiness::Ready);
}

#[test]
fn clients_outside_the_window_do_not_count() {
    let tls = client(8080, Class::Tls, 5, 7, 10);
    let old = client(8080, Class::Plaintext, 9, 3, 8 * 86400);
    assert_eq!(verdict(vec![tls.clone(), old]), Readiness::Ready);
    let edge = client(8080, Class::Plaintext, 9, 3, 7 * 86400);
    assert_eq!(verdict(vec![tls, edge]), Readiness::NotReady);
}

#[test]
fn connections_from_before_the_watch_must_show_themselves() {
    let tls = client(8080, Class::Tls, 5, 7, 10);
    let existing = client(8080, Class::Existing, 9, 1, 300);
    assert_eq!(verdict(vec![tls.clone(), existing.clone()]), Readiness::NotEnoughData);
    // The same client has connected again since, as TLS.
    assert_eq!(verdict(vec![tls, existing, client(8080, Class::Tls, 9, 1, 10)]), Readiness::Ready);
}

#[test]
fn blind_time_is_no_watched_time() {
    let mut torn = pod("cart-0", vec![client(8080, Class::Tls, 5, 7, 10)]);
    torn.blind = Spans::one(ago(47 * HOUR), ago(2 * HOUR));
    let answer = one(vec![torn]);
    assert_eq!(answer.verdict, Readiness::NotEnoughData);
    assert_eq!((answer.watched_seconds, answer.gaps, answer.gap_seconds), (3 * 3600, 1, 45 * 3600));
    assert_eq!(answer.watched_since, Some(ago(48 * HOUR)));
}

#[test]
fn a_replica_that_nobody_watched_spoils_the_watch_of_the_others() {
    let tls = || vec![client(8080, Class::Tls, 5, 7, 10)];
    let mut late = pod("cart-1", Vec::new());
    late.watched = Spans::one(ago(HOUR), ago(0));
    // It came an hour ago under the agent's eyes: nothing was missed.
    let nodes = Nodes::from_iter([node("n1", vec![pod("cart-0", tls())]), node("n2", vec![late.clone()])]);
    assert_eq!(judge(&nodes, &criteria())[0].verdict, Readiness::Ready);
    // It had been there before its node's agent came.
    late.blind = Spans::one(Timestamp::UNIX_EPOCH, ago(HOUR));
    let nodes = Nodes::from_iter([node("n1", vec![pod("cart-0", tls())]), node("n2", vec![late])]);
    let answer = &judge(&nodes, &criteria())[0];
    assert_eq!((answer.verdict, answer.watched_seconds), (Readiness::NotEnoughData, 3600));
    assert_eq!((answer.pods, answer.nodes.len()), (2, 2));
}

#[test]
fn clients_of_replicas_and_of_pods_that_are_gone_add_up() {
    let mut gone = pod("cart-9", vec![client(8080, Class::Plaintext, 9, 2, 500)]);
    gone.present = false;
    let named = ClientData { name: Some("noistio/sleep".into()), ..client(8080, Class::Plaintext, 9, 3, 20) };
    let answer = one(vec![gone, pod("cart-0", vec![named])]);
    let clients = &answer.ports[0].plaintext_clients;
    assert_eq!(clients.len(), 1);
    assert_eq!((clients[0].connections, clients[0].name.as_deref()), (5, Some("noistio/sleep")));
    assert_eq!((clients[0].first, clients[0].last), (ago(560), ago(20)));
}

#[test]
fn what_is_strict_disabled_or_exempt_is_no_question() {
    let with = |change: &dyn Fn(&mut Posture)| {
        let mut pod = pod("cart-0", vec![client(8080, Class::Plaintext, 9, 3, 20)]);
        change(&mut pod.posture);
        judge(&node("n1", vec![pod]).into(), &criteria())
    };
    assert!(with(&|posture| posture.mode = Mode::Strict).is_empty());
    assert!(with(&|posture| posture.mode = Mode::Disable).is_empty());
    assert!(with(&|posture| posture.exempt = [8080].into())[0].ports.is_empty());
    let one_port = with(&|posture| {
        posture.mode = Mode::Strict;
        posture.ports.insert(8080, Mode::Permissive);
        posture.declared.insert(9090);
    });
    assert_eq!(one_port[0].ports.len(), 1);
    assert_eq!(one_port[0].verdict, Readiness::NotReady);
    // In audit mode STRICT is a question too.
    let mut strict = pod("cart-0", vec![client(8080, Class::Plaintext, 9, 3, 20)]);
    strict.posture.mode = Mode::Strict;
    let audit = NodeData { enforcing: false, ..node("n1", vec![strict]) };
    assert_eq!(judge(&audit.into(), &criteria())[0].verdict, Readiness::NotReady);
}

#[test]
fn the_worst_port_decides() {
    let clients = vec![client(8080, Class::Tls, 5, 7, 10), client(9999, Class::Plaintext, 9, 3, 20)];
    let answer = one(vec![pod("cart-0", clients)]);
    assert_eq!(answer.verdict, Readiness::NotReady);
    let ports: Vec<_> = answer.ports.iter().map(|port| (port.port, port.verdict, port.declared)).collect();
    assert_eq!(ports, [(8080, Readiness::Ready, true), (9999, Readiness::NotReady, false)]);
}

#[test]
fn lengths_of_time_are_told_in_two_units() {
    for (seconds, text) in [(0, "0s"), (59, "59s"), (90, "1m 30s"), (3660, "1h 1m"), (90_000, "1d 1h")] {
        assert_eq!(judge::duration(seconds), text);
    }
}

/// The verdict of the whole answer, and what it says of why.
fn whole(nodes: &Nodes, namespace: Option<&str>) -> (Readiness, String) {
    let answer = answer(nodes, &criteria(), namespace);
    let workloads = answer.workloads.iter().map(|workload| workload.why.as_str());
    let why: Vec<&str> = answer.incomplete.iter().map(String::as_str).chain(workloads).collect();
    (answer.verdict, why.join("; "))
}

fn ready_pod(name: &str) -> PodData {
    pod(name, vec![client(8080, Class::Tls, 5, 7, 10)])
}

#[test]
fn who_knows_nothing_does_not_say_ready() {
    let ready: Nodes = node("n1", vec![ready_pod("cart-0")]).into();
    assert_eq!(whole(&ready, None).0, Readiness::Ready);
    assert_eq!(whole(&ready, Some("shop")).0, Readiness::Ready);
    let mut strict = ready_pod("cart-0");
    strict.posture.mode = Mode::Strict;
    let nothing_open = Nodes::from(node("n1", vec![strict.clone()]));
    assert_eq!(whole(&nothing_open, None).0, Readiness::Ready, "pods prove it");
    // A namespace with a slip of the pen, a node without pods or with pods that are gone, a watch that never began.
    let gone = PodData { present: false, ..strict };
    let never = NodeData { looked: None, watching: false, ..node("n1", Vec::new()) };
    for (nodes, namespace, words) in [
        (ready, Some("shpo"), "no meshed pod of namespace shpo was seen"),
        (node("n1", Vec::new()).into(), None, "no meshed pod was seen"),
        (node("n1", vec![gone]).into(), None, "no meshed pod was seen"),
        (never.into(), None, "node n1: nothing was watched yet"),
        (Nodes::default(), None, "no meshed pod was seen"),
    ] {
        let (verdict, why) = whole(&nodes, namespace);
        assert_eq!(verdict, Readiness::NotEnoughData, "{why}");
        assert!(why.contains(words), "{why}");
    }
}

#[test]
fn a_pod_behind_no_hook_makes_its_workload_not_ready_and_is_named() {
    let unhooked =
        PodData { unwatched: Some("its interface 3 is not hooked".into()), ..pod("cart-1", Vec::new()) };
    let answer = one(vec![ready_pod("cart-0"), unhooked.clone()]);
    assert_eq!(answer.verdict, Readiness::NotEnoughData);
    assert!(answer.why.contains("pod cart-1: its interface 3 is not hooked"), "{}", answer.why);
    let mut portless = unhooked;
    portless.posture.declared.clear();
    assert!(one(vec![portless]).why.contains("cart-1"));
}

#[test]
fn a_node_that_nobody_watches_or_that_was_asked_long_ago_is_not_ready() {
    let with = |change: &dyn Fn(&mut NodeData)| {
        let mut other = node("n2", vec![ready_pod("cart-1")]);
        change(&mut other);
        whole(&Nodes::from_iter([node("n1", vec![ready_pod("cart-0")]), other]), None)
    };
    assert_eq!(with(&|_| ()).0, Readiness::Ready);
    let recent = with(&|node| (node.time, node.looked) = (ago(600), Some(ago(600))));
    assert_eq!(recent.0, Readiness::Ready, "files take a while to be gathered");
    let (verdict, why) = with(&|node| (node.watching, node.looked) = (false, Some(ago(300))));
    assert_eq!(verdict, Readiness::NotEnoughData);
    assert!(why.contains("node n2: nobody has watched it for 5m 0s"), "{why}");
    let (verdict, why) = with(&|node| (node.time, node.looked) = (ago(86400), Some(ago(86400))));
    assert_eq!(verdict, Readiness::NotEnoughData);
    assert!(why.contains("node n2: it was asked 1d 0h ago"), "{why}");
    // The time since counts as not watched for its workloads.
    let mut stale = node("n2", vec![ready_pod("cart-1")]);
    (stale.time, stale.looked) = (ago(10 * HOUR), Some(ago(10 * HOUR)));
    let nodes = Nodes::from_iter([node("n1", vec![ready_pod("cart-0")]), stale]);
    assert_eq!(judge(&nodes, &criteria())[0].watched_seconds, 38 * 3600);
}

#[test]
fn a_node_without_an_answer_keeps_what_may_live_there_from_ready() {
    let with = |workloads: Option<&str>| {
        let mut nodes: Nodes = node("n1", vec![ready_pod("cart-0")]).into();
        nodes.add_absent(Absent {
            node: "n2".into(),
            why: "no agent runs there".into(),
            workloads: workloads.map(|name| [name.to_owned()].into()),
        });
        nodes
    };
    for workloads in [None, Some("shop/cart")] {
        let workload = &judge(&with(workloads), &criteria())[0];
        assert_eq!(workload.verdict, Readiness::NotEnoughData, "{workload:?}");
        assert_eq!(workload.ports[0].verdict, Readiness::NotEnoughData);
        assert!(workload.why.contains("node n2: no agent runs there"), "{}", workload.why);
    }
    let nodes = with(Some("shop/other"));
    assert_eq!(judge(&nodes, &criteria())[0].verdict, Readiness::Ready);
    let (verdict, why) = whole(&nodes, None);
    assert_eq!(verdict, Readiness::NotEnoughData, "the cluster's answer is not complete");
    assert!(why.contains("node n2: no agent runs there"), "{why}");
    // Data of the node make it known.
    let mut known = with(None);
    known.add(node("n2", Vec::new()));
    assert_eq!(whole(&known, None).0, Readiness::Ready);
}

#[test]
fn tls_of_strangers_is_named_and_not_ready_where_only_the_meshs_counts() {
    let stranger = ClientData {
        name: Some("legacy/curl".into()),
        mesh_hellos: 0,
        other_hellos: 3,
        ..client(8080, Class::Tls, 9, 4, 20)
    };
    let mesh = client(8080, Class::Tls, 5, 7, 10);
    let pods =
        |data_plane| vec![PodData { data_plane, ..pod("cart-0", vec![mesh.clone(), stranger.clone()]) }];
    let answer = one(pods(true));
    let port = &answer.ports[0];
    assert_eq!((port.tls, port.tls_unread, port.mesh_tls), (4, 1, 7));
    assert_eq!(port.tls_clients.len(), 1);
    assert_eq!(
        (port.tls_clients[0].name.as_deref(), port.tls_clients[0].connections),
        (Some("legacy/curl"), 4)
    );
    // It may have a certificate of the mesh: ready, with a caution. Where no sidecar asks for certificates there is none.
    assert_eq!(answer.verdict, Readiness::Ready);
    assert!(answer.why.contains("; but 1 client speaks TLS without the mesh's ALPN"), "{}", answer.why);
    let strict = Criteria { mesh_tls_only: true, ..criteria() };
    let told = &judge(&node("n1", pods(true)).into(), &strict)[0];
    assert_eq!(told.verdict, Readiness::NotEnoughData);
    assert!(told.why.contains("1 client speaks TLS without"), "{}", told.why);
    let alone = one(pods(false));
    assert_eq!((alone.verdict, alone.why.contains("ALPN")), (Readiness::Ready, false), "{}", alone.why);
}

#[test]
fn who_showed_the_meshs_alpn_is_of_the_mesh_also_where_a_hello_was_not_read() {
    let some_unread = ClientData { mesh_hellos: 3, ..client(8080, Class::Tls, 5, 7, 10) };
    let answer = one(vec![pod("cart-0", vec![some_unread])]);
    assert_eq!(answer.verdict, Readiness::Ready, "{}", answer.why);
    assert_eq!((answer.ports[0].tls, answer.ports[0].tls_unread, answer.ports[0].mesh_tls), (4, 4, 3));
    let none_read = ClientData { mesh_hellos: 0, ..client(8080, Class::Tls, 5, 7, 10) };
    let answer = one(vec![pod("cart-0", vec![none_read])]);
    assert_eq!(
        (answer.verdict, answer.why.contains("; but 1 client")),
        (Readiness::Ready, true),
        "{}",
        answer.why
    );
}

#[test]
fn what_comes_through_the_tunnel_counts_for_the_workload() {
    let mut ambient = pod("cart-0", vec![client(15008, Class::MeshTls, 5, 40, 10)]);
    ambient.posture.exempt = [15008].into();
    let answer = one(vec![ambient.clone()]);
    assert_eq!((answer.verdict, answer.tunnel), (Readiness::Ready, 40), "{}", answer.why);
    assert!(answer.why.contains("40 connections through the mesh's tunnel"), "{}", answer.why);
    assert_eq!(answer.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [8080]);
    // Plaintext beside the tunnel is plaintext.
    ambient.clients.push(client(8080, Class::Plaintext, 9, 1, 20));
    assert_eq!(one(vec![ambient]).verdict, Readiness::NotReady);
}

#[test]
fn connections_before_the_window_do_not_count() {
    let mark = |days: i64, connections| Mark {
        time: ago(days * 86400),
        connections,
        mesh_hellos: 0,
        other_hellos: 0,
    };
    let mut old = client(8080, Class::Plaintext, 9, 100, 20);
    (old.first, old.marks) = (ago(20 * 86400), vec![mark(20, 10), mark(8, 90), mark(3, 97), mark(0, 100)]);
    let port = one(vec![pod("cart-0", vec![old.clone()])]).ports.remove(0);
    assert_eq!((port.plaintext, port.plaintext_clients[0].connections), (10, 10));
    assert_eq!(port.plaintext_clients[0].counted_from, ago(8 * 86400));
    assert_eq!(port.plaintext_clients[0].first, ago(20 * 86400));
    assert_eq!(old.within(ago(86400)).connections, 3);
    assert_eq!(old.within(ago(30 * 86400)), Counted { from: old.first, connections: 100, mesh: 0, other: 0 });
}

fn any_node() -> impl Strategy<Value = NodeData> {
    let class =
        prop_oneof![Just(Class::Plaintext), Just(Class::Tls), Just(Class::MeshTls), Just(Class::Existing)];
    let clients = prop::collection::vec((class, 0_u8..4, 0_u64..9, 0_i64..1000), 0..4);
    ("[abc]", 0_i64..4, any::<bool>(), prop::collection::vec(clients, 0..3)).prop_map(
        |(name, age, enforcing, pods)| NodeData {
            time: ago(age),
            looked: Some(ago(age)),
            enforcing,
            ..node(
                &name,
                pods.into_iter()
                    .enumerate()
                    .map(|(index, clients)| {
                        let clients = clients.into_iter();
                        pod(
                            &format!("cart-{index}"),
                            clients
                                .map(|(class, last, count, age)| client(8080, class, last, count, age))
                                .collect(),
                        )
                    })
                    .collect(),
            )
        },
    )
}

fn any_nodes() -> impl Strategy<Value = Nodes> {
    prop::collection::vec(any_node(), 0..4).prop_map(Nodes::from_iter)
}

proptest! {
    #[test]
    fn merging_does_not_care_for_order_grouping_or_repetition(a in any_nodes(), b in any_nodes(), c in any_nodes()) {
        let merge = |x: &Nodes, y: &Nodes| x.clone().merge(y.clone());
        prop_assert_eq!(merge(&a, &b), merge(&b, &a));
        prop_assert_eq!(merge(&merge(&a, &b), &c), merge(&a, &merge(&b, &c)));
        prop_assert_eq!(merge(&a, &a), a.clone());
        prop_assert_eq!(merge(&a, &Nodes::default()), a);
    }

    #[test]
    fn plaintext_in_the_window_is_never_ready(nodes in any_nodes()) {
        let plaintext = nodes.iter().flat_map(|node| &node.pods).flat_map(|pod| &pod.clients)
            .any(|client| client.class == Class::Plaintext);
        let answers = judge(&nodes, &criteria());
        let ready = answers.iter().all(|answer| answer.verdict == Readiness::Ready);
        prop_assert!(!(plaintext && ready) || answers.is_empty());
    }

    #[test]
    fn data_survive_json(data in any_node()) {
        let text = serde_json::to_string(&data).expect("json");
        prop_assert_eq!(serde_json::from_str::<NodeData>(&text).expect("its own json"), data);
    }
}
