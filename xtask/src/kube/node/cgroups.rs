//! The node's cgroup: one folder of its name in every hierarchy.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The roots of all hierarchies that are mounted.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    Ok(roots(&mounts))
}

fn roots(mounts: &str) -> Vec<PathBuf> {
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = fields.filter_map(|fields| match fields.as_slice() {
        [_, place, "cgroup" | "cgroup2", ..] => Some(PathBuf::from(place)),
        _ => None,
    });
    found.filter(|place| place.starts_with("/sys/fs/cgroup")).collect()
}

/// Makes them.
pub(super) fn make(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let folder = hierarchy.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        // In version 1 nothing can be put into a new cpuset before these are filled.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = fs::read(hierarchy.join(file)) {
                fs::write(folder.join(file), value).with_context(|| format!("cannot fill {file}"))?;
            }
        }
    }
    Ok(())
}

/// Removes them. The last processes take a moment to leave.
pub(super) fn remove(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let folder = hierarchy.join(name);
        let mut tries = 0;
        while let Err(error) = remove_tree(&folder) {
            tries += 1;
            if tries > 200 {
                bail!("cannot remove the cgroup {}: {error}", folder.display());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// The files of a cgroup go with its folder.
fn remove_tree(folder: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_found_and_nothing_else() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup2 /run/elsewhere cgroup2 rw 0 0\n";
        let expected = ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        assert_eq!(roots(mounts), expected);
    }
}
