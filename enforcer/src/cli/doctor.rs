//! `enforcer doctor`: can the agent run on this machine? Needs no agent, no cluster and no root.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use schemars::JsonSchema;
use serde::Serialize;

use super::EXIT_NO;
use super::output::{OutputFormat, print_json, print_table, table};
use crate::agent::state;
use crate::datapath::pin;

mod facts;
mod judge;

/// Check what the agent needs of this machine: kernel, capabilities, file systems, what is on the pods' interfaces.
///
/// Works before the agent was ever run, and without root (it says what it could not see). Changes nothing. Exit code 1
/// when a check fails.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the pins.
    #[arg(long, env = "ENFORCER_BPFFS", default_value = pin::DEFAULT_DIR, value_name = "DIR")]
    bpffs: PathBuf,
    /// Folder of the agent's state.
    #[arg(long, env = "ENFORCER_STATE_DIR", default_value = state::DEFAULT_DIR, value_name = "DIR")]
    state_dir: PathBuf,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// The answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "enforcer doctor")]
pub(super) struct Report {
    /// The worst of the checks: `ok`, `warn`, `fail`; what was not seen counts as `warn`.
    verdict: Outcome,
    /// In the order in which the agent would meet them.
    checks: Vec<Check>,
}

/// One thing that the agent needs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
struct Check {
    /// What was looked at; stable.
    name: &'static str,
    /// How it stands.
    outcome: Outcome,
    /// What was found.
    found: String,
    /// What to do about it; empty when nothing is to be done.
    remedy: String,
}

/// How a check stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// As it should be.
    Ok,
    /// Could not be seen with the privileges of this run.
    Unseen,
    /// Works, but less well, or something about it should be known.
    Warn,
    /// The agent cannot run, or would not enforce.
    Fail,
}

impl Outcome {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unseen => "unseen",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// When stdout cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let facts = facts::collect(&std::path::absolute(&args.bpffs)?, &args.state_dir);
    let checks = judge::judge(&facts);
    let worst = checks.iter().map(|check| check.outcome).max().unwrap_or(Outcome::Ok);
    let verdict = if worst == Outcome::Unseen { Outcome::Warn } else { worst };
    let report = Report { verdict, checks };
    match args.output {
        OutputFormat::Json => print_json(&report)?,
        OutputFormat::Table => report.print()?,
    }
    Ok(if worst == Outcome::Fail { ExitCode::from(EXIT_NO) } else { ExitCode::SUCCESS })
}

impl Report {
    fn print(&self) -> io::Result<()> {
        let mut rows = table(["CHECK", "OUTCOME", "FOUND"]);
        for check in &self.checks {
            rows.add_row([check.name, check.outcome.word(), &check.found]);
        }
        print_table(&rows)?;
        let mut out = io::stdout().lock();
        writeln!(out)?;
        for check in self.checks.iter().filter(|check| !check.remedy.is_empty()) {
            writeln!(out, "{}: {}: {}", check.outcome.word().to_lowercase(), check.name, check.remedy)?;
        }
        let count = |outcome| self.checks.iter().filter(|check| check.outcome == outcome).count();
        let (fail, warn, unseen) = (count(Outcome::Fail), count(Outcome::Warn), count(Outcome::Unseen));
        match (fail, warn + unseen) {
            (0, 0) => writeln!(out, "the agent can run here"),
            (0, _) => writeln!(out, "the agent can run here; {warn} warnings, {unseen} not seen"),
            _ => writeln!(out, "the agent CANNOT run here as it should: {fail} checks failed"),
        }
    }
}
