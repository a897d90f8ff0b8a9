//! `cargo xtask load`: the long form of the telemetry's load test.

use anyhow::Result;
use clap::Args;

use crate::setup;
use crate::shell::{binaries, cargo, require_root, run as run_command};

/// How long.
#[derive(Args)]
pub(crate) struct Options {
    /// Seconds of load
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// Builds the agent optimised and opens as many connections as the machine can make; fails when the agent takes more than a
/// third of a core for 20,000 connections a second, when something waits, or when a connection is neither told nor counted.
pub(crate) fn run(options: &Options) -> Result<()> {
    require_root("load")?;
    setup::run()?;
    run_command(&mut cargo(["build", "--locked", "--release", "--workspace", "--bins"]))?;
    let mut test =
        cargo(["test", "--locked", "--release", "--package", "enforcer-tests", "--test", "telemetry_load"]);
    test.args(["--", "--nocapture", "--test-threads", "1"])
        .env("ENFORCER_LOAD_SECONDS", options.seconds.to_string())
        .env("ENFORCER_BIN", binaries()?.with_file_name("release").join("enforcer"));
    run_command(&mut test)
}
