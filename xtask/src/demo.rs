//! `cargo xtask demo`: the walk-through, played and checked in the lab.

use anyhow::Result;
use clap::Args;

use crate::setup;
use crate::shell::{binaries, cargo, command, require_root, run as run_command};

/// What the demo gets.
#[derive(Args)]
pub(crate) struct Options {
    /// Arguments for the demo itself
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Sets up, builds and plays; fails when a step differs from what it should be.
pub(crate) fn run(options: &Options) -> Result<()> {
    require_root("demo")?;
    setup::run()?;
    run_command(&mut all_binaries())?;
    run_command(command(binaries()?.join("demo")).args(&options.arguments))
}

/// Builds every program of the workspace: the same command for demo and tests, so that neither compiles the
/// dependencies with other features once more.
pub(crate) fn all_binaries() -> std::process::Command {
    cargo(["build", "--locked", "--workspace", "--bins"])
}
