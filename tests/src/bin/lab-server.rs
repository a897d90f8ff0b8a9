//! A server of the lab, run inside a pod's network namespace.

use anyhow::Result;
use clap::Parser;
use enforcer_tests::server::{Kind, serve};

/// A server of the lab
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    kind: Kind,
}

#[tokio::main]
async fn main() -> Result<()> {
    serve(Cli::parse().kind).await
}
