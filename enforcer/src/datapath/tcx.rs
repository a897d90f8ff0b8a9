//! TCX links: pinned, first in order, their program replaced in place.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::libc;

use super::attach::{AttachError, Attachment, Hook, Side, Way};
use super::interface::Interface;
use super::load::Datapath;
use super::pin::{self, LinkKind};
use super::sys::{self, TcxHook};

/// The hook of a direction at an end of the pod's pair.
pub(super) const fn hook(way: Way, side: Side) -> TcxHook {
    match (side, way) {
        (Side::Host, Way::ToPod) | (Side::Pod, Way::FromPod) => TcxHook::Egress,
        (Side::Host, Way::FromPod) | (Side::Pod, Way::ToPod) => TcxHook::Ingress,
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
        let program =
            datapath.program(way, Side::Host).map_err(|e| AttachError::io("attach to", interface, e))?;
        let pin = datapath.pins.link(datapath.link_name(interface.index, LinkKind::Tcx(way)));
        replaced &= put(program, interface, interface.index, hook(way, Side::Host), &pin)?;
    }
    Ok(Attachment {
        interface: interface.clone(),
        device: None,
        hook: Hook::Tcx,
        replaced,
        neighbours: Vec::new(),
        warnings: Vec::new(),
    })
}

/// Puts a program on a hook of the device with this index in the calling thread's namespace, by a pinned link; true when it
/// took the place of an earlier one there. `interface`: whose pod it is for.
pub(super) fn put(
    program: BorrowedFd<'_>,
    interface: &Interface,
    ifindex: u32,
    hook: TcxHook,
    pin: &Path,
) -> Result<bool, AttachError> {
    let replaced = reopen(program, ifindex, hook, pin)
        .map_err(|e| AttachError::io("replace the program on", interface, e))?
        .is_some();
    if !replaced {
        // It is on the hook before it is pinned: should the agent end between the two, it goes as well.
        let link = sys::tcx_attach_first(program, ifindex, hook)
            .map_err(|e| AttachError::io("attach to", interface, e))?;
        sys::pin(link.as_fd(), pin).map_err(|e| AttachError::io("pin the link of", interface, e))?;
    }
    Ok(replaced)
}

/// Replaces the program of the pinned link; `None` when there is no pin, or the link behind it is not on this
/// device any more (device gone, index used again, moved to another namespace). Such a pin is removed.
fn reopen(program: BorrowedFd<'_>, ifindex: u32, hook: TcxHook, pin: &Path) -> io::Result<Option<OwnedFd>> {
    let link = match sys::open(pin) {
        Ok(link) => link,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let info = sys::link_info(link.as_fd())?;
    let alive = info.kind == sys::LINK_TYPE_TCX
        && info.ifindex == ifindex
        && info.hook == hook as u32
        && sys::tcx_query(ifindex, hook)?.iter().any(|other| other.link == info.id);
    if alive {
        match sys::link_update(link.as_fd(), program) {
            Ok(()) => return Ok(Some(link)),
            Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(e) => return Err(e),
        }
    }
    pin::remove(pin)?;
    Ok(None)
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
