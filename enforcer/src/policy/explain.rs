//! Why a pod has the modes it has: what became of every policy that could concern it, in words.

use std::collections::BTreeMap;
use std::fmt;

use enforcer_common::Mode;

use crate::object::{Map, ObjectName, Objects, PeerAuthentication};
use crate::policy::age::NOT_YET;
use crate::policy::compose::{Composer, Decision, Effective, Level, REVISION_LABEL, selects};

/// A label that a selector wants and the pod does not have so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// The label's key.
    pub key: String,
    /// The value that the selector wants.
    pub wanted: String,
    /// The pod's value; `None` when it has no such label.
    pub found: Option<String>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, wanted, found } = self;
        match found {
            Some(found) => write!(f, "wants {key}={wanted}, the pod has {key}={found}"),
            None => write!(f, "wants {key}={wanted}, the pod has no label {key}"),
        }
    }
}

/// Why one policy goes before another of its scope.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seniority {
    /// It was created earlier.
    Older,
    /// It carries no creation time, and the other one does.
    Undated,
    /// Both were created at the same instant, or neither carries a time.
    Name,
    /// It exists, and the other one is yet to be created.
    Existing,
}

impl Seniority {
    /// Why `winner` goes before `loser`.
    #[must_use]
    pub fn of(winner: &PeerAuthentication, loser: &PeerAuthentication) -> Self {
        match (winner.created, loser.created) {
            (a, b) if a == b => Self::Name,
            (_, Some(time)) if time == NOT_YET => Self::Existing,
            (None, _) => Self::Undated,
            _ => Self::Older,
        }
    }
}

impl fmt::Display for Seniority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Older => "is older, and the oldest wins",
            Self::Undated => "has no creation time, which counts as the oldest",
            Self::Existing => "is older, as it exists and the other one, without creation time, does not yet",
            Self::Name => "has the same creation time, and its name comes first",
        })
    }
}

/// What became of one policy on the way to a pod's modes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It sets the default mode.
    Decides(Mode),
    /// It won its scope and sets a mode, but a narrower policy sets another one over it.
    Overridden(Mode, ObjectName),
    /// It won its scope and sets a mode, but the port that was asked for has an entry of the workload policy.
    OverriddenAt(Mode, ObjectName, u16),
    /// Its entry decides the port that was asked for.
    DecidesPort(Mode, u16),
    /// It won its scope but sets no mode: what is wider passes through.
    Inherits,
    /// Another policy of its scope won: the older one, or on equal times the one whose name comes first.
    Shadowed {
        /// The winner.
        by: ObjectName,
        /// Why it won.
        why: Seniority,
    },
    /// Its selector does not match.
    NoMatch(Vec<Mismatch>),
    /// It has a selector in the root namespace, where Istio ignores it.
    RootSelector,
    /// It belongs to another control plane revision.
    OtherRevision(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decides(mode) => write!(f, "decides: {mode}"),
            Self::Overridden(mode, by) => write!(f, "says {mode}, but the narrower {by} decides"),
            Self::OverriddenAt(mode, by, port) => {
                write!(f, "says {mode}, but for port {port} the entry of {by} decides")
            }
            Self::DecidesPort(mode, port) => write!(f, "decides port {port}: {mode}"),
            Self::Inherits => f.write_str("wins its scope but sets no mode: the wider scope passes through"),
            Self::Shadowed { by, why } => write!(f, "shadowed: {by} {why}"),
            Self::NoMatch(labels) => {
                f.write_str("selector does not match: ")?;
                for (index, label) in labels.iter().enumerate() {
                    write!(f, "{}{label}", if index > 0 { "; " } else { "" })?;
                }
                Ok(())
            }
            Self::RootSelector => {
                f.write_str("ignored: Istio ignores policies with a selector in the root namespace")
            }
            Self::OtherRevision(revision) => {
                write!(f, "ignored: it belongs to revision {revision} ({REVISION_LABEL})")
            }
        }
    }
}

/// One policy of the pod's namespace or the root namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ruling {
    /// Which policy.
    pub policy: ObjectName,
    /// The level it speaks at; `None` when it is ignored everywhere.
    pub level: Option<Level>,
    /// What it says for the default, if anything.
    pub mode: Option<Mode>,
    /// What it says for single ports; `None` means it inherits.
    pub ports: BTreeMap<u16, Option<Mode>>,
    /// What became of it.
    pub outcome: Outcome,
    /// Ports that its entries decide: of the workload's winner, and of those that were asked for.
    pub decides: Vec<u16>,
}

