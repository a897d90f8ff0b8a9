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

/// Runs every benchmark of the agent, optimised.
pub(crate) fn run(options: &Options) -> Result<()> {
    require_root("bench")?;
    setup::run()?;
    run_command(
        cargo(["bench", "--locked", "--package", "enforcer", "--bench", "*", "--"]).args(&options.arguments),
    )
}
