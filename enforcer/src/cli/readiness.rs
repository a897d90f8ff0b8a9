//! `enforcer readiness`: who breaks if a workload turns STRICT?

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use enforcer_common::settings::Enforcement;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::EXIT_NO;
use super::node::{Node, NodeArgs};
use super::output::print_json;
use crate::agent::monotonic_ns;
use crate::source::manifest::load_paths;
use crate::telemetry::health::stale;
use crate::telemetry::readiness::clients::{Table, boot_id};
use crate::telemetry::readiness::history::{History, Reading};
use crate::telemetry::readiness::judge::{Answer, Criteria, Readiness, Workload, answer};
use crate::telemetry::readiness::manifest::documents;
use crate::telemetry::readiness::{Absent, NodeData, Nodes, watch};

mod text;

/// Tell which workloads are safe to turn STRICT, and which clients of the others still speak plaintext.
///
/// Covers ports under PERMISSIVE, and in audit mode those under STRICT. Read from the pinned maps, with or without a
/// running agent; or from the json of several nodes. Exit code 1 unless all are ready, and that is proven: pods were seen, and
/// all of them are watched.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// Only connections within this time count, such as 12h or 7d.
    #[arg(long, default_value = "7d", value_parser = seconds, value_name = "TIME")]
    window: u64,
    /// A workload that was watched for less is not called ready.
    #[arg(long, default_value = "24h", value_parser = seconds, value_name = "TIME")]
    min_watched: u64,
    /// A port with fewer TLS connections is not called ready; 0: silence is enough.
    #[arg(long, default_value_t = 1, value_name = "N")]
    min_connections: u64,
    /// TLS without the mesh's ALPN keeps a port from being ready: such clients may have no certificate of the mesh. Without this
    /// they are named with a caution.
    #[arg(long)]
    mesh_tls_only: bool,
    /// A node whose answer is older is not called ready.
    #[arg(long, default_value = "1h", value_parser = seconds, value_name = "TIME")]
    max_age: u64,
    /// Only workloads of this namespace.
    #[arg(long, value_name = "NS")]
    namespace: Option<String>,
    /// In place of this node: the answer of several nodes, from files with the json that `readiness -o json` printed there
    /// (`-` is standard input). Prints the cluster's answer; its json can be merged again.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    merge: Vec<PathBuf>,
    /// A node that gave no answer, as json (`Absent` of the answer's form).
    #[arg(long, hide = true, requires = "merge", value_parser = absent, value_name = "JSON")]
    absent: Vec<Absent>,
    /// Manifests whose pods give names to clients that are not known, such as the output of `kubectl get pods -A -o yaml`.
    #[arg(long, num_args = 1.., value_name = "PATH")]
    manifests: Vec<PathBuf>,
    /// Name of this node in the json; the host's name without it.
    #[arg(long, env = "ENFORCER_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Forms of the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs, and for --merge; its form is stable.
    Json,
    /// The `PeerAuthentication` documents that are safe to apply now.
    Yaml,
}

/// The answer, and what it follows from.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "enforcer readiness")]
pub(super) struct Report {
    /// The worst of the workloads, and at best `NOT_ENOUGH_DATA` where something keeps the answer from being complete.
    verdict: Readiness,
    /// What that is, one sentence each.
    incomplete: Vec<String>,
    /// What was asked for.
    criteria: Criteria,
    /// The workloads that could turn STRICT.
    workloads: Vec<Workload>,
    /// What each node saw: the input of `--merge`.
    nodes: Vec<NodeData>,
    /// Nodes that gave no answer.
    absent: Vec<Absent>,
}

/// What `--merge` reads of a report.
#[derive(Deserialize)]
struct Input {
    nodes: Vec<NodeData>,
    #[serde(default)]
    absent: Vec<Absent>,
}

fn absent(text: &str) -> Result<Absent, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// `90`, `90s`, `15m`, `12h`, `7d` as seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..).unwrap_or_default() {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        "w" => 7 * 86400,
        other => return Err(format!("`{other}` is no unit: write s, m, h, d or w, as in 12h")),
    };
    let number: u64 = digits.parse().map_err(|_| "write a number and a unit, as in 12h".to_owned())?;
    number.checked_mul(unit).ok_or_else(|| "that is too long".to_owned())
}

