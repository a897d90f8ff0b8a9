//! Puts both programs on an interface, or replaces what an earlier agent put there.

use std::io;

use nix::libc;

use super::chain::{self, Neighbour};
use super::interface::Interface;
use super::load::Datapath;
use super::netns::NetnsError;
use super::pin::{LinkKind, LinkName};
use super::pod_side::PodDevice;
use super::{clsact, sys, tcx};

/// The direction of a program, seen from the pod.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Way {
    /// Towards the pod: egress of the host-side interface, ingress of the pod's own device.
    ToPod,
    /// From the pod: ingress of the host-side interface, egress of the pod's own device.
    FromPod,
}

/// Which end of a pod's pair of devices.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The one in the node's network namespace.
    #[default]
    Host,
    /// The one in the pod's.
    Pod,
}

impl Way {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::ToPod, Self::FromPod];

    /// The name of the program for this direction.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::ToPod => "to_pod",
            Self::FromPod => "from_pod",
        }
    }

    /// The name of the program for this direction that works at a side.
    #[must_use]
    pub const fn program_at(self, side: Side) -> &'static str {
        match (side, self) {
            (Side::Host, way) => way.program(),
            (Side::Pod, Self::ToPod) => "to_pod_in",
            (Side::Pod, Self::FromPod) => "from_pod_in",
        }
    }
}

/// What the programs are hung on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Hook {
    /// TCX where the kernel takes it, else clsact: tried, not guessed from a version.
    #[default]
    Auto,
    /// TCX links (kernel 6.6 and later).
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

/// What [`Datapath::attach`] did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// The interface.
    pub interface: Interface,
    /// The pod's own device, where that is hooked in place of the interface.
    pub device: Option<PodDevice>,
    /// `Tcx` or `Clsact`.
    pub hook: Hook,
    /// The programs of an earlier agent were replaced in place, in both directions.
    pub replaced: bool,
    /// Others on the same hooks.
    pub neighbours: Vec<Neighbour>,
    /// What an operator should know, one sentence each.
    pub warnings: Vec<String>,
}

/// Why an interface is not hooked.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The interface vanished meanwhile.
    #[error("interface {0} is gone")]
    Gone(String),
    /// The kernel refuses.
    #[error("cannot {action} interface {interface} (index {ifindex}): {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The interface's name.
        interface: String,
        /// Its index.
        ifindex: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pod cannot be looked into.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    /// Only TCX links can be put on a pod's own device.
    #[error(
        "this kernel has no TCX (6.6 and later), without which no pod's own device can be hooked: use --attach host"
    )]
    NoTcx,
    /// The programs for pods' own devices were not loaded.
    #[error("the programs for pods' own devices are not loaded")]
    NotPrepared,
    /// An ingress qdisc stands where clsact would go.
    #[error(
        "interface {0} has an ingress qdisc, which leaves no room for clsact: remove it with `tc qdisc del dev {0} ingress`"
    )]
    IngressQdisc(String),
}

impl AttachError {
    pub(super) fn io(action: &'static str, interface: &Interface, source: io::Error) -> Self {
        if source.raw_os_error() == Some(libc::ENODEV) {
            return Self::Gone(interface.name.clone());
        }
        Self::Io { action, interface: interface.name.clone(), ifindex: interface.index, source }
    }
}

impl Datapath {
    /// Hooks an interface of the agent's network namespace in both directions, or replaces our programs there
    /// atomically; calling it again changes nothing else.
    ///
    /// # Errors
    /// When the kernel refuses, or the interface is gone.
    pub fn attach(&self, interface: &Interface) -> Result<Attachment, AttachError> {
        let mut attachment = match self.hook {
            Hook::Clsact => clsact::attach(self, interface)?,
            Hook::Tcx => tcx::attach(self, interface)?,
            Hook::Auto => match tcx::attach(self, interface) {
                Err(AttachError::Io { source, .. }) if tcx::is_unsupported(&source) => {
                    clsact::attach(self, interface)?
                }
                result => result?,
            },
        };
        // Only now, so that one of the two was on the interface at every moment.
        match attachment.hook {
            Hook::Clsact => self.forget_tcx(interface.index),
            Hook::Tcx | Hook::Auto => clsact::remove(self, interface.index),
        }
        .map_err(|e| AttachError::io("clean up", interface, e))?;
        let others = self.neighbours(interface)?.unwrap_or_default();
        attachment.warnings.extend(others.iter().filter_map(|n| n.warning(&interface.name)));
        attachment.neighbours = others;
        Ok(attachment)
    }

