//! `enforcer certs`: results of the certificate checks, and one check by hand.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;

use super::EXIT_NO;
use super::output::{OutputFormat, print_json, print_table, table};
use crate::certificate::report::{CertificateReport, FILE_NAME};

mod probe;
mod text;

/// Arguments of `enforcer certs`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check one server now: is what it speaks mutual TLS? Needs no root and no agent.
    ///
    /// Exit code 0: mutual TLS is proven; 1: it is not; 2: usage or input error.
    Probe(Box<probe::Args>),
}

#[derive(Debug, clap::Args)]
struct List {
    /// Folder in which the agent keeps its results.
    #[arg(long, env = "ENFORCER_STATE_DIR", default_value = crate::agent::state::DEFAULT_DIR, value_name = "DIR")]
    state_dir: PathBuf,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Runs `enforcer certs`: exit code 1 when a server is proven not to speak mutual TLS.
///
/// # Errors
/// The results cannot be read, or the arguments of the check are wrong.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Some(Command::Probe(args)) => probe::run(*args),
        None => list(&args.list),
    }
}

fn list(args: &List) -> anyhow::Result<ExitCode> {
    let path = args.state_dir.join(FILE_NAME);
    let report = CertificateReport::read(&path).with_context(|| {
        format!(
            "no results of certificate checks in {}; is the agent running with this --state-dir?",
            path.display()
        )
    })?;
    match args.output {
        OutputFormat::Json => print_json(&report)?,
        OutputFormat::Table => {
            let mut rows = table([
                "POD",
                "ADDRESS",
                "PORT",
                "STATE",
                "SINCE",
                "SPIFFE ID",
                "ISSUER",
                "VALID",
                "KEY",
                "TLS",
                "FINDINGS",
            ]);
            for entry in &report.entries {
                rows.add_row(text::row(entry, report.time));
            }
            print_table(&rows)?;
            println!("\nas of {}", text::relative(report.time, jiff::Timestamp::now()));
            if let Some(problem) = &report.bundle_problem {
                println!("{problem}; the last good trust bundle is in use");
            }
        }
    }
    let bad = report.entries.iter().any(|entry| entry.history.state.is_bad());
    Ok(if bad { ExitCode::from(EXIT_NO) } else { ExitCode::SUCCESS })
}
