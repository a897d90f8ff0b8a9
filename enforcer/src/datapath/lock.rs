//! One agent per folder: a lock on the folder itself, which the kernel takes back however the agent ends.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;

/// How long asking whether the lock is held may take.
const PATIENCE: Duration = Duration::from_millis(100);

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent holds it.
    #[error("another agent{} works with {}: stop it first, or give this one its own folder with --bpffs", pid_text(*.pid), .dir.display())]
    Held {
        /// The folder.
        dir: PathBuf,
        /// The holder's process id, where it can be seen from here.
        pid: Option<u32>,
    },
    /// The folder cannot be locked.
    #[error("cannot lock {}: {source}", .dir.display())]
    Io {
        /// The folder.
        dir: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

/// The lock; let go when dropped.
#[derive(Debug)]
pub struct AgentLock {
    _file: Flock<File>,
}

impl AgentLock {
    /// Takes the lock of an existing folder. Whoever only asks whether it is held is waited for.
    ///
    /// # Errors
    /// When another process holds it, or the folder cannot be opened.
    pub fn take(dir: &Path) -> Result<Self, LockError> {
        let patience = Instant::now() + PATIENCE;
        loop {
            match Self::lock(dir, FlockArg::LockExclusiveNonblock) {
                Err(LockError::Held { .. }) if Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                result => return result,
            }
        }
    }

    /// Whether an agent holds the lock, or why that cannot be told. Any number of processes may ask at once.
    #[must_use]
    pub fn held(dir: &Path) -> Option<LockError> {
        Self::lock(dir, FlockArg::LockSharedNonblock).err()
    }

    fn lock(dir: &Path, how: FlockArg) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { dir: dir.to_owned(), source };
        loop {
            let file = File::open(dir).map_err(failed)?;
            match Flock::lock(file, how) {
                Ok(file) => {
                    // A detach may have removed the folder between opening and locking it.
                    let (held, there) =
                        (file.metadata().map_err(failed)?, fs::metadata(dir).map_err(failed)?);
                    if held.ino() == there.ino() && held.dev() == there.dev() {
                        return Ok(Self { _file: file });
                    }
                }
                Err((file, Errno::EWOULDBLOCK)) => {
                    let pid = holder(&file.metadata().map_err(failed)?);
                    return Err(LockError::Held { dir: dir.to_owned(), pid });
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            }
        }
    }
}

/// The process that holds the lock on this file, by `/proc/locks`.
fn holder(file: &fs::Metadata) -> Option<u32> {
    let (major, minor) = (libc::major(file.dev()), libc::minor(file.dev()));
    let wanted = format!("{major:02x}:{minor:02x}:{}", file.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let at = fields.iter().position(|field| *field == wanted)?;
        // Zero and below: the process is in another pid namespace.
        fields.get(at.checked_sub(1)?)?.parse().ok().filter(|pid| *pid > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_hears_the_pid_of_the_first() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = AgentLock::take(dir.path()).expect("the lock is free");
        match AgentLock::take(dir.path()) {
            Err(LockError::Held { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(first);
        AgentLock::take(dir.path()).expect("free again");
    }

    #[test]
    fn who_only_asks_is_taken_for_no_agent_and_keeps_none_from_starting() {
        let dir = tempfile::tempdir().expect("a folder");
        let ask = || AgentLock::lock(dir.path(), FlockArg::LockSharedNonblock);
        let asking = ask().expect("nobody holds it");
        assert!(AgentLock::held(dir.path()).is_none(), "another one asks");
        let later = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            drop(asking);
        });
        let agent = AgentLock::take(dir.path()).expect("it waits for who only asks");
        later.join().expect("a thread");
        assert!(matches!(AgentLock::held(dir.path()), Some(LockError::Held { .. })));
        drop(agent);
        assert!(AgentLock::held(dir.path()).is_none());
    }
}
