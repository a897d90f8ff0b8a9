use super::*;
use crate::datapath::apply::{Held, Write, change};

const OLD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 5));
const NEW: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 6));

fn options() -> Options {
    Options { root_namespace: "istio-system".into(), revision: None, list_all_pods: false }
}

/// A pod of a stateful set: the same name each time, and a port of its own that is exempt.
fn pod(uid: &str, address: IpAddr, exempt: u16) -> Pod {
    Pod {
        name: ObjectName::new("shop", "web-0"),
        uid: uid.into(),
        labels: [("security.istio.io/tlsMode".to_owned(), "istio".to_owned())].into(),
        annotations: [("traffic.sidecar.istio.io/excludeInboundPorts".to_owned(), exempt.to_string())].into(),
        addresses: vec![address],
        ..Pod::default()
    }
}

fn objects(pods: impl IntoIterator<Item = Pod>) -> Objects {
    Objects { pods: pods.into_iter().map(|pod| (pod.name.clone(), pod)).collect(), ..Objects::default() }
}

fn facts(behind: &[(u32, IpAddr)]) -> Facts {
    let mut facts = Facts::default();
    for (ifindex, address) in behind {
        facts.places.appeared(*ifindex);
        facts.places.saw(*ifindex, ifindex.cast_signed(), [*address]);
    }
    facts
}

fn settle(facts: &mut Facts, objects: &Objects) {
    let gone = facts.gone.iter().map(|gone| (&gone.pod, true));
    let pods = objects.pods.values().map(|pod| (pod, pod.deleting || pod.finished));
    facts.places.settle(gone.chain(pods), |_| None);
}

#[test]
fn two_pods_of_one_name_have_ids_and_ports_of_their_own() {
    let (old, new) = (pod("1", OLD, 8081), pod("2", NEW, 8082));
    let mut facts = facts(&[(7, OLD), (9, NEW)]);
    let mut ids = WorkloadIds::default();
    let before = desired(&objects([old.clone()]), &facts, &options(), &mut ids);
    let id = before.endpoints[&OLD.into()].workload;
    facts.gone.push(GonePod { pod: old, ifindex: 7 });
    let listed = objects([new]);
    settle(&mut facts, &listed);
    let wanted = desired(&listed, &facts, &options(), &mut ids);
    let (gone, fresh) = (&wanted.endpoints[&OLD.into()], &wanted.endpoints[&NEW.into()]);
    assert_eq!(fresh.workload, id, "the name's counters go on");
    assert_ne!(gone.workload, fresh.workload);
    // What the maps hold in the end is what each of them is meant to have.
    let mut held = Held::default();
    for write in change(&held, &wanted).writes {
        held.enter(&write);
    }
    for plan in [gone, fresh] {
        let ports = plan.ports.keys().copied().collect::<BTreeSet<u16>>();
        let written = held.ports.keys().filter(|(workload, ..)| *workload == plan.workload);
        assert_eq!(written.map(|(.., port)| *port).collect::<BTreeSet<u16>>(), ports);
    }
    assert!(gone.ports.contains_key(&8081) && !gone.ports.contains_key(&8082));
    assert!(!change(&held, &wanted).writes.iter().any(|write| matches!(write, Write::Endpoint(..))));
    // The same ids the next time, and none for a pod that nobody is enforced for.
    assert_eq!(desired(&listed, &facts, &options(), &mut ids), wanted);
    assert_eq!(ids.all().len(), 2);
}

#[test]
fn a_finished_pod_is_enforced_behind_its_own_interface_only() {
    let finished = Pod { finished: true, ..pod("1", OLD, 8081) };
    let mut facts = facts(&[(7, OLD)]);
    facts.gone.push(GonePod { pod: pod("1", OLD, 8081), ifindex: 7 });
    let listed = objects([finished]);
    let mut ids = WorkloadIds::default();
    settle(&mut facts, &listed);
    let wanted = desired(&listed, &facts, &options(), &mut ids);
    assert_eq!(wanted.endpoints[&OLD.into()].ifindex, 7);
    assert_eq!(ids.all().keys().collect::<Vec<_>>(), [&ObjectName::new("shop", "web-0")], "under its name");
    facts.places.gone(7);
    facts.places.appeared(9);
    facts.places.saw(9, 2, [OLD]);
    assert_eq!(desired(&listed, &facts, &options(), &mut ids).endpoints, BTreeMap::new());
}

#[test]
fn an_address_goes_from_a_leaving_pod_to_the_next_with_the_interface() {
    let old = pod("1", OLD, 8081);
    let mut facts = facts(&[(7, OLD)]);
    let mut ids = WorkloadIds::default();
    settle(&mut facts, &objects([old.clone()]));
    let listed = objects([Pod { deleting: true, ..old }]);
    settle(&mut facts, &listed);
    let mut at = |facts: &Facts, listed: &Objects| {
        let plans = desired(listed, facts, &options(), &mut ids).endpoints;
        plans.get(&OLD.into()).map(|plan| (plan.pod.name.clone(), plan.ifindex))
    };
    assert_eq!(at(&facts, &listed), Some(("web-0".into(), 7)));
    facts.places.gone(7);
    facts.places.appeared(9);
    settle(&mut facts, &listed);
    assert_eq!(at(&facts, &listed), None, "nothing is seen there yet");
    facts.places.saw(9, 2, [OLD]);
    settle(&mut facts, &listed);
    assert_eq!(at(&facts, &listed), None);
    let mut next = pod("2", OLD, 8082);
    next.name.name = "next".into();
    let both = objects(listed.pods.into_values().chain([next]));
    settle(&mut facts, &both);
    assert_eq!(at(&facts, &both), Some(("next".into(), 9)));
}

/// Each pod's link is its own, also where one has the other's address.
#[test]
fn a_link_is_under_the_policy_of_the_pod_behind_it() {
    let [x, y]: [IpAddr; 2] = ["10.0.0.5", "10.0.0.6"].map(|text| text.parse().expect("an address"));
    let first = pod("1", x, 1);
    let second = Pod { name: ObjectName::new("shop", "a-thief"), ..pod("2", y, 2) };
    let objects = objects([first.clone(), second.clone()]);
    let mut facts = facts(&[(7, x), (9, y)]);
    settle(&mut facts, &objects);
    let links = |facts: &Facts| {
        let wanted = desired(&objects, facts, &options(), &mut WorkloadIds::default());
        let links = wanted.links.iter();
        links.map(|(link, plan)| (link.link_of(), plan.pod.name.clone(), plan.ifindex)).collect::<Vec<_>>()
    };
    let own = vec![(Some(7), "web-0".to_owned(), 7), (Some(9), "a-thief".to_owned(), 9)];
    assert_eq!(links(&facts), own);
    facts.places.saw(9, 9, [x, y]);
    settle(&mut facts, &objects);
    assert_eq!(links(&facts), own, "the second has the first one's address, too");
    facts.inside.insert(9, PodDevice { cookie: 77, index: 2, name: "eth0".into() });
    let wanted = desired(&objects, &facts, &options(), &mut WorkloadIds::default());
    let inside = Address::link(PodDevice { cookie: 77, index: 2, name: "eth0".into() }.stamp());
    assert_eq!(wanted.links[&inside].ifindex, 9);
    assert_eq!(
        wanted
            .plan(Address::from("fe80::1".parse::<IpAddr>().expect("an address")).on_link(7))
            .map(|plan| &plan.pod),
        Some(&first.name)
    );
}
