//! Hooking a pod's own device, in the pod's network namespace: for data paths that deliver past the host side of its
//! interface, as `bpf_redirect_peer` does. TCX only.

use std::io;
use std::os::fd::AsFd as _;

use serde::{Deserialize, Serialize};

use super::attach::{AttachError, Attachment, Hook, Side, Way};
use super::chain::{self, Neighbour, OnHook};
use super::interface::{self, Interface};
use super::load::Datapath;
use super::netns::Namespaces;
use super::pin::{LinkKind, LinkName, Pins};
use super::{entry, sys, tcx};

/// A pod's own device.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PodDevice {
    /// Cookie of the pod's network namespace.
    pub cookie: u64,
    /// Its index there.
    pub index: u32,
    /// Its name there.
    pub name: String,
}

impl PodDevice {
    /// What its packets are stamped with.
    #[must_use]
    pub const fn stamp(&self) -> u32 {
        entry::stamp(self.cookie)
    }

    /// What it is, for people. `interface`: the name of its other end.
    #[must_use]
    pub fn place(&self, interface: &str) -> String {
        format!("{} of the pod behind {interface}", self.name)
    }

    fn link(&self, way: Way) -> LinkName {
        LinkName { cookie: self.cookie, ifindex: self.index, kind: LinkKind::Inside(way) }
    }

    /// The ids of the programs that its pinned links hold on its hooks, in the order of [`Way::BOTH`]; `None`: they are not
    /// on both any more. Needs no look into the pod.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn programs(&self, pins: &Pins) -> io::Result<Option<[u32; 2]>> {
        let mut ids = [0; 2];
        for (id, way) in ids.iter_mut().zip(Way::BOTH) {
            let link = match sys::open(&pins.link(self.link(way))) {
                Ok(link) => link,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e),
            };
            let info = sys::link_info(link.as_fd())?;
            // A link that was taken off, or whose device is gone, has no device.
            if info.kind != sys::LINK_TYPE_TCX || info.ifindex != self.index {
                return Ok(None);
            }
            *id = info.program;
        }
        Ok(Some(ids))
    }

    /// What runs on its hooks, first to run first. `interface`: its other end.
    ///
    /// # Errors
    /// When the pod cannot be looked into.
    pub fn chain(&self, namespaces: &Namespaces, interface: &Interface) -> Result<Vec<OnHook>, AttachError> {
        Ok(namespaces.enter(interface, || chain::chain_at(self.index, Side::Pod))?)
    }
}

impl Datapath {
    /// Hooks the pod's own device behind an interface in both directions, or replaces our programs there atomically. What is
    /// on the interface itself stays. [`Datapath::prepare_inside`] comes first.
    ///
    /// # Errors
    /// When the pod cannot be looked into, or the kernel refuses.
    pub fn attach_inside(
        &self,
        namespaces: &Namespaces,
        interface: &Interface,
    ) -> Result<Attachment, AttachError> {
        let Some(array) = &self.pod_programs else { return Err(AttachError::NotPrepared) };
        let inside = namespaces.enter(interface, || Ok(self.attach_here(array.as_fd(), interface)));
        let (device, replaced) = inside??;
        let mut attachment = Attachment {
            interface: interface.clone(),
            neighbours: Vec::new(),
            warnings: Vec::new(),
            hook: Hook::Tcx,
            replaced,
            device: Some(device),
        };
        let others = self.neighbours_inside(namespaces, &attachment)?.unwrap_or_default();
        attachment.warnings = others.iter().filter_map(|n| n.warning(&attachment.place())).collect();
        attachment.neighbours = others;
        Ok(attachment)
    }

    /// In the pod's namespace.
    fn attach_here(
        &self,
        array: std::os::fd::BorrowedFd<'_>,
        interface: &Interface,
    ) -> Result<(PodDevice, bool), AttachError> {
        let failed = |e| AttachError::io("hook the pod's device behind", interface, e);
        let cookie = sys::netns_cookie().map_err(failed)?;
        let index = interface.peer_index.unwrap_or_default();
        let name = interface::by_index(index).map_err(failed)?.name;
        let device = PodDevice { cookie, index, name };
        let mut replaced = true;
        for way in Way::BOTH {
            let program = entry::load(way, array, device.stamp()).map_err(failed)?;
            let pin = self.pins.link(device.link(way));
            match tcx::put(program.as_fd(), interface, index, tcx::hook(way, Side::Pod), &pin) {
                Err(AttachError::Io { source, .. }) if tcx::is_unsupported(&source) => {
                    return Err(AttachError::NoTcx);
                }
                done => replaced &= done?,
            }
        }
        Ok((device, replaced))
    }

    /// What runs around our programs on the pod's own device now; `None`: ours are not on both of its hooks any more.
    ///
    /// # Errors
    /// When the pod cannot be looked into.
    pub fn neighbours_inside(
        &self,
        namespaces: &Namespaces,
        attachment: &Attachment,
    ) -> Result<Option<Vec<Neighbour>>, AttachError> {
        let Some(device) = &attachment.device else { return Ok(None) };
        let failed =
            |e| AttachError::io("query the links of the pod's device behind", &attachment.interface, e);
        let Some(own) = device.programs(&self.pins).map_err(failed)? else { return Ok(None) };
        let chain = device.chain(namespaces, &attachment.interface)?;
        Ok(chain::is_hooked(&chain, own).then(|| chain::neighbours(&chain, own)))
    }

    /// The device behind an interface, where an agent before this one hooked it.
    #[must_use]
    pub fn hooked_inside(&self, namespaces: &Namespaces, interface: &Interface) -> Option<PodDevice> {
        let cookie = namespaces.enter(interface, sys::netns_cookie).ok()?;
        let device = PodDevice { cookie, index: interface.peer_index?, name: String::new() };
        device.programs(&self.pins).ok()?.map(|_| device)
    }

    /// Whether any pod's own device is hooked, by this agent or one before.
    #[must_use]
    pub fn is_inside_somewhere(&self) -> bool {
        let links = self.pins.list_links().unwrap_or_default();
        links.iter().any(|name| matches!(name.kind, LinkKind::Inside(_)))
    }

    /// Takes our programs off a pod's own device; nothing to do is no error. Works from outside of the pod.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn leave(&self, device: &PodDevice) -> io::Result<()> {
        Way::BOTH.iter().try_for_each(|&way| tcx::remove(&self.pins.link(device.link(way))))
    }

    /// Takes our programs off the own devices of all pods but these, or only drops the pins of those whose device is gone.
    /// Gives how many pins went.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn leave_others(&self, keep: &[&PodDevice], only_gone: bool) -> io::Result<usize> {
        let mut left = 0;
        for name in self.pins.list_links()? {
            let kept = keep.iter().any(|device| (device.cookie, device.index) == (name.cookie, name.ifindex));
            if !matches!(name.kind, LinkKind::Inside(_)) || kept {
                continue;
            }
            let path = self.pins.link(name);
            let gone = sys::open(&path)
                .and_then(|link| sys::link_info(link.as_fd()))
                .is_ok_and(|info| info.ifindex == 0);
            if gone || !only_gone {
                tcx::remove(&path)?;
                left += 1;
            }
        }
        Ok(left)
    }
}

impl Attachment {
    /// Where our programs are, for people: the interface, or the device of the pod behind it.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.device {
            None => self.interface.name.clone(),
            Some(device) => device.place(&self.interface.name),
        }
    }
}