/// Runs the subcommand.
///
/// # Errors
/// When no agent has run here, or a file cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut nodes = if args.merge.is_empty() { this_node(args)?.into() } else { merge(&args.merge)? };
    if !args.manifests.is_empty() {
        name(&mut nodes, &args.manifests)?;
    }
    args.absent.iter().cloned().for_each(|absent| nodes.add_absent(absent));
    let criteria = Criteria {
        // A clock that is behind makes nothing older than it is.
        now: nodes.iter().map(|node| node.time).fold(Timestamp::now(), Timestamp::max),
        window_seconds: args.window,
        min_watched_seconds: args.min_watched,
        min_connections: args.min_connections,
        max_age_seconds: args.max_age,
        mesh_tls_only: args.mesh_tls_only,
    };
    let answer = answer(&nodes, &criteria, args.namespace.as_deref());
    match args.output {
        Format::Json => {
            let nodes_data = nodes.iter().cloned().collect();
            let absent = nodes.absent().cloned().collect();
            let Answer { verdict, incomplete, workloads } = answer.clone();
            print_json(&Report { verdict, incomplete, criteria, workloads, nodes: nodes_data, absent })?;
        }
        Format::Yaml => {
            let mut out = io::stdout().lock();
            for why in &answer.incomplete {
                writeln!(out, "# not complete: {why}")?;
            }
            write!(out, "{}", documents(&nodes, &answer.workloads))?;
            notes(&nodes)?;
        }
        Format::Table => {
            text::print(&answer)?;
            notes(&nodes)?;
        }
    }
    Ok(if answer.verdict == Readiness::Ready { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) })
}

fn this_node(args: &Args) -> anyhow::Result<NodeData> {
    let node = Node::open(&args.node)?;
    let table = Table::read(&node.pinned)?;
    let path = args.node.readiness()?;
    let history = watch::read(&path)
        .with_context(|| format!("{} cannot be read: remove it, the agent writes it anew", path.display()))?;
    let boot = boot_id();
    let history = if history.is_of(&boot) { history } else { History::default() };
    let agent = node.agent();
    let mut notes: Vec<String> = agent.problem().into_iter().collect();
    notes.extend(
        node.state.unsupported_interfaces.iter().map(|interface| {
            format!("{interface} cannot be hooked: what its pod's clients speak is not seen")
        }),
    );
    notes.extend(stale(&node.state.kinds, Timestamp::now()));
    if !history.is_of(&boot) {
        notes.push(format!("{} holds no watch since the node's start", path.display()));
    }
    let reading = Reading {
        wall: Timestamp::now(),
        now_ns: monotonic_ns(),
        enforcing: node.settings.enforcement == Enforcement::ENFORCE,
        alive: agent.problem().is_none(),
        notes,
    };
    let name = args.node_name.clone().or_else(host).unwrap_or_else(|| "this node".to_owned());
    Ok(history.data(&name, &reading, &table.clients))
}

/// The host's name.
pub(super) fn host() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

fn merge(files: &[PathBuf]) -> anyhow::Result<Nodes> {
    let mut nodes = Nodes::default();
    for file in files {
        let path = if file == Path::new("-") { Path::new("/dev/stdin") } else { file };
        let bytes = fs::read(path)
            .with_context(|| format!("{} cannot be read; check the paths of --merge", file.display()))?;
        let input: Input = serde_json::from_slice(&bytes).with_context(|| {
            format!("{} is no output of enforcer readiness -o json of this version", file.display())
        })?;
        input.nodes.into_iter().for_each(|node| nodes.add(node));
        input.absent.into_iter().for_each(|absent| nodes.add_absent(absent));
    }
    Ok(nodes)
}

fn name(nodes: &mut Nodes, manifests: &[PathBuf]) -> anyhow::Result<()> {
    let loaded = load_paths(manifests);
    if loaded.objects.pods.is_empty() {
        bail!(
            "the manifests hold no pods to take names from: give the output of kubectl get pods -A -o yaml"
        );
    }
    let pods = loaded.objects.pods.values().filter(|pod| !pod.host_network && !pod.finished);
    let names: BTreeMap<IpAddr, String> =
        pods.flat_map(|pod| pod.addresses.iter().map(|address| (*address, pod.name.to_string()))).collect();
    nodes.name(|address| names.get(&address).cloned());
    Ok(())
}

/// On stderr: yaml and tables go on to other programs.
fn notes(nodes: &Nodes) -> io::Result<()> {
    let all = nodes.iter().flat_map(|node| node.notes.iter().map(move |note| (node, note)));
    for (node, note) in all {
        writeln!(io::stderr(), "note: {}: {note}", node.node)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn times() {
        for (text, expected) in
            [("90", 90), ("90s", 90), ("15m", 900), ("12h", 43_200), ("7d", 604_800), ("0s", 0)]
        {
            assert_eq!(seconds(text), Ok(expected));
        }
        for text in ["", "h", "1y", "-1h", "1.5h", "99999999999999999999d", "300000000000000000w"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
