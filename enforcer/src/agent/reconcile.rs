//! Bringing the maps to what is wanted, and saying what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use enforcer_common::map::Endpoint;
use enforcer_common::{Address, Mode};
use jiff::Timestamp;
use tracing::{error, info, warn};

use super::tables::Refusal;
use super::{Agent, monotonic_ns};
use crate::datapath::apply::{Change, Write, change, holds};
use crate::datapath::desired::{Desired, desired};

/// The endpoints that a change writes.
fn endpoints(change: &Change) -> impl Iterator<Item = (Address, Endpoint)> {
    change.writes.iter().filter_map(|write| match write {
        Write::Endpoint(address, endpoint) => Some((*address, *endpoint)),
        _ => None,
    })
}

impl Agent {
    /// Brings the maps to what is wanted.
    pub(super) fn reconcile(&mut self) -> anyhow::Result<()> {
        if !self.loaded {
            self.write_state();
            return Ok(());
        }
        self.look_behind_new();
        let begun = Instant::now();
        self.recall_gone();
        self.settle();
        let wanted = desired(&self.objects, &self.facts, &self.config.objects, &mut self.ids);
        let change = change(self.tables.held(), &wanted);
        let before = self.in_force(&wanted);
        self.announce(&change, &wanted);
        let refusals = self.tables.apply(&change);
        self.withdraw(&change, &refusals);
        self.tell_changes(&wanted, &before);
        self.wanted = Arc::new(wanted);
        self.measure(&change, begun);
        self.tell_refusals(&refusals);
        if !change.fresh.is_empty() {
            self.finish(&change.fresh)?;
        }
        self.tell_shared();
        self.policy_applied = Some(Timestamp::now());
        self.write_state();
        Ok(())
    }

    /// After an upgrade that could not take the policy over: the programs of the layout before enforce until the new ones
    /// replace them, and these must not find their maps empty.
    pub(super) fn prepare(&mut self) {
        if !self.loaded || !self.tables.held().endpoints.is_empty() {
            return;
        }
        self.settle();
        let wanted = desired(&self.objects, &self.facts, &self.config.objects, &mut self.ids);
        let change = change(self.tables.held(), &wanted);
        // What is refused is refused again, and told, when all is written for good.
        drop(self.tables.prepare(&change));
    }

    /// Telemetry knows a policy before the first packet meets it: a record must not name the one before.
    fn announce(&self, change: &Change, wanted: &Desired) {
        let held = &self.tables.held().endpoints;
        let new: BTreeMap<Address, u16> =
            endpoints(change).map(|(address, new)| (address, new.generation)).collect();
        let plans = wanted.listed().filter_map(|(address, plan)| {
            let generation = new.get(address).copied();
            let generation = generation.or_else(|| held.get(address).map(|held| held.generation))?;
            Some((*address, generation, plan))
        });
        self.telemetry.plans.enter(monotonic_ns(), plans);
    }

    /// What the maps refused did not come into force; a fresh pod is held to the strictest of its modes instead.
    fn withdraw(&self, change: &Change, refusals: &[Refusal]) {
        for (_, new) in endpoints(change) {
            if refusals.iter().any(|refusal| refusal.workload == new.workload) {
                self.telemetry.plans.withdraw(new.workload, new.generation);
            }
        }
    }

    /// How long the change took, and how long new pods were without it.
    fn measure(&mut self, change: &Change, begun: Instant) {
        let now = Instant::now();
        if !change.writes.is_empty() {
            self.telemetry.timings.policy_apply.observe(now.duration_since(begun).as_secs_f64());
        }
        let held = &self.tables.held().endpoints;
        for address in change.fresh.iter().filter(|address| held.contains_key(*address)) {
            self.gaps.entered(*address, now);
        }
        self.gaps.retain(|address| held.contains_key(address));
        for (address, plan) in self.wanted.endpoints.iter().filter(|(_, plan)| plan.meshed) {
            if let Some(gap) = self.gaps.found(*address, plan.ifindex) {
                self.telemetry.timings.pod_gap.observe(gap.as_secs_f64());
                info!(pod = %plan.pod, seconds = gap.as_secs_f64(), "pod has its policy");
            }
        }
    }

