//! `cargo xtask clean-lab`: what a lab leaves when it is killed before it can tidy up. The next lab does the same by
//! itself; this is for whoever wants a clean machine now.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, Result};

use crate::shell::{command, output, require_root};

/// A lab's folder in here is called as the lab; the file `lock` in it is locked as long as the lab lives. The
/// `bpffs` of the lab is mounted on `bpf`.
const HOME: &str = "/run/enforcer-lab";

/// Removes the labs of dead processes; living labs are not touched.
pub(crate) fn run() -> Result<()> {
    require_root("clean-lab")?;
    let home = Path::new(HOME);
    let labs = names(home, "")?;
    if labs.is_empty() {
        println!("  nothing left of any lab");
        return Ok(());
    }
    // No lab may take a name meanwhile.
    let all = open(&home.join("lock"))?;
    all.lock().with_context(|| format!("cannot lock {HOME}"))?;
    for lab in labs.iter().filter(|lab| home.join(lab).is_dir()) {
        let folder = home.join(lab);
        if open(&folder.join("lock"))?.try_lock().is_err() {
            println!("  {lab} is running");
            continue;
        }
        remove(lab, &folder)?;
        println!("  removed {lab}");
    }
    Ok(())
}

/// Ends what runs in the namespaces of a lab, and removes them and its folder.
fn remove(lab: &str, folder: &Path) -> Result<()> {
    let prefix = format!("enforcer-lab-{lab}-");
    for name in names(Path::new("/run/netns"), &prefix)? {
        for pid in output(command("ip").args(["netns", "pids", &name]))?.split_whitespace() {
            // It may have ended by itself meanwhile.
            let _ = output(command("kill").args(["-KILL", pid]));
        }
        output(command("ip").args(["netns", "delete", &name]))?;
    }
    let netns = Path::new("/etc/netns");
    for name in names(netns, &prefix)? {
        remove_folder(&netns.join(name))?;
    }
    // Not mounted is what is wanted.
    let _ = output(command("umount").arg("--lazy").arg(folder.join("bpf")));
    remove_folder(folder)
}

fn remove_folder(folder: &Path) -> Result<()> {
    fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
}

fn open(lock: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(lock)
        .with_context(|| format!("cannot open {}", lock.display()))
}

/// The names in a directory that begin with `prefix`; none when there is no such directory.
fn names(directory: &Path, prefix: &str) -> Result<Vec<String>> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", directory.display())),
    }
}
