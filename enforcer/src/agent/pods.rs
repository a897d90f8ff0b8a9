//! Pods that come and go: new objects, pods whose object is gone before they are, and how long a new pod was without its
//! policy.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::Agent;
use crate::datapath::desired::{Desired, GonePod};
use crate::object::{Objects, Pod};
use crate::source::{KindState, Source, Update};

/// Upper bounds of the histogram of gaps, in seconds; one more bucket is for what is above them.
pub const GAP_BOUNDS: [f64; 10] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Times from an interface's appearance to the policy of its pod in the map, as a histogram.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GapHistogram {
    /// Number of pods in each bucket of [`GAP_BOUNDS`] and above, not cumulative.
    pub buckets: [u64; GAP_BOUNDS.len() + 1],
    /// Number of pods.
    pub count: u64,
    /// Sum of all gaps.
    pub sum_seconds: f64,
    /// The longest gap.
    pub max_seconds: f64,
}

impl GapHistogram {
    /// Counts one gap.
    pub fn observe(&mut self, seconds: f64) {
        let bucket = GAP_BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(GAP_BOUNDS.len());
        if let Some(bucket) = self.buckets.get_mut(bucket) {
            *bucket += 1;
        }
        self.count += 1;
        self.sum_seconds += seconds;
        self.max_seconds = self.max_seconds.max(seconds);
    }
}

/// Interfaces that appeared and whose pod has no policy in the map yet.
#[derive(Debug, Default)]
pub(super) struct PodGaps {
    open: BTreeMap<u32, Instant>,
    pub(super) seen: GapHistogram,
}

impl PodGaps {
    pub(super) fn begin(&mut self, ifindex: u32) {
        self.open.insert(ifindex, Instant::now());
    }

    pub(super) fn forget(&mut self, ifindex: u32) {
        self.open.remove(&ifindex);
    }

    /// Closes the gaps of pods that have their policy now.
    pub(super) fn close(&mut self, in_force: &Desired) {
        if self.open.is_empty() {
            return;
        }
        for plan in in_force.endpoints.values().filter(|plan| plan.meshed) {
            if let Some(since) = self.open.remove(&plan.ifindex) {
                let seconds = since.elapsed().as_secs_f64();
                info!(pod = %plan.pod, seconds, "pod has its policy");
                self.seen.observe(seconds);
            }
        }
    }
}

/// What is known of the source.
#[derive(Debug, Default)]
pub(super) struct SourceState {
    pub(super) description: String,
    pub(super) kinds: Vec<KindState>,
}

impl Agent {
    /// Takes over what a source tells; problems are told once.
    pub(super) fn load(&mut self, update: Update, source: &Source) {
        for problem in update.problems.iter().filter(|problem| !self.source_problems.contains(problem)) {
            error!("{problem}");
        }
        for warning in update.warnings.iter().filter(|warning| !self.source_warnings.contains(warning)) {
            warn!("{warning}");
        }
        if !self.source_problems.is_empty() && update.problems.is_empty() {
            info!("everything that was wrong with policies and their source is right again");
        }
        self.source_warnings = update.warnings;
        self.source_problems = update.problems;
        self.source = SourceState { description: source.description(), kinds: source.kinds() };
        let Some(objects) = update.objects else { return };
        if source.pods_outlive_objects() {
            self.part(&objects);
        }
        self.objects = objects;
        self.loaded = true;
    }

    /// Pods whose object is gone stay enforced as long as their interface is there: they may still serve.
    fn part(&mut self, objects: &Objects) {
        let is_back = |pod: &Pod| objects.pods.get(&pod.name).is_some_and(|new| new.uid == pod.uid);
        self.facts.gone.retain(|gone| !is_back(&gone.pod));
        for pod in
            self.objects.pods.values().filter(|pod| !pod.finished && !pod.host_network && !is_back(pod))
        {
            let place = pod.addresses.iter().find_map(|address| self.facts.places.get(address));
            if let Some(place) = place {
                self.facts.gone.push(GonePod { pod: pod.clone(), ifindex: place.ifindex });
            }
        }
        self.forget_gone();
    }

    /// Lets go of pods whose interface is gone too.
    pub(super) fn forget_gone(&mut self) {
        let places = &self.facts.places;
        self.facts.gone.retain(|gone| {
            let mut found = gone.pod.addresses.iter().filter_map(|address| places.get(address));
            found.any(|place| place.ifindex == gone.ifindex)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_counted_in_the_first_bucket_that_holds_them() {
        let mut gaps = GapHistogram::default();
        for seconds in [0.01, 0.011, 31.0] {
            gaps.observe(seconds);
        }
        assert_eq!((gaps.buckets[0], gaps.buckets[1], gaps.buckets[GAP_BOUNDS.len()]), (1, 1, 1));
        assert_eq!(gaps.count, 3);
        assert!((gaps.sum_seconds - 31.021).abs() < 1e-9 && gaps.max_seconds > 30.9);
    }
}
