//! `cargo xtask soak`: the long form of the restart tests.

use anyhow::Result;
use clap::Args;

use crate::demo::all_binaries;
use crate::setup;
use crate::shell::{binaries, command, require_root, run as run_command};

/// How long.
#[derive(Args)]
pub(crate) struct Options {
    /// Minutes of load
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Repeats an earlier run's order of events; it prints its seed
    #[arg(long)]
    seed: Option<u64>,
}

/// Sets up, builds and soaks; fails at the first thing that is not as it must be.
pub(crate) fn run(options: &Options) -> Result<()> {
    require_root("soak")?;
    setup::run()?;
    run_command(&mut all_binaries())?;
    let mut soak = command(binaries()?.join("soak"));
    soak.args(["--minutes", &options.minutes.to_string()]);
    if let Some(seed) = options.seed {
        soak.args(["--seed", &seed.to_string()]);
    }
    run_command(&mut soak)
}