/// The modes of a pod and how they came about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The modes.
    pub effective: Effective,
    /// Every policy of the pod's namespace and the root namespace, widest scope first, the winner first in each.
    pub rulings: Vec<Ruling>,
    /// Policies of other namespaces whose selector would match: they do not reach this pod.
    pub elsewhere: Vec<ObjectName>,
}

/// The labels on which `selector` fails.
#[must_use]
pub fn mismatches(selector: &Map, labels: &Map) -> Vec<Mismatch> {
    selector
        .iter()
        .filter(|(key, value)| labels.get(*key) != Some(value))
        .map(|(key, value)| Mismatch {
            key: key.clone(),
            wanted: value.clone(),
            found: labels.get(key).cloned(),
        })
        .collect()
}

/// Explains the modes of a pod with `labels` in `namespace`; with `port`, of this port alone.
#[must_use]
pub fn explain(
    objects: &Objects,
    composer: &Composer,
    namespace: &str,
    labels: &Map,
    port: Option<u16>,
) -> Explanation {
    let mut effective = composer.effective(namespace, labels);
    if let Some(port) = port {
        effective.ports.retain(|other, _| *other == port);
        effective.decided_by.retain(|decision| decision.port.is_none_or(|other| other == port));
    }
    let winners = composer.winners(namespace, labels);
    let root = composer.root_namespace();
    let decision = effective.decision(port);
    let mut rulings = Vec::new();
    let mut rule = |policies: &[&PeerAuthentication], level: Level, winner: Option<&PeerAuthentication>| {
        for policy in policies {
            let outcome = outcome(policy, labels, winner, decision);
            let mut ruling = ruling(policy, Some(level), outcome);
            if winner.is_some_and(|winner| winner.name == policy.name) && level == Level::Workload {
                ruling.decides = effective.ports.keys().copied().collect();
            }
            rulings.push(ruling);
        }
    };
    rule(composer.wide(root), Level::Mesh, winners.mesh);
    if namespace != root {
        rule(composer.wide(namespace), Level::Namespace, winners.namespace);
        let (mut first, rest): (Vec<_>, Vec<_>) =
            composer.selecting(namespace).iter().partition(|policy| selects(&policy.selector, labels));
        first.extend(rest);
        rule(&first, Level::Workload, winners.workload);
    }
    for policy in composer.selecting(root) {
        rulings.push(ruling(policy, None, Outcome::RootSelector));
    }
    let near =
        |policy: &PeerAuthentication| policy.name.namespace == namespace || policy.name.namespace == root;
    for policy in composer.other_revision().iter().filter(|policy| near(policy)) {
        let revision = policy.labels.get(REVISION_LABEL).cloned().unwrap_or_default();
        rulings.push(ruling(policy, None, Outcome::OtherRevision(revision)));
    }
    let elsewhere = objects
        .policies
        .values()
        .filter(|policy| !near(policy) && !policy.selector.is_empty() && selects(&policy.selector, labels))
        .map(|policy| policy.name.clone())
        .collect();
    Explanation { effective, rulings, elsewhere }
}

fn ruling(policy: &PeerAuthentication, level: Option<Level>, outcome: Outcome) -> Ruling {
    let decides = Vec::new();
    Ruling {
        policy: policy.name.clone(),
        level,
        mode: policy.mode,
        ports: policy.ports.clone(),
        outcome,
        decides,
    }
}

fn outcome(
    policy: &PeerAuthentication,
    labels: &Map,
    winner: Option<&PeerAuthentication>,
    decision: Option<&Decision>,
) -> Outcome {
    let mismatches = mismatches(&policy.selector, labels);
    if !mismatches.is_empty() {
        return Outcome::NoMatch(mismatches);
    }
    match (winner, policy.mode) {
        (Some(winner), _) if winner.name != policy.name => {
            Outcome::Shadowed { by: winner.name.clone(), why: Seniority::of(winner, policy) }
        }
        (_, mode) => match (decision.map(|decision| (decision, decision.port)), mode) {
            (Some((decision, Some(port))), _) if decision.policy == policy.name => {
                Outcome::DecidesPort(decision.mode, port)
            }
            (_, None) => Outcome::Inherits,
            (Some((decision, Some(port))), Some(mode)) => {
                Outcome::OverriddenAt(mode, decision.policy.clone(), port)
            }
            (Some((decision, None)), Some(mode)) if decision.policy != policy.name => {
                Outcome::Overridden(mode, decision.policy.clone())
            }
            (_, Some(mode)) => Outcome::Decides(mode),
        },
    }
}

#[cfg(test)]
mod tests;
