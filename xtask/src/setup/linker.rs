//! bpf-linker: links the eBPF programs and makes their BTF.

use anyhow::{Result, bail};

use super::report;
use crate::shell::{cargo, command, find, output, run};

/// The newest release that uses the compiler's own LLVM, which it loads at run time; later ones want an LLVM of
/// exactly the right version on the system.
const VERSION: &str = "0.10.4";

/// The right version is on PATH and starts, or gets installed.
pub(super) fn ensure() -> Result<()> {
    match installed() {
        Some(version) if version == VERSION => {
            report("bpf-linker", format_args!("found {version}"));
            return Ok(());
        }
        Some(version) => {
            report("bpf-linker", format_args!("found {version}, but {VERSION} is needed; installing it"));
        }
        None => report("bpf-linker", format_args!("missing; installing {VERSION} (about two minutes)")),
    }
    run(&mut cargo(["install", "bpf-linker", "--version", VERSION, "--locked", "--force"]))?;
    match installed() {
        Some(version) if version == VERSION => Ok(()),
        Some(version) => {
            bail!(
                "PATH has bpf-linker {version} before the installed {VERSION}: put cargo's bin directory first"
            )
        }
        None => bail!("bpf-linker was installed but is not on PATH: put cargo's bin directory on PATH"),
    }
}

/// The version on PATH, if it starts at all.
fn installed() -> Option<String> {
    let path = find("bpf-linker")?;
    let line = output(command(path).arg("--version")).ok()?;
    Some(line.trim().strip_prefix("bpf-linker ")?.to_owned())
}
