//! Composition of policies into one default mode and port overrides, as Istio's `ComposePeerAuthentication` does:
//! mesh, then namespace, then workload, then port; one winner per scope, never merged.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use enforcer_common::Mode;

use crate::object::{Map, ObjectName, PeerAuthentication};

/// The label that ties a policy to one control plane revision.
pub const REVISION_LABEL: &str = "istio.io/rev";

/// What a decision stands on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Level {
    /// A policy without selector in the root namespace.
    Mesh,
    /// A policy without selector in the pod's namespace.
    Namespace,
    /// A policy in the pod's namespace whose selector matches the pod.
    Workload,
    /// A port entry of the workload policy.
    Port,
}

impl Level {
    /// The word in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Namespace => "namespace",
            Self::Workload => "workload",
            Self::Port => "port",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One policy that set a mode on the way to the result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// At which level.
    pub level: Level,
    /// Which policy.
    pub policy: ObjectName,
    /// The mode it set.
    pub mode: Mode,
    /// The port, at level [`Level::Port`].
    pub port: Option<u16>,
}

/// The effective modes of one pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Effective {
    /// The mode of every port without an override.
    pub default: Mode,
    /// Ports whose mode differs from the default.
    pub ports: BTreeMap<u16, Mode>,
    /// The winners that set a mode, widest scope first; the last one above port level set the default.
    pub decided_by: Vec<Decision>,
}

impl Effective {
    /// The mode of one port of the pod.
    #[must_use]
    pub fn mode(&self, port: u16) -> Mode {
        self.ports.get(&port).copied().unwrap_or(self.default)
    }

    /// The decision behind the mode of one port, or behind the default; `None` when no policy set it.
    #[must_use]
    pub fn decision(&self, port: Option<u16>) -> Option<&Decision> {
        let entry = port.and_then(|port| self.decided_by.iter().find(|decision| decision.port == Some(port)));
        entry.or_else(|| self.decided_by.iter().rfind(|decision| decision.level != Level::Port))
    }
}

/// The winner of each scope for one pod; a winner counts even when it sets no mode.
#[derive(Clone, Copy, Debug, Default)]
pub struct Winners<'a> {
    /// Of the root namespace.
    pub mesh: Option<&'a PeerAuthentication>,
    /// Of the pod's namespace.
    pub namespace: Option<&'a PeerAuthentication>,
    /// Of the policies that select the pod.
    pub workload: Option<&'a PeerAuthentication>,
}

#[derive(Debug, Default)]
struct Scope<'a> {
    /// Policies without selector, in order of precedence.
    wide: Vec<&'a PeerAuthentication>,
    /// Policies with a selector, in order of precedence.
    workload: Vec<&'a PeerAuthentication>,
}

/// All policies, indexed by namespace and sorted.
#[derive(Debug)]
pub struct Composer<'a> {
    root: String,
    scopes: HashMap<&'a str, Scope<'a>>,
    other_revision: Vec<&'a PeerAuthentication>,
}

/// Istio's order: creation instant (absent is older than every instant), then name, then namespace, bytewise.
#[must_use]
pub fn precedence(a: &PeerAuthentication, b: &PeerAuthentication) -> Ordering {
    a.created
        .cmp(&b.created)
        .then_with(|| a.name.name.cmp(&b.name.name))
        .then_with(|| a.name.namespace.cmp(&b.name.namespace))
}

/// True when every pair of `selector` is among `labels`; the empty selector matches everything.
#[must_use]
pub fn selects(selector: &Map, labels: &Map) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// True when the control plane of `revision` reads the policy (`LabelsInRevision`).
#[must_use]
pub fn in_revision(policy: &PeerAuthentication, revision: Option<&str>) -> bool {
    match (policy.labels.get(REVISION_LABEL), revision) {
        (Some(label), Some(revision)) => revision.is_empty() || label == revision,
        _ => true,
    }
}

impl<'a> Composer<'a> {
    /// Indexes the policies; `revision` is the control plane's own, `None` for one without revision.
    pub fn new(
        policies: impl IntoIterator<Item = &'a PeerAuthentication>,
        root_namespace: &str,
        revision: Option<&str>,
    ) -> Self {
        let mut scopes: HashMap<&str, Scope> = HashMap::new();
        let mut other_revision = Vec::new();
        for policy in policies {
            if !in_revision(policy, revision) {
                other_revision.push(policy);
                continue;
            }
            let scope = scopes.entry(policy.name.namespace.as_str()).or_default();
            if policy.selector.is_empty() {
                scope.wide.push(policy);
            } else {
                scope.workload.push(policy);
            }
        }
        for scope in scopes.values_mut() {
            scope.wide.sort_by(|a, b| precedence(a, b));
            scope.workload.sort_by(|a, b| precedence(a, b));
        }
        Self { root: root_namespace.to_owned(), scopes, other_revision }
    }

    /// The root namespace that the composition uses.
    #[must_use]
    pub fn root_namespace(&self) -> &str {
        &self.root
    }

    /// Policies that the revision leaves out.
    #[must_use]
    pub fn other_revision(&self) -> &[&'a PeerAuthentication] {
        &self.other_revision
    }

    /// Policies without selector of one namespace, in order of precedence: only the first counts.
    #[must_use]
    pub fn wide(&self, namespace: &str) -> &[&'a PeerAuthentication] {
        self.scopes.get(namespace).map_or(&[], |scope| scope.wide.as_slice())
    }

    /// Policies with a selector of one namespace, in order of precedence.
    #[must_use]
    pub fn selecting(&self, namespace: &str) -> &[&'a PeerAuthentication] {
        self.scopes.get(namespace).map_or(&[], |scope| scope.workload.as_slice())
    }

    /// The winner of each scope for a pod. Matching comes before age.
    #[must_use]
    pub fn winners(&self, namespace: &str, labels: &Map) -> Winners<'a> {
        let mesh = self.wide(&self.root).first().copied();
        if namespace == self.root {
            // Pods in the root namespace are governed by the mesh policy alone.
            return Winners { mesh, namespace: None, workload: None };
        }
        let workload = self.selecting(namespace).iter().find(|policy| selects(&policy.selector, labels));
        Winners { mesh, namespace: self.wide(namespace).first().copied(), workload: workload.copied() }
    }

    /// The effective modes of a pod.
    #[must_use]
    pub fn effective(&self, namespace: &str, labels: &Map) -> Effective {
        let winners = self.winners(namespace, labels);
        let mut default = Mode::PERMISSIVE;
        let mut decided_by = Vec::new();
        let scopes = [
            (Level::Mesh, winners.mesh),
            (Level::Namespace, winners.namespace),
            (Level::Workload, winners.workload),
        ];
        for (level, winner) in scopes {
            if let Some((policy, mode)) = winner.and_then(|policy| Some((policy, policy.mode?))) {
                default = mode;
                decided_by.push(Decision { level, policy: policy.name.clone(), mode, port: None });
            }
        }
        let mut ports = BTreeMap::new();
        if let Some(policy) = winners.workload {
            for (&port, &mode) in &policy.ports {
                // UNSET inherits the mode as the workload level left it; an override equal to it is none.
                let Some(mode) = mode.filter(|&mode| mode != default) else {
                    continue;
                };
                ports.insert(port, mode);
                decided_by.push(Decision {
                    level: Level::Port,
                    policy: policy.name.clone(),
                    mode,
                    port: Some(port),
                });
            }
        }
        Effective { default, ports, decided_by }
    }
}

#[cfg(test)]
mod tests;
