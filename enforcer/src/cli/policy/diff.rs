//! `enforcer policy diff`: what a change of manifests does to the modes of pods.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use serde::Serialize;

use super::{Reading, load, nothing_read, warn};
use crate::cli::EXIT_NO;
use crate::cli::output::{OutputFormat, print_json, print_table, table};
use crate::object::{Map, ObjectName};
use crate::policy::diff::{Change, Side, Subject, diff};
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
    /// Exit with 1 when a mode changes.
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
    old: &'static str,
    new: &'static str,
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
            old: change.old.name(),
            new: change.new.name(),
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
    nothing_read(&loaded)?;
    for problem in &loaded.problems {
        warn(problem)?;
    }
    Ok(loaded)
}

/// Runs the subcommand.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let old = side(&args.old, &args.manifests)?;
    let new = side(&args.new, &args.manifests)?;
    let (before, after) = (args.reading.composer(&old), args.reading.composer(&new));
    let (changes, compared) = diff(
        Side { objects: &old.objects, composer: &before },
        Side { objects: &new.objects, composer: &after },
    );
    let with_pods = !old.objects.pods.is_empty() || !new.objects.pods.is_empty();
    match args.output {
        OutputFormat::Json => print_json(&Report {
            changes: changes.iter().map(Entry::from).collect(),
            pods: if with_pods { compared } else { 0 },
        })?,
        OutputFormat::Table => print(&changes, with_pods, compared)?,
    }
    let no = args.exit_code && !changes.is_empty();
    Ok(if no { ExitCode::from(EXIT_NO) } else { ExitCode::SUCCESS })
}

fn print(changes: &[Change], with_pods: bool, compared: usize) -> io::Result<()> {
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
            change.old.to_string(),
            change.new.to_string(),
            named(&change.old_policy),
            named(&change.new_policy),
        ]);
    }
    if !changes.is_empty() {
        print_table(&rows)?;
        writeln!(io::stdout())?;
    }
    let what = if with_pods {
        format!("{compared} pods compared")
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
