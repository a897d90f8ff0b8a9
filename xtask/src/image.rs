//! `cargo xtask image`: the agent as a container image of one static program, with its bill of materials, without a
//! daemon. The same source gives the same bytes, wherever it is built.

pub(crate) mod archive;
mod binary;
mod lab;
mod reproduce;
mod sbom;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use flate2::Compression;

use crate::kube::binaries::{self, Part};
use crate::setup;
use crate::shell::root;
use archive::{Entry, Image, digest};

/// What a registry stores must stay below this, bytes.
const LIMIT: usize = 15 << 20;
/// Where the program lies in the image.
const PROGRAM: &str = "usr/bin/enforcer";

/// What to build.
#[derive(Args)]
pub(crate) struct Options {
    /// Name of the image; without a tag, the version is the tag
    #[arg(long, default_value = "localhost/enforcer")]
    name: String,
    /// Folder that gets enforcer.tar and enforcer.cdx.json
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Build once more from a copy of the source in another folder, and compare
    #[arg(long)]
    check_reproducible: bool,
    /// Put this build's own program into the image, neither static nor optimised: for trying a change in a cluster
    #[arg(long, conflicts_with = "check_reproducible")]
    development: bool,
    /// Also the image with the lab's servers and clients
    #[arg(long)]
    lab: bool,
}

/// Builds the image and says what it is.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !options.development {
        setup::run()?;
    }
    let directory = options.output.clone().unwrap_or_else(folder);
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    if options.lab {
        let programs = binaries::ensure(&[Part::Node])?;
        println!("{}", lab::build(&programs.join("busybox"), &directory.join("lab.tar"))?.display());
    }
    if options.development {
        let archive = directory.join("enforcer.tar");
        lab::development(&with_tag(&options.name), &archive)?;
        println!("{}", archive.display());
        return Ok(());
    }
    let program = binary::build(root())?;
    let archive = write(&program, &options.name, &directory)?;
    println!("{}", archive.display());
    if options.check_reproducible {
        reproduce::check(&program, &options.name, &archive)?;
    }
    Ok(())
}

/// The image as it is shipped, under the name that the chart has for it.
pub(crate) fn shipped() -> Result<PathBuf> {
    fs::create_dir_all(folder()).with_context(|| format!("cannot create {}", folder().display()))?;
    write(&binary::build(root())?, "localhost/enforcer", &folder())
}

/// Where images go unless told otherwise.
fn folder() -> PathBuf {
    root().join("target/oci")
}

/// Writes archive and bill of materials for this program.
fn write(program: &Path, name: &str, directory: &Path) -> Result<PathBuf> {
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let content = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let (size, program_digest) = (content.len(), digest(&content));
    let name = with_tag(name);
    let mut entries: Vec<Entry> =
        ["proc", "run", "sys", "tmp", "var/lib/enforcer"].into_iter().map(Entry::directory).collect();
    entries.push(Entry::file(PROGRAM, 0o755, content));
    for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
        let text = fs::read(root().join(licence)).with_context(|| format!("cannot read {licence}"))?;
        entries.push(Entry::file(&format!("usr/share/doc/enforcer/{licence}"), 0o644, text));
    }
    let image = Image {
        name: &name,
        title: "enforcer",
        entrypoint: &["/usr/bin/enforcer"],
        command: &[],
        path: "/usr/bin",
        compression: Compression::best(),
    };
    let archived = image.write(entries)?;
    let archive = directory.join("enforcer.tar");
    fs::write(&archive, &archived.archive).with_context(|| format!("cannot write {}", archive.display()))?;
    let bill = directory.join("enforcer.cdx.json");
    fs::write(&bill, sbom::bill(&program_digest)?)
        .with_context(|| format!("cannot write {}", bill.display()))?;

    println!("  image        {name}, {}", archived.manifest);
    println!("  program      {} KiB, {program_digest}", size / 1024);
    println!("  compressed   {} KiB (limit {} KiB)", archived.compressed / 1024, LIMIT / 1024);
    ensure!(archived.compressed < LIMIT, "the image is larger than {} MiB", LIMIT >> 20);
    Ok(archive)
}

/// The name with the version as tag, unless it has one.
fn with_tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}:{}", env!("CARGO_PKG_VERSION")) }
}

#[cfg(test)]
mod tests {
    use super::with_tag;

    #[test]
    fn a_port_of_the_registry_is_no_tag() {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(with_tag("localhost/enforcer"), format!("localhost/enforcer:{version}"));
        assert_eq!(with_tag("registry:5000/enforcer"), format!("registry:5000/enforcer:{version}"));
        assert_eq!(with_tag("registry:5000/enforcer:edge"), "registry:5000/enforcer:edge");
    }
}
