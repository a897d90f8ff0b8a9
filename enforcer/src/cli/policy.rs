//! `enforcer policy`: explain, lint and diff policies. Works on manifest files, without root and without an agent; explain
//! also on what a running agent knows.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;

use crate::agent::state::State;
use crate::policy::compose::Composer;
use crate::policy::problem::Problem;
use crate::source::manifest::{Loaded, load_paths};
use crate::telemetry::client;

mod diff;
mod explain;
mod lint;

/// Arguments of `enforcer policy`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The effective mode per port of a pod, and which policies led there.
    Explain(explain::Args),
    /// What is wrong with the policies: what Istio refuses, and what hardly does what was meant.
    ///
    /// Exit code 1 on errors, with --strict also on warnings.
    Lint(lint::Args),
    /// Which ports of which pods change mode between two sets of manifests.
    Diff(diff::Args),
}

/// Runs `enforcer policy`.
///
/// # Errors
/// When the input cannot be read.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Explain(args) => explain::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Diff(args) => diff::run(&args),
    }
}

/// How policies are to be read, alike for all subcommands.
#[derive(Debug, clap::Args)]
struct Reading {
    /// Istio's root namespace (`meshConfig.rootNamespace`); without it the agent's own, else istio-system.
    #[arg(long, env = "ENFORCER_ROOT_NAMESPACE", value_name = "NS")]
    root_namespace: Option<String>,
    /// Revision of the control plane: policies labelled `istio.io/rev` with another one are left out.
    #[arg(long, env = "ENFORCER_REVISION", value_name = "REVISION")]
    revision: Option<String>,
}

impl Reading {
    fn root_namespace(&self) -> &str {
        self.root_namespace.as_deref().unwrap_or("istio-system")
    }

    fn composer<'a>(&self, loaded: &'a Loaded) -> Composer<'a> {
        Composer::new(loaded.objects.policies.values(), self.root_namespace(), self.revision.as_deref())
    }

    /// What an agent reads policies with, where the command line does not say otherwise.
    fn or_of(&self, agent: &State) -> Self {
        let root = Some(agent.root_namespace.clone()).filter(|root| !root.is_empty());
        Self {
            root_namespace: self.root_namespace.clone().or(root),
            revision: self.revision.clone().or_else(|| agent.revision.clone()),
        }
    }
}

/// What a running agent knows: its objects, and its state.
fn ask_agent(socket: &Path) -> anyhow::Result<(Loaded, State)> {
    let objects = serde_json::from_str(&client::get(socket, "/v1/objects")?);
    let state = serde_json::from_str(&client::get(socket, "/v1/state")?);
    let other = "the agent's answer is not of this version: use the enforcer that it runs with";
    Ok((Loaded { objects: objects.context(other)?, ..Loaded::default() }, state.context(other)?))
}

/// Reads manifests; `-` is standard input.
fn load(paths: &[PathBuf]) -> Loaded {
    let paths: Vec<_> = paths
        .iter()
        .map(|path| {
            let path = if path == Path::new("-") { Path::new("/dev/stdin") } else { path };
            path.to_owned()
        })
        .collect();
    load_paths(&paths)
}

/// Ends the run when a path or file could not be read: what it holds might change the answer.
fn all_read(loaded: &Loaded) -> anyhow::Result<()> {
    let unread = loaded.problems.iter().find(|problem| problem.document == 0);
    match unread {
        Some(problem) if loaded.incomplete => bail!("{problem}"),
        _ => Ok(()),
    }
}

fn plural(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

fn warn(problem: &Problem) -> io::Result<()> {
    writeln!(io::stderr(), "warning: {problem}")
}

/// The schemas of the subcommands' json.
pub(super) fn schemas(
    generator: &schemars::generate::SchemaSettings,
) -> [(&'static str, schemars::Schema); 3] {
    let new = || generator.clone().into_generator();
    [
        ("policy-explain", new().into_root_schema_for::<explain::Report>()),
        ("policy-lint", new().into_root_schema_for::<lint::Findings>()),
        ("policy-diff", new().into_root_schema_for::<diff::Report>()),
    ]
}
