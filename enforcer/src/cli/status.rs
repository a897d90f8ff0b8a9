//! `enforcer status`: is it working, on this node?

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::ExitCode;

use aya::maps::{Map, MapData};
use enforcer_common::map::endpoint_flags;
use enforcer_common::settings::{Action, Enforcement, UnknownPods};
use jiff::Timestamp;
use serde::Serialize;

use super::EXIT_NO;
use super::node::{AgentStatus, Node, NodeArgs};
use super::output::{OutputFormat, print_json, print_table, table};
use crate::agent::state::InterfaceState;
use crate::datapath::attach::Way;
use crate::datapath::chain::{self, OnHook};
use crate::datapath::interface;
use crate::datapath::maps::{
    Counters, Endpoints, Exempt, Flows, HalfOpens, Outbounds, PortModes, WorkloadCounters, event_budget,
};

/// Show whether this node is enforced: agent, programs and hooks, endpoints, maps, policy age, counters, problems.
///
/// Exit code 1 when something needs a person.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputFormat,
}

#[derive(Debug, Serialize)]
struct Status {
    agent: AgentStatus,
    mode: &'static str,
    action: &'static str,
    unknown_pods: &'static str,
    programs: Vec<Program>,
    interfaces: Vec<InterfaceRow>,
    unsupported_interfaces: Vec<String>,
    /// Number of addresses by mode.
    endpoints: BTreeMap<&'static str, usize>,
    unprotected_pods: Vec<String>,
    policy: Policy,
    maps: Vec<MapRow>,
    counters: Vec<CounterRow>,
    events: Events,
    /// One sentence each; empty when nothing needs a person.
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Program {
    name: String,
    id: u32,
}

#[derive(Debug, Serialize)]
struct InterfaceRow {
    #[serde(flatten)]
    state: InterfaceState,
    /// Every program on its hooks now, in their order.
    programs: Vec<String>,
    /// Our programs are on both of its hooks now; absent where that cannot be seen from here.
    hooked: Option<bool>,
    /// What a person should know of the neighbours, one sentence each.
    #[serde(skip)]
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Policy {
    source: String,
    applied: Option<String>,
    age_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct MapRow {
    name: &'static str,
    entries: Option<usize>,
    capacity: u32,
    memory_bytes: u64,
}

#[derive(Debug, Serialize)]
struct CounterRow {
    verdict: &'static str,
    reason: &'static str,
    direction: &'static str,
    connections: u64,
    packets: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Events {
    sent: u64,
    suppressed: u64,
    lost: u64,
}

/// Runs the subcommand.
///
/// # Errors
/// When no agent has run here, or the maps cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let node = Node::open(&args.node)?;
    let status = Status::read(&node)?;
    match args.output {
        OutputFormat::Json => print_json(&status)?,
        OutputFormat::Table => status.print()?,
    }
    Ok(if status.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) })
}

impl Status {
    fn read(node: &Node) -> anyhow::Result<Self> {
        let programs: Vec<_> =
            node.pinned.programs()?.into_iter().map(|p| Program { name: p.name, id: p.id }).collect();
        let interfaces: Vec<_> =
            node.state.interfaces.iter().map(|state| InterfaceRow::read(state, &programs)).collect();
        let mut counters: Vec<_> = Counters::new("COUNTERS", node.pinned.map("COUNTERS")?)?.totals()?;
        counters.sort_by_key(|(key, _)| (key.verdict, key.reason, key.direction));
        let budget = event_budget(node.pinned.map("EVENT_BUDGET")?)?;
        let applied = node.state.policy_applied;
        let age = |time: Timestamp| Timestamp::now().duration_since(time).as_secs_f64();
        let mut status = Self {
            agent: node.agent(),
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
            programs,
            interfaces,
            unsupported_interfaces: node.state.unsupported_interfaces.clone(),
            endpoints: modes(node)?,
            unprotected_pods: node.state.unprotected_pods.clone(),
            policy: Policy {
                source: node.state.source.clone(),
                applied: applied.map(|time| time.to_string()),
                age_seconds: applied.map(age),
            },
            maps: maps(node)?,
            counters: counters
                .into_iter()
                .map(|(key, counter)| CounterRow {
                    verdict: key.verdict.name(),
                    reason: key.reason.name(),
                    direction: key.direction.name(),
                    connections: counter.connections,
                    packets: counter.packets,
                    bytes: counter.bytes,
                })
                .collect(),
            events: Events { sent: budget.sent, suppressed: budget.suppressed, lost: budget.lost },
            problems: Vec::new(),
        };
        status.problems = status.find_problems(&node.state.problems);
        Ok(status)
    }

