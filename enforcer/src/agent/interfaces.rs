//! Interfaces that appear and go, and where the pods behind them live.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use enforcer_common::Address;
use tracing::{error, info, warn};

use super::Agent;
use super::snapshot::hook_name;
use crate::datapath::netns::{Namespaces, addresses};
use crate::datapath::sockdiag::PodSockets;
use crate::datapath::{Interface, InterfaceEvent};

/// How long is looked with every tick for what a new interface or a new pod has not shown yet; afterwards with every check
/// of the hooks.
const EAGER: Duration = Duration::from_secs(10);

/// What was looked at behind the interfaces, and when to look again.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// Something was hooked and not looked behind yet.
    due: bool,
    eager_until: Option<Instant>,
    /// Addresses of pods that were seen behind no interface.
    unplaced: BTreeSet<Address>,
    /// Addresses of pods that are behind several interfaces, one sentence each.
    pub(super) shared: BTreeMap<IpAddr, String>,
}

/// An interface that could not be hooked, and why.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) interface: Interface,
    pub(super) why: String,
}

impl Agent {
    pub(super) fn interface(&mut self, event: InterfaceEvent) {
        match event {
            InterfaceEvent::Appeared(interface) => {
                self.gaps.appeared(interface.index, Instant::now());
                // Also when it was there and leads to another pod now.
                self.facts.places.appeared(interface.index);
                self.leave_gone(&interface);
                self.forget_gone(interface.index);
                self.unsupported.remove(&interface.index);
                self.attach(&interface);
            }
            InterfaceEvent::Unsupported(interface) => {
                warn!(
                    interface = interface.name,
                    kind = interface.kind,
                    "interface looks like a pod's and cannot be hooked: its pod is not enforced"
                );
                self.unsupported.insert(interface.index, format!("{} ({})", interface.name, interface.kind));
            }
            InterfaceEvent::Gone(interface) => {
                self.gaps.gone(interface.index);
                self.leave_gone(&interface);
                self.attachments.remove(&interface.index);
                self.unsupported.remove(&interface.index);
                self.failed.remove(&interface.index);
                self.facts.places.gone(interface.index);
                self.forget_gone(interface.index);
                if let Err(error) = self.datapath.forget(interface.index) {
                    warn!(
                        interface = interface.name,
                        "cannot remove the pins of an interface that is gone: {error}"
                    );
                }
                info!(interface = interface.name, "interface is gone");
            }
        }
    }

    /// Hooks an interface. What fails is told once, and tried again with every tick.
    pub(super) fn attach(&mut self, interface: &Interface) {
        if self.attach_as_before(interface) {
            return;
        }
        match self.datapath.attach(interface) {
            Ok(attachment) => {
                for warning in &attachment.warnings {
                    warn!(interface = interface.name, "{warning}");
                }
                info!(
                    interface = interface.name,
                    hook = hook_name(&attachment),
                    replaced = attachment.replaced,
                    "interface hooked"
                );
                self.attachments.insert(interface.index, attachment);
                self.failed.remove(&interface.index);
                self.looks.due = true;
                self.looks.eager_until = Some(Instant::now() + EAGER);
            }
            Err(error) => {
                let why = error.to_string();
                let known = self.failed.get(&interface.index).is_some_and(|failed| failed.why == why);
                if !known {
                    error!(interface = interface.name, "{why}; tried again all the time");
                }
                self.failed.insert(interface.index, Failed { interface: interface.clone(), why });
            }
        }
    }

    /// Looks behind the interfaces again soon.
    pub(super) fn look_soon(&mut self) {
        self.looks.due = true;
        self.looks.eager_until = Some(Instant::now() + EAGER);
    }

    /// Tries again what could not be hooked. True when something is hooked now.
    pub(super) fn retry_failed(&mut self) -> bool {
        let before = self.failed.len();
        let failed: Vec<Interface> = self.failed.values().map(|failed| failed.interface.clone()).collect();
        for interface in failed {
            self.attach(&interface);
        }
        self.failed.len() < before
    }

    /// Looks behind the interfaces that were hooked since the last look, all in one go. True when something was found.
    pub(super) fn look_behind_new(&mut self) -> bool {
        self.looks.due && self.look(false)
    }

    /// Looks for what is not known yet: behind interfaces where no address was seen, and behind all of them for pods that were
    /// seen nowhere. True when something was found.
    pub(super) fn look_behind(&mut self) -> bool {
        let unplaced: BTreeSet<Address> = self.unplaced().collect();
        if !unplaced.is_subset(&self.looks.unplaced) {
            self.looks.eager_until = Some(Instant::now() + EAGER);
        }
        self.looks.unplaced = unplaced;
        let eager = self.looks.eager_until.is_some_and(|until| Instant::now() < until);
        (eager && self.look(!self.looks.unplaced.is_empty())) || self.look_behind_new()
    }

