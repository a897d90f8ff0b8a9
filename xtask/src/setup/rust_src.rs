//! rust-src: the source of `core`, which is compiled for the kernel's instruction set together with the programs.
//! It must be that of exactly the pinned compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::{apt, cache, components, report};
use crate::shell::{command, output};

/// The source is in the compiler's sysroot, or gets there: from the cache, by rustup, or from Debian's package.
pub(super) fn ensure() -> Result<()> {
    let sysroot = PathBuf::from(output(command("rustc").args(["--print", "sysroot"]))?.trim());
    let version = compiler_release()?;
    let library = sysroot.join("lib/rustlib/src/rust/library");
    if is_complete(&library) {
        report("rust-src", "found in the toolchain");
        return Ok(());
    }
    let cached = cache::directory()?.join(format!("rust-src-{version}"));
    if is_complete(&cached) {
        report("rust-src", format_args!("copying it from {}", cached.display()));
        return copy(&cached, &library);
    }
    report("rust-src", "missing; asking rustup");
    if components::add("rust-src") && is_complete(&library) {
        report("rust-src", "installed by rustup");
        return Ok(());
    }
    report("rust-src", format_args!("rustup cannot; fetching Debian's package of {version} (45 MB)"));
    fetch(&version, &cached).with_context(|| {
        format!("rust-src is missing, and neither rustup nor apt could get it: add the component rust-src to the toolchain {version} by hand")
    })?;
    copy(&cached, &library)?;
    report("rust-src", format_args!("installed in {}", library.display()));
    Ok(())
}

/// The lock file is what cargo looks for; `core` is what it compiles.
fn is_complete(library: &Path) -> bool {
    ["Cargo.lock", "core/src/lib.rs"].iter().all(|file| library.join(file).is_file())
}

/// The compiler's upstream version, such as `1.95.0`.
fn compiler_release() -> Result<String> {
    let verbose = output(command("rustc").arg("-vV"))?;
    let release = verbose.lines().find_map(|line| line.strip_prefix("release: "));
    Ok(release.context("`rustc -vV` names no release")?.to_owned())
}

/// Puts the library's source of Debian's package at `cached`.
fn fetch(version: &str, cached: &Path) -> Result<()> {
    let work = cached.with_extension("fetching");
    remove(&work)?;
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let package = apt::download("rust-src", version, &work)?;

    // The package holds the whole compiler; only the library is unpacked.
    let inner = format!("usr/src/rustc-{version}/library");
    let mut unpack = command("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(&package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let archive = unpack.stdout.take().context("dpkg-deb has no output")?;
    output(command("tar").arg("-x").arg("-C").arg(&work).arg(format!("./{inner}")).stdin(archive))?;
    if !unpack.wait().context("cannot wait for dpkg-deb")?.success() {
        bail!("dpkg-deb cannot read {}", package.display());
    }
    let unpacked = work.join(inner);
    if !is_complete(&unpacked) {
        bail!("Debian's package rust-src {version} has no complete library");
    }
    replace(&unpacked, cached)?;
    remove(&work)
}

/// A copy and not a link: the cache may be emptied, the toolchain must go on working.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().context("the sysroot has no parent")?;
    fs::create_dir_all(parent)
        .with_context(|| format!("cannot write to the toolchain's directory {}", parent.display()))?;
    let partial = to.with_extension("copying");
    remove(&partial)?;
    output(command("cp").arg("-a").arg(from).arg(&partial))?;
    replace(&partial, to)
}

/// Moves a directory into place at once, so that no build sees half of it.
fn replace(from: &Path, to: &Path) -> Result<()> {
    remove(to)?;
    fs::rename(from, to).with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}
