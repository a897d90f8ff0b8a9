//! `enforcer endpoints`: the policy of every meshed pod of this node, as the kernel has it.

use std::process::ExitCode;

use enforcer_common::map::{PortKey, PortMode, endpoint_flags, port_flags};
use serde::Serialize;

use super::node::{Connections, Node, NodeArgs, connections};
use super::output::{OutputFormat, print_json, print_table, table};
use crate::agent::state::DecisionState;
use crate::datapath::maps::{Endpoints, PortModes, WorkloadCounters};

/// List the meshed pods of this node: address, mode and the policy that decided, ports, connections so far.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Debug, Serialize)]
struct Answer {
    agent_running: bool,
    endpoints: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    address: String,
    /// `namespace/name`; absent when the state file does not know the pod.
    pod: Option<String>,
    workload_id: u32,
    mode: &'static str,
    meshed: bool,
    /// Open connections are still being collected.
    learning: bool,
    generation: u16,
    ifindex: u32,
    ports: Vec<PortRow>,
    decided_by: Vec<DecisionState>,
    connections: Connections,
}

#[derive(Debug, Serialize)]
struct PortRow {
    port: u16,
    mode: &'static str,
    exempt: bool,
    probe: bool,
    blocked: bool,
}

impl PortRow {
    fn new((key, mode): &(PortKey, PortMode)) -> Self {
        let has = |flag| mode.flags & flag != 0;
        Self {
            port: key.port,
            mode: mode.mode.name(),
            exempt: has(port_flags::EXEMPT),
            probe: has(port_flags::PROBE),
            blocked: has(port_flags::BLOCKED),
        }
    }

    /// What is worth a place in the table: the mesh's own ports are not.
    fn text(&self, default: &str) -> Option<String> {
        let mut words = Vec::new();
        if self.exempt {
            words.push("exempt");
        } else if self.mode != default {
            words.push(self.mode);
        }
        if self.probe {
            words.push("probe");
        }
        if self.blocked {
            words.push("BLOCKED");
        }
        let own = self.exempt && matches!(self.port, 15008 | 15020 | 15021 | 15090);
        (!words.is_empty() && !own).then(|| format!("{}:{}", self.port, words.join("+")))
    }
}

/// Runs the subcommand.
///
/// # Errors
/// When no agent has run here, or the maps cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let node = Node::open(&args.node)?;
    let rows = rows(&node)?;
    match args.node.output {
        OutputFormat::Json => print_json(&Answer { agent_running: node.agent.running, endpoints: rows })?,
        OutputFormat::Table => {
            node.tell_agent()?;
            let mut all =
                table(["POD", "ADDRESS", "MODE", "DECIDED BY", "PORTS", "TLS", "PLAINTEXT", "REFUSED"]);
            for row in &rows {
                all.add_row(row.cells());
            }
            print_table(&all)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Row {
    fn cells(&self) -> [String; 8] {
        let default = self.decided_by.iter().rfind(|decision| decision.level != "port");
        let decided = default.map_or_else(|| "-".into(), |d| format!("{} ({})", d.policy, d.level));
        let ports: Vec<_> = self.ports.iter().filter_map(|port| port.text(self.mode)).collect();
        let mode = match (self.meshed, self.learning) {
            (false, _) => "not meshed".into(),
            (true, true) => format!("{} (learning)", self.mode),
            (true, false) => self.mode.to_owned(),
        };
        [
            self.pod.clone().unwrap_or_else(|| format!("id {}", self.workload_id)),
            self.address.clone(),
            mode,
            decided,
            if ports.is_empty() { "-".into() } else { ports.join(" ") },
            self.connections.tls.to_string(),
            self.connections.plaintext.to_string(),
            self.connections.refused.to_string(),
        ]
    }
}

fn rows(node: &Node) -> anyhow::Result<Vec<Row>> {
    let endpoints = Endpoints::new("ENDPOINTS", node.pinned.map("ENDPOINTS")?)?.entries()?;
    let ports = PortModes::new("PORT_MODES", node.pinned.map("PORT_MODES")?)?.entries()?;
    let counters =
        WorkloadCounters::new("WORKLOAD_COUNTERS", node.pinned.map("WORKLOAD_COUNTERS")?)?.totals()?;
    let connections = connections(&counters);
    let mut rows: Vec<Row> = endpoints
        .into_iter()
        .map(|(address, endpoint)| {
            let own = |(key, _): &&(PortKey, PortMode)| {
                key.workload == endpoint.workload && key.generation == endpoint.generation
            };
            let mut ports: Vec<_> = ports.iter().filter(own).map(PortRow::new).collect();
            ports.sort_by_key(|port| port.port);
            let address = std::net::IpAddr::from(address);
            let known =
                node.state.endpoints.iter().find(|e| e.address == address && e.workload == endpoint.workload);
            Row {
                address: address.to_string(),
                pod: node.pod(endpoint.workload).map(str::to_owned),
                workload_id: endpoint.workload,
                mode: endpoint.mode.name(),
                meshed: endpoint.flags & endpoint_flags::NOT_MESHED == 0,
                learning: endpoint.flags & endpoint_flags::LEARNING != 0,
                generation: endpoint.generation,
                ifindex: endpoint.ifindex,
                ports,
                decided_by: known.map(|known| known.decided_by.clone()).unwrap_or_default(),
                connections: connections.get(&endpoint.workload).copied().unwrap_or_default(),
            }
        })
        .collect();
    rows.sort_by(|a, b| (&a.pod, &a.address).cmp(&(&b.pod, &b.address)));
    Ok(rows)
}
