//! Workloads of pods that are gone. Their ids go when nothing is counted under them; their counters, which still count for
//! their workload, only when the map needs the room: it must not be full when a new pod comes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::Agent;
use crate::datapath::load::Pinned;
use crate::datapath::maps::WorkloadCounters;
use crate::object::ObjectName;

/// How long a pod is gone before anything of it is removed.
const KEEP: Duration = Duration::from_mins(15);
/// How often is looked, in ticks.
const EVERY: u32 = 60;
const COUNTERS: &str = "WORKLOAD_COUNTERS";

/// Since when pods are gone.
#[derive(Debug, Default)]
pub(super) struct Retired {
    ticks: u32,
    since: BTreeMap<ObjectName, Instant>,
}

impl Retired {
    /// Which of the known pods are gone for long enough. An agent that has only just started counts from its start.
    fn due<'a>(
        &mut self,
        known: impl Iterator<Item = &'a ObjectName>,
        lives: impl Fn(&ObjectName) -> bool,
        now: Instant,
    ) -> Vec<ObjectName> {
        let gone: BTreeSet<&ObjectName> = known.filter(|pod| !lives(pod)).collect();
        self.since.retain(|pod, _| gone.contains(pod));
        for pod in gone {
            self.since.entry(pod.clone()).or_insert(now);
        }
        let due = self.since.iter().filter(|(_, since)| now.duration_since(**since) >= KEEP);
        due.map(|(pod, _)| pod.clone()).collect()
    }
}

impl Agent {
    /// To be called with every tick.
    pub(super) fn retire_workloads(&mut self) {
        self.retired.ticks += 1;
        if self.retired.ticks < EVERY || !self.loaded {
            return;
        }
        self.retired.ticks = 0;
        // A pod without an object may still be enforced.
        let enforced: BTreeSet<u32> = self.wanted.endpoints.values().map(|plan| plan.workload).collect();
        let ids = self.ids.all();
        let lives = |pod: &ObjectName| {
            self.objects.pods.contains_key(pod) || ids.get(pod).is_some_and(|id| enforced.contains(id))
        };
        let due = self.retired.due(self.ids.all().keys(), lives, Instant::now());
        if due.is_empty() {
            return;
        }
        match self.free(&due) {
            Ok(true) => self.write_state(),
            Ok(false) => {}
            Err(error) => warn!("what is counted for pods that are gone could not be looked at: {error:#}"),
        }
    }

    /// True when an id was freed.
    fn free(&mut self, due: &[ObjectName]) -> anyhow::Result<bool> {
        let mut counters =
            WorkloadCounters::new(COUNTERS, Pinned::open(&self.config.open.bpffs)?.map(COUNTERS)?)?;
        let keys: Vec<_> = counters.totals()?.into_iter().map(|(key, _)| key).collect();
        let crowded = keys.len() >= counters.capacity() / 4 * 3;
        let (mut freed, mut removed) = (false, 0);
        for pod in due {
            let Some(id) = self.ids.all().get(pod).copied() else { continue };
            let mut own = keys.iter().filter(|key| key.workload == id).peekable();
            if own.peek().is_some() && !crowded {
                continue;
            }
            for key in own {
                counters.remove(key)?;
                removed += 1;
            }
            self.ids.forget(pod);
            self.owners.remove(&pod.to_string());
            freed = true;
        }
        if removed > 0 {
            info!(
                counters = removed,
                "{COUNTERS} was nearly full: counters of pods that are gone were removed"
            );
        }
        Ok(freed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_gone_for_long_is_due_and_a_return_starts_anew() {
        let (here, away) = (ObjectName::new("a", "here"), ObjectName::new("a", "away"));
        let known = [here.clone(), away.clone()];
        let start = Instant::now();
        let mut gone = Retired::default();
        let mut at = |seconds, lives: &dyn Fn(&ObjectName) -> bool| {
            gone.due(known.iter(), lives, start + Duration::from_secs(seconds))
        };
        let only_here = |pod: &ObjectName| *pod == here;
        assert_eq!(at(0, &only_here), []);
        assert_eq!(at(800, &only_here), []);
        assert_eq!(at(850, &|_| true), []);
        assert_eq!(at(900, &only_here), []);
        assert_eq!(at(1799, &only_here), []);
        assert_eq!(at(1800, &only_here), [away]);
    }
}
