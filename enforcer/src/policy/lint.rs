//! Warnings about policies that admission accepts but that hardly do what their author meant.

use std::collections::{BTreeMap, BTreeSet};

use crate::object::{ObjectName, Objects, PeerAuthentication, Pod};
use crate::policy::compose::{Composer, REVISION_LABEL, selects};
use crate::policy::explain::{Seniority, mismatches};
use crate::policy::problem::Problem;

mod ambient;
mod api_server;
mod pods;
mod ports;

/// The warnings, in order of file and document.
///
/// `empty_selectors`: the objects (`PeerAuthentication namespace/name`) whose selector is present but empty. Rules that
/// need pods, Services or webhooks speak up only when such objects are given; the templates of workloads stand for pods
/// that are not.
#[must_use]
pub fn lint(objects: &Objects, composer: &Composer, empty_selectors: &BTreeSet<String>) -> Vec<Problem> {
    let namespaces: BTreeSet<&str> = objects.policies.keys().map(|name| name.namespace.as_str()).collect();
    let made = pods::of_templates(objects);
    let mut pods: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for pod in objects.pods.values().filter(|pod| !pod.finished).chain(&made) {
        pods.entry(pod.name.namespace.as_str()).or_default().push(pod);
    }
    let mut linter = Linter { objects, pods, composer, empty_selectors, found: Vec::new() };
    for namespace in namespaces {
        linter.wide(namespace);
        if namespace == composer.root_namespace() {
            linter.selectors_in_root();
        } else {
            linter.workload(namespace);
            linter.ambient(namespace);
        }
    }
    linter.ambient_mesh();
    linter.other_revision();
    linter.api_server_clients();
    linter.unprotected();
    let mut found = linter.found;
    found.sort();
    found.dedup();
    found
}

/// What the Services say about the port entries that govern these pods: numbers of a Service in place of the container's.
/// For who knows the pods of one node alone; costs little.
#[must_use]
pub fn service_ports(objects: &Objects, composer: &Composer) -> Vec<Problem> {
    if objects.services.is_empty() {
        return Vec::new();
    }
    let mut governed: BTreeMap<&ObjectName, (&PeerAuthentication, Vec<&Pod>)> = BTreeMap::new();
    for pod in objects.pods.values().filter(|pod| !pod.finished && !pod.host_network) {
        let workload = composer.winners(&pod.name.namespace, &pod.labels).workload;
        if let Some(policy) = workload.filter(|policy| !policy.ports.is_empty()) {
            governed.entry(&policy.name).or_insert_with(|| (policy, Vec::new())).1.push(pod);
        }
    }
    let empty = BTreeSet::new();
    let mut linter =
        Linter { objects, pods: BTreeMap::new(), composer, empty_selectors: &empty, found: Vec::new() };
    for (policy, pods) in governed.into_values() {
        linter.ports(policy, &pods);
    }
    linter.found.retain(|problem| problem.rule == "port-of-service");
    linter.found
}

struct Linter<'a> {
    objects: &'a Objects,
    /// The pods that serve, and those that templates will make, by namespace.
    pods: BTreeMap<&'a str, Vec<&'a Pod>>,
    composer: &'a Composer<'a>,
    empty_selectors: &'a BTreeSet<String>,
    found: Vec<Problem>,
}

/// How a policy is named in problems.
fn object(policy: &PeerAuthentication) -> String {
    format!("PeerAuthentication {}", policy.name)
}

impl<'a> Linter<'a> {
    fn warn(&mut self, policy: &PeerAuthentication, field: &str, rule: &'static str, message: String) {
        self.found.push(Problem::new(&policy.origin, object(policy), field, rule, message));
    }

