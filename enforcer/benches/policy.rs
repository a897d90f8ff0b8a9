//! Scale of the policy computation: 10,000 policies, 2,000 namespaces, 250 pods on the node. From objects to what the real
//! maps hold, their writes included. Needs root; run with `cargo bench -p enforcer --bench policy`.

use std::collections::BTreeSet;
use std::fs;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use enforcer::agent::tables::Tables;
use enforcer::datapath::apply::change;
use enforcer::datapath::desired::{Facts, Options, WorkloadIds, desired};
use enforcer::datapath::{Datapath, OpenOptions, detach};
use enforcer::object::{Map, ObjectName, Objects, Origin, PeerAuthentication, Pod};
use enforcer_common::Mode;

const ROOT: &str = "istio-system";
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
    /// Median and worst of the events that concern one policy.
    event: Duration,
    worst: Duration,
    /// One that concerns every pod of the node.
    mesh: Duration,
    memory: u64,
}

/// The real maps, in a folder of their own that goes with this value.
struct Pinned(PathBuf);

impl Pinned {
    fn new() -> Self {
        Self(format!("/sys/fs/bpf/enforcer-bench-{}", std::process::id()).into())
    }

    fn tables(&self) -> Tables {
        let options = OpenOptions { bpffs: self.0.clone(), ..OpenOptions::default() };
        let mut datapath = Datapath::open(&options).expect("root, and a kernel with BTF");
        Tables::open(&mut datapath).expect("the maps")
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = detach::detach(&self.0, true);
        let _ = fs::remove_dir(&self.0);
    }
}

fn measure(policies: usize) -> Measured {
    let pinned = Pinned::new();
    let mut tables = pinned.tables();
    let before = memory();
    let mut objects = Objects::default();
    for policy in (0..policies).map(|index| policy(index, policies)) {
        objects.policies.insert(policy.name.clone(), policy);
    }
    for pod in (0..PODS).map(pod) {
        objects.pods.insert(pod.name.clone(), pod);
    }
    let options = Options { root_namespace: ROOT.to_owned(), revision: None, list_all_pods: true };
    let (facts, mut ids) = (Facts::default(), WorkloadIds::default());
    let mut compute = |objects: &Objects| {
        let start = Instant::now();
        let change = change(tables.held(), &desired(objects, &facts, &options, &mut ids));
        let refused = tables.apply(&change);
        let took = start.elapsed();
        assert!(refused.is_empty(), "the maps take everything: {refused:?}");
        // What the agent does half a second later.
        tables.sweep().expect("removed");
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
    let memory = memory().saturating_sub(before);
    let mut mesh_policy = policy(0, policies);
    mesh_policy.name = ObjectName::new(ROOT, "default");
    (mesh_policy.selector, mesh_policy.mode) = (Map::new(), Some(Mode::STRICT));
    mesh_policy.ports.clear();
    // Without policies of their own all pods follow the mesh.
    let with_pods: BTreeSet<String> = objects.pods.keys().map(|pod| pod.namespace.clone()).collect();
    objects.policies.retain(|name, _| !with_pods.contains(&name.namespace));
    compute(&objects);
    objects.policies.insert(mesh_policy.name.clone(), mesh_policy);
    let (mesh, writes) = compute(&objects);
    assert!(writes >= PODS, "every pod is written");
    let worst = events.last().copied().unwrap_or_default();
    Measured { first, event: events[events.len() / 2], worst, mesh, memory }
}

fn main() {
    println!("{NAMESPACES} namespaces, {PODS} pods, real maps; {EVENTS} events");
    println!(
        "{:>9} {:>12} {:>14} {:>12} {:>14} {:>12}",
        "policies", "first", "event, median", "worst", "for every pod", "memory"
    );
    for policies in [1_000, 10_000, 100_000] {
        let Measured { first, event, worst, mesh, memory } = measure(policies);
        println!(
            "{policies:>9} {:>9.2} ms {:>11.2} ms {:>9.2} ms {:>11.2} ms {memory:>8} KiB",
            milliseconds(first),
            milliseconds(event),
            milliseconds(worst),
            milliseconds(mesh),
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