    fn find_problems(&self, told: &[String]) -> Vec<String> {
        let mut problems: Vec<String> = self.agent.problem().into_iter().collect();
        for way in Way::BOTH {
            if !self.programs.iter().any(|program| program.name == way.program()) {
                problems.push(format!("program {} is not pinned: start the agent again", way.program()));
            }
        }
        let bare = self.interfaces.iter().filter(|interface| interface.hooked == Some(false));
        problems.extend(bare.map(|i| {
            format!(
                "interface {} has lost our programs: its pod is not enforced; restart the agent",
                i.state.name
            )
        }));
        let hooked = self.interfaces.iter().filter(|interface| interface.hooked == Some(true));
        problems.extend(hooked.flat_map(|interface| interface.warnings.iter().cloned()));
        let unsupported = self.unsupported_interfaces.iter();
        problems.extend(
            unsupported.map(|name| format!("interface {name} cannot be hooked: its pod is not enforced")),
        );
        let unprotected = self.unprotected_pods.iter();
        problems.extend(unprotected.map(|pod| {
            format!("pod {pod} is in a mesh namespace and has no data plane: restart it for injection, or label it enforcer.io/enforce=true")
        }));
        for map in self.maps.iter().filter(|map| matches!(map.name, "ENDPOINTS" | "PORT_MODES" | "FLOWS")) {
            // Nine tenths: time to act before anything is refused for it.
            if map.entries.is_some_and(|entries| entries * 10 >= map.capacity as usize * 9) {
                problems.push(format!(
                    "map {} is nearly full: run enforcer detach and start the agent with --map-size {}={}",
                    map.name,
                    map.name,
                    map.capacity.saturating_mul(2)
                ));
            }
        }
        problems.extend(told.iter().cloned());
        problems
    }

    fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let ids: Vec<_> = self.programs.iter().map(|p| format!("{} (id {})", p.name, p.id)).collect();
        let modes: Vec<_> = self.endpoints.iter().map(|(mode, n)| format!("{mode} {n}")).collect();
        let applied = match (self.policy.age_seconds, &self.policy.applied) {
            (Some(age), Some(time)) => format!("{age:.0} s ago ({time})"),
            _ => "never".into(),
        };
        writeln!(out, "agent       {}", self.agent.line())?;
        writeln!(
            out,
            "mode        {}, action {}, unknown pods {}",
            self.mode, self.action, self.unknown_pods
        )?;
        writeln!(out, "programs    {}", none_or(&ids))?;
        writeln!(out, "endpoints   {}", none_or(&modes))?;
        writeln!(out, "policy      {}, applied {applied}", self.policy.source)?;
        writeln!(out, "events      {} suppressed, {} lost", self.events.suppressed, self.events.lost)?;
        drop(out);
        let mut interfaces = table(["INTERFACE", "HOOK", "HOOKED", "NEIGHBOURS"]);
        for InterfaceRow { state, hooked, .. } in &self.interfaces {
            let hooked = hooked.map_or("?", |hooked| if hooked { "yes" } else { "NO" });
            interfaces.add_row([&state.name, &state.hook, hooked, &none_or(&state.neighbours)]);
        }
        section(&interfaces)?;
        let mut maps = table(["MAP", "ENTRIES", "CAPACITY", "MEMORY"]);
        for map in &self.maps {
            let entries = map.entries.map_or_else(|| "-".into(), |n| n.to_string());
            maps.add_row([
                map.name.into(),
                entries,
                map.capacity.to_string(),
                format!("{} KiB", map.memory_bytes >> 10),
            ]);
        }
        section(&maps)?;
        let mut counters = table(["VERDICT", "REASON", "DIRECTION", "CONNECTIONS", "PACKETS", "BYTES"]);
        for c in &self.counters {
            let numbers = [c.connections, c.packets, c.bytes].map(|n| n.to_string());
            counters.add_row([c.verdict, c.reason, c.direction, &numbers[0], &numbers[1], &numbers[2]]);
        }
        section(&counters)?;
        let mut out = io::stdout().lock();
        writeln!(out)?;
        if self.problems.is_empty() {
            writeln!(out, "nothing needs attention")?;
        }
        self.problems.iter().try_for_each(|problem| writeln!(out, "problem: {problem}"))
    }
}

