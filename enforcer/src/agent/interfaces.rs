//! Interfaces that appear and go, and where the pods behind them live.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use enforcer_common::Address;
use tracing::{error, info, warn};

use super::Agent;
use super::snapshot::hook_name;
use crate::datapath::desired::Place;
use crate::datapath::netns::{Namespaces, addresses};
use crate::datapath::sockdiag::PodSockets;
use crate::datapath::{Interface, InterfaceEvent};

impl Agent {
    pub(super) fn interface(&mut self, event: InterfaceEvent) {
        match event {
            InterfaceEvent::Appeared(interface) => {
                self.gaps.appeared(interface.index, Instant::now());
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
                self.node_problems.remove(&interface.name);
                self.facts.places.retain(|_, place| place.ifindex != interface.index);
                self.forget_gone();
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
                // Of a pod that was behind it before.
                self.leave_gone(interface);
                self.attachments.insert(interface.index, attachment);
                self.node_problems.remove(&interface.name);
                self.find_places();
            }
            Err(error) => {
                error!(interface = interface.name, "{error}");
                self.node_problems.insert(interface.name.clone(), error.to_string());
            }
        }
    }

    /// Looks behind hooked interfaces where no address is known yet. True when something was found.
    pub(super) fn find_places(&mut self) -> bool {
        let placed: BTreeSet<u32> = self.facts.places.values().map(|place| place.ifindex).collect();
        let missing: Vec<&Interface> = self
            .attachments
            .values()
            .map(|attachment| &attachment.interface)
            .filter(|interface| !placed.contains(&interface.index))
            .collect();
        if missing.is_empty() {
            return false;
        }
        let Ok(namespaces) = Namespaces::scan() else { return false };
        let mut found = false;
        for interface in missing {
            // Not visible yet, or made by somebody who keeps it to himself: its endpoints count on every interface.
            let Ok(pod) = namespaces.inspect(interface) else { continue };
            for address in pod.addresses {
                let place = Place { ifindex: interface.index, netns_id: pod.nsid };
                found |= self.facts.places.insert(address.address, place) != Some(place);
            }
        }
        found
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

    pub(super) fn forget_lost_interfaces(&self) {
        let present: Vec<u32> = crate::datapath::interface::list()
            .unwrap_or_default()
            .iter()
            .map(|interface| interface.index)
            .collect();
        if let Err(error) = self.datapath.forget_others(&present) {
            warn!("cannot remove the pins of interfaces that are gone: {error}");
        }
    }

    pub(super) fn sockets(&self, addresses: &BTreeSet<Address>) -> BTreeMap<Address, PodSockets> {
        let mut sockets = BTreeMap::new();
        let wanted: BTreeSet<u32> = addresses
            .iter()
            .filter_map(|address| Some(self.facts.places.get(&IpAddr::from(*address))?.ifindex))
            .collect();
        if wanted.is_empty() {
            return sockets;
        }
        let Ok(namespaces) = Namespaces::scan() else { return sockets };
        for ifindex in wanted {
            let Some(attachment) = self.attachments.get(&ifindex) else { continue };
            match namespaces.inspect(&attachment.interface) {
                Ok(found) => {
                    for address in &found.addresses {
                        sockets.insert(Address::from(address.address), found.sockets.clone());
                    }
                }
                Err(error) => warn!("{error}: connections that are open there are taken for unknown ones"),
            }
        }
        sockets
    }
}
