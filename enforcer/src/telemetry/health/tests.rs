use std::sync::Arc;

use enforcer_common::{Address, Mode};

use super::*;
use crate::agent::state::{InterfaceState, State};
use crate::datapath::desired::{Desired, EndpointPlan};
use crate::object::ObjectName;

fn plan(pod: &str, ifindex: u32) -> EndpointPlan {
    EndpointPlan {
        pod: ObjectName::new("shop", pod),
        workload: 1,
        mode: Mode::STRICT,
        ports: BTreeMap::new(),
        ifindex,
        netns_id: 0,
        inside: None,
        meshed: true,
        decided_by: Vec::new(),
    }
}

fn snapshot(pods: &[(&str, u32)], interfaces: &[u32]) -> Snapshot {
    let endpoints = pods.iter().zip(1..).map(|((pod, ifindex), number)| {
        (Address::from(std::net::IpAddr::from([10, 0, 0, number])), plan(pod, *ifindex))
    });
    let wanted = Desired { endpoints: endpoints.collect(), ..Desired::default() };
    let interface = |index: &u32| InterfaceState {
        index: *index,
        name: format!("veth{index}"),
        side: crate::datapath::Side::default(),
        device: None,
        hook: "tcx".into(),
        neighbours: Vec::new(),
    };
    Snapshot {
        generations: wanted.endpoints.keys().map(|address| (*address, 1)).collect(),
        wanted: Arc::new(wanted),
        state: State {
            policy_applied: Some("2026-01-01T00:00:00Z".parse().expect("a time")),
            interfaces: interfaces.iter().map(interface).collect(),
            ..State::default()
        },
        ..Snapshot::default()
    }
}

#[test]
fn a_node_where_all_is_hooked_is_ready() {
    assert_eq!(missing(&snapshot(&[], &[])), Vec::<String>::new());
    assert_eq!(missing(&snapshot(&[("web", 3), ("db", 4)], &[3, 4])), Vec::<String>::new());
    assert_eq!(
        missing(&snapshot(&[("web", 3), ("db", 0)], &[3, 4])),
        Vec::<String>::new(),
        "db may be behind 4"
    );
    let mut placed = snapshot(&[("web", 3), ("db", 0)], &[3, 4]);
    placed.placed.insert(4);
    assert_eq!(missing(&placed).len(), 1, "behind 4 is another pod");
    let db = *placed.wanted.endpoints.keys().last().expect("two endpoints");
    placed.shared.insert(db);
    assert_eq!(missing(&placed), Vec::<String>::new(), "behind both: enforced on both");
}

#[test]
fn what_is_missing_is_named() {
    let only = |snapshot: &Snapshot| match missing(snapshot).as_slice() {
        [one] => one.clone(),
        other => panic!("not one: {other:?}"),
    };
    assert!(only(&Snapshot::default()).starts_with("no policy has been loaded yet"));
    assert!(only(&snapshot(&[("web", 3)], &[])).contains("shop/web (10.0.0.1) is behind interface 3"));
    let mut lost = snapshot(&[("web", 3), ("db", 0)], &[3]);
    assert!(only(&lost).starts_with("shop/db (10.0.0.2) is not enforced, it is behind no interface"));
    lost.state.unsupported_interfaces.push("nk0 (netkit)".into());
    assert!(only(&lost).ends_with("cannot be hooked: nk0 (netkit)"));
    let mut refused = snapshot(&[("web", 3)], &[3]);
    refused.generations.clear();
    assert!(only(&refused).contains("has no policy in the maps"));
    let mut unhooked = snapshot(&[("web", 3)], &[3]);
    unhooked.unhooked.push("veth9: the kernel refuses".into());
    assert!(only(&unhooked).contains("veth9"));
}

#[test]
fn pods_outside_the_mesh_do_not_count() {
    let mut other = snapshot(&[("web", 0)], &[]);
    let mut wanted = (*other.wanted).clone();
    wanted.endpoints.values_mut().for_each(|plan| plan.meshed = false);
    other.wanted = Arc::new(wanted);
    assert_eq!(missing(&other), Vec::<String>::new());
}

#[test]
fn silence_is_death() {
    assert_eq!(hangs(Duration::from_secs(5)), None);
    assert!(hangs(Duration::from_mins(1)).is_some_and(|problem| problem.contains("60 s")));
    assert!(alive(Duration::from_secs(1)).is_ok());
    assert!(alive(Duration::from_mins(1)).is_err_and(|problem| problem.contains("60 s")));
}
