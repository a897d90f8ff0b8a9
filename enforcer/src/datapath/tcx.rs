//! TCX links: pinned, first in order, their program replaced in place.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::libc;

use super::attach::{AttachError, Attachment, Hook, Way};
use super::interface::Interface;
use super::load::Datapath;
use super::pin::{self, LinkKind};
use super::sys::{self, TcxHook};

/// The hook of a direction on the host-side interface.
pub(super) const fn hook(way: Way) -> TcxHook {
    match way {
        Way::ToPod => TcxHook::Egress,
        Way::FromPod => TcxHook::Ingress,
    }
}

/// True when the kernel does not know TCX: no such link type, or built without it.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

/// Hooks both directions.
pub(super) fn attach(datapath: &Datapath, interface: &Interface) -> Result<Attachment, AttachError> {
    let mut replaced = true;
    for way in Way::BOTH {
        let existing = reopen(datapath, interface, way)?;
        if existing.is_none() {
            create(datapath, interface, way)?;
        }
        replaced &= existing.is_some();
    }
    Ok(Attachment {
        interface: interface.clone(),
        hook: Hook::Tcx,
        replaced,
        neighbours: Vec::new(),
        warnings: Vec::new(),
    })
}

/// Replaces the program of the pinned link; `None` when there is no pin, or the link behind it is not on this
/// interface any more (interface gone, index used again, moved to another namespace). Such a pin is removed.
fn reopen(datapath: &Datapath, interface: &Interface, way: Way) -> Result<Option<OwnedFd>, AttachError> {
    let failed = |e| AttachError::io("replace the program on", interface, e);
    let path = datapath.pins.link(datapath.link_name(interface.index, LinkKind::Tcx(way)));
    let link = match sys::open(&path) {
        Ok(link) => link,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let info = sys::link_info(link.as_fd()).map_err(failed)?;
    let alive = info.kind == sys::LINK_TYPE_TCX
        && info.ifindex == interface.index
        && info.hook == hook(way) as u32
        && sys::tcx_query(interface.index, hook(way))
            .map_err(failed)?
            .iter()
            .any(|other| other.link == info.id);
    if alive {
        match sys::link_update(link.as_fd(), datapath.program(way).map_err(failed)?) {
            Ok(()) => return Ok(Some(link)),
            Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(e) => return Err(failed(e)),
        }
    }
    pin::remove(&path).map_err(failed)?;
    Ok(None)
}

/// A new link, pinned. It is on the hook before it is pinned: should the agent end between the two, it goes as well.
fn create(datapath: &Datapath, interface: &Interface, way: Way) -> Result<OwnedFd, AttachError> {
    let failed = |e| AttachError::io("attach to", interface, e);
    let program = datapath.program(way).map_err(failed)?;
    let link = sys::tcx_attach_first(program, interface.index, hook(way)).map_err(failed)?;
    let path = datapath.pins.link(datapath.link_name(interface.index, LinkKind::Tcx(way)));
    sys::pin(link.as_fd(), &path).map_err(|e| AttachError::io("pin the link of", interface, e))?;
    Ok(link)
}

/// Takes the program off the hook and removes the pin; nothing to do is no error.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match sys::open(path) {
        Ok(link) => match sys::link_detach(link.as_fd()) {
            // The interface is gone.
            Err(e) if e.raw_os_error() != Some(libc::ENOLINK) => return Err(e),
            _ => {}
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    pin::remove(path)
}
