//! An image for tests: the lab's servers, curl and a shell, with the shared libraries that they want.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::archive::{Entry, Image};
use super::folder;
use crate::shell::{binaries, command, find, output};

/// Name of the image.
pub(crate) const NAME: &str = "localhost/enforcer-lab:1";
/// What busybox is called by.
const APPLETS: [&str; 8] = ["cat", "env", "ip", "ls", "nc", "sh", "sleep", "wget"];

/// Builds the image from this build's `lab-server`, the machine's curl and a static busybox.
pub(crate) fn build(busybox: &Path) -> Result<PathBuf> {
    let curl = find("curl").context("curl is missing: run `cargo xtask setup`")?;
    let server = stripped(&binaries()?.join("lab-server"))?;
    let mut entries = vec![
        Entry::directory("tmp"),
        Entry::directory("proc"),
        Entry::file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n".to_vec()),
        Entry::file("bin/lab-server", 0o755, fs::read(&server)?),
        Entry::file("bin/curl", 0o755, fs::read(&curl)?),
        Entry::file("bin/busybox", 0o755, fs::read(busybox)?),
    ];
    entries.extend(APPLETS.map(|name| Entry::link(&format!("bin/{name}"), "busybox")));
    let mut libraries = BTreeSet::new();
    for program in [&curl, &server] {
        libraries.extend(shared_libraries(program)?);
    }
    for library in libraries {
        let content = fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
        entries.push(Entry::file(&library.to_string_lossy()[1..], 0o755, content));
    }
    let image =
        Image { name: NAME, title: "enforcer-lab", entrypoint: &[], command: &["sleep", "1d"], path: "/bin" };
    let archive = folder().join("lab.tar");
    fs::create_dir_all(folder())?;
    fs::write(&archive, image.write(entries)?.archive)
        .with_context(|| format!("cannot write {}", archive.display()))?;
    Ok(archive)
}

/// A copy without debug information, which nobody reads there.
fn stripped(program: &Path) -> Result<PathBuf> {
    ensure!(program.is_file(), "{} is missing: build the workspace", program.display());
    let copy = folder().join("lab-server");
    fs::create_dir_all(folder())?;
    output(command("strip").arg("-o").arg(&copy).arg(program))?;
    Ok(copy)
}

/// What the dynamic linker would load, itself included.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let text = output(command("ldd").arg(program))?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
