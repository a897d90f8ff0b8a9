use std::collections::{BTreeMap, BTreeSet};

use super::numbers::{Check, ConnectionKey, connections};
use super::*;
use crate::agent::retired::Kept;
use crate::agent::state::State;
use crate::certificate::state::State as CertificateState;
use crate::datapath::fill::MapFill;
use enforcer_common::map::{Counter, CounterKey, EventBudget, WorkloadCounterKey};
use enforcer_common::{Direction, Mode, Reason, Verdict};

#[derive(Debug)]
struct Fixed(Numbers);

impl Collector for Fixed {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        write(&self.0, 1, &mut Writer(encoder))
    }
}

fn numbers() -> Numbers {
    let key = |workload: &str| ConnectionKey {
        namespace: "shop".into(),
        workload: workload.into(),
        verdict: Verdict::RESET,
        reason: Reason::PLAINTEXT,
    };
    let counter = |connections| Counter { connections, packets: connections * 2, bytes: connections * 100 };
    let count = |direction| CounterKey { verdict: Verdict::RESET, reason: Reason::PLAINTEXT, direction };
    let check = Check { state: CertificateState::Expiring, expires: Some(1_800_000_000.0) };
    Numbers {
        settings: Some(["enforce", "reset", "allow"]),
        connections: [(key("web"), 3), (key("other"), 4)].into(),
        node: vec![(count(Direction::TO_POD), counter(5)), (count(Direction::FROM_POD), counter(2))],
        endpoints: [(Mode::STRICT, 2)].into(),
        maps: vec![MapFill { name: "FLOWS".into(), entries: Some(9), capacity: 100, memory_bytes: 4096 }],
        problems: Some(0),
        events: Some(EventBudget {
            window_ns: 0,
            sent: 1,
            hellos_sent: 5,
            suppressed: 2,
            hellos_suppressed: 4,
            lost: 3,
        }),
        certificates: [(("shop".to_owned(), "web".to_owned(), 8080), check)].into(),
        policy_applied: Some(1_700_000_000.5),
        cpu_seconds: Some(0.25),
        ..Numbers::default()
    }
}

fn encoded(format: Format) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register("policy_apply_seconds", "Apply", Timings::default().policy_apply);
    registry.register("pod_gap_seconds", "Gap", Timings::default().pod_gap);
    registry.register_collector(Box::new(Fixed(numbers())));
    Metrics { registry }.encode(format).expect("a string takes everything")
}

#[test]
fn every_number_has_its_name() {
    let text = encoded(Format::OpenMetrics);
    for line in [
        "enforcer_build_info{version=\"0.1.0\",layout=",
        "enforcer_settings_info{mode=\"enforce\",action=\"reset\",unknown_pods=\"allow\"} 1",
        "# TYPE enforcer_connections counter",
        "enforcer_connections_total{verdict=\"reset\",reason=\"PLAINTEXT\",namespace=\"shop\",workload=\"web\"} 3",
        "enforcer_connections_total{verdict=\"reset\",reason=\"PLAINTEXT\",namespace=\"shop\",workload=\"other\"} 4",
        "enforcer_node_verdicts_total{verdict=\"reset\",reason=\"PLAINTEXT\"} 7",
        "enforcer_node_packets_total{verdict=\"reset\",reason=\"PLAINTEXT\",direction=\"to_pod\"} 10",
        "enforcer_node_bytes_total{verdict=\"reset\",reason=\"PLAINTEXT\",direction=\"from_pod\"} 200",
        "enforcer_endpoints{mode=\"STRICT\"} 2",
        "enforcer_flows 9",
        "enforcer_flow_table_capacity 100",
        "enforcer_map_entries{map=\"FLOWS\"} 9",
        "enforcer_map_capacity{map=\"FLOWS\"} 100",
        "enforcer_map_memory_bytes{map=\"FLOWS\"} 4096",
        "enforcer_problems 0",
        "enforcer_events_lost_total 3",
        "enforcer_events_suppressed_total 2",
        "enforcer_hellos_suppressed_total 4",
        "enforcer_certificate_check{namespace=\"shop\",pod=\"web\",port=\"8080\",state=\"expiring\"} 1",
        "enforcer_certificate_expiry_timestamp_seconds{namespace=\"shop\",pod=\"web\",port=\"8080\"} 1800000000",
        "enforcer_policy_applied_timestamp_seconds 1700000000.5",
        "enforcer_process_cpu_seconds_total 0.25",
        "enforcer_scrape_errors 1",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

/// The samples' names and their labels.
fn samples(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut samples: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_at(line.find(['{', ' ']).expect("a value"));
        let labels =
            rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(labels, _)| labels);
        let labels =
            labels.split(',').filter_map(|label| label.split_once('=')).map(|(name, _)| name.to_owned());
        samples.entry(name.to_owned()).or_default().extend(labels);
    }
    samples
}

