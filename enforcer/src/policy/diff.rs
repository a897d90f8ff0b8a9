//! What a change of policies does: which pod ports get another mode.

use std::collections::{BTreeMap, BTreeSet};

use enforcer_common::Mode;

use crate::object::{Map, ObjectName, Objects, PeerAuthentication, Pod};
use crate::policy::compose::{Composer, Effective};
use crate::policy::membership::exempt_ports;

/// Whose ports are compared.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Subject {
    /// A pod of the manifests.
    Pod(ObjectName),
    /// Where no pod is given: any pod of this namespace with these labels.
    Any {
        /// The namespace.
        namespace: String,
        /// Its labels.
        labels: Map,
    },
    /// Where no pod is given: any pod of a namespace that has no policy of its own.
    Elsewhere,
}

/// Ports of one subject whose mode changes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Change {
    /// Whose.
    pub subject: Subject,
    /// The port; `None` for every port that neither another change of the subject nor `except` names.
    pub port: Option<u16>,
    /// Where `port` is `None`: ports whose mode stays.
    pub except: Vec<u16>,
    /// The mode before.
    pub old: Mode,
    /// The mode after.
    pub new: Mode,
    /// The policy that set the mode before; `None` for Istio's default.
    pub old_policy: Option<ObjectName>,
    /// The policy that sets it after.
    pub new_policy: Option<ObjectName>,
}

/// One side of the comparison.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Everything known on that side.
    pub objects: &'a Objects,
    /// Its policies.
    pub composer: &'a Composer<'a>,
}

/// The changes, and how many subjects were compared.
///
/// Pods are taken from both sides, each with the labels of its side; a pod of one side alone counts for both. Without
/// any pod, every selector stands for a pod that has just its labels.
#[must_use]
pub fn diff(old: Side, new: Side) -> (Vec<Change>, usize) {
    let mut changes = Vec::new();
    let mut pods: BTreeMap<&ObjectName, (&Pod, &Pod)> = BTreeMap::new();
    for (name, pod) in &old.objects.pods {
        pods.insert(name, (pod, new.objects.pods.get(name).unwrap_or(pod)));
    }
    for (name, pod) in &new.objects.pods {
        pods.entry(name).or_insert((pod, pod));
    }
    for (name, (before, after)) in &pods {
        let declared = after.ports.iter().filter(|port| port.tcp).map(|port| port.port);
        let exempt = exempt_ports(after).ports;
        let ports: BTreeSet<u16> = declared.filter(|port| !exempt.contains(port)).collect();
        let before = old.composer.effective(&name.namespace, &before.labels);
        let after = new.composer.effective(&name.namespace, &after.labels);
        compare(&Subject::Pod((*name).clone()), &before, &after, ports, &mut changes);
    }
    if !pods.is_empty() {
        return (changes, pods.len());
    }
    let imagined = imagined(&[old, new]);
    for subject in &imagined {
        let none = Map::new();
        let (namespace, labels) = match subject {
            Subject::Any { namespace, labels } => (namespace.as_str(), labels),
            // No namespace has an empty name, so no policy is in it.
            Subject::Pod(_) | Subject::Elsewhere => ("", &none),
        };
        let before = old.composer.effective(namespace, labels);
        let after = new.composer.effective(namespace, labels);
        compare(subject, &before, &after, BTreeSet::new(), &mut changes);
    }
    (changes, imagined.len())
}

/// One pod for every selector, one for every namespace, and one for all other namespaces.
fn imagined(sides: &[Side]) -> BTreeSet<Subject> {
    let policies = || sides.iter().flat_map(|side| side.objects.policies.values());
    let any = |policy: &PeerAuthentication, labels: &Map| Subject::Any {
        namespace: policy.name.namespace.clone(),
        labels: labels.clone(),
    };
    let root = |policy: &PeerAuthentication| {
        sides.iter().any(|side| side.composer.root_namespace() == policy.name.namespace)
    };
    let mut subjects = BTreeSet::from([Subject::Elsewhere]);
    for policy in policies() {
        subjects.insert(any(policy, &Map::new()));
        if !root(policy) {
            subjects.insert(any(policy, &policy.selector));
        }
    }
    subjects
}

/// Adds the ports whose mode differs; those that go with the default are not repeated unless the pod declares them.
fn compare(
    subject: &Subject,
    old: &Effective,
    new: &Effective,
    declared: BTreeSet<u16>,
    changes: &mut Vec<Change>,
) {
    let mut ports = declared;
    ports.extend(old.ports.keys().chain(new.ports.keys()));
    let mut except = Vec::new();
    for port in ports.into_iter().map(Some).chain([None]) {
        let mode = |effective: &Effective| port.map_or(effective.default, |port| effective.mode(port));
        let (before, after) = (mode(old), mode(new));
        if before == after {
            except.extend(port);
            continue;
        }
        let policy = |effective: &Effective| effective.decision(port).map(|decision| decision.policy.clone());
        changes.push(Change {
            subject: subject.clone(),
            port,
            except: if port.is_none() { except.clone() } else { Vec::new() },
            old: before,
            new: after,
            old_policy: policy(old),
            new_policy: policy(new),
        });
    }
}

#[cfg(test)]
mod tests;
