//! Pods that come and go: new objects, and pods whose object is gone before they are.

use std::collections::BTreeSet;

use enforcer_common::Address;
use tracing::{error, info, warn};

use super::Agent;
use crate::datapath::desired::GonePod;
use crate::object::{Objects, Pod};
use crate::policy::compose::Composer;
use crate::policy::lint;
use crate::source::{KindState, Source, Update};

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
        // Where they were, before they may not move any more.
        self.settle();
        self.part(&objects, source.pods_outlive_objects());
        self.objects = objects.into();
        self.loaded = true;
        self.warn_of_ports();
    }

    /// Port entries with the number of a Service do nothing; said once.
    fn warn_of_ports(&mut self) {
        let options = &self.config.objects;
        let policies = self.objects.policies.values();
        let composer = Composer::new(policies, &options.root_namespace, options.revision.as_deref());
        let found = lint::service_ports(&self.objects, &composer);
        let found: BTreeSet<String> = found.iter().map(ToString::to_string).collect();
        for warning in found.difference(&self.port_warnings) {
            warn!("{warning}");
        }
        self.port_warnings = found;
    }

    /// Pods whose object is gone, or has finished, stay enforced as long as their interface is there: something in them may
    /// still serve. `outlive`: pods may live on when they are not listed any more.
    fn part(&mut self, objects: &Objects, outlive: bool) {
        let listed = |pod: &Pod| objects.pods.get(&pod.name).filter(|new| new.uid == pod.uid);
        let is_back = |pod: &Pod| listed(pod).is_some_and(|new| !new.finished);
        self.facts.gone.retain(|gone| !is_back(&gone.pod));
        let parted = |pod: &Pod| listed(pod).map_or(outlive, |new| new.finished);
        for pod in self.objects.pods.values().filter(|pod| !pod.finished && !pod.host_network && parted(pod))
        {
            let places = &self.facts.places;
            let seen = || pod.addresses.iter().flat_map(|address| places.of(address)).max();
            if let Some(ifindex) = places.home(pod).or_else(seen) {
                self.facts.gone.push(GonePod { pod: pod.clone(), ifindex });
            }
        }
        self.facts.gone.retain(|gone| self.facts.places.has(gone.ifindex));
    }

    /// Lets go of pods whose interface is gone too.
    pub(super) fn forget_gone(&mut self, ifindex: u32) {
        self.facts.gone.retain(|gone| gone.ifindex != ifindex);
    }

    /// Takes over the gone pods of the agent before this one, as far as they are still enforced and behind their interfaces.
    pub(super) fn recall_gone(&mut self) {
        let held = &self.tables.held().endpoints;
        for gone in std::mem::take(&mut self.remembered) {
            let mut known =
                gone.pod.addresses.iter().filter_map(|address| held.get(&Address::from(*address)));
            let is_enforced = known.any(|endpoint| [0, gone.ifindex].contains(&endpoint.ifindex));
            let listed = self.objects.pods.get(&gone.pod.name);
            let is_back = listed.is_some_and(|new| new.uid == gone.pod.uid && !new.finished);
            if is_enforced && !is_back && self.facts.places.has(gone.ifindex) {
                self.facts.gone.push(gone);
            }
        }
    }

    /// Notes where every pod is, before anything is computed from it.
    pub(super) fn settle(&mut self) {
        let held = &self.tables.held().endpoints;
        let ids = self.ids.all();
        let gone = &self.facts.gone;
        // Where the agent before this one knew it, or this one when it went.
        let before = |pod: &Pod| {
            let went = gone.iter().find(|gone| (&gone.pod.name, &gone.pod.uid) == (&pod.name, &pod.uid));
            let held = || {
                let mut known = pod.addresses.iter().filter_map(|address| held.get(&Address::from(*address)));
                known.find(|endpoint| ids.get(&pod.name) == Some(&endpoint.workload))
            };
            let ifindex = went.map(|gone| gone.ifindex).or_else(|| Some(held()?.ifindex));
            ifindex.filter(|ifindex| *ifindex != 0)
        };
        let leaving = gone.iter().map(|gone| (&gone.pod, true));
        let listed = self.objects.pods.values().map(|pod| (pod, pod.deleting || pod.finished));
        self.facts.places.settle(leaving.chain(listed), before);
    }
}
