//! From objects to maps: whatever the events and their order, the maps say what the objects say, and that is what a second,
//! naive reading says: composition, sidecar annotations, probes and blocked ports included.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use enforcer::certificate::report::PodPort;
use enforcer::datapath::apply::{Held, change};
use enforcer::datapath::desired::{Facts, Options, WorkloadIds, desired};
use enforcer::object::{ContainerPort, Map, Namespace, ObjectName, Objects, Origin, PeerAuthentication, Pod};
use enforcer_common::map::{PortMode, port_flags};
use enforcer_common::{Address, Mode};
use jiff::Timestamp;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

const ROOT: &str = "root";
const PORTS: [u16; 8] = [80, 81, 82, 83, 15008, 15020, 15021, 15090];
const PODS: [&str; 4] = ["a", "b", "c", "d"];

/// What happens to the objects.
#[derive(Clone, Debug)]
enum Event {
    Pod(Box<Pod>),
    PodGone(usize),
    Policy(Box<PeerAuthentication>),
    PolicyGone(&'static str, &'static str),
    Namespace(&'static str, Option<(&'static str, &'static str)>),
    Blocked(usize, u16, bool),
}

/// A pod's name says its namespace and address, so that no two claim one.
fn name(index: usize) -> ObjectName {
    ObjectName::new(if index == 3 { ROOT } else { "shop" }, PODS[index])
}

fn pod_port(pod: ObjectName, port: u16) -> PodPort {
    PodPort { pod, uid: String::new(), port }
}

fn address(index: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, u8::try_from(index).expect("small")).into()
}

fn mode() -> impl Strategy<Value = Mode> {
    select(vec![Mode::DISABLE, Mode::PERMISSIVE, Mode::STRICT])
}

fn port() -> impl Strategy<Value = u16> {
    select(PORTS.to_vec())
}

