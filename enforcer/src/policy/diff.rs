//! What a change of policies does: which pod ports get another mode.

use std::collections::{BTreeMap, BTreeSet};

use enforcer_common::Mode;

use crate::object::{Map, Namespace, ObjectName, Objects, PeerAuthentication, Pod};
use crate::policy::compose::{Composer, Effective};
use crate::policy::membership::{ExemptPorts, MESH_PORTS, Membership, exempt_ports, membership};

/// How many pairs of selectors of one namespace are looked at together, where no pod is given.
const MOST_PAIRS: usize = 400;

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
    /// The mode before; `None` where no policy is held: the pod is not in the mesh, or the mesh does not capture the port.
    pub old: Option<Mode>,
    /// The mode after.
    pub new: Option<Mode>,
    /// The policy that set the mode before; `None` for Istio's default.
    pub old_policy: Option<ObjectName>,
    /// The policy that sets it after.
    pub new_policy: Option<ObjectName>,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Comparison {
    /// The changes.
    pub changes: Vec<Change>,
    /// How many subjects were compared.
    pub compared: usize,
    /// How many pods were left out, because no policy is held there on either side.
    pub left_out: usize,
}

/// One side of the comparison.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Everything known on that side.
    pub objects: &'a Objects,
    /// Its policies.
    pub composer: &'a Composer<'a>,
}

/// What holds for one subject on one side.
struct Held {
    effective: Effective,
    /// Ports that the mesh does not capture; `None` where nothing is held at all.
    exempt: Option<ExemptPorts>,
}

impl Held {
    fn imagined(side: Side, namespace: &str, labels: &Map) -> Self {
        let exempt = Some(ExemptPorts::default());
        Self { effective: side.composer.effective(namespace, labels), exempt }
    }

    fn pod(side: Side, pod: &Pod) -> Self {
        let namespace = side.objects.namespaces.get(&pod.name.namespace);
        let exempt = is_held(pod, namespace).then(|| exempt_ports(pod));
        Self { effective: side.composer.effective(&pod.name.namespace, &pod.labels), exempt }
    }

    fn mode(&self, port: Option<u16>) -> Option<Mode> {
        let exempt = self.exempt.as_ref()?;
        let captured = port.map_or(exempt.only.is_none(), |port| !exempt.contains(port));
        captured.then(|| port.map_or(self.effective.default, |port| self.effective.mode(port)))
    }

    fn policy(&self, port: Option<u16>) -> Option<ObjectName> {
        self.mode(port)?;
        self.effective.decision(port).map(|decision| decision.policy.clone())
    }

    /// Ports of which this side has something to say of its own.
    fn ports(&self) -> impl Iterator<Item = u16> {
        let exempt = self.exempt.iter();
        let special = exempt.flat_map(|exempt| exempt.ports.iter().chain(exempt.only.iter().flatten()));
        self.effective.ports.keys().chain(special).copied()
    }
}

/// Whether policy is held at a pod. Where its Namespace is not given, nothing is known of its mesh: it counts.
fn is_held(pod: &Pod, namespace: Option<&Namespace>) -> bool {
    match membership(pod, namespace) {
        Membership::Enforced { .. } => !pod.finished,
        Membership::NotMeshed => !pod.finished && namespace.is_none(),
        Membership::HostNetwork
        | Membership::OptedOut
        | Membership::OutsideDataPlane { .. }
        | Membership::Unprotected { .. } => false,
    }
}

