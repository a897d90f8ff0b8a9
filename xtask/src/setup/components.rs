//! The pinned toolchain's rustfmt and clippy, which a minimal profile lacks.

use std::time::Duration;

use anyhow::{Result, bail};

use super::report;
use crate::shell::{cargo, command, output, succeeds_within};

/// How long rustup may take for a component; without a network it fails by itself in a moment.
pub(super) const RUSTUP_LIMIT: Duration = Duration::from_secs(90);

/// Both components answer, or get installed.
pub(super) fn ensure() -> Result<()> {
    let rustc = output(command("rustc").arg("--version"))?;
    report("rustc", rustc.trim());
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if output(&mut cargo([subcommand, "--version"])).is_ok() {
            report(component, "found");
            continue;
        }
        report(component, "missing; installing it with rustup");
        add(component);
        if let Err(error) = output(&mut cargo([subcommand, "--version"])) {
            bail!(
                "{component} is missing and rustup could not install it: add it to the toolchain ({error})"
            );
        }
    }
    Ok(())
}

/// Asks rustup for a component; true when it says that it is there.
pub(super) fn add(component: &str) -> bool {
    let mut rustup = command("rustup");
    rustup.args(["component", "add", component]).env("RUSTUP_MAX_RETRIES", "1");
    succeeds_within(&mut rustup, RUSTUP_LIMIT)
}
