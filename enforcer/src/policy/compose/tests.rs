//! The composition against a second, naive reading, over random policy sets.

use std::collections::BTreeMap;

use enforcer_common::Mode;
use jiff::Timestamp;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::Composer;
use crate::object::{Map, ObjectName, Origin, PeerAuthentication};

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::DISABLE), Just(Mode::PERMISSIVE), Just(Mode::STRICT)]
}

fn labels(most: usize) -> impl Strategy<Value = Map> {
    btree_map("[ab]", "[xy]?", 0..=most)
}

prop_compose! {
    fn policy()(
        namespace in "root|one|two", name in "[a-d]", created in option::of(0_i64..3), revision in option::of("r1|r2"),
        selector in labels(2), mode in option::of(mode()), entries in btree_map(1_u16..4, option::of(mode()), 0..3),
    ) -> PeerAuthentication {
        PeerAuthentication {
            name: ObjectName::new(namespace, name),
            created: created.map(|second| Timestamp::from_second(second).expect("in range")),
            labels: revision.map(|revision| ("istio.io/rev".to_owned(), revision)).into_iter().collect(),
            selector,
            mode,
            ports: entries,
            origin: Origin::default(),
        }
    }
}

/// Removes one policy after the other until the best of a scope is left.
fn oldest<'a>(
    all: &[&'a PeerAuthentication],
    wanted: impl Fn(&PeerAuthentication) -> bool,
) -> Option<&'a PeerAuthentication> {
    let mut best: Option<&PeerAuthentication> = None;
    for &policy in all.iter().filter(|policy| wanted(policy)) {
        let key =
            |p: &PeerAuthentication| (p.created.map_or(i64::MIN, Timestamp::as_second), p.name.name.clone());
        if best.is_none_or(|best| key(policy) < key(best)) {
            best = Some(policy);
        }
    }
    best
}

fn naive(all: &[&PeerAuthentication], namespace: &str, pod: &Map, revision: Option<&str>, port: u16) -> Mode {
    let mine: Vec<_> = all
        .iter()
        .copied()
        .filter(|p| {
            revision.is_none()
                || !p.labels.contains_key("istio.io/rev")
                || p.labels.get("istio.io/rev").map(String::as_str) == revision
        })
        .collect();
    let mut mode = Mode::PERMISSIVE;
    if let Some(found) =
        oldest(&mine, |p| p.name.namespace == "root" && p.selector.is_empty()).and_then(|p| p.mode)
    {
        mode = found;
    }
    if namespace == "root" {
        return mode;
    }
    if let Some(found) =
        oldest(&mine, |p| p.name.namespace == namespace && p.selector.is_empty()).and_then(|p| p.mode)
    {
        mode = found;
    }
    let workload = oldest(&mine, |p| {
        p.name.namespace == namespace
            && !p.selector.is_empty()
            && p.selector.iter().all(|pair| pod.iter().any(|have| have == pair))
    });
    let Some(workload) = workload else { return mode };
    let mode = workload.mode.unwrap_or(mode);
    match workload.ports.get(&port) {
        Some(Some(found)) => *found,
        _ => mode,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn agrees_with_the_naive_reading(
        policies in vec(policy(), 0..12), namespace in "root|one|two|three", pod in labels(3), revision in option::of("r1|r3"),
    ) {
        let by_name: BTreeMap<_, _> = policies.into_iter().map(|policy| (policy.name.clone(), policy)).collect();
        let all: Vec<_> = by_name.values().collect();
        let forward = Composer::new(all.iter().copied(), "root", revision.as_deref()).effective(&namespace, &pod);
        let backward = Composer::new(all.iter().rev().copied(), "root", revision.as_deref()).effective(&namespace, &pod);
        prop_assert_eq!(&forward, &backward, "the order of the list must not matter");
        for port in 0..6 {
            prop_assert_eq!(forward.mode(port), naive(&all, &namespace, &pod, revision.as_deref(), port));
        }
        prop_assert!(forward.ports.values().all(|mode| *mode != forward.default));
        prop_assert_eq!(forward.decision(None).map_or(Mode::PERMISSIVE, |decision| decision.mode), forward.default);
    }
}
