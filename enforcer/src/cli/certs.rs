//! `enforcer certs`: results of the certificate checks, and one check by hand.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum};

use super::EXIT_NO;
use super::node::NodeArgs;
use super::output::{OutputFormat, print_json, print_table, table};
use crate::certificate::report::CertificateReport;

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

/// Something that can be left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(super) enum Switch {
    /// It is done.
    #[default]
    On,
    /// It is not done.
    Off,
}

/// A time-out.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if !(0.01..=600.0).contains(&seconds) {
        return Err("give 0.01 to 600 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check one server now: is what it speaks mutual TLS? Needs no root and no agent.
    ///
    /// Exit code 0: mutual TLS is proven; 1: it is not, as always without --trust-bundle; 2: usage or input error.
    Probe(Box<probe::Args>),
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    node: NodeArgs,
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
    let path = args.node.certificates()?;
    let report = CertificateReport::read(&path).with_context(|| {
        format!(
            "no results of certificate checks in {}: start enforcer run, or give the --bpffs and --state-dir that it has",
            path.display()
        )
    })?;
    match args.output {
        OutputFormat::Json => print_json(&report)?,
        OutputFormat::Table => print(&report)?,
    }
    let bad = report.entries.iter().any(|entry| entry.history.state.is_bad());
    Ok(if bad { ExitCode::from(EXIT_NO) } else { ExitCode::SUCCESS })
}

fn print(report: &CertificateReport) -> anyhow::Result<()> {
    let mut rows = table([
        "POD",
        "ADDRESS",
        "PORT",
        "STATE",
        "SINCE",
        "SUBJECT",
        "SPIFFE ID",
        "ISSUER",
        "VALID",
        "KEY",
        "TLS",
        "CLIENTS",
        "FINDINGS",
    ]);
    let now = jiff::Timestamp::now();
    for entry in &report.entries {
        rows.add_row(text::row(entry, now));
    }
    print_table(&rows)?;
    println!("\nas of {}", text::relative(report.time, now));
    match (&report.bundle, &report.bundle_problem) {
        (_, None) if report.revocation_lists > 0 => println!("revocation lists: {}", report.revocation_lists),
        (Some(_), None) => {}
        (Some(_), Some(problem)) => println!("{problem}; the last good trust bundle is in use"),
        (None, Some(problem)) => println!("{problem}; chains are not checked until it is repaired"),
        (None, None) => println!(
            "there is no trust bundle, so that nothing is checked: give enforcer run --trust-bundle, or the mesh's config map"
        ),
    }
    for old in &report.old_revocation_lists {
        println!("a revocation list is old, so that what was revoked since is not known: {old}");
    }
    if let Some(problem) = &report.client_problem {
        println!("{problem}");
    }
    Ok(())
}
