//! The program that sees pods' sockets close, on the root of the cgroup v2 hierarchy.
//!
//! The link is pinned beside those of the interfaces, and its program replaced in place. Links of this kind stand side by
//! side: other programs on the root keep running, and so do those of other agents, each with its own maps.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::load::Datapath;
use super::pin::{self, Pins};
use super::sys;

/// The program's name in the object.
pub(super) const PROGRAM: &str = "socket_events";

/// Why the ends of connections are not seen at their sockets. The FINs of both ends tell most of them all the same.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// No hierarchy.
    #[error(
        "no cgroup v2 is mounted: ends of connections are told by their packets alone; mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`"
    )]
    NoCgroup,
    /// The program could not be loaded.
    #[error("the kernel refuses program socket_events: ends of connections are told by their packets alone")]
    NotLoaded,
    /// The kernel refuses.
    #[error("cannot watch sockets at {}: {source}; ends of connections are told by their packets alone", .at.display())]
    Io {
        /// The hierarchy's root or the pin.
        at: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The mount point of the root of the cgroup v2 hierarchy in a `mountinfo` (`proc_pid_mountinfo(5))`: alone (`/sys/fs/cgroup`)
/// or beside version 1 (`/sys/fs/cgroup/unified`). In a container a mount of the host's hierarchy shows a root above our own
/// (`/../..`), which is what is wanted; a part of the hierarchy serves where there is no other.
fn cgroup2(mountinfo: &str) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        (kind.split(' ').next() == Some("cgroup2")).then_some((fields.next()?, fields.next()?))
    });
    let mut mounts: Vec<(&str, &str)> = mounts.collect();
    mounts.sort_by_key(|(root, _)| (!root.starts_with("/.."), *root != "/"));
    mounts.first().map(|(_, at)| PathBuf::from(at))
}

/// Opens the root of the hierarchy: where it is mounted, or else through a mount that nobody else sees, because a mount
/// namespace may hide it (that of `ip netns exec` does).
pub(super) fn root() -> Result<File, SocketsError> {
    let mounted = std::fs::read_to_string("/proc/self/mountinfo").ok().and_then(|text| cgroup2(&text));
    if let Some(at) = mounted {
        return File::open(&at).map_err(|source| SocketsError::Io { at, source });
    }
    sys::unseen_mount(c"cgroup2").map_err(|_| SocketsError::NoCgroup)
}

fn pin_of(pins: &Pins) -> PathBuf {
    pins.links().join("cgroup-sockets")
}

impl Datapath {
    /// True while the program sees sockets: its link is pinned and still on a hierarchy.
    #[must_use]
    pub fn watches_sockets(&self) -> bool {
        let link = sys::open(&pin_of(&self.pins)).and_then(|link| sys::link_info(link.as_fd()));
        link.is_ok_and(|info| info.has_cgroup())
    }

    /// Sees sockets close from now on; replaces the program of an earlier agent.
    ///
    /// # Errors
    /// When there is no cgroup v2, or the kernel refuses: nothing else depends on it.
    pub fn watch_sockets(&self) -> Result<(), SocketsError> {
        let program = self.socket_program().ok_or(SocketsError::NotLoaded)?;
        let path = pin_of(&self.pins);
        let failed = |at: &Path| {
            let at = at.to_owned();
            move |source| SocketsError::Io { at, source }
        };
        match sys::open(&path) {
            Ok(link) => {
                // A link whose cgroup is gone has none.
                let alive = sys::link_info(link.as_fd()).is_ok_and(|info| info.has_cgroup());
                if alive && sys::link_update(link.as_fd(), program).is_ok() {
                    return Ok(());
                }
                pin::remove(&path).map_err(failed(&path))?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(&path)(e)),
        }
        let root = root()?;
        let link = sys::cgroup_attach(program, root.as_fd()).map_err(failed(Path::new("the cgroup root")))?;
        sys::pin(link.as_fd(), &path).map_err(failed(&path))
    }
}

/// Takes the program off the hierarchy and removes the pin; false when there was none.
pub(super) fn remove(pins: &Pins) -> io::Result<bool> {
    let path = pin_of(pins);
    match sys::open(&path) {
        Ok(link) => {
            // Refused when the cgroup is gone; the link ends with its pin then.
            let _ = sys::link_detach(link.as_fd());
            pin::remove(&path).map(|()| true)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_alone_and_beside_version_1() {
        let unified = "25 30 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let part = "50 31 0:38 /kubepods/pod1 /cg rw - cgroup2 cgroup rw\n";
        assert_eq!(cgroup2(unified), Some("/sys/fs/cgroup".into()));
        assert_eq!(cgroup2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2(&format!("{part}{hybrid}")), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2(part), Some("/cg".into()));
        let container = "60 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n\
                         61 31 0:38 /../../.. /host/cgroup rw - cgroup2 cgroup rw\n";
        assert_eq!(cgroup2(container), Some("/host/cgroup".into()));
        assert_eq!(cgroup2("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"), None);
        assert_eq!(cgroup2("garbage\n - cgroup2\n"), None);
    }
}
