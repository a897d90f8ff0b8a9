//! Scale of the policy computation: 10,000 policies, 2,000 namespaces, 250 pods on the node. From objects to the writes of
//! the maps, without the writes themselves. Run with `cargo bench -p enforcer --bench policy`.

use std::fs;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use enforcer::datapath::apply::{Held, change};
use enforcer::datapath::desired::{Facts, Options, WorkloadIds, desired};
use enforcer::object::{Map, ObjectName, Objects, Origin, PeerAuthentication, Pod};
use enforcer_common::Mode;

const NAMESPACES: usize = 2_000;
const PODS: usize = 250;
const EVENTS: usize = 50;

/// The goals at 10,000 policies.
const FIRST: Duration = Duration::from_millis(200);
const EVENT: Duration = Duration::from_millis(5);
const MEMORY_KIB: u64 = 50 << 10;

fn label(key: &str, value: usize) -> (String, String) {
    (key.to_owned(), format!("{key}-{value}"))
}

fn policy(index: usize, policies: usize) -> PeerAuthentication {
    let created = i64::try_from(policies - index).expect("in range");
    // Every fifth policy is for a whole namespace, the others select.
    let selector = if index.is_multiple_of(5) { Map::new() } else { Map::from([label("app", index % 7)]) };
    let ports = if selector.is_empty() { None } else { Some((8080, Some(Mode::PERMISSIVE))) };
    PeerAuthentication {
        name: ObjectName::new(format!("ns-{}", index / 5 % NAMESPACES), format!("policy-{index}")),
        created: jiff::Timestamp::from_second(created).ok(),
        labels: Map::new(),
        selector,
        mode: Some(if index.is_multiple_of(3) { Mode::PERMISSIVE } else { Mode::STRICT }),
        ports: ports.into_iter().collect(),
        origin: Origin::default(),
    }
}

fn pod(index: usize) -> Pod {
    let address = Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(index).expect("in range"));
    Pod {
        deleting: false,
        claim: 0,
        name: ObjectName::new(format!("ns-{}", index * 8 % NAMESPACES), format!("pod-{index}")),
        labels: Map::from([
            label("app", index % 7),
            ("security.istio.io/tlsMode".to_owned(), "istio".to_owned()),
        ]),
        addresses: vec![address.into()],
        ..Pod::default()
    }
}

/// Memory in use by this process, in KiB.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

struct Measured {
    first: Duration,
    event: Duration,
    memory: u64,
}

fn measure(policies: usize) -> Measured {
    let before = memory();
    let mut objects = Objects::default();
    for policy in (0..policies).map(|index| policy(index, policies)) {
        objects.policies.insert(policy.name.clone(), policy);
    }
    for pod in (0..PODS).map(pod) {
        objects.pods.insert(pod.name.clone(), pod);
    }
    let options = Options { root_namespace: "istio-system".to_owned(), revision: None, list_all_pods: true };
    let (facts, mut ids, mut held) = (Facts::default(), WorkloadIds::default(), Held::default());
    let mut compute = |objects: &Objects| {
        let start = Instant::now();
        let change = change(&held, &desired(objects, &facts, &options, &mut ids));
        let took = start.elapsed();
        for write in &change.writes {
            held.enter(write);
        }
        (took, change.writes.len())
    };
    let (first, writes) = compute(&objects);
    assert!(writes >= PODS, "every pod is written");
    let names: Vec<_> = objects.policies.keys().step_by(policies / EVENTS).cloned().collect();
    let mut events: Vec<_> = names
        .iter()
        .map(|name| {
            let policy = objects.policies.get_mut(name).expect("listed");
            policy.mode = Some(Mode::DISABLE);
            compute(black_box(&objects)).0
        })
        .collect();
    events.sort();
    Measured { first, event: events[events.len() / 2], memory: memory().saturating_sub(before) }
}

fn main() {
    println!("{NAMESPACES} namespaces, {PODS} pods; median of {EVENTS} events");
    println!("{:>9} {:>12} {:>12} {:>12}", "policies", "first", "event", "memory");
    for policies in [1_000, 10_000, 100_000] {
        let Measured { first, event, memory } = measure(policies);
        println!(
            "{policies:>9} {:>9.2} ms {:>9.2} ms {memory:>8} KiB",
            milliseconds(first),
            milliseconds(event)
        );
        // The goals are for optimised code.
        if policies == 10_000 && !cfg!(debug_assertions) {
            assert!(first < FIRST && event < EVENT && memory < MEMORY_KIB, "beyond the goals");
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
