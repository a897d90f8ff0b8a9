//! Removes everything that an agent left on the node, and says what it was.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::libc;

use super::bpffs::{BpffsError, ensure_bpffs};
use super::clsact;
use super::lock::{AgentLock, LockError};
use super::pin::{self, LinkKind, Pins};
use super::{sockets, sys, tcx};

/// What was removed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    /// TCX links, by pin name.
    pub links: Vec<String>,
    /// Number of clsact filters.
    pub filters: usize,
    /// Interfaces (by index) that lost their clsact qdisc.
    pub qdiscs: Vec<u32>,
    /// Pinned programs, by name.
    pub programs: Vec<String>,
    /// Pinned maps, by name.
    pub maps: Vec<String>,
    /// What stayed, and why.
    pub left: Vec<String>,
}

impl Removed {
    /// True when there was nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Why nothing was removed.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// An agent is at work.
    #[error("{0} (or detach all the same with --force)")]
    Running(#[source] LockError),
    /// No bpffs.
    #[error(transparent)]
    Bpffs(#[from] BpffsError),
    /// A pin resists.
    #[error("cannot remove what is pinned in {}: {source}", .dir.display())]
    Io {
        /// The folder.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Removes all that is pinned in the folder, whichever layout made it; an empty answer when there is nothing.
///
/// # Errors
/// When an agent is running and `force` is not given, or a pin resists.
pub fn detach(bpffs: &Path, force: bool) -> Result<Removed, DetachError> {
    match ensure_bpffs(bpffs, false) {
        Err(BpffsError::Missing { .. }) => return Ok(Removed::default()),
        result => result?,
    }
    if !bpffs.is_dir() {
        return Ok(Removed::default());
    }
    let _lock = match AgentLock::take(bpffs) {
        Ok(lock) => Some(lock),
        Err(LockError::Held { .. }) if force => None,
        Err(e) => return Err(DetachError::Running(e)),
    };
    remove_all(&Pins::new(bpffs)).map_err(|source| DetachError::Io { dir: bpffs.to_owned(), source })
}

/// The same, for the agent that holds the lock itself.
///
/// # Errors
/// When a pin resists.
pub fn remove_all(pins: &Pins) -> io::Result<Removed> {
    let mut removed = Removed::default();
    let cookie = sys::netns_cookie()?;
    for name in pins.list_links()? {
        match name.kind {
            LinkKind::Tcx(way) => {
                tcx::remove(&pins.link(name))?;
                removed.links.push(format!("{} on interface {}", way.program(), name.ifindex));
            }
            LinkKind::Inside(way) => {
                tcx::remove(&pins.link(name))?;
                removed.links.push(format!(
                    "{} on device {} of the pod whose network namespace has the cookie {}",
                    way.program(),
                    name.ifindex,
                    name.cookie
                ));
            }
            LinkKind::Clsact { .. } if name.cookie != cookie => removed.left.push(format!(
                "filters on interface {} of another network namespace: run detach in that one",
                name.ifindex
            )),
            LinkKind::Clsact { made } => {
                let taken = clsact::remove_marked(pins, name, made)?;
                removed.filters += taken.filters;
                removed.qdiscs.extend(taken.qdisc.then_some(name.ifindex));
            }
        }
    }
    if sockets::remove(pins)? {
        removed.links.push("socket_events on the cgroup root".to_owned());
    }
    for version in pins.versions()? {
        remove_version(&version, &mut removed)?;
    }
    for dir in [pins.links(), pins.dir().to_owned()] {
        match fs::remove_dir(&dir) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // The folder is the mount point itself.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
                for name in pin::names(&dir)? {
                    removed.left.push(format!("{}: not ours", dir.join(name).display()));
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(removed)
}

/// Removes the maps and programs of one layout.
pub(super) fn remove_version(version: &Path, removed: &mut Removed) -> io::Result<()> {
    for (dir, list) in [("programs", &mut removed.programs), ("maps", &mut removed.maps)] {
        let dir = version.join(dir);
        for name in pin::names(&dir)? {
            pin::remove(&dir.join(&name))?;
            list.push(name);
        }
        if dir.is_dir() {
            fs::remove_dir(dir)?;
        }
    }
    fs::remove_dir(version)
}
