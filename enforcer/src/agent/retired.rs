//! Workloads of pods that are gone. Their ids go when nothing is counted under them; their counters, which still count for
//! their workload, only when the map needs the room: it must not be full when a new pod comes. What such counters counted
//! is kept as a sum of their workload, so that no metric falls.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use enforcer_common::{Reason, Verdict};
use tracing::{info, warn};

use super::Agent;
use super::state::RetiredCount;
use crate::datapath::load::Pinned;
use crate::datapath::maps::WorkloadCounters;
use crate::object::ObjectName;

/// How long a pod is gone before anything of it is removed.
const KEEP: Duration = Duration::from_mins(15);
/// How often is looked, in ticks.
const EVERY: u32 = 60;
const COUNTERS: &str = "WORKLOAD_COUNTERS";

/// Namespace and name of a workload.
type Workload = (String, String);

/// What was counted for pods whose counters were removed, by workload.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Kept(BTreeMap<Workload, BTreeMap<(Verdict, Reason), u64>>);

impl Kept {
    /// As an agent before this one left it.
    pub(super) fn restore(counts: &[RetiredCount]) -> Self {
        let mut kept = Self::default();
        for (workload, verdict, reason, connections) in counts.iter().filter_map(RetiredCount::read) {
            kept.add(workload, verdict, reason, connections);
        }
        kept
    }

    /// Adds what a removed counter held.
    pub(crate) fn add(&mut self, workload: Workload, verdict: Verdict, reason: Reason, connections: u64) {
        if connections > 0 {
            *self.0.entry(workload).or_default().entry((verdict, reason)).or_default() += connections;
        }
    }

    /// Keeps the sums of at most so many workloads; those of which nothing else is known are added up as `other`.
    pub(crate) fn bound(&mut self, most: usize, known: &BTreeSet<Workload>) {
        let other = ("other".to_owned(), "other".to_owned());
        while self.0.len() > most {
            let gone = self.0.keys().find(|name| !known.contains(*name) && **name != other).cloned();
            let Some(counts) = gone.and_then(|gone| self.0.remove(&gone)) else { return };
            for ((verdict, reason), connections) in counts {
                self.add(other.clone(), verdict, reason, connections);
            }
        }
    }

    /// As the state file has it.
    pub(crate) fn counts(&self) -> Vec<RetiredCount> {
        let counts = self.0.iter().flat_map(|((namespace, workload), counts)| {
            counts.iter().map(|((verdict, reason), connections)| RetiredCount {
                namespace: namespace.clone(),
                workload: workload.clone(),
                verdict: verdict.name().to_owned(),
                reason: reason.name().to_owned(),
                connections: *connections,
            })
        });
        counts.collect()
    }
}

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
        let telemetry = self.telemetry.clone();
        let _nobody_counts = telemetry.counting();
        match self.free(&due) {
            Ok(true) => self.write_state(),
            Ok(false) => {}
            Err(error) => warn!("what is counted for pods that are gone could not be looked at: {error:#}"),
        }
    }

    fn workload(&self, pod: &ObjectName) -> Workload {
        let owner = self.owners.get(&pod.to_string());
        (pod.namespace.clone(), owner.unwrap_or(&pod.name).clone())
    }

    /// True when an id was freed.
    fn free(&mut self, due: &[ObjectName]) -> anyhow::Result<bool> {
        let mut counters =
            WorkloadCounters::new(COUNTERS, Pinned::open(&self.config.open.bpffs)?.map(COUNTERS)?)?;
        let totals = counters.totals()?;
        let crowded = totals.len() >= counters.capacity() / 4 * 3;
        let (mut freed, mut removed) = (false, 0);
        for pod in due {
            let Some(id) = self.ids.all().get(pod).copied() else { continue };
            let mut own = totals.iter().filter(|(key, _)| key.workload == id).peekable();
            if own.peek().is_some() && !crowded {
                continue;
            }
            for (key, total) in own {
                counters.remove(key)?;
                self.kept.add(self.workload(pod), key.verdict, key.reason, total.connections);
                removed += 1;
            }
            self.ids.forget(pod);
            self.owners.remove(&pod.to_string());
            freed = true;
        }
        let known = self.ids.all().keys().map(|pod| self.workload(pod)).collect();
        self.kept.bound(self.config.telemetry.metrics_workloads, &known);
        if removed > 0 {
            info!(
                counters = removed,
                "{COUNTERS} was nearly full: counters of pods that are gone were added up by workload and removed"
            );
        }
        Ok(freed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_pods_that_are_gone_are_kept_and_bounded() {
        let name = |workload: &str| ("shop".to_owned(), workload.to_owned());
        let mut kept = Kept::default();
        for (workload, connections) in [("web", 3), ("job-1", 5), ("web", 4), ("job-2", 6), ("idle", 0)] {
            kept.add(name(workload), Verdict::ALLOW, Reason::TLS, connections);
        }
        assert_eq!(Kept::restore(&kept.counts()), kept);
        let sum = |kept: &Kept| kept.counts().iter().map(|count| count.connections).sum::<u64>();
        let of = |kept: &Kept, workload: &str| {
            let mut counts = kept.counts().into_iter();
            counts.find(|count| count.workload == workload).map(|count| count.connections)
        };
        assert_eq!((sum(&kept), of(&kept, "web"), of(&kept, "idle")), (18, Some(7), None));
        kept.bound(2, &[name("web")].into());
        assert_eq!((of(&kept, "web"), of(&kept, "other"), kept.0.len()), (Some(7), Some(11), 2));
        kept.bound(1, &[name("web")].into());
        assert_eq!(sum(&kept), 18, "what lives and the rest stay apart");
    }

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
