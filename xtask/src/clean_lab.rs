//! `cargo xtask clean-lab`: what a lab leaves when it is killed before it can tidy up.

use std::path::Path;
use std::{fs, io};

use anyhow::{Context, Result};

use crate::shell::{command, output, require_root};

/// Every lab names its network namespaces and its folder of pins like this.
const PREFIX: &str = "enforcer-lab-";

/// Removes every lab, a running one included: its processes are those inside its namespaces.
pub(crate) fn run() -> Result<()> {
    require_root("clean-lab")?;
    let mut removed = 0;
    for name in entries(Path::new("/run/netns"))? {
        for pid in output(command("ip").args(["netns", "pids", &name]))?.split_whitespace() {
            println!("  ending process {pid} in {name}");
            // It may have ended by itself meanwhile.
            let _ = output(command("kill").args(["-KILL", pid]));
        }
        output(command("ip").args(["netns", "delete", &name]))?;
        println!("  removed network namespace {name}");
        removed += 1;
    }
    let bpffs = Path::new("/sys/fs/bpf");
    for name in entries(bpffs)? {
        let folder = bpffs.join(&name);
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        println!("  removed pins {}", folder.display());
        removed += 1;
    }
    if removed == 0 {
        println!("  nothing left of any lab");
    }
    Ok(())
}

/// The names in a directory that a lab gave; none when there is no such directory.
fn entries(directory: &Path) -> Result<Vec<String>> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(PREFIX))
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", directory.display())),
    }
}
