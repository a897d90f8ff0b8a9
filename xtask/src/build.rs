//! `cargo xtask build`.

use std::fs;

use anyhow::{Context, Result};
use clap::Args;

use crate::shell::{binaries, cargo};
use crate::{setup, shell};

/// What to build.
#[derive(Args)]
pub(crate) struct Options {
    /// With optimisation, as it is shipped
    #[arg(long)]
    release: bool,
}

/// Sets up and builds the agent.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run()?;
    let mut build = cargo(["build", "--locked", "--package", "enforcer"]);
    if options.release {
        build.arg("--release");
    }
    shell::run(&mut build)?;
    let own = binaries()?;
    let directory = if options.release { own.with_file_name("release") } else { own };
    let binary = directory.join("enforcer");
    let size = fs::metadata(&binary).with_context(|| format!("no binary at {}", binary.display()))?.len();
    println!("{} ({} KiB)", binary.display(), size / 1024);
    Ok(())
}
