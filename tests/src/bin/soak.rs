//! The soak, see `enforcer_tests::soak`; `cargo xtask soak` builds everything and runs it.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::Parser;
use enforcer_tests::soak::{Options, run};

/// Load, restarts, kills, policy flips and pods that come and go, with every guarantee checked all along
#[derive(Parser)]
struct Cli {
    /// How long
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Repeats an earlier run's order of events
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let duration = Duration::try_from_secs_f64(cli.minutes * 60.0)?;
    let summary = run(Options { duration, seed: cli.seed.unwrap_or_else(now) })?;
    println!("\n{summary}");
    Ok(())
}
