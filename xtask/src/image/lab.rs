//! An image for tests: the lab's servers, curl and a shell, with the shared libraries that they want.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flate2::Compression;

use super::archive::{Entry, Image};
use super::folder;
use crate::shell::{binaries, command, find, output};

/// Name of the image.
pub(super) const NAME: &str = "localhost/enforcer-lab:1";
/// What busybox is called by.
const APPLETS: [&str; 8] = ["cat", "env", "ip", "ls", "nc", "sh", "sleep", "wget"];

/// Builds the image from this build's `lab-server`, the machine's curl and a static busybox.
pub(super) fn build(busybox: &Path, archive: &Path) -> Result<PathBuf> {
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
    entries.extend(libraries(&[&curl, &server])?);
    let image = Image {
        name: NAME,
        title: "enforcer-lab",
        entrypoint: &[],
        command: &["sleep", "1d"],
        path: "/bin",
        compression: Compression::none(),
    };
    fs::write(archive, image.write(entries)?.archive)
        .with_context(|| format!("cannot write {}", archive.display()))?;
    Ok(archive.to_owned())
}

/// The image of the agent, but with this build's program as it is: for trying changes, without minutes of optimising.
pub(super) fn development(name: &str, archive: &Path) -> Result<()> {
    let program = stripped(&binaries()?.join("enforcer"))?;
    let mut entries = vec![
        Entry::directory("proc"),
        Entry::directory("tmp"),
        Entry::file("usr/bin/enforcer", 0o755, fs::read(&program)?),
    ];
    entries.extend(libraries(&[&program])?);
    let image = Image {
        name,
        title: "enforcer, not optimised",
        entrypoint: &["/usr/bin/enforcer"],
        command: &[],
        path: "/usr/bin",
        compression: Compression::none(),
    };
    fs::write(archive, image.write(entries)?.archive)
        .with_context(|| format!("cannot write {}", archive.display()))
}

/// A copy without debug information, which nobody reads there.
fn stripped(program: &Path) -> Result<PathBuf> {
    ensure!(program.is_file(), "{} is missing: build the workspace", program.display());
    let name = program.file_name().context("a program has a name")?;
    let copy = folder().join("stripped").join(name);
    fs::create_dir_all(folder().join("stripped"))?;
    output(command("strip").arg("-o").arg(&copy).arg(program))?;
    Ok(copy)
}

/// What the dynamic linker would load for these programs, itself included.
fn libraries(programs: &[&PathBuf]) -> Result<Vec<Entry>> {
    let mut paths = BTreeSet::new();
    for program in programs {
        let text = output(command("ldd").arg(program))?;
        paths.extend(text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    }
    let entry = |path: String| {
        let content = fs::read(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(Entry::file(path.trim_start_matches('/'), 0o755, content))
    };
    paths.into_iter().map(entry).collect()
}
