//! `cargo xtask bench`.

use anyhow::Result;
use clap::Args;

use crate::setup;
use crate::shell::{cargo, require_root, run as run_command};

/// What the benchmarks get.
#[derive(Args)]
pub(crate) struct Options {
    /// Arguments for the benchmarks themselves
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs every benchmark of the agent, and that of the path through the hooks, optimised.
pub(crate) fn run(options: &Options) -> Result<()> {
    require_root("bench")?;
    setup::run()?;
    run_command(
        cargo(["bench", "--locked", "--package", "enforcer", "--bench", "*", "--"]).args(&options.arguments),
    )?;
    // The lab starts the agent as a program.
    run_command(&mut cargo([
        "build",
        "--release",
        "--locked",
        "--package",
        "enforcer",
        "--bin",
        "enforcer",
    ]))?;
    run_command(&mut cargo(["bench", "--locked", "--package", "enforcer-tests", "--bench", "path"]))
}
