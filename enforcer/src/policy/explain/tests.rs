//! What became of each policy, in words.

use super::{Outcome, explain};
use crate::object::{Map, Objects};
use crate::policy::compose::Composer;
use crate::source::manifest::{merge, parse_file};

const POLICIES: &str = "
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: mesh, namespace: root}, spec: {mtls: {mode: STRICT}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: chosen, namespace: root},
 spec: {selector: {matchLabels: {app: a}}, mtls: {mode: DISABLE}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: old, namespace: shop, creationTimestamp: '2024-01-01T00:00:00Z'}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: young, namespace: shop, creationTimestamp: '2024-01-01T01:00:01+01:00'},
 spec: {mtls: {mode: DISABLE}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: b, namespace: shop},
 spec: {selector: {matchLabels: {app: a}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {80: {mode: STRICT}}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: c, namespace: shop},
 spec: {selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: d, namespace: shop},
 spec: {selector: {matchLabels: {app: b, tier: web}}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: canary, namespace: shop, labels: {istio.io/rev: canary}}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: far, namespace: other},
 spec: {selector: {matchLabels: {app: a}}}}
";

fn objects() -> Objects {
    let loaded = merge(&[parse_file("policies.yaml".as_ref(), POLICIES)]);
    assert_eq!(loaded.problems, []);
    loaded.objects
}

#[test]
fn every_policy_has_its_reason() {
    let objects = objects();
    let composer = Composer::new(objects.policies.values(), "root", Some("stable"));
    let labels = Map::from([("app".to_owned(), "a".to_owned())]);
    let explanation = explain(&objects, &composer, "shop", &labels, None);
    let lines: Vec<_> = explanation
        .rulings
        .iter()
        .map(|ruling| {
            let level = ruling.level.map_or("-", |level| level.name());
            format!("{level} {}: {}", ruling.policy, ruling.outcome)
        })
        .collect();
    assert_eq!(
        lines,
        [
            "mesh root/mesh: says STRICT, but the narrower shop/b decides",
            "namespace shop/old: wins its scope but sets no mode: the wider scope passes through",
            "namespace shop/young: shadowed: shop/old is older, and the oldest wins",
            "workload shop/b: decides: PERMISSIVE",
            "workload shop/c: shadowed: shop/b has the same creation time, and its name comes first",
            "workload shop/d: selector does not match: wants app=b, the pod has app=a; wants tier=web, the pod has no label tier",
            "- root/chosen: ignored: Istio ignores policies with a selector in the root namespace",
            "- shop/canary: ignored: it belongs to revision canary (istio.io/rev)",
        ]
    );
    let elsewhere: Vec<_> = explanation.elsewhere.iter().map(ToString::to_string).collect();
    assert_eq!(elsewhere, ["other/far"]);
}

#[test]
fn pods_of_the_root_namespace_know_the_mesh_policy_alone() {
    let objects = objects();
    let composer = Composer::new(objects.policies.values(), "root", None);
    let labels = Map::from([("app".to_owned(), "a".to_owned())]);
    let outcomes: Vec<_> = explain(&objects, &composer, "root", &labels, None)
        .rulings
        .into_iter()
        .map(|ruling| ruling.outcome)
        .collect();
    assert_eq!(outcomes, [Outcome::Decides(enforcer_common::Mode::STRICT), Outcome::RootSelector]);
}

#[test]
fn for_one_port_the_entry_decides_and_the_rest_is_overridden() {
    let objects = objects();
    let composer = Composer::new(objects.policies.values(), "root", Some("stable"));
    let labels = Map::from([("app".to_owned(), "a".to_owned())]);
    let outcomes = |port| {
        let explanation = explain(&objects, &composer, "shop", &labels, Some(port));
        let ruling = |name: &str| {
            let found = explanation.rulings.iter().find(|ruling| ruling.policy.name == name);
            found.expect("it is listed").outcome.to_string()
        };
        [ruling("mesh"), ruling("old"), ruling("b")]
    };
    assert_eq!(
        outcomes(80),
        [
            "says STRICT, but for port 80 the entry of shop/b decides",
            "wins its scope but sets no mode: the wider scope passes through",
            "decides port 80: STRICT",
        ]
    );
    assert_eq!(outcomes(81)[2], "decides: PERMISSIVE");
    let all = explain(&objects, &composer, "shop", &labels, None);
    let winner = all.rulings.iter().find(|ruling| ruling.policy.name == "b").expect("it is listed");
    assert_eq!(winner.decides, [80]);
}
