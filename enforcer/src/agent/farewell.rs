//! What an agent leaves when it stops: normally everything that enforces; nothing when it was told so at its start
//! (`--detach-on-exit`) or since (`enforcer detach --on-exit`), which is how an uninstallation announces itself.
//!
//! The announcement is a file beside the state file. It holds for one agent: the next one removes it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The announcement that belongs to a state file.
fn announcement(state: &Path) -> PathBuf {
    state.with_extension("detach-on-exit")
}

/// Tells the running agent to remove everything when it stops. `state` is the path of its state file.
///
/// # Errors
/// When the folder of the state file cannot be written.
pub fn announce(state: &Path) -> io::Result<()> {
    if let Some(folder) = state.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(announcement(state), "")
}

/// Whether that was said.
#[must_use]
pub fn announced(state: &Path) -> bool {
    announcement(state).exists()
}

/// Forgets what was said to an agent before.
///
/// # Errors
/// When the file is there and cannot be removed.
pub fn withdraw(state: &Path) -> io::Result<()> {
    remove(&announcement(state)).map(drop)
}

/// Removes the state file and what belongs to it; returns what was there.
///
/// # Errors
/// When something is there and cannot be removed.
pub fn remove_state(state: &Path) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    let beside = ["manifests", "cluster.json", "certificates.json", "readiness.json", "detach-on-exit"];
    let all = beside.map(|extension| state.with_extension(extension)).into_iter().chain([state.to_owned()]);
    for path in all {
        if remove(&path)? {
            removed.push(path);
        }
    }
    Ok(removed)
}

/// Removes a file or a folder; true when it was there.
fn remove(path: &Path) -> io::Result<bool> {
    let removal = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removal {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => {
            Err(io::Error::new(error.kind(), format!("{} cannot be removed: {error}", path.display())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_holds_until_it_is_withdrawn_or_the_state_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("deep/sys-fs-bpf-enforcer.json");
        withdraw(&state).expect("nothing to withdraw");
        assert!(!announced(&state));
        announce(&state).expect("announced");
        assert!(announced(&state));
        withdraw(&state).expect("withdrawn");
        assert!(!announced(&state));
        announce(&state).expect("announced");
        fs::create_dir(state.with_extension("manifests")).expect("a folder");
        fs::write(&state, "{}").expect("a state");
        assert_eq!(remove_state(&state).expect("removed").len(), 3);
        assert!(!announced(&state));
        assert_eq!(remove_state(&state).expect("nothing there"), Vec::<PathBuf>::new());
    }
}
