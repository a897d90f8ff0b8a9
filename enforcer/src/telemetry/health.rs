//! Is the agent alive, and is the node enforced?

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::Snapshot;
use crate::source::KindState;

/// How long the policy loop may be silent; it goes round twice a second, and the largest policies take a part of one.
const SILENCE: Duration = Duration::from_secs(15);

/// How old the agent's sign of life in the maps may be; it writes one twice a second.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// An agent that holds the pins and gives no sign of life: one sentence with what to do.
#[must_use]
pub fn hangs(heartbeat_age: Duration) -> Option<String> {
    let seconds = heartbeat_age.as_secs();
    (heartbeat_age > HEARTBEAT)
        .then(|| format!("the agent hangs, its last sign of life was {seconds} s ago: restart it"))
}

/// Alive as long as the policy loop goes round.
///
/// # Errors
/// What is wrong, when it does not.
pub fn alive(silent_for: Duration) -> Result<(), String> {
    if silent_for <= SILENCE {
        return Ok(());
    }
    Err(format!("the policy loop has not gone round for {} s: restart the agent", silent_for.as_secs()))
}

/// What is missing until every endpoint of this node is enforced by its policy; empty when nothing is.
#[must_use]
pub fn missing(snapshot: &Snapshot) -> Vec<String> {
    let mut missing = Vec::new();
    if snapshot.state.policy_applied.is_none() {
        missing.push(
            "no policy has been loaded yet: what is pinned stays in force; see the agent's log for what its source lacks"
                .to_owned(),
        );
        return missing;
    }
    missing.extend(snapshot.unhooked.iter().map(|why| format!("an interface is not hooked: {why}")));
    missing.extend(snapshot.bypassed.iter().map(|pod| {
        format!(
            "{}{pod} past the hook on the host side of its interface: it is not enforced; run with --attach auto or pod",
            super::bypass::BEGINNING
        )
    }));
    let hooked: BTreeSet<u32> = snapshot.state.interfaces.iter().map(|interface| interface.index).collect();
    let mut placed = snapshot.placed.clone();
    let mut unplaced = BTreeMap::new();
    for (address, plan) in snapshot.wanted.endpoints.iter().filter(|(_, plan)| plan.meshed) {
        if !snapshot.generations.contains_key(address) {
            missing.push(format!(
                "{} ({address}) has no policy in the maps: see enforcer status for a map that is full",
                plan.pod
            ));
        }
        if snapshot.shared.contains(address) {
            // Behind several interfaces, which are hooked.
        } else if plan.ifindex == 0 {
            unplaced.entry(&plan.pod).or_insert(address);
        } else {
            placed.insert(plan.ifindex);
            if !hooked.contains(&plan.ifindex) {
                missing.push(format!(
                    "{} ({address}) is behind interface {}, which is not hooked: see the agent's log, and whether --interface leaves it out",
                    plan.pod, plan.ifindex
                ));
            }
        }
    }
    // A pod whose address was found behind no interface may be behind one whose other end could not be looked at: it is
    // enforced there. There cannot be more such pods than such interfaces.
    let blind = hooked.difference(&placed).count();
    if unplaced.len() > blind {
        let found = |(pod, address)| {
            format!(
                "{pod} ({address}) is not enforced, it is behind no interface of this node that is hooked: if it runs here, see enforcer doctor; \
                 if not, leave it out of this node's manifests{}",
                unsupported(snapshot)
            )
        };
        missing.extend(unplaced.into_iter().map(found));
    }
    missing
}

/// What the agent knows may be out of date: for each kind of the Kubernetes API that cannot be followed, since when. It
/// is ready all the same: what it knows is enforced.
#[must_use]
pub fn stale(kinds: &[KindState], now: Timestamp) -> Vec<String> {
    let sentence = |kind: &KindState| {
        let why = kind.error.as_ref()?;
        Some(match kind.age_seconds(now) {
            Some(age) => format!("{} as of {age:.0} s ago: {why}", kind.kind),
            None => format!("{} unknown: {why}", kind.kind),
        })
    };
    kinds.iter().filter_map(sentence).collect()
}

fn unsupported(snapshot: &Snapshot) -> String {
    match snapshot.state.unsupported_interfaces.as_slice() {
        [] => String::new(),
        names => format!("; these cannot be hooked: {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests;
