//! Makes sure that the pin folder lies on a bpffs that outlives the agent.
//!
//! A process may have a mount namespace of its own (a container, `ip netns exec`). A bpffs mounted only there goes
//! with it and takes every pin along, so a missing one is mounted in the outer mount namespace, and shown here
//! through a clone of that mount.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Where bpffs belongs.
const STANDARD: &str = "/sys/fs/bpf";

/// Why there is no bpffs.
#[derive(Debug, thiserror::Error)]
pub enum BpffsError {
    /// Not permitted.
    #[error("no bpffs at {}, and mounting one is not permitted: run `mount -t bpf bpf {}` on the host, or give the agent CAP_SYS_ADMIN", .at.display(), .at.display())]
    NotPermitted {
        /// The mount point.
        at: PathBuf,
    },
    /// There is none, and none was asked for.
    #[error("no bpffs at {}: no agent has run here with this --bpffs folder", .at.display())]
    Missing {
        /// The mount point.
        at: PathBuf,
    },
    /// Anything else.
    #[error("cannot {action} {}: {source}", .at.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        at: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl BpffsError {
    fn new(action: &'static str, at: &Path, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { at: at.to_owned() },
            _ => Self::Io { action, at: at.to_owned(), source },
        }
    }
}

/// True when the path, or the nearest part of it that exists, lies on a bpffs.
fn on_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find_map(|part| statfs(part).ok())
        .is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// The folder to mount on when `dir` is not on a bpffs.
fn mount_point(dir: &Path) -> PathBuf {
    if dir.starts_with(STANDARD) { STANDARD.into() } else { dir.to_owned() }
}

/// Makes the folder, with a bpffs under it. With `create` false only an existing bpffs is looked for.
///
/// # Errors
/// When there is none and none can be mounted.
pub fn ensure_bpffs(dir: &Path, create: bool) -> Result<(), BpffsError> {
    if !on_bpffs(dir) {
        let at = mount_point(dir);
        show(&at, create)?;
        if !on_bpffs(dir) {
            return Err(BpffsError::Missing { at });
        }
    }
    if create {
        fs::create_dir_all(dir).map_err(|e| BpffsError::new("create", dir, e))?;
    }
    Ok(())
}

/// The initial mount namespace's number (`MNT_NS_INIT_INO`), fixed since Linux 6.18.
const INITIAL_MOUNT_NAMESPACE: u64 = 0xEFFF_FFF8;

/// The number of a process's mount namespace.
fn mount_namespace(pid: &str) -> io::Result<u64> {
    Ok(std::os::unix::fs::MetadataExt::ino(&fs::metadata(format!("/proc/{pid}/ns/mnt"))?))
}

fn parent(pid: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")).map(|pid| pid.trim().to_owned())
}

/// The process in whose mount namespace a mount outlives us; `None` when our own is as good. That is process 1, or,
/// where that one may not be looked at, the nearest ancestor in another mount namespace.
fn outer() -> io::Result<Option<String>> {
    let own = mount_namespace("self")?;
    if own == INITIAL_MOUNT_NAMESPACE {
        return Ok(None);
    }
    if let Ok(first) = mount_namespace("1") {
        return Ok((first != own).then(|| "1".to_owned()));
    }
    let mut pid = parent("self");
    while let Some(ancestor) = pid.filter(|pid| pid != "0") {
        match mount_namespace(&ancestor) {
            Ok(namespace) if namespace != own => return Ok(Some(ancestor)),
            Ok(_) => pid = parent(&ancestor),
            Err(_) => break,
        }
    }
    Ok(None)
}

/// Mounts a bpffs at `at`, in the outer mount namespace if that is another one than ours.
fn show(at: &Path, create: bool) -> Result<(), BpffsError> {
    let Some(outer) = outer().map_err(|e| BpffsError::new("find the mount namespace for", at, e))? else {
        return find_or_mount(at, create);
    };
    let there = at.to_owned();
    // A thread of its own: it never comes back from the other mount namespace.
    let clone = std::thread::spawn(move || -> Result<OwnedFd, BpffsError> {
        let failed = |e| BpffsError::new("enter the outer mount namespace for", &there, e);
        let namespace = File::open(format!("/proc/{outer}/ns/mnt")).map_err(failed)?;
        unshare(CloneFlags::CLONE_FS).map_err(|e| failed(e.into()))?;
        setns(&namespace, CloneFlags::CLONE_NEWNS).map_err(|e| failed(e.into()))?;
        find_or_mount(&there, create)?;
        open_tree(&there).map_err(|e| BpffsError::new("clone the bpffs at", &there, e))
    })
    .join()
    .map_err(|_| BpffsError::new("mount a bpffs at", at, io::Error::other("the mounting thread died")))??;
    fs::create_dir_all(at).map_err(|e| BpffsError::new("create", at, e))?;
    move_mount(&clone, at).map_err(|e| BpffsError::new("show the bpffs at", at, e))
}

/// In the calling thread's mount namespace.
fn find_or_mount(at: &Path, create: bool) -> Result<(), BpffsError> {
    if on_bpffs(at) {
        return Ok(());
    }
    if !create {
        return Err(BpffsError::Missing { at: at.to_owned() });
    }
    fs::create_dir_all(at).map_err(|e| BpffsError::new("create", at, e))?;
    mount(Some("bpf"), at, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|e| BpffsError::new("mount a bpffs at", at, e.into()))
}

fn c_path(path: &Path) -> io::Result<std::ffi::CString> {
    use std::os::unix::ffi::OsStrExt as _;
    std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// A detached clone of the mount at this path.
fn open_tree(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path is a live C string.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just handed out this descriptor, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a detached mount to this path.
fn move_mount(tree: &OwnedFd, path: &Path) -> io::Result<()> {
    /// `MOVE_MOUNT_F_EMPTY_PATH`: the descriptor itself is what is moved.
    const EMPTY_PATH: libc::c_uint = 4;
    let path = c_path(path)?;
    // SAFETY: both paths are live C strings.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            EMPTY_PATH,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_point_is_the_standard_one_where_that_holds_the_folder() {
        assert_eq!(mount_point(Path::new("/sys/fs/bpf/enforcer/a")), Path::new("/sys/fs/bpf"));
        assert_eq!(mount_point(Path::new("/run/enforcer/bpf")), Path::new("/run/enforcer/bpf"));
        assert_eq!(mount_point(Path::new("/sys/fs/bpfoo")), Path::new("/sys/fs/bpfoo"));
    }
}
