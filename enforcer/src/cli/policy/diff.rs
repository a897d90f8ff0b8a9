//! `enforcer policy diff`: what a change of manifests does to the modes of pods.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use enforcer_common::Mode;
use serde::Serialize;

use super::{Reading, all_read, load, plural, warn};
use crate::cli::EXIT_NO;
use crate::cli::output::{OutputFormat, print_json, print_table, table};
use crate::object::{Map, ObjectName};
use crate::policy::age;
use crate::policy::diff::{Change, Comparison, Side, Subject, diff};
use crate::policy::problem::Problem;
use crate::source::manifest::Loaded;

/// Arguments of `enforcer policy diff`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The manifests before: a file or a folder.
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// The manifests after.
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// What both sides have in common, such as the pods of the cluster and the policies that stay.
    #[arg(long, num_args = 1.., value_name = "PATH")]
    manifests: Vec<PathBuf>,
    #[command(flatten)]
    reading: Reading,
    /// Exit with 1 when a mode changes, as always when a document of the new side is refused.
    #[arg(long)]
    exit_code: bool,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputFormat,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Report {
    changes: Vec<Entry>,
    /// Pods that were compared; 0 when none was given and `labels` stand for them.
    pods: usize,
    /// Pods that were left out, because no policy is held there on either side.
    left_out: usize,
    /// Why documents of the new side are refused. Their objects were compared as they are on the old side.
    refused: Vec<Problem>,
}

#[derive(Serialize, schemars::JsonSchema)]
struct Entry {
    /// `None` for an imagined pod: see `namespace` and `labels`.
    pod: Option<String>,
    /// `None` for every namespace without a policy of its own.
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Map>,
    /// `None` for every port that neither another entry nor `except` names.
    port: Option<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    except: Vec<u16>,
    /// `None` where no policy is held.
    old: Option<&'static str>,
    /// `None` where no policy is held.
    new: Option<&'static str>,
    old_policy: Option<String>,
    new_policy: Option<String>,
}

impl From<&Change> for Entry {
    fn from(change: &Change) -> Self {
        let (pod, namespace, labels) = match &change.subject {
            Subject::Pod(name) => (Some(name.to_string()), Some(name.namespace.clone()), None),
            Subject::Any { namespace, labels } => (None, Some(namespace.clone()), Some(labels.clone())),
            Subject::Elsewhere => (None, None, None),
        };
        let text = |name: &Option<ObjectName>| name.as_ref().map(ToString::to_string);
        Self {
            pod,
            namespace,
            labels,
            port: change.port,
            except: change.except.clone(),
            old: change.old.map(Mode::name),
            new: change.new.map(Mode::name),
            old_policy: text(&change.old_policy),
            new_policy: text(&change.new_policy),
        }
    }
}

fn side(path: &Path, common: &[PathBuf]) -> anyhow::Result<Loaded> {
    let mut paths = common.to_vec();
    paths.push(path.to_owned());
    for path in &paths {
        fs::metadata(path).with_context(|| format!("{} cannot be read; check the path", path.display()))?;
    }
    let loaded = load(&paths);
    all_read(&loaded)?;
    for warning in loaded.warnings.iter().filter(|warning| matches!(warning.rule, "folder-skipped" | "empty"))
    {
        warn(warning)?;
    }
    Ok(loaded)
}

/// Gives both sides what a cluster would: times to policies that have none, and to the new side the old version of what is
/// refused there.
fn settle(old: &mut Loaded, new: &mut Loaded) {
    let mut known = new.dated.clone();
    known.extend(old.dated.clone());
    let refused = |name: &ObjectName| new.refused.contains(&format!("PeerAuthentication {name}"));
    for (name, policy) in &old.objects.policies {
        if new.nameless || refused(name) {
            new.objects.policies.entry(name.clone()).or_insert_with(|| policy.clone());
        }
    }
    for side in [old, new] {
        age::settle(&mut side.objects, &known);
    }
}

/// Runs the subcommand.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut old = side(&args.old, &args.manifests)?;
    let mut new = side(&args.new, &args.manifests)?;
    settle(&mut old, &mut new);
    for problem in &old.problems {
        warn(problem)?;
    }
    for problem in &new.problems {
        writeln!(io::stderr(), "refused: {problem}; its object is compared as it is on the old side")?;
    }
    let (before, after) = (args.reading.composer(&old), args.reading.composer(&new));
    let found = diff(
        Side { objects: &old.objects, composer: &before },
        Side { objects: &new.objects, composer: &after },
    );
    let with_pods = !old.objects.pods.is_empty() || !new.objects.pods.is_empty();
    let refused = !new.problems.is_empty();
    let no = refused || (args.exit_code && !found.changes.is_empty());
    match args.output {
        OutputFormat::Json => print_json(&Report {
            changes: found.changes.iter().map(Entry::from).collect(),
            pods: if with_pods { found.compared } else { 0 },
            left_out: found.left_out,
            refused: new.problems,
        })?,
        OutputFormat::Table => print(&found, with_pods)?,
    }
    Ok(if no { ExitCode::from(EXIT_NO) } else { ExitCode::SUCCESS })
}

fn print(found: &Comparison, with_pods: bool) -> io::Result<()> {
    let changes = &found.changes;
    let mode = |mode: Option<Mode>| mode.map_or_else(|| "not held".to_owned(), |mode| mode.to_string());
    let mut rows = table(["POD", "PORT", "OLD", "NEW", "POLICY BEFORE", "POLICY AFTER"]);
    for change in changes {
        let subject = match &change.subject {
            Subject::Pod(name) => name.to_string(),
            Subject::Any { namespace, labels } if labels.is_empty() => {
                format!("any in {namespace} that no selector matches")
            }
            Subject::Any { namespace, labels } => {
                let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                format!("any in {namespace} with {}", labels.join(","))
            }
            Subject::Elsewhere => "any in other namespaces".to_owned(),
        };
        let others = || {
            let except: Vec<_> = change.except.iter().map(ToString::to_string).collect();
            if except.is_empty() { "others".to_owned() } else { format!("all but {}", except.join(",")) }
        };
        let named =
            |name: &Option<ObjectName>| name.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
        rows.add_row([
            subject,
            change.port.map_or_else(others, |port| port.to_string()),
            mode(change.old),
            mode(change.new),
            named(&change.old_policy),
            named(&change.new_policy),
        ]);
    }
    if !changes.is_empty() {
        print_table(&rows)?;
        writeln!(io::stdout())?;
    }
    let what = if with_pods {
        let left_out = match found.left_out {
            0 => String::new(),
            count => format!(", {count} left out where no policy is held"),
        };
        format!("{}{left_out}", plural(found.compared, "pod") + " compared")
    } else {
        "no pods given, so each selector stands for a pod with its labels (add pods with --manifests)"
            .to_owned()
    };
    match changes.len() {
        0 => writeln!(io::stdout(), "no mode changes; {what}"),
        1 => writeln!(io::stdout(), "1 change; {what}"),
        count => writeln!(io::stdout(), "{count} changes; {what}"),
    }
}
