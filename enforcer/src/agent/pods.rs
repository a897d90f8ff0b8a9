//! Pods that come and go: new objects, and pods whose object is gone before they are.

use std::collections::BTreeSet;

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
        if source.pods_outlive_objects() {
            self.part(&objects);
        }
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