fn list() -> impl Strategy<Value = String> {
    btree_set(port(), 0..3)
        .prop_map(|ports| ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

prop_compose! {
    fn pod()(
        index in 0..PODS.len(), labels in btree_map("[ab]", "[xy]", 0..=2), plane in 0..5, host_network in prop::bool::weighted(0.1),
        finished in prop::bool::weighted(0.1), exclude in option::of(list()), include in option::weighted(0.3, prop_oneof![list(), Just("*".to_owned())]),
        status in option::weighted(0.2, Just("81")), probe_ports in vec(port(), 0..2), declared in btree_set(port(), 0..3),
    ) -> Pod {
        let mut labels: Map = labels;
        let mut annotations = Map::new();
        match plane {
            0 => drop(labels.insert("security.istio.io/tlsMode".to_owned(), "istio".to_owned())),
            1 => drop(annotations.insert("sidecar.istio.io/status".to_owned(), "{}".to_owned())),
            2 => drop(annotations.insert("ambient.istio.io/redirection".to_owned(), "enabled".to_owned())),
            3 => drop(labels.insert("enforcer.io/enforce".to_owned(), "false".to_owned())),
            _ => {}
        }
        let mut annotate = |key: &str, value: Option<String>| {
            annotations.extend(value.map(|value| (key.to_owned(), value)));
        };
        annotate("traffic.sidecar.istio.io/excludeInboundPorts", exclude);
        annotate("traffic.sidecar.istio.io/includeInboundPorts", include);
        annotate("status.sidecar.istio.io/port", status.map(str::to_owned));
        let ports = declared.into_iter().map(|port| ContainerPort { name: None, port, tcp: true }).collect();
        let addresses = vec![address(index)];
        Pod { name: name(index), labels, annotations, addresses, host_network, finished, probe_ports, ports, ..Pod::default() }
    }
}

prop_compose! {
    fn policy()(
        namespace in "root|shop", name in "[a-c]", created in option::of(0_i64..3), selector in btree_map("[ab]", "[xy]", 0..=2),
        mode in option::of(mode()), entries in btree_map(port(), option::of(mode()), 0..3),
    ) -> PeerAuthentication {
        PeerAuthentication {
            name: ObjectName::new(namespace, name),
            created: created.map(|second| Timestamp::from_second(second).expect("in range")),
            labels: Map::new(),
            selector,
            mode,
            ports: entries,
            origin: Origin::default(),
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => pod().prop_map(|pod| Event::Pod(Box::new(pod))),
        1 => (0..PODS.len()).prop_map(Event::PodGone),
        4 => policy().prop_map(|policy| Event::Policy(Box::new(policy))),
        1 => (select(vec!["root", "shop"]), select(vec!["a", "b", "c"])).prop_map(|(place, name)| Event::PolicyGone(place, name)),
        1 => (
            select(vec!["root", "shop"]),
            option::of(select(vec![("enforcer.io/enforce", "true"), ("istio-injection", "enabled")])),
        ).prop_map(|(name, label)| Event::Namespace(name, label)),
        1 => (0..PODS.len(), port(), any::<bool>()).prop_map(|(pod, port, blocked)| Event::Blocked(pod, port, blocked)),
    ]
}

fn apply(event: &Event, objects: &mut Objects, facts: &mut Facts) {
    match event.clone() {
        Event::Pod(pod) => drop(objects.pods.insert(pod.name.clone(), *pod)),
        Event::PodGone(index) => drop(objects.pods.remove(&name(index))),
        Event::Policy(policy) => drop(objects.policies.insert(policy.name.clone(), *policy)),
        Event::PolicyGone(place, name) => drop(objects.policies.remove(&ObjectName::new(place, name))),
        Event::Namespace(name, label) => {
            let labels = label.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            objects.namespaces.insert(name.to_owned(), Namespace { name: name.to_owned(), labels });
        }
        Event::Blocked(index, port, true) => drop(facts.blocked.insert(pod_port(name(index), port))),
        Event::Blocked(index, port, false) => drop(facts.blocked.remove(&pod_port(name(index), port))),
    }
}

/// The maps as an agent keeps them.
#[derive(Default)]
struct Maps {
    held: Held,
    ids: WorkloadIds,
}

impl Maps {
    fn follow(&mut self, objects: &Objects, facts: &Facts) {
        let options = Options { root_namespace: ROOT.to_owned(), revision: None, list_all_pods: false };
        let wanted = desired(objects, facts, &options, &mut self.ids);
        let change = change(&self.held, &wanted);
        change.writes.iter().for_each(|write| self.held.enter(write));
        for key in &change.stale {
            self.held.ports.remove(&(key.workload, key.generation, key.port));
        }
        assert!(nothing_is_left_to_do(&self.held, &wanted), "a second run writes something");
    }

    /// What a packet meets.
    fn seen(&self, address: IpAddr, port: u16) -> Option<PortMode> {
        let endpoint = self.held.endpoints.get(&Address::from(address))?;
        let entry = self.held.ports.get(&(endpoint.workload, endpoint.generation, port)).copied();
        Some(entry.unwrap_or(PortMode { mode: endpoint.mode, flags: 0, reserved: 0 }))
    }

    fn all(&self) -> BTreeMap<(usize, u16), Option<PortMode>> {
        let ports = || PORTS.into_iter().chain([1, 65535]);
        (0..PODS.len())
            .flat_map(|pod| ports().map(move |port| ((pod, port), self.seen(address(pod), port))))
            .collect()
    }
}

fn nothing_is_left_to_do(held: &Held, wanted: &enforcer::datapath::desired::Desired) -> bool {
    let again = change(held, wanted);
    again.writes.is_empty() && again.stale.is_empty()
}

/// What holds at one port of a pod, read from the objects one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Naive {
    NotListed,
    Exempt,
    Judged { mode: Mode, probe: bool, blocked: bool },
}

fn naive(objects: &Objects, facts: &Facts, pod: &Pod, port: u16) -> Naive {
    let label = |key: &str| pod.labels.get(key).map(String::as_str);
    let annotation = |key: &str| pod.annotations.get(key).map(String::as_str);
    let sidecar = label("security.istio.io/tlsMode") == Some("istio")
        || annotation("sidecar.istio.io/status").is_some();
    let ambient = annotation("ambient.istio.io/redirection") == Some("enabled");
    let namespace = objects.namespaces.get(&pod.name.namespace);
    let asked = namespace.is_some_and(|namespace| namespace.labels.contains_key("enforcer.io/enforce"));
    let out = label("enforcer.io/enforce") == Some("false");
    if pod.host_network || pod.finished || out || !(sidecar || ambient || asked) {
        return Naive::NotListed;
    }
    if [15008, 15020, 15021, 15090].contains(&port) {
        return Naive::Exempt;
    }
    if sidecar {
        let holds = |list: &str| list.split(',').any(|text| text.trim() == port.to_string());
        if annotation("status.sidecar.istio.io/port").is_some_and(holds) {
            return Naive::Exempt;
        }
        match annotation("traffic.sidecar.istio.io/includeInboundPorts") {
            None | Some("*") => {
                if annotation("traffic.sidecar.istio.io/excludeInboundPorts").is_some_and(holds) {
                    return Naive::Exempt;
                }
            }
            // As if the pod had no other port.
            Some(list) if !holds(list) => {
                return Naive::Judged { mode: Mode::DISABLE, probe: false, blocked: false };
            }
            Some(_) => {}
        }
    }
    let mut all: Vec<_> = objects.policies.values().collect();
    all.sort_by_key(|policy| (policy.created, policy.name.name.clone(), policy.name.namespace.clone()));
    let first = |place: &str, selecting: bool| {
        all.iter().find(|policy| {
            policy.name.namespace == place
                && policy.selector.is_empty() != selecting
                && policy.selector.iter().all(|(key, value)| label(key) == Some(value))
        })
    };
    let mut mode = first(ROOT, false).and_then(|policy| policy.mode).unwrap_or(Mode::PERMISSIVE);
    if pod.name.namespace != ROOT {
        mode = first(&pod.name.namespace, false).and_then(|policy| policy.mode).unwrap_or(mode);
        if let Some(own) = first(&pod.name.namespace, true) {
            mode = own.mode.unwrap_or(mode);
            mode = own.ports.get(&port).copied().flatten().unwrap_or(mode);
        }
    }
    let blocked = facts.blocked.contains(&pod_port(pod.name.clone(), port));
    Naive::Judged { mode, probe: pod.probe_ports.contains(&port), blocked }
}

fn read(entry: Option<PortMode>) -> Naive {
    let Some(entry) = entry else { return Naive::NotListed };
    let has = |flag| entry.flags & flag != 0;
    if has(port_flags::EXEMPT) {
        return Naive::Exempt;
    }
    Naive::Judged { mode: entry.mode, probe: has(port_flags::PROBE), blocked: has(port_flags::BLOCKED) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn the_maps_say_what_the_objects_say(events in vec(event(), 0..24)) {
        let (mut objects, mut facts, mut maps) = (Objects::default(), Facts::default(), Maps::default());
        for event in &events {
            apply(event, &mut objects, &mut facts);
            maps.follow(&objects, &facts);
        }
        for (index, pod_name) in PODS.into_iter().enumerate() {
            for port in PORTS.into_iter().chain([1, 65535]) {
                let found = read(maps.seen(address(index), port));
                let expected = objects.pods.get(&name(index)).map_or(Naive::NotListed, |pod| naive(&objects, &facts, pod, port));
                prop_assert_eq!(found, expected, "pod {} port {}: {:#?}", pod_name, port, objects);
            }
        }
        // An agent that starts now, with empty maps or with these, comes to the same.
        let mut fresh = Maps::default();
        fresh.follow(&objects, &facts);
        prop_assert_eq!(fresh.all(), maps.all());
        prop_assert_eq!(fresh.held.ports.len(), maps.held.ports.len(), "nothing stale is left");
        let before = maps.all();
        maps.ids = WorkloadIds::restore(maps.ids.all().clone(), maps.ids.last());
        maps.follow(&objects, &facts);
        prop_assert_eq!(maps.all(), before);
    }

    /// Events about different objects may come in any order.
    #[test]
    fn the_order_of_events_does_not_matter(
        pods in vec(pod(), 0..6), policies in vec(policy(), 0..8), blocked in btree_set((0..PODS.len(), port()), 0..3), seed in any::<prop::sample::Index>(),
        shuffled in Just((0..32_usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let mut events: BTreeMap<String, Event> = BTreeMap::new();
        for pod in pods {
            events.insert(format!("pod {}", pod.name), Event::Pod(Box::new(pod)));
        }
        for policy in policies {
            events.insert(format!("policy {}", policy.name), Event::Policy(Box::new(policy)));
        }
        for (pod, port) in blocked {
            events.insert(format!("blocked {pod} {port}"), Event::Blocked(pod, port, true));
        }
        let events: Vec<Event> = events.into_values().collect();
        let run = |order: &[usize]| {
            let (mut objects, mut facts, mut maps) = (Objects::default(), Facts::default(), Maps::default());
            for event in order.iter().filter_map(|index| events.get(*index)) {
                apply(event, &mut objects, &mut facts);
                maps.follow(&objects, &facts);
            }
            (maps.all(), maps.held.ports.len())
        };
        let mut rotated = shuffled.clone();
        rotated.rotate_left(seed.index(shuffled.len()));
        let straight: Vec<usize> = (0..32).collect();
        prop_assert_eq!(run(&shuffled), run(&straight));
        prop_assert_eq!(run(&rotated), run(&straight));
        prop_assert!(events.len() <= shuffled.len());
    }
}

/// The model would not notice if nothing was ever exempt, probed or blocked.
#[test]
fn the_model_tells_the_treatments_apart() {
    let sidecar = Map::from([("security.istio.io/tlsMode".to_owned(), "istio".to_owned())]);
    let pod = Pod {
        name: name(0),
        labels: sidecar,
        annotations: Map::from([(
            "traffic.sidecar.istio.io/excludeInboundPorts".to_owned(),
            "82".to_owned(),
        )]),
        addresses: vec![address(0)],
        probe_ports: vec![81],
        ..Pod::default()
    };
    let mut objects = Objects::default();
    objects.pods.insert(pod.name.clone(), pod);
    let facts = Facts { blocked: BTreeSet::from([pod_port(name(0), 80)]), ..Facts::default() };
    let mut maps = Maps::default();
    maps.follow(&objects, &facts);
    let read = |port| read(maps.seen(address(0), port));
    let judged = |probe, blocked| Naive::Judged { mode: Mode::PERMISSIVE, probe, blocked };
    assert_eq!(
        [read(80), read(81), read(82), read(83)],
        [judged(false, true), judged(true, false), Naive::Exempt, judged(false, false)]
    );
}