    /// What runs around our programs on an interface now; `None`: ours are not on both of its hooks any more.
    ///
    /// # Errors
    /// When the kernel refuses, or the interface is gone.
    pub fn neighbours(&self, interface: &Interface) -> Result<Option<Vec<Neighbour>>, AttachError> {
        let failed = |e| AttachError::io("query the hooks of", interface, e);
        let own = self.program_ids().map_err(failed)?;
        let chain = chain::chain(interface.index).map_err(failed)?;
        Ok(chain::is_hooked(&chain, own).then(|| chain::neighbours(&chain, own)))
    }

    /// The ids of our programs, in the order of [`Way::BOTH`].
    fn program_ids(&self) -> io::Result<[u32; 2]> {
        let mut ids = [0; 2];
        for (id, way) in ids.iter_mut().zip(Way::BOTH) {
            *id = sys::program_id(self.program(way, Side::Host)?)?;
        }
        Ok(ids)
    }

    /// Drops the pins of an interface that is gone.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn forget(&self, ifindex: u32) -> io::Result<()> {
        self.forget_tcx(ifindex)?;
        clsact::remove(self, ifindex)
    }

    /// Drops the pins of interfaces of this network namespace that are not in the list: gone, or no pods' any more.
    /// Gives their indices.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn forget_others(&self, keep: &[u32]) -> io::Result<Vec<u32>> {
        let mut gone: Vec<_> = self
            .pins
            .list_links()?
            .into_iter()
            .filter(|n| n.cookie == self.cookie)
            .map(|n| n.ifindex)
            .collect();
        gone.retain(|index| !keep.contains(index));
        gone.sort_unstable();
        gone.dedup();
        for &index in &gone {
            self.forget(index)?;
        }
        Ok(gone)
    }

    fn forget_tcx(&self, ifindex: u32) -> io::Result<()> {
        Way::BOTH
            .iter()
            .try_for_each(|&way| tcx::remove(&self.pins.link(self.link_name(ifindex, LinkKind::Tcx(way)))))
    }

    pub(super) fn link_name(&self, ifindex: u32, kind: LinkKind) -> LinkName {
        LinkName { cookie: self.cookie, ifindex, kind }
    }
}

/// A program on a hook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HookedProgram {
    /// The direction of the hook.
    pub way: Way,
    /// The program's id.
    pub program: u32,
    /// Its name; empty when it cannot be read.
    pub name: String,
}

/// Every program on the two TCX hooks of an interface of the calling thread's namespace, first to run first.
///
/// # Errors
/// When the interface is gone, or the kernel has no TCX.
pub fn hooked_programs(ifindex: u32) -> io::Result<Vec<HookedProgram>> {
    hooked_programs_at(ifindex, Side::Host)
}

/// The same where the interface is this end of a pod's pair.
///
/// # Errors
/// As [`hooked_programs`].
pub fn hooked_programs_at(ifindex: u32, side: Side) -> io::Result<Vec<HookedProgram>> {
    let mut all = Vec::new();
    for way in Way::BOTH {
        let on_hook = sys::tcx_query(ifindex, tcx::hook(way, side))?;
        all.extend(on_hook.iter().map(|h| HookedProgram {
            way,
            program: h.program,
            name: sys::program_name(h.program),
        }));
    }
    Ok(all)
}