    /// Looks behind every interface: addresses come and go, and may be taken by a pod to which they do not belong.
    pub(super) fn look_behind_all(&mut self) -> bool {
        self.look(true)
    }

    /// Addresses of meshed pods that were seen behind no interface.
    fn unplaced(&self) -> impl Iterator<Item = Address> {
        let meshed = self.wanted.endpoints.iter().filter(|(_, plan)| plan.meshed);
        meshed
            .map(|(address, _)| *address)
            .filter(|address| self.facts.places.of(&IpAddr::from(*address)).is_empty())
    }

    fn look(&mut self, all: bool) -> bool {
        self.looks.due = false;
        let interfaces = self.attachments.values().map(|attachment| &attachment.interface);
        let wanted: Vec<&Interface> =
            interfaces.filter(|interface| all || !self.facts.places.is_known(interface.index)).collect();
        if wanted.is_empty() {
            return false;
        }
        let Ok(namespaces) = Namespaces::scan() else { return false };
        let mut found = false;
        for interface in wanted {
            // Not visible yet, or made by somebody who keeps it to himself: its endpoints count on every interface.
            let Ok((nsid, seen)) = namespaces.addresses(interface) else { continue };
            found |= self.facts.places.saw(interface.index, nsid, seen);
        }
        found
    }

    /// Tells of addresses of pods that are behind several interfaces.
    pub(super) fn tell_shared(&mut self) {
        let name = |ifindex: &u32| {
            let known = self.attachments.get(ifindex).map(|attachment| attachment.interface.name.clone());
            known.unwrap_or_else(|| format!("index {ifindex}"))
        };
        let mut shared = BTreeMap::new();
        for (address, interfaces) in self.facts.places.shared() {
            let Some(plan) = self.wanted.endpoints.get(&address.into()) else { continue };
            let names: Vec<String> = interfaces.iter().map(name).collect();
            let text = format!(
                "address {address} of pod {} is behind several interfaces ({}), and its policy is enforced on all of them: a \
                 sandbox was left over, or a pod took an address that is not its own; remove the one that should not have it",
                plan.pod,
                names.join(", ")
            );
            shared.insert(address, text);
        }
        for (_, text) in shared.iter().filter(|(address, text)| self.looks.shared.get(address) != Some(text))
        {
            warn!("{text}");
        }
        for address in self.looks.shared.keys().filter(|address| !shared.contains_key(address)) {
            info!(%address, "no pod's address behind several interfaces any more");
        }
        self.looks.shared = shared;
    }

    /// Reads this node's addresses again; true when they changed.
    pub(super) fn read_node_addresses(&mut self) -> anyhow::Result<bool> {
        let found = addresses().context("cannot list this node's addresses")?;
        let found: BTreeSet<IpAddr> = found.into_iter().map(|found| found.address).collect();
        if found == self.facts.node_addresses {
            return Ok(false);
        }
        self.node_addresses = Arc::new(found.clone());
        self.facts.node_addresses = found;
        Ok(true)
    }

    /// Takes our programs off interfaces that are gone or are not to be hooked any more, once all that are have been told of.
    pub(super) fn forget_other_interfaces(&self) {
        let kept: Vec<u32> = self
            .attachments
            .keys()
            .chain(self.failed.keys())
            .chain(self.unsupported.keys())
            .copied()
            .collect();
        match self.datapath.forget_others(&kept) {
            Ok(indices) if indices.is_empty() => {}
            Ok(indices) => {
                info!(?indices, "programs are off interfaces that are gone or not selected any more");
            }
            Err(error) => warn!("cannot remove the pins of interfaces that are gone: {error}"),
        }
    }

    pub(super) fn sockets(&self, addresses: &BTreeSet<Address>) -> BTreeMap<Address, PodSockets> {
        let mut sockets = BTreeMap::new();
        let links: BTreeMap<u32, Address> = addresses
            .iter()
            .filter_map(|address| Some((self.wanted.links.get(address)?.ifindex, *address)))
            .collect();
        let wanted: BTreeSet<u32> = addresses
            .iter()
            .flat_map(|address| self.facts.places.of(&IpAddr::from(*address)))
            .chain(links.keys().copied())
            .collect();
        if wanted.is_empty() {
            return sockets;
        }
        let Ok(namespaces) = Namespaces::scan() else { return sockets };
        for ifindex in wanted {
            let Some(attachment) = self.attachments.get(&ifindex) else { continue };
            match namespaces.inspect(&attachment.interface) {
                Ok(found) => {
                    if let Some(link) = links.get(&ifindex) {
                        sockets.entry(*link).or_default().add(&found.sockets);
                    }
                    for address in &found.addresses {
                        let all: &mut PodSockets = sockets.entry(Address::from(address.address)).or_default();
                        all.add(&found.sockets);
                    }
                }
                Err(error) => warn!("{error}: connections that are open there are taken for unknown ones"),
            }
        }
        sockets
    }
}
