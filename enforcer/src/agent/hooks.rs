//! Looking, from time to time, whether our programs are still where they were put, who came beside them, and whether
//! every meshed pod of this node is behind one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tracing::{info, warn};

use super::Agent;
use crate::datapath::Interface;
use crate::datapath::attach::AttachError;
use crate::datapath::netns::{Namespaces, holders};

/// Every this many ticks.
const EVERY: u32 = 6;

/// What the last look found.
#[derive(Debug, Default)]
pub(super) struct Hooks {
    ticks: u32,
    /// Pods' addresses that are in a namespace of this node and behind no hook, with the interface that has them.
    suspects: BTreeMap<IpAddr, String>,
    /// Those that were so twice in a row: the place of a new pod needs a moment to be found.
    pub(super) unhooked: BTreeMap<IpAddr, String>,
}

impl Agent {
    /// To be called with every tick.
    ///
    /// # Errors
    /// When the maps cannot be written.
    pub(super) fn check_hooks(&mut self) -> anyhow::Result<()> {
        self.hooks.ticks += 1;
        if self.hooks.ticks < EVERY {
            return Ok(());
        }
        self.hooks.ticks = 0;
        let (inside, outside): (Vec<_>, Vec<_>) =
            self.attachments.values().cloned().partition(|attachment| attachment.device.is_some());
        for attachment in outside {
            self.check_hook(&attachment.interface);
        }
        if !inside.is_empty()
            && let Ok(namespaces) = Namespaces::scan()
        {
            for attachment in inside {
                self.check_inside(&namespaces, &attachment);
            }
        }
        if self.look_behind_all() {
            self.reconcile()?;
        }
        self.check_sockets();
        self.find_unhooked();
        self.tell_shared();
        self.write_state();
        Ok(())
    }

    /// Whether closes of pods' sockets are seen; where they are not, it is tried again.
    fn check_sockets(&mut self) {
        if self.sockets_problem.is_none() && self.datapath.watches_sockets() {
            return;
        }
        match (self.datapath.watch_sockets(), self.sockets_problem.take()) {
            (Ok(()), _) => info!("closes of pods' sockets are seen again"),
            (Err(error), before) => {
                let problem = error.to_string();
                if before.as_ref() != Some(&problem) {
                    warn!("{problem}");
                }
                self.sockets_problem = Some(problem);
            }
        }
    }

    fn check_hook(&mut self, interface: &Interface) {
        match self.datapath.neighbours(interface) {
            Ok(Some(others)) => {
                let Some(attachment) = self.attachments.get_mut(&interface.index) else { return };
                for warning in others
                    .iter()
                    .filter(|other| !attachment.neighbours.contains(other))
                    .filter_map(|other| other.warning(&interface.name))
                {
                    warn!(interface = interface.name, "{warning}");
                }
                attachment.neighbours = others;
            }
            Ok(None) => {
                warn!(
                    interface = interface.name,
                    "somebody took our programs off the interface: they are put back, and connections that came meanwhile are unknown ones"
                );
                self.attach(interface);
            }
            // The watch over the interfaces tells of it.
            Err(AttachError::Gone(_)) => {}
            Err(error) => warn!(interface = interface.name, "{error}"),
        }
    }

    fn find_unhooked(&mut self) {
        let plans = self.wanted.endpoints.iter().filter(|(_, plan)| plan.meshed);
        let wanted: BTreeSet<IpAddr> = plans
            .map(|(address, _)| IpAddr::from(*address))
            .filter(|address| self.facts.places.of(address).is_empty())
            .collect();
        let found = if wanted.is_empty() { BTreeMap::new() } else { holders(&wanted).unwrap_or_default() };
        let mut suspects = BTreeMap::new();
        for (address, holder) in found {
            if let Some(plan) = self.wanted.endpoints.get(&address.into()) {
                let kind = if holder.kind.is_empty() { "device" } else { &holder.kind };
                suspects.insert(address, format!("{} ({kind}) of pod {}", holder.interface, plan.pod));
            }
        }
        let twice = |(address, text): (&IpAddr, &String)| {
            (self.hooks.suspects.get(address) == Some(text)).then(|| (*address, text.clone()))
        };
        let unhooked: BTreeMap<IpAddr, String> = suspects.iter().filter_map(twice).collect();
        for (address, text) in
            unhooked.iter().filter(|(address, _)| !self.hooks.unhooked.contains_key(address))
        {
            warn!(%address, "no interface of the node that could be hooked leads to {text}: the pod is not enforced");
        }
        for (address, text) in
            self.hooks.unhooked.iter().filter(|(address, _)| !unhooked.contains_key(address))
        {
            info!(%address, "{text} is behind a hook now, or gone");
        }
        self.hooks.suspects = suspects;
        self.hooks.unhooked = unhooked;
    }
}
