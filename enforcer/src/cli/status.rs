//! `enforcer status`: this node at a glance, from the pinned maps.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;

use enforcer_common::settings::{Action, Enforcement, UnknownPods};
use serde::Serialize;

use super::node::{AgentStatus, Node, NodeArgs};
use super::output::{OutputFormat, print_json, print_table, table};
use crate::agent::state::InterfaceState;
use crate::datapath::attach::hooked_programs;
use crate::datapath::maps::{Counters, Endpoints, Flows, HalfOpens, Outbounds, PortModes, event_budget};

/// Show this node: agent, hooks, maps, policy, counters, problems. Works when the agent is dead.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "table")]
    output: OutputFormat,
}

#[derive(Debug, Serialize)]
struct Status {
    agent: AgentStatus,
    mode: &'static str,
    action: &'static str,
    unknown_pods: &'static str,
    policy: Policy,
    endpoints: BTreeMap<&'static str, usize>,
    programs: Vec<Program>,
    interfaces: Vec<Interface>,
    maps: Vec<MapFill>,
    counters: Vec<Count>,
    events: Events,
    unprotected_pods: Vec<String>,
    unsupported_interfaces: Vec<String>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Policy {
    source: String,
    applied: Option<jiff::Timestamp>,
}

#[derive(Debug, Serialize)]
struct Program {
    name: String,
    id: u32,
}

#[derive(Debug, Serialize)]
struct Interface {
    #[serde(flatten)]
    known: InterfaceState,
    /// Programs on the hooks now, in their order.
    programs: Vec<String>,
}

#[derive(Debug, Serialize)]
struct MapFill {
    name: &'static str,
    entries: usize,
    capacity: u32,
}

#[derive(Debug, Serialize)]
struct Count {
    verdict: &'static str,
    reason: &'static str,
    direction: &'static str,
    connections: u64,
    packets: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Events {
    suppressed: u64,
    lost: u64,
}

/// Runs the subcommand.
///
/// # Errors
/// When nothing is pinned, or it cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let status = status(&Node::open(&args.node)?)?;
    match args.output {
        OutputFormat::Json => print_json(&status)?,
        OutputFormat::Table => print(&status)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn status(node: &Node) -> anyhow::Result<Status> {
    let pinned = &node.pinned;
    let mut counters: Vec<Count> = Counters::new("COUNTERS", pinned.map("COUNTERS")?)?
        .totals()?
        .into_iter()
        .map(|(key, total)| Count {
            verdict: key.verdict.name(),
            reason: key.reason.name(),
            direction: key.direction.name(),
            connections: total.connections,
            packets: total.packets,
            bytes: total.bytes,
        })
        .collect();
    counters.sort_by_key(|count| (count.verdict, count.reason, count.direction));
    let endpoints = Endpoints::new("ENDPOINTS", pinned.map("ENDPOINTS")?)?;
    let mut by_mode = BTreeMap::new();
    for (_, endpoint) in endpoints.entries()? {
        *by_mode.entry(endpoint.mode.name()).or_insert(0) += 1;
    }
    let events = event_budget(pinned.map("EVENT_BUDGET")?)?;
    let agent = node.agent();
    let mut problems = node.state.problems.clone();
    if !agent.running {
        problems.push("the agent is not running: start enforcer run again, policy changes have no effect until then".to_owned());
    }
    Ok(Status {
        agent,
        mode: match node.settings.enforcement {
            Enforcement::ENFORCE => "enforce",
            Enforcement::AUDIT => "audit",
        },
        action: match node.settings.action {
            Action::RESET => "reset",
            Action::DROP => "drop",
        },
        unknown_pods: match node.settings.unknown_pods {
            UnknownPods::ALLOW => "allow",
            UnknownPods::STRICT => "strict",
        },
        policy: Policy { source: node.state.source.clone(), applied: node.state.policy_applied },
        endpoints: by_mode,
        programs: pinned.programs()?.into_iter().map(|program| Program { name: program.name, id: program.id }).collect(),
        interfaces: node.state.interfaces.iter().cloned().map(interface).collect(),
        maps: fills(node)?,
        counters,
        events: Events { suppressed: events.suppressed, lost: events.lost },
        unprotected_pods: node.state.unprotected_pods.clone(),
        unsupported_interfaces: node.state.unsupported_interfaces.clone(),
        problems,
    })
}

fn interface(known: InterfaceState) -> Interface {
    let programs = hooked_programs(known.index).unwrap_or_default();
    let programs = programs.into_iter().map(|hooked| format!("{}: {} (id {})", hooked.way.program(), hooked.name, hooked.program));
    Interface { known, programs: programs.collect() }
}

fn fills(node: &Node) -> anyhow::Result<Vec<MapFill>> {
    let map = |name| node.pinned.map(name);
    let capacity = |name: &str| -> anyhow::Result<u32> {
        Ok(aya::maps::MapInfo::from_pin(node.pinned.pins().maps().join(name))?.max_entries())
    };
    let entries = [
        ("ENDPOINTS", Endpoints::new("ENDPOINTS", map("ENDPOINTS")?)?.len()),
        ("PORT_MODES", PortModes::new("PORT_MODES", map("PORT_MODES")?)?.len()),
        ("HALF_OPEN", HalfOpens::new("HALF_OPEN", map("HALF_OPEN")?)?.len()),
        ("FLOWS", Flows::new("FLOWS", map("FLOWS")?)?.len()),
        ("OUTBOUND", Outbounds::new("OUTBOUND", map("OUTBOUND")?)?.len()),
    ];
    entries.into_iter().map(|(name, entries)| Ok(MapFill { name, entries, capacity: capacity(name)? })).collect()
}

fn print(status: &Status) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "agent       {}", status.agent.line())?;
    writeln!(out, "mode        {}, action {}, unknown pods {}", status.mode, status.action, status.unknown_pods)?;
    let applied = status.policy.applied.map_or_else(|| "never".to_owned(), |applied| format!("{applied:.0}"));
    writeln!(out, "policy      from {}, last applied {applied}", status.policy.source)?;
    let modes: Vec<String> = status.endpoints.iter().map(|(mode, count)| format!("{count} {mode}")).collect();
    writeln!(out, "endpoints   {}", if modes.is_empty() { "none".to_owned() } else { modes.join(", ") })?;
    let programs: Vec<String> = status.programs.iter().map(|program| format!("{} (id {})", program.name, program.id)).collect();
    writeln!(out, "programs    {}", programs.join(", "))?;
    for interface in &status.interfaces {
        let neighbours = interface.known.neighbours.join(", ");
        let beside = if neighbours.is_empty() { String::new() } else { format!(", beside {neighbours}") };
        writeln!(out, "interface   {} ({}){beside}", interface.known.name, interface.known.hook)?;
    }
    for interface in &status.unsupported_interfaces {
        writeln!(out, "NOT HOOKED  {interface}: its pod is not enforced")?;
    }
    for pod in &status.unprotected_pods {
        writeln!(out, "UNPROTECTED {pod}: in a mesh namespace, without a data plane")?;
    }
    let fills: Vec<String> = status.maps.iter().map(|map| format!("{} {}/{}", map.name, map.entries, map.capacity)).collect();
    writeln!(out, "maps        {}", fills.join(", "))?;
    writeln!(out, "events      {} suppressed, {} lost", status.events.suppressed, status.events.lost)?;
    for problem in &status.problems {
        writeln!(out, "PROBLEM     {problem}")?;
    }
    writeln!(out)?;
    drop(out);
    let mut rows = table(["VERDICT", "REASON", "DIRECTION", "CONNECTIONS", "PACKETS", "BYTES"]);
    for count in &status.counters {
        rows.add_row([
            count.verdict.to_owned(),
            count.reason.to_owned(),
            count.direction.to_owned(),
            count.connections.to_string(),
            count.packets.to_string(),
            count.bytes.to_string(),
        ]);
    }
    Ok(print_table(&rows)?)
}