/// Compares two sides.
///
/// Pods are taken from both sides, each with the labels of its side; a pod of one side alone counts for both. Without
/// any pod, every selector stands for a pod that has just its labels, and two selectors that can match one pod for one
/// that has the labels of both.
#[must_use]
pub fn diff(old: Side, new: Side) -> Comparison {
    let mut found = Comparison::default();
    let mut pods: BTreeMap<&ObjectName, (&Pod, &Pod)> = BTreeMap::new();
    for (name, pod) in &old.objects.pods {
        pods.insert(name, (pod, new.objects.pods.get(name).unwrap_or(pod)));
    }
    for (name, pod) in &new.objects.pods {
        pods.entry(name).or_insert((pod, pod));
    }
    for (name, (before, after)) in &pods {
        let declared = after.ports.iter().filter(|port| port.tcp).map(|port| port.port).collect();
        let (before, after) = (Held::pod(old, before), Held::pod(new, after));
        if before.exempt.is_none() && after.exempt.is_none() {
            found.left_out += 1;
            continue;
        }
        found.compared += 1;
        found.changes.extend(compare(&Subject::Pod((*name).clone()), &before, &after, declared));
    }
    if !pods.is_empty() {
        return found;
    }
    let compare = |subject: &Subject| {
        let none = Map::new();
        let (namespace, labels) = match subject {
            Subject::Any { namespace, labels } => (namespace.as_str(), labels),
            // No namespace has an empty name, so no policy is in it.
            Subject::Pod(_) | Subject::Elsewhere => ("", &none),
        };
        let (before, after) =
            (Held::imagined(old, namespace, labels), Held::imagined(new, namespace, labels));
        compare(subject, &before, &after, BTreeSet::new())
    };
    let imagined = imagined(&[old, new]);
    found.compared = imagined.len();
    let mut single: BTreeMap<Subject, Vec<Change>> = BTreeMap::new();
    for subject in imagined {
        let changes = compare(&subject);
        single.insert(subject, changes);
    }
    let what = |changes: &[Change]| {
        changes
            .iter()
            .map(|change| Change { subject: Subject::Elsewhere, ..change.clone() })
            .collect::<Vec<_>>()
    };
    let mut together = Vec::new();
    for (subject, parts) in overlapping(single.keys()) {
        let changes = compare(&subject);
        // Only where both together are more than one of them alone.
        let known = parts.iter().any(|part| single.get(part).is_some_and(|one| what(one) == what(&changes)));
        if !known && !single.contains_key(&subject) {
            found.compared += 1;
            together.extend(changes);
        }
    }
    found.changes = single.into_values().flatten().chain(together).collect();
    found
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

/// Pods that two selectors of one namespace match, with the two; bounded for each namespace.
fn overlapping<'a>(subjects: impl Iterator<Item = &'a Subject>) -> Vec<(Subject, [Subject; 2])> {
    let mut selectors: BTreeMap<&str, Vec<&Map>> = BTreeMap::new();
    for subject in subjects {
        if let Subject::Any { namespace, labels } = subject
            && !labels.is_empty()
        {
            selectors.entry(namespace).or_default().push(labels);
        }
    }
    let mut found = Vec::new();
    for (namespace, selectors) in selectors {
        let pairs = selectors
            .iter()
            .enumerate()
            .flat_map(|(index, a)| selectors.iter().skip(index + 1).map(move |b| (*a, *b)));
        let any = |labels: &Map| Subject::Any { namespace: namespace.to_owned(), labels: labels.clone() };
        let unions = pairs.filter_map(|(a, b)| {
            let agree = a.iter().all(|(key, value)| b.get(key).is_none_or(|other| other == value));
            let mut both = a.clone();
            both.extend(b.clone());
            (agree && both != *a && both != *b).then(|| (any(&both), [any(a), any(b)]))
        });
        found.extend(unions.take(MOST_PAIRS));
    }
    found
}

/// The ports whose mode differs; those that go with the default are not repeated unless the pod declares them.
fn compare(subject: &Subject, old: &Held, new: &Held, declared: BTreeSet<u16>) -> Vec<Change> {
    let mut ports = declared;
    ports.extend(old.ports().chain(new.ports()));
    let mut changes = Vec::new();
    let mut except = Vec::new();
    for port in ports.into_iter().filter(|port| !MESH_PORTS.contains(port)).map(Some).chain([None]) {
        let (before, after) = (old.mode(port), new.mode(port));
        if before == after {
            except.extend(port);
            continue;
        }
        changes.push(Change {
            subject: subject.clone(),
            port,
            except: if port.is_none() { std::mem::take(&mut except) } else { Vec::new() },
            old: before,
            new: after,
            old_policy: old.policy(port),
            new_policy: new.policy(port),
        });
    }
    changes
}

#[cfg(test)]
mod tests;
