//! `enforcer policy`: explain, lint and diff policies.

use std::process::ExitCode;

/// Arguments of `enforcer policy`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs `enforcer policy`.
///
/// # Errors
/// When the input cannot be read.
pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("to come")
}
