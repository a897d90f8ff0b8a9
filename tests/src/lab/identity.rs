//! One lab's name and folder, and the removal of what labs of dead processes left behind.
//!
//! A lab is alive as long as the lock file in its folder is held, which the kernel releases with the process however
//! that ends. A process id alone could have been taken again by somebody else.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

use super::process::run;

/// Where every lab has its folder.
const HOME: &str = "/run/enforcer-lab";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Name and folder of a lab; holds its lock.
#[derive(Debug)]
pub(super) struct Identity {
    /// `<pid>-<number>`, part of every name that is visible outside the lab.
    pub(super) id: String,
    /// The lab's folder.
    pub(super) dir: PathBuf,
    _lock: File,
}

impl Identity {
    /// Takes a new name, its folder and its lock.
    pub(super) fn take() -> Result<Self> {
        let _guard = lock_all()?;
        let id = format!("{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(HOME).join(&id);
        // The folder of an earlier process with the same pid.
        remove(&id)?;
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let lock = open_lock(&dir.join("lock"))?;
        lock.lock().with_context(|| format!("cannot lock {}", dir.display()))?;
        Ok(Self { id, dir, _lock: lock })
    }
}

/// Removes what labs of dead processes left: processes, namespaces, mounts, files. Living labs are not touched.
/// Gives the names of the labs removed.
///
/// # Errors
/// When something of a dead lab cannot be removed.
pub fn clean() -> Result<Vec<String>> {
    let _guard = lock_all()?;
    let mut removed = Vec::new();
    for entry in fs::read_dir(HOME).with_context(|| format!("cannot read {HOME}"))? {
        let entry = entry?;
        // Without a lock file it is a lab that is removing itself at this moment.
        let Ok(lock) = File::open(entry.path().join("lock")) else { continue };
        if lock.try_lock().is_ok() {
            let id = entry.file_name().to_string_lossy().into_owned();
            remove(&id)?;
            removed.push(id);
        }
    }
    Ok(removed)
}

/// The name of a lab's network namespace.
pub(super) fn namespace_name(id: &str, member: &str) -> String {
    format!("enforcer-lab-{id}-{member}")
}

/// Removes everything that carries this lab's name.
pub(super) fn remove(id: &str) -> Result<()> {
    let prefix = namespace_name(id, "");
    for name in names_in("/run/netns", &prefix) {
        for pid in run("ip", ["netns", "pids", &name])?.stdout.split_whitespace() {
            if let Ok(pid) = pid.parse() {
                // Gone in the meantime is as good as killed.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
        run("ip", ["netns", "delete", &name])?.success()?;
    }
    for name in names_in("/etc/netns", &prefix) {
        let _ = fs::remove_dir_all(Path::new("/etc/netns").join(name));
    }
    let dir = Path::new(HOME).join(id);
    if dir.exists() {
        // Not mounted is what is wanted.
        let _ = umount2(&dir.join("bpf"), MntFlags::MNT_DETACH);
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}

fn names_in(dir: &str, prefix: &str) -> Vec<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Held while labs are named or removed, so that nobody takes a lab between its folder and its lock for a dead one.
fn lock_all() -> Result<File> {
    fs::create_dir_all(HOME).with_context(|| format!("cannot create {HOME}; the lab needs root"))?;
    let lock = open_lock(&Path::new(HOME).join("lock"))?;
    lock.lock().with_context(|| format!("cannot lock {HOME}"))?;
    Ok(lock)
}

fn open_lock(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}; the lab needs root", path.display()))
}
