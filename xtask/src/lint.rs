//! `cargo xtask lint`: the format and clippy's opinion, where a warning is an error.

use std::process::Command;

use anyhow::Result;

use crate::shell::{cargo, ebpf_cargo, root, run as run_command};

/// Everything that `test` checks before it runs a test.
pub(crate) fn run() -> Result<()> {
    for mut command in format().into_iter().chain(clippy()) {
        run_command(&mut command)?;
    }
    Ok(())
}

/// The format of both workspaces.
pub(crate) fn format() -> Vec<Command> {
    let arguments = ["fmt", "--all", "--check"];
    vec![cargo(arguments), ebpf_cargo(arguments)]
}

/// Clippy on both workspaces, each for its own target.
pub(crate) fn clippy() -> Vec<Command> {
    let deny = ["--", "--deny", "warnings"];
    let mut host = cargo(["clippy", "--locked", "--workspace", "--all-targets"]);
    host.args(deny);
    let mut ebpf = ebpf_cargo(["clippy", "--locked", "--release", "--target-dir"]);
    // Where the agent's build script compiles it, so that dependencies are shared.
    ebpf.arg(root().join("target/ebpf")).args(deny);
    vec![host, ebpf]
}