fn section(rows: &comfy_table::Table) -> io::Result<()> {
    writeln!(io::stdout().lock())?;
    print_table(rows)
}

fn none_or(words: &[String]) -> String {
    if words.is_empty() { "none".into() } else { words.join(", ") }
}

impl InterfaceRow {
    /// Looks at the hooks of the interface, unless this is another network namespace than the agent's.
    fn read(state: &InterfaceState, ours: &[Program]) -> Self {
        let here = interface::by_index(state.index).is_ok_and(|here| here.name == state.name);
        let chain = if here { chain::chain(state.index).ok() } else { None };
        let id =
            |way: Way| ours.iter().find(|program| program.name == way.program()).map(|program| program.id);
        let own = id(Way::ToPod).zip(id(Way::FromPod)).map(|(to_pod, from_pod)| [to_pod, from_pod]);
        let mut state = state.clone();
        let (mut warnings, mut hooked) = (Vec::new(), None);
        if let (Some(chain), Some(own)) = (&chain, own) {
            // What is there now, not what the agent saw last.
            let others = chain::neighbours(chain, own);
            warnings.extend(others.iter().filter_map(|other| other.warning(&state.name)));
            state.neighbours = others.iter().map(chain::Neighbour::describe).collect();
            hooked = Some(chain::is_hooked(chain, own));
        }
        let text = |on_hook: OnHook| format!("{}: {on_hook}", on_hook.way.program());
        let programs = chain.unwrap_or_default().into_iter().map(text).collect();
        Self { state, programs, hooked, warnings }
    }
}

fn modes(node: &Node) -> anyhow::Result<BTreeMap<&'static str, usize>> {
    let mut modes = BTreeMap::new();
    for (_, endpoint) in Endpoints::new("ENDPOINTS", node.pinned.map("ENDPOINTS")?)?.entries()? {
        let meshed = endpoint.flags & endpoint_flags::NOT_MESHED == 0;
        *modes.entry(if meshed { endpoint.mode.name() } else { "not meshed" }).or_insert(0) += 1;
    }
    Ok(modes)
}

const MAPS: [&str; 12] = [
    "ENDPOINTS",
    "PORT_MODES",
    "EXEMPT",
    "HALF_OPEN",
    "FLOWS",
    "OUTBOUND",
    "COUNTERS",
    "WORKLOAD_COUNTERS",
    "EVENTS",
    "SETTINGS",
    "RESET_BUDGET",
    "EVENT_BUDGET",
];

fn maps(node: &Node) -> anyhow::Result<Vec<MapRow>> {
    let mut rows = Vec::new();
    for name in MAPS {
        let map = node.pinned.map(name)?;
        let (Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuHashMap(data)
        | Map::LpmTrie(data)
        | Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data)) = &map
        else {
            continue;
        };
        let (capacity, memory_bytes) = (data.info()?.max_entries(), memory(data).unwrap_or(0));
        rows.push(MapRow { name, entries: entries(name, map)?, capacity, memory_bytes });
    }
    Ok(rows)
}

/// How many entries a map has; `None` for arrays and the ring buffer.
fn entries(name: &'static str, map: Map) -> anyhow::Result<Option<usize>> {
    Ok(Some(match name {
        "ENDPOINTS" => Endpoints::new(name, map)?.len(),
        "PORT_MODES" => PortModes::new(name, map)?.len(),
        "EXEMPT" => Exempt::new(map)?.entries()?.len(),
        "HALF_OPEN" => HalfOpens::new(name, map)?.len(),
        "FLOWS" => Flows::new(name, map)?.len(),
        "OUTBOUND" => Outbounds::new(name, map)?.len(),
        "COUNTERS" => Counters::new(name, map)?.totals()?.len(),
        "WORKLOAD_COUNTERS" => WorkloadCounters::new(name, map)?.totals()?.len(),
        _ => return Ok(None),
    }))
}

/// Kernel memory of a map, by `/proc/self/fdinfo`.
fn memory(data: &MapData) -> Option<u64> {
    let fd = data.fd().as_fd().as_raw_fd();
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}
