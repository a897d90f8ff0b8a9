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
use super::output::{print_json, print_table, table};
use crate::agent::monotonic_ns;
use crate::source::manifest::load_paths;
use crate::telemetry::readiness::clients::{Table, boot_id};
use crate::telemetry::readiness::history::{History, Reading};
use crate::telemetry::readiness::judge::{Criteria, Port, Readiness, Workload, duration, judge};
use crate::telemetry::readiness::manifest::documents;
use crate::telemetry::readiness::{NodeData, Nodes, watch};

/// Tell which workloads are safe to turn STRICT, and which clients of the others still speak plaintext.
///
/// Covers ports under PERMISSIVE, and in audit mode those under STRICT. Read from the pinned maps, with or without a
/// running agent; or from the json of several nodes. Exit code 1 unless all are ready.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// Only clients that were seen within this time count, such as 12h or 7d.
    #[arg(long, default_value = "7d", value_parser = seconds, value_name = "TIME")]
    window: u64,
    /// A workload that was watched for less is not called ready.
    #[arg(long, default_value = "24h", value_parser = seconds, value_name = "TIME")]
    min_watched: u64,
    /// A port with fewer TLS connections is not called ready; 0: silence is enough.
    #[arg(long, default_value_t = 1, value_name = "N")]
    min_connections: u64,
    /// Only workloads of this namespace.
    #[arg(long, value_name = "NS")]
    namespace: Option<String>,
    /// In place of this node: the answer of several nodes, from files with the json that `readiness -o json` printed there
    /// (`-` is standard input). Prints the cluster's answer; its json can be merged again.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    merge: Vec<PathBuf>,
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
    /// The worst of the workloads; `READY` without any.
    verdict: Readiness,
    /// What was asked for.
    criteria: Criteria,
    /// The workloads that could turn STRICT.
    workloads: Vec<Workload>,
    /// What each node saw: the input of `--merge`.
    nodes: Vec<NodeData>,
}

/// What `--merge` reads of a report.
#[derive(Deserialize)]
struct Input {
    nodes: Vec<NodeData>,
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
    let criteria = Criteria {
        now: nodes.iter().map(|node| node.time).max().unwrap_or_default(),
        window_seconds: args.window,
        min_watched_seconds: args.min_watched,
        min_connections: args.min_connections,
    };
    let mut workloads = judge(&nodes, &criteria);
    workloads.retain(|workload| args.namespace.as_ref().is_none_or(|wanted| *wanted == workload.namespace));
    let verdict = workloads.iter().map(|workload| workload.verdict).max().unwrap_or(Readiness::Ready);
    match args.output {
        Format::Json => {
            let nodes = nodes.iter().cloned().collect();
            print_json(&Report { verdict, criteria, workloads, nodes })?;
        }
        Format::Yaml => {
            write!(io::stdout().lock(), "{}", documents(&nodes, &workloads))?;
            notes(&nodes)?;
        }
        Format::Table => {
            print(&workloads)?;
            notes(&nodes)?;
        }
    }
    Ok(if verdict == Readiness::Ready { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) })
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
    if !history.is_of(&boot) {
        notes.push("the agent has not watched yet: ask again in some seconds".to_owned());
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
fn host() -> Option<String> {
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

/// Clients that are shown of one port.
const SHOWN: usize = 10;

fn print(workloads: &[Workload]) -> io::Result<()> {
    if workloads.is_empty() {
        return writeln!(io::stdout(), "no port is PERMISSIVE: nothing is left to turn STRICT");
    }
    let mut rows =
        table(["WORKLOAD", "PORT", "MODE", "TLS", "MESH TLS", "PLAINTEXT", "LAST", "WATCHED", "VERDICT"]);
    for workload in workloads {
        let name = format!("{}/{}", workload.namespace, workload.workload);
        let watched = duration(workload.watched_seconds);
        if workload.ports.is_empty() {
            let mut row = vec![name.clone()];
            row.extend(["-"; 6].map(str::to_owned));
            row.extend([watched.clone(), workload.verdict.word().to_owned()]);
            rows.add_row(row);
        }
        for port in &workload.ports {
            rows.add_row([
                name.clone(),
                port.port.to_string(),
                mode(port).to_owned(),
                port.tls.to_string(),
                port.mesh_tls.to_string(),
                port.plaintext.to_string(),
                port.last.map_or_else(|| "-".to_owned(), |time| format!("{time:.0}")),
                watched.clone(),
                port.verdict.word().to_owned(),
            ]);
        }
    }
    print_table(&rows)?;
    clients(workloads)?;
    let mut out = io::stdout().lock();
    writeln!(out)?;
    for workload in workloads {
        let Workload { namespace, workload: name, verdict, why, gaps, gap_seconds, .. } = workload;
        write!(out, "{namespace}/{name}: {}: {why}", verdict.word())?;
        if *gaps > 0 {
            write!(out, "; not watched for {} in between", duration(*gap_seconds))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

const fn mode(port: &Port) -> &'static str {
    match port.mode {
        crate::telemetry::readiness::Mode::Strict => "STRICT (audit)",
        crate::telemetry::readiness::Mode::Permissive => "PERMISSIVE",
        crate::telemetry::readiness::Mode::Disable => "DISABLE",
    }
}

fn clients(workloads: &[Workload]) -> io::Result<()> {
    let ports = || workloads.iter().flat_map(|w| w.ports.iter().map(move |port| (w, port)));
    if ports().all(|(_, port)| port.plaintext_clients.is_empty()) {
        return Ok(());
    }
    writeln!(io::stdout())?;
    let mut rows = table(["PLAINTEXT CLIENT", "ADDRESS", "TO", "CONNECTIONS", "FIRST", "LAST"]);
    for (workload, port) in ports() {
        let to = format!("{}/{}:{}", workload.namespace, workload.workload, port.port);
        for client in port.plaintext_clients.iter().take(SHOWN) {
            rows.add_row([
                client.name.clone().unwrap_or_else(|| "-".to_owned()),
                client.address.to_string(),
                to.clone(),
                client.connections.to_string(),
                format!("{:.0}", client.first),
                format!("{:.0}", client.last),
            ]);
        }
        let more = port.plaintext_clients.len().saturating_sub(SHOWN);
        if more > 0 {
            let rest = format!("and {more} more, see -o json");
            rows.add_row([rest, "-".into(), to, "-".into(), "-".into(), "-".into()]);
        }
    }
    print_table(&rows)
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
