//! The command line: one file per subcommand, each with its `Args` and a `run`.
//!
//! Exit codes: 0 done; 1 the answer is "no" (lint found errors, not ready, a check failed); 2 usage or input error,
//! with one sentence on stderr that says what to do.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

mod capabilities;
pub mod certs;
pub mod completions;
pub mod detach;
pub mod doctor;
pub mod endpoints;
pub mod flows;
pub mod kube;
pub mod node;
pub mod output;
pub mod policy;
pub mod readiness;
pub mod run;
pub mod schemas;
pub mod status;
pub mod top;

/// Exit code for usage and input errors.
pub const EXIT_USAGE: u8 = 2;
/// Exit code for "the answer is no".
pub const EXIT_NO: u8 = 1;

/// Holds every inbound connection of a meshed pod against Istio's `PeerAuthentication`, in the kernel.
#[derive(Debug, Parser)]
#[command(name = "enforcer", version, propagate_version = true, disable_help_subcommand = true)]
struct Root {
    #[command(subcommand)]
    command: Command,
}

/// The subcommands. Each is one variant here, one arm in [`dispatch`] and one file in `cli/`.
#[derive(Debug, Subcommand)]
enum Command {
    /// The agent: enforces policy on this node's pods.
    Run(Box<run::Args>),
    /// This node: agent, hooks, maps, policy, counters, problems.
    Status(status::Args),
    /// The pods that are enforced, and what is in force for them.
    Endpoints(endpoints::Args),
    /// Recent connections to the pods and their verdicts.
    Flows(flows::Args),
    /// The pods of this node and their connections, live.
    Top(top::Args),
    /// Which workloads are safe to turn STRICT, and which clients of the others would break.
    Readiness(readiness::Args),
    /// Certificate checks: what every server presents and refuses; `certs probe` checks one by hand.
    Certs(certs::Args),
    /// Explain, check and compare `PeerAuthentication` policies; offline, without root.
    Policy(policy::Args),
    /// What the agent needs of this machine, and whether it is there; before the agent was ever run.
    Doctor(doctor::Args),
    /// Remove programs, links and maps from this node.
    Detach(detach::DetachArgs),
    /// Print the completions for a shell.
    Completions(completions::Args),
    /// Write the manual pages.
    Man(completions::ManArgs),
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(*args),
        Command::Status(args) => status::run(&args),
        Command::Endpoints(args) => endpoints::run(&args),
        Command::Flows(args) => flows::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Readiness(args) => readiness::run(&args),
        Command::Certs(args) => certs::run(args),
        Command::Policy(args) => policy::run(args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Detach(args) => detach::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Completions(args) => completions::run(&args, Root::command()).map(|()| ExitCode::SUCCESS),
        Command::Man(args) => completions::man(&args, Root::command()).map(|()| ExitCode::SUCCESS),
    }
}

/// Entry point of the binary.
#[must_use]
pub fn main() -> ExitCode {
    // clap ends the process itself: 0 for --help and --version, 2 for usage errors.
    let plugin = kube::is_plugin(std::env::args_os().next().as_ref());
    let command = if plugin { Root::command().bin_name("kubectl enforcer") } else { Root::command() };
    let matches = command.get_matches();
    let done = match kube::remote(&matches, plugin) {
        Some(remote) => kube::run(&remote, |line| dispatch(Root::try_parse_from(line)?.command)),
        None => Root::from_arg_matches(&matches).map_err(Into::into).and_then(|root| dispatch(root.command)),
    };
    match done {
        Ok(code) => code,
        // The reader of a pipe that closed early (`| head`) wants no message.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do when stderr is gone too.
            let _ = writeln!(io::stderr(), "error: {}", Sentence(&error));
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// An error chain as one line: outermost first, joined by colons.
struct Sentence<'a>(&'a anyhow::Error);

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, cause) in self.0.chain().enumerate() {
            if index > 0 {
                f.write_str(": ")?;
            }
            for (number, line) in cause.to_string().lines().enumerate() {
                if number > 0 {
                    f.write_str(" ")?;
                }
                f.write_str(line.trim())?;
            }
        }
        Ok(())
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
