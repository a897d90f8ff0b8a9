//! Is the image the same when it is built elsewhere? A copy of the source in another folder says.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::archive::digest;
use super::{binary, write};
use crate::shell::{command, output, root};

/// Builds `program` and `archive` once more from a copy of the source, and compares them byte by byte.
pub(super) fn check(program: &Path, name: &str, archive: &Path) -> Result<()> {
    // Another length of path as well: what is remapped must not leave padding behind.
    let elsewhere = root().join("target/another-folder-with-a-longer-name");
    let source = elsewhere.join("source");
    let _ = fs::remove_dir_all(&source);
    copy(&source)?;
    let second = binary::build(&source)?;
    let again = write(&second, name, &elsewhere.join("image"))?;
    for (what, one, other) in [("program", program, &*second), ("image", archive, &*again)] {
        let [one, other] = [one, other].map(|path| fs::read(path).map(|content| digest(&content)));
        let (one, other) = (one?, other?);
        ensure!(one == other, "the {what} differs between two builds: {one} and {other}");
        println!("  {what:<12} {one} both times");
    }
    Ok(())
}

/// The files that git knows or would know, with their present content.
fn copy(to: &Path) -> Result<()> {
    let list = output(command("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    for path in list.lines().filter(|path| root().join(path).is_file()) {
        let target = to.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(root().join(path), &target).with_context(|| format!("cannot copy {path}"))?;
    }
    Ok(())
}
