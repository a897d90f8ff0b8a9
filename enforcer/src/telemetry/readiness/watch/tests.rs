use std::sync::Arc;

use enforcer_common::{Address, Mode};

use super::*;
use crate::agent::state::{InterfaceState, State};
use crate::datapath::desired::Desired;

/// A meshed pod behind an interface; 0: behind none that is known.
fn snapshot(pods: &[(&str, u32, Option<&str>)]) -> Snapshot {
    let (mut objects, mut wanted) = (Objects::default(), Desired::default());
    for (number, (name, ifindex, node)) in (1_u8..).zip(pods) {
        let pod = Pod {
            name: ObjectName::new("shop", *name),
            labels: [("security.istio.io/tlsMode".to_owned(), "istio".to_owned())].into(),
            node: node.map(str::to_owned),
            ..Pod::default()
        };
        let plan = EndpointPlan {
            pod: pod.name.clone(),
            workload: u32::from(number),
            mode: Mode::PERMISSIVE,
            ports: BTreeMap::new(),
            ifindex: *ifindex,
            netns_id: 0,
            inside: None,
            meshed: true,
            decided_by: Vec::new(),
        };
        wanted.endpoints.insert(Address::from(std::net::IpAddr::from([10, 0, 0, number])), plan);
        objects.pods.insert(pod.name.clone(), pod);
    }
    // Interface 3 is hooked, 4 is not.
    let interface: InterfaceState = serde_json::from_value(serde_json::json!({
        "index": 3, "name": "veth-a", "hook": "tcx", "neighbours": []
    }))
    .expect("an interface");
    Snapshot {
        objects: Arc::new(objects),
        wanted: Arc::new(wanted),
        state: State { interfaces: vec![interface], ..State::default() },
        placed: [3].into(),
        ..Snapshot::default()
    }
}

/// Pods that are seen, with why they are not watched.
fn seen(snapshot: &Snapshot, node: Option<&str>) -> Vec<(String, Option<String>)> {
    observe(snapshot, node).pods.into_values().map(|pod| (pod.pod, pod.unwatched)).collect()
}

#[test]
fn every_meshed_pod_of_the_node_is_seen_and_those_without_a_hook_say_so() {
    let found = seen(&snapshot(&[("a", 3, None), ("b", 4, None), ("c", 0, None)]), None);
    assert_eq!(found[0], ("a".to_owned(), None));
    assert_eq!(found[1], ("b".to_owned(), Some("its interface 4 is not hooked".to_owned())));
    let why = found[2].1.as_deref().unwrap_or_default();
    assert!(why.contains("10.0.0.3") && why.contains("no interface that is hooked"), "{why}");
}

#[test]
fn pods_of_other_nodes_are_not_this_nodes_to_watch() {
    let pods = snapshot(&[("a", 3, Some("n1")), ("b", 0, Some("n2")), ("c", 0, Some("n1"))]);
    let names = |node| seen(&pods, node).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(Some("n1")), ["a", "c"]);
    // Which node this is, is not known: what is behind its interfaces is here for certain.
    assert_eq!(names(None), ["a"]);
}

#[test]
fn a_pod_may_be_behind_several_interfaces_or_one_that_cannot_be_looked_through() {
    let mut shared = snapshot(&[("a", 0, None)]);
    shared.shared = [Address::from(std::net::IpAddr::from([10, 0, 0, 1]))].into();
    assert_eq!(seen(&shared, None), [("a".to_owned(), None)]);
    let mut behind = snapshot(&[("a", 0, None), ("b", 0, None)]);
    behind.placed.clear();
    assert!(seen(&behind, None).iter().all(|(_, why)| why.is_some()), "one of two, and which is not known");
    let mut one = snapshot(&[("a", 0, None)]);
    one.placed.clear();
    assert_eq!(seen(&one, None), [("a".to_owned(), None)]);
}

#[test]
fn a_pod_that_packets_reach_past_its_hook_is_not_watched() {
    let mut snapshot = snapshot(&[("a", 3, None), ("b", 3, None)]);
    snapshot.bypassed = ["shop/b".to_owned()].into();
    let found = seen(&snapshot, None);
    assert_eq!(found[0], ("a".to_owned(), None));
    assert!(found[1].1.as_deref().is_some_and(|why| why.contains("past the hook")), "{found:?}");
}
