//! At which end of a pod's pair of devices it is enforced, and changing over.
//!
//! Every pod is hooked at the host side first, which can be done at once. A pod changes over with programs at both ends, so
//! that none of its packets goes unseen: those on its own device are put on, then the endpoint is written, which tells each
//! program whose packets are whose, then the host side is left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use enforcer_common::Address;
use enforcer_common::map::{Bypassed, FlowKey, endpoint_flags};
use tracing::{debug, error, info, warn};

use super::snapshot::hook_name;
use super::{Agent, monotonic_ns};
use crate::certificate::probe::{Announcer, Notice};
use crate::datapath::chain::Neighbour;
use crate::datapath::maps::{MapsError, OwnProbes};
use crate::datapath::netns::Namespaces;
use crate::datapath::pod_side::PodDevice;
use crate::datapath::{Attachment, Datapath, Interface};

/// At which end pods are enforced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Attach {
    /// At the host side of their interfaces. Where packets reach a pod past it, `status` says so
    Host,
    /// At their own devices, in their network namespaces; needs TCX and `CAP_SYS_ADMIN`
    Pod,
    /// At the host side, and at its own device once packets reach a pod past the host side
    #[default]
    Auto,
}

/// What is known of the ends.
#[derive(Debug, Default)]
pub(super) struct Sides {
    /// Evidence that packets reach a pod past the hook on its interface.
    pub(super) bypassed: BTreeMap<Address, Bypassed>,
    /// Those of which was told.
    told: BTreeSet<Address>,
    /// Why pods are not enforced at their own device though they should be, by the index of their interface.
    pub(super) problems: BTreeMap<u32, String>,
}

impl Agent {
    /// Hooks a pod's own device again where an agent before this one did so; false where none did, or it cannot be done.
    pub(super) fn attach_as_before(&mut self, interface: &Interface) -> bool {
        if self.config.attach == Attach::Host || !self.datapath.is_inside_somewhere() {
            return false;
        }
        let Ok(namespaces) = Namespaces::scan() else { return false };
        if self.datapath.hooked_inside(&namespaces, interface).is_none() {
            return false;
        }
        match self.hook_inside(&namespaces, interface) {
            Ok(attachment) => {
                self.enter_attachment(attachment);
                if let Err(error) = self.datapath.forget(interface.index) {
                    warn!(interface = interface.name, "cannot leave the host side: {error}");
                }
                true
            }
            Err(error) => {
                error!(interface = interface.name, "{error}");
                false
            }
        }
    }

    fn hook_inside(&mut self, namespaces: &Namespaces, interface: &Interface) -> anyhow::Result<Attachment> {
        self.datapath.prepare_inside()?;
        Ok(self.datapath.attach_inside(namespaces, interface)?)
    }

    /// Notes that a pod's own device is hooked.
    fn enter_attachment(&mut self, attachment: Attachment) {
        let interface = attachment.interface.clone();
        for warning in &attachment.warnings {
            warn!(interface = interface.name, "{warning}");
        }
        info!(
            interface = interface.name,
            side = "pod",
            hook = hook_name(&attachment),
            replaced = attachment.replaced,
            "pod's own device hooked"
        );
        self.facts.inside.extend(attachment.device.clone().map(|device| (interface.index, device)));
        self.attachments.insert(interface.index, attachment);
        self.failed.remove(&interface.index);
        self.sides.problems.remove(&interface.index);
        self.look_soon();
    }

    /// Changes pods over that should be enforced at their own device and are not. To be called when the policy of all pods is
    /// in the maps, and with every tick.
    pub(super) fn choose_sides(&mut self) -> anyhow::Result<()> {
        self.sides.bypassed = self.tables.bypassed()?;
        self.tell_bypassed();
        // Without objects endpoints cannot be written, and they say which end enforces.
        if self.config.attach == Attach::Host || !self.loaded {
            return Ok(());
        }
        let wanted: Vec<Interface> = self
            .attachments
            .values()
            .filter(|attachment| attachment.device.is_none() && self.belongs_inside(attachment))
            .map(|attachment| attachment.interface.clone())
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let namespaces = Namespaces::scan()?;
        for interface in wanted {
            self.change_over(&namespaces, &interface)?;
        }
        self.write_state();
        Ok(())
    }

    /// Whether the pod behind a host-side hook should be enforced at its own device.
    fn belongs_inside(&self, attachment: &Attachment) -> bool {
        // Chosen by `--interface` without a peer: no pod's.
        if attachment.interface.peer_netns_id.is_none() {
            return false;
        }
        let index = attachment.interface.index;
        let bypassed = || {
            self.sides.bypassed.iter().any(|(address, evidence)| {
                let places = self.facts.places.of(&IpAddr::from(*address));
                if places.is_empty() { evidence.ifindex == index } else { places.contains(&index) }
            })
        };
        match self.config.attach {
            Attach::Host => false,
            Attach::Pod => true,
            Attach::Auto => attachment.neighbours.iter().any(is_cilium) || bypassed(),
        }
    }