    /// Refused writes are told once, shown by `status` while they last, and tried again.
    pub(super) fn tell_refusals(&mut self, refusals: &[Refusal]) {
        let mut problems = BTreeSet::new();
        for Refusal { workload, address, error } in refusals {
            let pod = self
                .wanted
                .endpoints
                .values()
                .find(|plan| plan.workload == *workload)
                .map(|plan| plan.pod.to_string());
            let what = pod
                .or_else(|| address.map(|address| address.to_string()))
                .unwrap_or_else(|| "exempt sources".into());
            problems.insert(format!(
                "the policy of {what} could not be written ({error}): it keeps the one before, or the strictest of its modes when it is new; \
                 run enforcer detach and start the agent with a larger --map-size for this map"
            ));
        }
        for problem in problems.difference(&self.refused) {
            error!("{problem}");
        }
        self.refused = problems;
    }

    /// What an agent before this one put in force for addresses that this one has not planned yet: the mode, and whether
    /// it is the wanted policy.
    fn in_force(&self, wanted: &Desired) -> BTreeMap<Address, (Mode, bool)> {
        let held = self.tables.held();
        let new = wanted.endpoints.iter().filter(|(address, _)| !self.wanted.endpoints.contains_key(address));
        new.filter_map(|(address, plan)| {
            let endpoint = held.endpoints.get(address).filter(|held| held.workload == plan.workload)?;
            Some((*address, (endpoint.mode, holds(held, *address, plan))))
        })
        .collect()
    }

    /// Tells of every policy that is another one than before. Where an agent before this one decided, by which policies
    /// is not known, so that is compared by its effect.
    fn tell_changes(&self, wanted: &Desired, before: &BTreeMap<Address, (Mode, bool)>) {
        let kept = before.values().filter(|(_, same)| *same).count();
        if kept > 0 {
            info!(addresses = kept, "policy is in force as the agent before left it");
        }
        for (address, plan) in &wanted.endpoints {
            let old = self.wanted.endpoints.get(address);
            if old.is_some_and(|old| {
                old.mode == plan.mode && old.ports == plan.ports && old.decided_by == plan.decided_by
            }) {
                continue;
            }
            let held = before.get(address);
            if held.is_some_and(|(_, same)| *same) {
                continue;
            }
            let mode = old.map(|old| old.mode).or_else(|| held.map(|(mode, _)| *mode));
            let policies: Vec<String> = plan
                .decided_by
                .iter()
                .map(|decision| format!("{} ({})", decision.policy, decision.level))
                .collect();
            info!(
                pod = %plan.pod, address = %address, mode = %plan.mode,
                before = mode.map_or("unknown", Mode::name), policies = policies.join(", "),
                "policy changed"
            );
        }
        for (address, plan) in
            self.wanted.endpoints.iter().filter(|(address, _)| !wanted.endpoints.contains_key(address))
        {
            info!(pod = %plan.pod, address = %address, "endpoint removed");
        }
        for pod in wanted.unprotected.difference(&self.wanted.unprotected) {
            warn!(%pod, "pod is in a mesh namespace and has no data plane: nothing protects it; restart it for injection or label it enforcer.io/enforce=true");
        }
    }

    /// Enters what is open at fresh endpoints. Their namespaces are looked at once more, now that handshakes are followed.
    pub(super) fn finish(&mut self, fresh: &BTreeSet<Address>) -> anyhow::Result<()> {
        let sockets = self.sockets(fresh);
        for address in fresh {
            let found = sockets.get(address);
            self.tables.finish(*address, found, self.config.existing)?;
        }
        Ok(())
    }

    /// What an agent that died on the way left half done.
    pub(super) fn finish_earlier(&mut self) -> anyhow::Result<()> {
        let unfinished: BTreeSet<Address> = self.tables.unfinished().into_keys().collect();
        if unfinished.is_empty() { Ok(()) } else { self.finish(&unfinished) }
    }
}