/// Names and labels that others rely on: a change of one is a change of the contract.
#[test]
fn the_contract_of_names_and_labels_holds() {
    let found = samples(&encoded(Format::Classic));
    for (name, labels) in [
        ("enforcer_connections_total", &["namespace", "reason", "verdict", "workload"][..]),
        ("enforcer_node_verdicts_total", &["reason", "verdict"]),
        ("enforcer_endpoints", &["mode"]),
        ("enforcer_unprotected_pods", &[]),
        ("enforcer_flows", &[]),
        ("enforcer_flow_table_capacity", &[]),
        ("enforcer_events_lost_total", &[]),
        ("enforcer_attached_interfaces", &[]),
        ("enforcer_unsupported_interfaces", &[]),
        ("enforcer_policy_apply_seconds_bucket", &["le"]),
        ("enforcer_policy_apply_seconds_sum", &[]),
        ("enforcer_policy_apply_seconds_count", &[]),
        ("enforcer_pod_gap_seconds_bucket", &["le"]),
        ("enforcer_pod_gap_seconds_sum", &[]),
        ("enforcer_pod_gap_seconds_count", &[]),
        ("enforcer_certificate_check", &["namespace", "pod", "port", "state"]),
        ("enforcer_certificate_expiry_timestamp_seconds", &["namespace", "pod", "port"]),
        ("enforcer_build_info", &["layout", "version"]),
    ] {
        let wanted: BTreeSet<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        assert_eq!(found.get(name), Some(&wanted), "{name}");
    }
}

#[test]
fn every_metric_is_in_the_documentation() {
    let page = include_str!("../../../../docs/observability.md");
    for line in encoded(Format::Classic).lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, _) = line.split_once(' ').expect("a name and a type");
        assert!(page.contains(&format!("`{name}`")), "{name} is not in docs/observability.md");
    }
}

#[test]
fn only_counters_end_in_total() {
    for line in encoded(Format::Classic).lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').expect("a name and a type");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
        assert!(name.starts_with("enforcer_"), "{line}");
    }
}

#[test]
fn a_scraper_gets_what_it_asks_for() {
    let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    assert_eq!(Format::of_accept(prometheus), Format::OpenMetrics);
    assert_eq!(Format::of_accept("*/*"), Format::Classic);
    assert_eq!(Format::of_accept(""), Format::Classic);
}

/// Pods of 40 workloads come and go, connections are counted, counters of pods that are gone are added up and removed, and
/// there are 10 series: whatever happens, no series falls, nor does their sum.
#[test]
fn counters_are_monotone_over_pod_churn() {
    let mut seed = 1_u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut slots = Slots::new(10);
    let mut state = State::default();
    let mut kept = Kept::default();
    let mut totals: BTreeMap<u32, (WorkloadCounterKey, Counter)> = BTreeMap::new();
    let mut live: BTreeMap<u32, String> = BTreeMap::new();
    let (mut next, mut counted) = (1_u32, 0);
    let mut before: BTreeMap<ConnectionKey, u64> = BTreeMap::new();
    let (mut own, mut ended) = (BTreeSet::new(), 0);
    for _ in 0..5000 {
        match random(10) {
            0 => {
                let workload = format!("w{}", random(40));
                let pod = format!("shop/{workload}-{next}");
                state.workloads.insert(pod.clone(), next);
                state.owners.insert(pod.clone(), workload);
                live.insert(next, pod);
                next += 1;
            }
            // A pod goes; its counters stay.
            1 if live.len() > 5 => {
                live.pop_first();
            }
            // The map is crowded: those of pods that are gone go.
            2 if random(10) == 0 => {
                let gone: Vec<String> = state
                    .workloads
                    .iter()
                    .filter(|(_, id)| !live.contains_key(*id))
                    .map(|(pod, _)| pod.clone())
                    .collect();
                for pod in gone {
                    let workload = state.workload_of(&pod).expect("a name");
                    let id = state.workloads.remove(&pod).expect("an id");
                    state.owners.remove(&pod);
                    if let Some((key, counter)) = totals.remove(&id) {
                        kept.add(workload, key.verdict, key.reason, counter.connections);
                    }
                }
                let known = state.workloads.keys().filter_map(|pod| state.workload_of(pod)).collect();
                kept.bound(10, &known);
                state.retired = kept.counts();
            }
            _ => {
                let which = usize::try_from(random(live.len().max(1) as u64)).expect("small");
                let Some(id) = live.keys().nth(which).copied() else { continue };
                let key = WorkloadCounterKey {
                    workload: id,
                    verdict: Verdict::ALLOW,
                    reason: Reason::TLS,
                    direction: Direction::TO_POD,
                };
                let entry =
                    totals.entry(id).or_insert((key, Counter { connections: 0, packets: 0, bytes: 0 }));
                entry.1.connections += 1;
                counted += 1;
            }
        }
        let names = live.values().filter_map(|pod| state.workload_of(pod)).collect();
        let all: Vec<_> = totals.values().copied().collect();
        let now = connections(&all, &state, &names, &mut slots);
        for (key, value) in &before {
            match now.get(key) {
                Some(now) => assert!(now >= value, "{key:?} fell from {value} to {now}"),
                None => ended += 1,
            }
        }
        assert_eq!(now.values().sum::<u64>(), counted);
        assert!(now.len() <= 11, "{now:?}");
        own.extend(now.keys().map(|key| key.workload.clone()));
        before = now;
    }
    assert!(own.len() > 20 && ended > 10, "places were given on: {} {ended}", own.len());
}
