//! `cargo xtask deny`: licences, sources and duplicates of the dependencies, by cargo-deny.

use anyhow::Result;

use crate::shell::{cargo, ebpf_cargo, output, root, run as run_command};

/// A release whose minimal compiler is not newer than the pinned one.
const VERSION: &str = "0.20.2";

/// Checks both workspaces against deny.toml.
pub(crate) fn run() -> Result<()> {
    if output(&mut cargo(["deny", "--version"])).is_err() {
        println!("  cargo-deny is missing; installing {VERSION} (some minutes)");
        run_command(&mut cargo(["install", "cargo-deny", "--version", VERSION, "--locked"]))?;
    }
    let configuration = root().join("deny.toml");
    for mut command in [cargo(["deny"]), ebpf_cargo(["deny"])] {
        command.arg("--config").arg(&configuration).args(["check", "bans", "licenses", "sources"]);
        run_command(&mut command)?;
    }
    Ok(())
}
