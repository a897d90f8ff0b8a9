//! `enforcer endpoints`: the pods of this node and what is in force for them, from the pinned maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::ExitCode;

use enforcer_common::Mode;
use enforcer_common::map::{Endpoint, endpoint_flags, port_flags};
use jiff::Timestamp;
use serde::Serialize;

use super::node::{Node, NodeArgs};
use super::output::{OutputFormat, print_json, print_table, table};
use crate::agent::state::DecisionState;
use crate::certificate::report::Entry;
use crate::certificate::state::{History, State};
use crate::datapath::maps::{Endpoints, PortModes, WorkloadCounters};
use crate::telemetry::bypass;
use crate::telemetry::counts::Counts;
use crate::telemetry::readiness::clients::Table;
use crate::telemetry::readiness::history::History as Watch;
use crate::telemetry::readiness::watch;

/// List the pods that are enforced: address, mode and the policy that decided, ports, connections. Works when the agent is dead.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "table")]
    output: OutputFormat,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
pub(super) struct Row {
    pod: String,
    address: IpAddr,
    workload: u32,
    mode: &'static str,
    ports: BTreeMap<u16, Port>,
    decided_by: Vec<DecisionState>,
    /// TLS connections that came through, by the counters of verdicts.
    tls_connections: u64,
    /// TLS connections that are known to be the mesh's: to its tunnel port, or by their hello's ALPN.
    mesh_tls_connections: u64,
    /// Plaintext connections that came through, also because of audit mode.
    plaintext_connections: u64,
    /// Refused connections.
    refused_connections: u64,
    /// Connections that would have been refused but for audit mode.
    would_refuse_connections: u64,
    learning: bool,
    /// Packets reach the pod past the hook: it is not enforced.
    bypassed: bool,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
struct Port {
    mode: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    treatment: Vec<&'static str>,
    /// What the check of its server's certificates found; absent where it is not checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<Certificate>,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
struct Certificate {
    state: State,
    since: Option<Timestamp>,
    expires: Option<Timestamp>,
}

/// Runs the subcommand.
///
/// # Errors
/// When nothing is pinned, or it cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let node = Node::open(&args.node)?;
    let history = watch::read_of_boot(&args.node.readiness()?);
    let rows = rows(&node, &history)?;
    let agent = node.agent();
    if !agent.running {
        use std::io::Write as _;
        writeln!(std::io::stderr(), "note: the agent is {}", agent.line())?;
    }
    match args.output {
        OutputFormat::Json => print_json(&rows)?,
        OutputFormat::Table => print(&rows)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(node: &Node, history: &Watch) -> anyhow::Result<Vec<Row>> {
    let ports = PortModes::new("PORT_MODES", node.pinned.map("PORT_MODES")?)?.entries()?;
    let (connections, mesh) = (connections(node)?, mesh(node, history)?);
    let bypassed: BTreeSet<IpAddr> =
        bypass::read(&node.pinned, &node.state)?.into_iter().map(|pod| pod.address).collect();
    let mut rows = Vec::new();
    for (address, endpoint) in Endpoints::new("ENDPOINTS", node.pinned.map("ENDPOINTS")?)?.entries()? {
        if endpoint.flags & endpoint_flags::NOT_MESHED != 0 {
            continue;
        }
        let address = IpAddr::from(address);
        let state = node
            .state
            .endpoints
            .iter()
            .find(|state| state.address == address && state.workload == endpoint.workload);
        let counted = connections.get(&endpoint.workload).copied().unwrap_or_default();
        rows.push(Row {
            pod: node.pod(endpoint.workload),
            address,
            workload: endpoint.workload,
            mode: endpoint.mode.name(),
            ports: with_certificates(
                ports
                    .iter()
                    .filter(|(key, _)| of(&endpoint, key.workload, key.generation))
                    .map(|(key, port)| (key.port, Port::new(port.mode, port.flags)))
                    .collect(),
                endpoint.mode,
                node.certificates.entries.iter().filter(|entry| entry.address == address),
            ),
            decided_by: state.map(|state| state.decided_by.clone()).unwrap_or_default(),
            tls_connections: counted.tls,
            mesh_tls_connections: mesh.get(&endpoint.workload).copied().unwrap_or_default(),
            plaintext_connections: counted.plaintext,
            refused_connections: counted.refused,
            bypassed: bypassed.contains(&address),
            would_refuse_connections: counted.would_refuse,
            learning: endpoint.flags & endpoint_flags::LEARNING != 0,
        });
    }
    rows.sort_by(|a, b| (&a.pod, a.address).cmp(&(&b.pod, b.address)));
    Ok(rows)
}

impl Port {
    fn new(mode: Mode, flags: u8) -> Self {
        Self { mode: mode.name(), treatment: treatment(flags), certificate: None }
    }

    /// `STRICT`, or its treatments, and what is known of its certificates.
    fn text(&self) -> String {
        let what = if self.treatment.is_empty() { self.mode.to_owned() } else { self.treatment.join("+") };
        match &self.certificate {
            Some(certificate) => format!("{what}({})", certificate.state),
            None => what,
        }
    }
}

/// Adds what the certificate checks know; a checked port has the mode of all ports unless it has its own.
fn with_certificates<'a>(
    mut ports: BTreeMap<u16, Port>,
    default: Mode,
    entries: impl Iterator<Item = &'a Entry>,
) -> BTreeMap<u16, Port> {
    for entry in entries {
        let port = ports.entry(entry.port).or_insert_with(|| Port::new(default, 0));
        let History { state, since, .. } = entry.history;
        port.certificate = Some(Certificate { state, since, expires: entry.expires });
    }
    ports
}

fn of(endpoint: &Endpoint, workload: u32, generation: u16) -> bool {
    endpoint.workload == workload && endpoint.generation == generation
}

fn treatment(flags: u8) -> Vec<&'static str> {
    [(port_flags::EXEMPT, "exempt"), (port_flags::PROBE, "probe"), (port_flags::BLOCKED, "blocked")]
        .into_iter()
        .filter(|(flag, _)| flags & flag != 0)
        .map(|(_, word)| word)
        .collect()
}

/// Connections by workload.
fn connections(node: &Node) -> anyhow::Result<BTreeMap<u32, Counts>> {
    let mut by_workload: BTreeMap<u32, Counts> = BTreeMap::new();
    let map = WorkloadCounters::new("WORKLOAD_COUNTERS", node.pinned.map("WORKLOAD_COUNTERS")?)?;
    for (key, total) in map.totals()? {
        by_workload.entry(key.workload).or_default().add(key.verdict, key.reason, total.connections);
    }
    Ok(by_workload)
}

/// Connections by workload that are known to be the mesh's.
fn mesh(node: &Node, history: &Watch) -> anyhow::Result<BTreeMap<u32, u64>> {
    let mut by_workload: BTreeMap<u32, u64> = BTreeMap::new();
    for seen in Table::read(&node.pinned)?.clients {
        *by_workload.entry(seen.workload).or_default() += history.mesh(&seen);
    }
    Ok(by_workload)
}

fn print(rows: &[Row]) -> anyhow::Result<()> {
    let mut lines =
        table(["POD", "ADDRESS", "MODE", "DECIDED BY", "PORTS", "TLS", "MESH TLS", "PLAINTEXT", "REFUSED"]);
    for row in rows {
        let decided = row.decided_by.iter().rfind(|decision| decision.port.is_none());
        let ports: Vec<String> =
            row.ports.iter().map(|(port, entry)| format!("{port}={}", entry.text())).collect();
        lines.add_row([
            row.pod.clone(),
            row.address.to_string(),
            if row.bypassed { format!("{} BYPASSED", row.mode) } else { row.mode.to_owned() },
            decided.map_or_else(
                || "-".to_owned(),
                |decision| format!("{} ({})", decision.policy, decision.level),
            ),
            if ports.is_empty() { "-".to_owned() } else { ports.join(",") },
            row.tls_connections.to_string(),
            row.mesh_tls_connections.to_string(),
            row.plaintext_connections.to_string(),
            row.refused_connections.to_string(),
        ]);
    }
    Ok(print_table(&lines)?)
}