    fn change_over(&mut self, namespaces: &Namespaces, interface: &Interface) -> anyhow::Result<()> {
        let attachment = match self.hook_inside(namespaces, interface) {
            Ok(attachment) => attachment,
            Err(error) => {
                let text = format!(
                    "{error}; until then its pod is enforced at the host side of {} only",
                    interface.name
                );
                let before = self.sides.problems.insert(interface.index, text.clone());
                if before.as_ref() != Some(&text) {
                    error!(interface = interface.name, "{text}");
                }
                return Ok(());
            }
        };
        self.enter_attachment(attachment);
        self.reconcile()?;
        if let Err(error) = self.datapath.forget(interface.index) {
            // Its programs leave alone what is not theirs.
            warn!(interface = interface.name, "cannot leave the host side: {error}");
        }
        self.enter_open(interface)?;
        self.sides.bypassed = self.tables.bypassed()?;
        Ok(())
    }

    /// Enters what is open at a pod that has changed over and came past the hook before. Under STRICT nothing of that was ever
    /// judged, and nothing is allowed for it.
    fn enter_open(&mut self, interface: &Interface) -> anyhow::Result<()> {
        let held = &self.tables.held().endpoints;
        let strict = endpoint_flags::ANY_STRICT | endpoint_flags::NOT_MESHED;
        let addresses: BTreeSet<Address> = held
            .iter()
            .filter(|(_, endpoint)| endpoint.flags & strict == 0)
            .map(|(address, _)| *address)
            .filter(|address| self.facts.places.of(&IpAddr::from(*address)).contains(&interface.index))
            .collect();
        if addresses.is_empty() { Ok(()) } else { self.finish(&addresses) }
    }

    fn tell_bypassed(&mut self) {
        let bypassed: BTreeSet<Address> = self.sides.bypassed.keys().copied().collect();
        for address in bypassed.difference(&self.sides.told) {
            let pod = self.wanted.plan(*address).map(|plan| plan.pod.to_string()).unwrap_or_default();
            if self.config.attach == Attach::Host {
                warn!(
                    pod, %address,
                    "packets reach the pod past the hook on the host side of its interface: it is not enforced; run with --attach auto or pod"
                );
            } else {
                info!(
                    pod, %address,
                    "packets reach the pod past the hook on the host side of its interface: it is to be enforced at its own device"
                );
            }
        }
        self.sides.told = bypassed;
    }

    /// Looks whether our programs are still on a pod's own device, and who is beside them.
    pub(super) fn check_inside(&mut self, namespaces: &Namespaces, attachment: &Attachment) {
        let interface = &attachment.interface;
        match self.datapath.neighbours_inside(namespaces, attachment) {
            Ok(Some(others)) => {
                for warning in others
                    .iter()
                    .filter(|other| !attachment.neighbours.contains(other))
                    .filter_map(|other| other.warning(&attachment.place()))
                {
                    warn!(interface = interface.name, "{warning}");
                }
                if let Some(attachment) = self.attachments.get_mut(&interface.index) {
                    attachment.neighbours = others;
                }
            }
            Ok(None) => {
                warn!(
                    interface = interface.name,
                    "somebody took our programs off the pod's own device: they are put back, and connections that came meanwhile are unknown ones"
                );
                match self.hook_inside(namespaces, interface) {
                    Ok(attachment) => self.enter_attachment(attachment),
                    Err(error) => {
                        let text = format!("our programs are off the pod's own device: {error}");
                        warn!(interface = interface.name, "{text}");
                        self.sides.problems.insert(interface.index, text);
                    }
                }
            }
            // The pod is going, or its namespace cannot be seen for a moment: the links say whether it is enforced.
            Err(error) => debug!(interface = interface.name, "{error}"),
        }
    }

    /// An interface is gone, and its other end with it.
    pub(super) fn leave_gone(&mut self, interface: &Interface) {
        self.sides.problems.remove(&interface.index);
        let Some(device) = self.facts.inside.remove(&interface.index) else { return };
        if let Err(error) = self.datapath.leave(&device) {
            warn!(
                interface = interface.name,
                "cannot remove the pins of a pod's device that is gone: {error}"
            );
        }
    }

    /// At the start: drops the pins of devices that are gone, and with `--attach host` leaves those of all pods, which are
    /// enforced at the host side by now.
    pub(super) fn leave_other_devices(&self) {
        let keep: Vec<&PodDevice> = self.facts.inside.values().collect();
        let only_gone = self.config.attach != Attach::Host || !self.loaded;
        match self.datapath.leave_others(&keep, only_gone) {
            Ok(0) => {}
            Ok(links) => info!(links, "pods' own devices left"),
            Err(error) => warn!("cannot leave pods' own devices: {error}"),
        }
    }
}

/// Enters the agent's own checks in the map by which they are known on pods' own devices.
pub(super) fn own_probes(datapath: &mut Datapath) -> Result<Announcer, MapsError> {
    const MAP: &str = "OWN_PROBES";
    let map = datapath.take_map(MAP).ok_or(MapsError::Missing { map: MAP })?;
    let table = Mutex::new(OwnProbes::new(MAP, map)?);
    Ok(Announcer::new(move |own, server, notice| {
        let key = FlowKey {
            client: Address::from(own.ip()),
            pod: Address::from(server.ip()),
            client_port: own.port(),
            pod_port: server.port(),
        };
        let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
        let written = match notice {
            Notice::Begins => table.insert(&key, &monotonic_ns()),
            Notice::Over => table.remove(&key),
        };
        if let Err(error) = written {
            debug!("a certificate check counts as a client: {error}");
        }
    }))
}

/// Cilium's programs; with its host routing it delivers past the hook.
fn is_cilium(neighbour: &Neighbour) -> bool {
    neighbour.on_hook.name.starts_with("cil_")
}
