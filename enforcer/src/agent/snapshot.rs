//! What the agent knows, as the file that is read when it is dead.

use std::collections::BTreeSet;
use std::net::IpAddr;

use enforcer_common::Address;
use tracing::warn;

use super::Agent;
use super::state::{self, DecisionState, EndpointState, InterfaceState, State};
use crate::datapath::apply::holds;
use crate::datapath::chain::Neighbour;
use crate::datapath::desired::{EndpointPlan, apart};
use crate::datapath::{Attachment, Side};
use crate::telemetry::names::workload_name;
use crate::telemetry::{Snapshot, health};

impl Agent {
    pub(super) fn write_state(&mut self) {
        self.remember_owners();
        let mut snapshot = self.snapshot();
        snapshot.state.missing = health::missing(&snapshot);
        let state = snapshot.state.clone();
        self.telemetry.publish(snapshot);
        if self.written.as_ref().is_some_and(|written| {
            *written == State { policy_applied: written.policy_applied, ..state.clone() }
        }) {
            return;
        }
        let path = state::path(&self.config.state_dir, &self.config.open.bpffs);
        if let Err(error) = state.write(&path) {
            warn!(
                "{} cannot be written ({error}): status and endpoints show less while the agent is dead",
                path.display()
            );
        }
        self.written = Some(state);
    }

    /// Once per pod, whatever number of addresses it has.
    fn unhooked_pods(&self) -> BTreeSet<String> {
        self.hooks.unhooked.values().cloned().collect()
    }

    /// Pods that packets reach past the hook on the host side.
    fn bypassed_pods(&self) -> BTreeSet<String> {
        let name = |address: &Address| {
            let plan = self.wanted.plan(*address);
            plan.map_or_else(|| IpAddr::from(*address).to_string(), |plan| plan.pod.to_string())
        };
        self.sides.bypassed.keys().map(name).collect()
    }

    /// Addresses that are enforced behind several interfaces.
    fn shared(&self) -> BTreeSet<Address> {
        let several = |address: &&Address| self.facts.places.interfaces(&IpAddr::from(**address)).len() > 1;
        self.wanted.endpoints.keys().filter(several).copied().collect()
    }

    /// What is known, for telemetry.
    fn snapshot(&self) -> Snapshot {
        let endpoints = &self.tables.held().endpoints;
        Snapshot {
            objects: self.objects.clone(),
            wanted: self.wanted.clone(),
            generations: endpoints.iter().map(|(address, held)| (*address, held.generation)).collect(),
            node_addresses: self.node_addresses.clone(),
            state: self.state(),
            placed: self.facts.places.known(),
            bypassed: self.bypassed_pods(),
            shared: self.shared(),
            unhooked: self
                .failed
                .values()
                .map(|failed| format!("{}: {}", failed.interface.name, failed.why))
                .chain(self.sides.problems.values().cloned())
                .collect(),
        }
    }

    /// Counters of pods that are gone still count for their workload.
    fn remember_owners(&mut self) {
        for pod in self.objects.pods.values() {
            let workload = workload_name(pod);
            if workload != pod.name.name && self.ids.all().contains_key(&pod.name) {
                self.owners.entry(pod.name.to_string()).or_insert_with(|| workload.to_owned());
            }
        }
        for gone in &self.facts.gone {
            let listed = apart(&gone.pod);
            if self.ids.all().contains_key(&listed) {
                let workload = workload_name(&gone.pod);
                self.owners.entry(listed.to_string()).or_insert_with(|| workload.to_owned());
            }
        }
    }

    pub(super) fn state(&self) -> State {
        let held = self.tables.held();
        let generation = |address: &Address, plan: &EndpointPlan| {
            let found = held.endpoints.get(address).filter(|_| holds(held, *address, plan))?;
            Some(found.generation)
        };
        let endpoints =
            self.wanted.endpoints.iter().filter(|(_, plan)| plan.meshed).map(|(address, plan)| {
                EndpointState {
                    address: IpAddr::from(*address),
                    pod: plan.pod.to_string(),
                    workload: plan.workload,
                    generation: generation(address, plan),
                    decided_by: plan.decided_by.iter().map(DecisionState::from).collect(),
                }
            });
        let interfaces = self.attachments.values().map(|attachment| InterfaceState {
            index: attachment.interface.index,
            name: attachment.interface.name.clone(),
            side: if attachment.device.is_some() { Side::Pod } else { Side::Host },
            device: attachment.device.clone(),
            hook: hook_name(attachment).to_owned(),
            neighbours: attachment.neighbours.iter().map(Neighbour::describe).collect(),
        });
        let failed: Vec<String> = self
            .failed
            .values()
            .map(|failed| {
                format!("{}: its pod is not enforced; it is tried again twice a second", failed.why)
            })
            .collect();
        State {
            started: Some(self.started),
            policy_applied: self.policy_applied,
            source: self.source.description.clone(),
            root_namespace: self.config.objects.root_namespace.clone(),
            revision: self.config.objects.revision.clone(),
            kinds: self.source.kinds.clone(),
            workloads: self.ids.all().iter().map(|(pod, id)| (pod.to_string(), *id)).collect(),
            last_workload: self.ids.last(),
            owners: self.owners.clone(),
            retired: self.kept.counts(),
            endpoints: endpoints.collect(),
            gone: self.facts.gone.iter().chain(&self.remembered).cloned().collect(),
            interfaces: interfaces.collect(),
            unsupported_interfaces: self.unsupported.values().chain(&self.unhooked_pods()).cloned().collect(),
            unprotected_pods: self.wanted.unprotected.iter().map(ToString::to_string).collect(),
            sockets_problem: self.sockets_problem.clone(),
            missing: Vec::new(),
            problems: self
                .source_problems
                .iter()
                .chain(&self.checks_problem)
                .chain(&failed)
                .chain(self.sides.problems.values())
                .chain(self.looks.shared.values())
                .chain(&self.refused)
                .cloned()
                .chain(self.probers_problem.map(str::to_owned))
                .collect(),
        }
    }
}

pub(super) fn hook_name(attachment: &Attachment) -> &'static str {
    match attachment.hook {
        crate::datapath::Hook::Clsact => "clsact",
        _ => "tcx",
    }
}
