use std::collections::BTreeMap;

use enforcer_common::map::PortMode;
use enforcer_common::{Address, Mode};
use proptest::prelude::*;

use super::{Held, Write, change};
use crate::datapath::desired::{Desired, EndpointPlan};
use crate::object::ObjectName;

const PORTS: [u16; 3] = [8080, 9090, 15008];

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::DISABLE), Just(Mode::PERMISSIVE), Just(Mode::STRICT)]
}

fn plan(workload: u32) -> impl Strategy<Value = EndpointPlan> {
    let port = (mode(), 0_u8..8).prop_map(|(mode, flags)| PortMode { mode, flags, reserved: 0 });
    let ports = prop::collection::btree_map(prop::sample::select(PORTS.to_vec()), port, 0..3);
    (mode(), ports, 0_u32..3).prop_map(move |(mode, ports, ifindex)| EndpointPlan {
        pod: ObjectName::new("ns", workload.to_string()),
        workload,
        mode,
        ports,
        ifindex,
        netns_id: 0,
        inside: None,
        meshed: true,
        decided_by: Vec::new(),
    })
}

/// Up to three pods; the last has two addresses.
fn wanted() -> impl Strategy<Value = Desired> {
    let plans = (prop::option::of(plan(1)), prop::option::of(plan(2)), prop::option::of(plan(3)));
    plans.prop_map(|(one, two, three)| {
        let address = |last| Address::from_v4([10, 0, 0, last]);
        let pairs = [(address(1), one), (address(2), two), (address(3), three.clone()), (address(4), three)];
        let endpoints = pairs.into_iter().filter_map(|(address, plan)| Some((address, plan?))).collect();
        Desired { endpoints, ..Desired::default() }
    })
}

/// What a packet to a port meets: the endpoint, then the port of its generation.
fn seen(held: &Held, address: Address, port: u16) -> Option<PortMode> {
    let endpoint = held.endpoints.get(&address)?;
    let entry = held.ports.get(&(endpoint.workload, endpoint.generation, port)).copied();
    Some(entry.unwrap_or(PortMode { mode: endpoint.mode, flags: 0, reserved: 0 }))
}

fn meant(wanted: &Desired, address: Address, port: u16) -> Option<PortMode> {
    let plan = wanted.endpoints.get(&address)?;
    Some(plan.ports.get(&port).copied().unwrap_or(PortMode { mode: plan.mode, flags: 0, reserved: 0 }))
}

fn forget(held: &mut Held, stale: &[enforcer_common::map::PortKey]) {
    for key in stale {
        held.ports.remove(&(key.workload, key.generation, key.port));
    }
}

proptest! {
    /// After every single write each port is at its old or its new mode, and in the end at the new one.
    #[test]
    fn a_packet_meets_the_old_or_the_new_policy(steps in prop::collection::vec(wanted(), 1..6)) {
        let mut held = Held::default();
        let mut before = Desired::default();
        for wanted in steps {
            let change = change(&held, &wanted);
            let addresses: Vec<Address> = before.endpoints.keys().chain(wanted.endpoints.keys()).copied().collect();
            for write in &change.writes {
                held.enter(write);
                for address in &addresses {
                    for port in PORTS.into_iter().chain([1]) {
                        let now = seen(&held, *address, port);
                        prop_assert!(now == meant(&before, *address, port) || now == meant(&wanted, *address, port));
                    }
                }
            }
            // A packet that read an endpoint before the change still finds its ports: they go later.
            forget(&mut held, &change.stale);
            for address in &addresses {
                for port in PORTS.into_iter().chain([1]) {
                    prop_assert_eq!(seen(&held, *address, port), meant(&wanted, *address, port));
                }
            }
            prop_assert_eq!(super::change(&held, &wanted).writes, Vec::<Write>::new(), "a second run writes nothing");
            prop_assert_eq!(held.endpoints.len(), wanted.endpoints.len());
            before = wanted;
        }
    }

    /// Whatever way led there, the maps say the same.
    #[test]
    fn the_way_does_not_matter(steps in prop::collection::vec(wanted(), 0..5), last in wanted()) {
        let run = |steps: &[Desired]| {
            let mut held = Held::default();
            for wanted in steps {
                let change = change(&held, wanted);
                change.writes.iter().for_each(|write| held.enter(write));
                forget(&mut held, &change.stale);
            }
            let strip = |held: &Held| -> BTreeMap<(Address, u16), Option<PortMode>> {
                held.endpoints.keys().flat_map(|address| PORTS.map(|port| ((*address, port), seen(held, *address, port)))).collect()
            };
            (strip(&held), held.ports.len())
        };
        let mut all = steps;
        all.push(last.clone());
        prop_assert_eq!(run(&all), run(&[last]));
    }
}

fn one_pod(workload: u32, ports: BTreeMap<u16, PortMode>) -> Desired {
    let plan = EndpointPlan {
        pod: ObjectName::new("ns", workload.to_string()),
        workload,
        mode: Mode::PERMISSIVE,
        ports,
        ifindex: 0,
        netns_id: 0,
        inside: None,
        meshed: true,
        decided_by: Vec::new(),
    };
    Desired { endpoints: [(Address::from_v4([10, 0, 0, 1]), plan)].into(), ..Desired::default() }
}

/// A flow of the old pod carries the old pod's generation: under the new pod it must not look judged.
#[test]
fn the_next_owner_of_an_address_has_another_generation() {
    let address = Address::from_v4([10, 0, 0, 1]);
    let mut held = Held::default();
    let mut last = None;
    for workload in [1, 2, 1, 3] {
        let change = change(&held, &one_pod(workload, BTreeMap::new()));
        assert!(change.fresh.contains(&address));
        change.writes.iter().for_each(|write| held.enter(write));
        forget(&mut held, &change.stale);
        let generation = held.endpoints.get(&address).map(|endpoint| endpoint.generation);
        assert_ne!(generation, last);
        last = generation;
    }
}

/// The number wraps, and 65,535 changes of policy later the ports are still found.
#[test]
fn generations_wrap() {
    let strict = PortMode { mode: Mode::STRICT, flags: 0, reserved: 0 };
    let address = Address::from_v4([10, 0, 0, 1]);
    let mut held = Held::default();
    for round in 0..66_000_u32 {
        let ports = if round % 2 == 0 { BTreeMap::from([(8080, strict)]) } else { BTreeMap::new() };
        let wanted = one_pod(1, ports);
        let change = change(&held, &wanted);
        change.writes.iter().for_each(|write| held.enter(write));
        forget(&mut held, &change.stale);
        assert_eq!(seen(&held, address, 8080), meant(&wanted, address, 8080), "round {round}");
    }
}