    /// The pods of a namespace.
    fn pods(&self, namespace: &str) -> Vec<&'a Pod> {
        self.pods.get(namespace).cloned().unwrap_or_default()
    }

    /// Whether the pods of a namespace are known: all are where any is given, the templates of a namespace where any of it is.
    fn knows_pods(&self, namespace: &str) -> bool {
        !self.objects.pods.is_empty() || self.pods.contains_key(namespace)
    }

    fn wide(&mut self, namespace: &'a str) {
        let Some((winner, losers)) = self.composer.wide(namespace).split_first() else {
            return;
        };
        for policy in losers {
            let why = Seniority::of(winner, policy);
            let message = format!(
                "has no effect: {} {why}, and one policy without selector counts per namespace; remove one of the two",
                winner.name
            );
            self.warn(policy, "", "shadowed", message);
        }
        let root = self.composer.root_namespace();
        if namespace == root {
            return;
        }
        // A habit from where the root namespace is the usual one, and what lands where nobody serves.
        let habit = namespace == "istio-system";
        let nobody = namespace == "default" && !self.pods.is_empty() && !self.pods.contains_key(namespace);
        if habit || nobody {
            let message = format!(
                "holds for namespace {namespace} alone, because the root namespace is {root}: move it there if the whole mesh is meant"
            );
            self.warn(winner, "metadata.namespace", "mesh-policy-outside-root", message);
        }
    }

    fn selectors_in_root(&mut self) {
        let root = self.composer.root_namespace();
        for policy in self.composer.selecting(root) {
            let message = format!(
                "has no effect: Istio ignores policies with a selector in the root namespace {root}; move it to the namespace of the pods, or remove the selector"
            );
            self.warn(policy, "spec.selector", "selector-in-root", message);
        }
    }

    fn workload(&mut self, namespace: &'a str) {
        let policies = self.composer.selecting(namespace);
        for (index, policy) in policies.iter().enumerate() {
            let mut matched = self.pods(namespace);
            matched.retain(|pod| selects(&policy.selector, &pod.labels));
            if matched.is_empty() && self.knows_pods(namespace) {
                let hint = self.nearest(policy, namespace);
                let message = format!(
                    "matches no pod of namespace {namespace}{hint}; correct the labels or remove the policy"
                );
                self.warn(policy, "spec.selector.matchLabels", "selector-matches-nothing", message);
            }
            let always =
                policies.iter().take(index).find(|earlier| selects(&earlier.selector, &policy.selector));
            if let Some(winner) = always {
                let why = Seniority::of(winner, policy);
                let message = format!(
                    "has no effect: {} matches every pod that it matches and {why}; policies are never merged: unite the two",
                    winner.name
                );
                self.warn(policy, "spec.selector", "shadowed", message);
                continue;
            }
            let (governed, lost): (Vec<_>, Vec<_>) = matched.into_iter().partition(|pod| {
                let winner = self.composer.winners(namespace, &pod.labels).workload;
                winner.is_some_and(|winner| winner.name == policy.name)
            });
            if let Some(pod) = lost.first() {
                self.overlap(policy, pod, lost.len(), governed.len());
            }
            self.ports(policy, &governed);
        }
    }

    fn overlap(&mut self, policy: &PeerAuthentication, pod: &Pod, lost: usize, governed: usize) {
        let Some(winner) = self.composer.winners(&pod.name.namespace, &pod.labels).workload else {
            return;
        };
        let why = Seniority::of(winner, policy);
        let (rule, extent) = if governed == 0 {
            ("shadowed", format!("has no effect on any of the {lost} pods that it matches"))
        } else {
            (
                "shadowed-partly",
                format!("has no effect on {lost} of the {} pods that it matches", lost + governed),
            )
        };
        let message = format!(
            "{extent}: on {} the policy {} {why}; policies are never merged: make the selectors disjoint",
            pod.name.name, winner.name
        );
        self.warn(policy, "spec.selector", rule, message);
    }

    /// The pod that all labels but one match, as a hint.
    fn nearest(&self, policy: &PeerAuthentication, namespace: &'a str) -> String {
        let near = self
            .pods(namespace)
            .into_iter()
            .map(|pod| (mismatches(&policy.selector, &pod.labels), pod))
            .filter(|(missing, _)| missing.len() == 1)
            // A pod that has the label with another value is nearer than one without the label.
            .max_by_key(|(missing, _)| missing.iter().any(|label| label.found.is_some()));
        if let Some((missing, pod)) = near
            && let Some(label) = missing.first()
            && (policy.selector.len() > 1 || label.found.is_some())
        {
            return format!(" (nearest is {}: the selector {label})", pod.name.name);
        }
        let others = self.pods.iter().filter(|(other, _)| **other != namespace);
        let elsewhere = others.flat_map(|(_, pods)| pods).find(|pod| selects(&policy.selector, &pod.labels));
        match elsewhere {
            Some(pod) => {
                format!(" (pod {} matches, but a selector reaches its own namespace only)", pod.name)
            }
            None => String::new(),
        }
    }

    fn other_revision(&mut self) {
        for policy in self.composer.other_revision() {
            let revision = policy.labels.get(REVISION_LABEL).cloned().unwrap_or_default();
            let message = format!(
                "has no effect here: it belongs to revision {revision}, and the policies of another one are looked at; nothing else was checked of it"
            );
            self.warn(policy, &format!("metadata.labels.{REVISION_LABEL}"), "other-revision", message);
        }
    }
}

#[cfg(test)]
mod tests;
