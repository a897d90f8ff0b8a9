//! `enforcer status`: is it working, on this node?

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use enforcer_common::map::endpoint_flags;
use enforcer_common::settings::{Action, Enforcement, UnknownPods};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::EXIT_NO;
use super::node::{AgentStatus, Node, NodeArgs};
use super::output::{OutputFormat, print_json, print_table, table};
use crate::agent::state::InterfaceState;
use crate::datapath::Side;
use crate::datapath::chain::{Neighbour, OnHook};
use crate::datapath::look::{self, Look};
use crate::datapath::maps::{Counters, Endpoints, event_budget};
use crate::source::KindState;
use crate::telemetry::bypass::{self, BypassedPod};
use crate::telemetry::problems::{self, Seen};

use self::maps::MapRow;
use self::programs::Program;

mod maps;
mod programs;
mod told;

/// Show whether this node is enforced: agent, programs and hooks, endpoints, maps, policy age, counters, problems.
///
/// Exit code 1 when something needs a person.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// Turn the kernel's BPF statistics on for so many seconds, and show what a packet cost in the programs meanwhile.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600), value_name = "SECONDS")]
    measure: Option<u64>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputFormat,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "enforcer status")]
pub(super) struct Status {
    agent: AgentStatus,
    mode: &'static str,
    action: &'static str,
    unknown_pods: &'static str,
    programs: Vec<Program>,
    interfaces: Vec<InterfaceRow>,
    unsupported_interfaces: Vec<String>,
    /// Pods that packets reach past the hook on the host side of their interface: they are not enforced.
    bypassed: Vec<BypassedPod>,
    /// Number of addresses by mode.
    endpoints: BTreeMap<&'static str, usize>,
    unprotected_pods: Vec<String>,
    policy: Policy,
    maps: Vec<MapRow>,
    counters: Vec<CounterRow>,
    events: Events,
    /// Checks of servers' certificates.
    certificates: Certificates,
    /// What was refused and why, most connections first.
    refused: Vec<Refused>,
    /// What should be known and needs nobody now.
    notes: Vec<String>,
    /// One sentence each; empty when nothing needs a person.
    problems: Vec<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct InterfaceRow {
    #[serde(flatten)]
    state: InterfaceState,
    /// Every program on its hooks now, in their order.
    programs: Vec<String>,
    /// Our programs are on both of its hooks now; absent where that cannot be seen from here.
    hooked: Option<bool>,
    /// Packets reach its pod past the hook: the pod is not enforced.
    bypassed: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Policy {
    source: String,
    applied: Option<String>,
    age_seconds: Option<f64>,
    /// Each kind of object, where they come from the Kubernetes API.
    kinds: Vec<KindState>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct CounterRow {
    verdict: &'static str,
    reason: &'static str,
    direction: &'static str,
    connections: u64,
    packets: u64,
    bytes: u64,
}

/// Checks of servers' certificates.
#[derive(Debug, Default, Serialize, JsonSchema)]
struct Certificates {
    /// Servers that are checked.
    checked: usize,
    /// Those of which mutual TLS is proven.
    good: usize,
    /// What is wrong, one sentence each.
    problems: Vec<String>,
}

/// Refusals of one kind.
#[derive(Debug, Serialize, JsonSchema)]
struct Refused {
    /// What was done.
    verdict: &'static str,
    /// Why.
    reason: &'static str,
    /// How many connections.
    connections: u64,
    /// What happened.
    summary: &'static str,
    /// What can be done.
    remedy: &'static str,
}

/// What became of the events since the maps were made.
#[derive(Debug, Serialize, JsonSchema)]
struct Events {
    /// In the current second of each processor.
    sent: u64,
    /// Verdicts and ends beyond the limit per second: records that are missing.
    suppressed: u64,
    /// Pieces of hellos beyond it: records that lack what the hello says.
    hellos_suppressed: u64,
    /// Of either kind, that found the ring buffer full.
    lost: u64,
}

/// Runs the subcommand.
///
/// # Errors
/// When no agent has run here, or the maps cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let node = Node::open(&args.node)?;
    let status = Status::read(&node, args.measure.map(Duration::from_secs))?;
    match args.output {
        OutputFormat::Json => print_json(&status)?,
        OutputFormat::Table => status.print()?,
    }
    Ok(if status.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) })
}

impl Status {
    fn read(node: &Node, measure: Option<Duration>) -> anyhow::Result<Self> {
        let programs = programs::read(node, measure)?;
        let pinned = node.pinned.programs()?;
        let looks = look::all(&node.state.interfaces, node.pinned.pins(), &pinned);
        let bypassed = bypass::read(&node.pinned, &node.state)?;
        let maps = maps::maps(node)?;
        let agent = node.agent();
        let problems = problems::find(&Seen {
            state: &node.state,
            agent: agent.problem().as_deref(),
            programs: &pinned,
            interfaces: &looks,
            bypassed: &bypassed,
            maps: &maps,
            certificates: &node.certificates,
            now: Timestamp::now(),
        });
        let mut counters: Vec<_> = Counters::new("COUNTERS", node.pinned.map("COUNTERS")?)?.totals()?;
        counters.sort_by_key(|(key, _)| (key.verdict, key.reason, key.direction));
        let budget = event_budget(node.pinned.map("EVENT_BUDGET")?)?;
        let applied = node.state.policy_applied;
        let age = |time: Timestamp| Timestamp::now().duration_since(time).as_secs_f64();
        let mut status = Self {
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
            programs,
            interfaces: interfaces(&node.state.interfaces, &looks, &bypassed),
            unsupported_interfaces: node.state.unsupported_interfaces.clone(),
            bypassed,
            endpoints: modes(node)?,
            unprotected_pods: node.state.unprotected_pods.clone(),
            policy: Policy {
                source: node.state.source.clone(),
                applied: applied.map(|time| time.to_string()),
                age_seconds: applied.map(age),
                kinds: node.state.kinds.clone(),
            },
            maps: maps.iter().map(MapRow::from).collect(),
            certificates: Certificates {
                checked: node.certificates.entries.len(),
                good: node.certificates.entries.iter().filter(|e| e.history.state.is_good()).count(),
                problems: problems::certificates(&node.certificates),
            },
            refused: told::refused(counters.iter().map(|(key, n)| (key.verdict, key.reason, n.connections))),
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
            events: Events {
                sent: budget.sent,
                suppressed: budget.suppressed,
                hellos_suppressed: budget.hellos_suppressed,
                lost: budget.lost,
            },
            problems,
            notes: Vec::new(),
        };
        status.notes = status.find_notes();
        status.notes.extend(node.state.sockets_problem.iter().cloned());
        Ok(status)
    }

    fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let ids: Vec<_> = self.programs.iter().map(Program::line).collect();
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
        writeln!(out, "certs       {}", self.certificates.line())?;
        let Events { suppressed, hellos_suppressed, lost, .. } = self.events;
        writeln!(
            out,
            "events      {suppressed} verdicts and ends, {hellos_suppressed} pieces of hellos suppressed; {lost} lost since the maps were made"
        )?;
        drop(out);
        let mut interfaces = table(["INTERFACE", "HOOK", "HOOKED", "NEIGHBOURS"]);
        for row in &self.interfaces {
            let InterfaceRow { state, .. } = row;
            interfaces.add_row([&state.name, &state.hook, row.hooked_word(), &none_or(&state.neighbours)]);
        }
        section(&interfaces)?;
        let mut maps = table(["MAP", "ENTRIES", "CAPACITY", "FULL", "MEMORY"]);
        for map in &self.maps {
            let entries = map.entries.map_or_else(|| "-".into(), |n| n.to_string());
            let capacity = if map.capacity == 0 { "-".into() } else { map.capacity.to_string() };
            let full = map.percent().map_or_else(|| "-".into(), |percent| format!("{percent} %"));
            let memory = format!("{} KiB", map.memory_bytes >> 10);
            maps.add_row([map.name.clone(), entries, capacity, full, memory]);
        }
        let memory: u64 = self.maps.iter().map(|map| map.memory_bytes).sum();
        maps.add_row(["total", "", "", "", &format!("{} KiB", memory >> 10)]);
        section(&maps)?;
        let mut counters = table(["VERDICT", "REASON", "DIRECTION", "CONNECTIONS", "PACKETS", "BYTES"]);
        for c in &self.counters {
            let numbers = [c.connections, c.packets, c.bytes].map(|n| n.to_string());
            counters.add_row([c.verdict, c.reason, c.direction, &numbers[0], &numbers[1], &numbers[2]]);
        }
        section(&counters)?;
        self.print_kinds()?;
        let mut out = io::stdout().lock();
        writeln!(out)?;
        for one in &self.refused {
            let Refused { verdict, reason, connections, summary, remedy } = one;
            writeln!(out, "{verdict} {connections} {reason}: {summary} {remedy}")?;
        }
        self.notes.iter().try_for_each(|note| writeln!(out, "note: {note}"))?;
        if self.problems.is_empty() {
            writeln!(out, "nothing needs attention")?;
        }
        self.problems.iter().try_for_each(|problem| writeln!(out, "problem: {problem}"))
    }

    /// How each kind of object is doing, where they come from the Kubernetes API.
    fn print_kinds(&self) -> io::Result<()> {
        if self.policy.kinds.is_empty() {
            return Ok(());
        }
        let now = Timestamp::now();
        let mut kinds = table(["KIND", "OBJECTS", "BEHIND", "ERROR"]);
        for kind in &self.policy.kinds {
            let age = kind.age_seconds(now).map_or_else(|| "never read".into(), |age| format!("{age:.0} s"));
            let error = kind.error.clone().unwrap_or_else(|| "-".into());
            kinds.add_row([kind.kind.clone(), kind.objects.to_string(), age, error]);
        }
        section(&kinds)
    }
}

impl Certificates {
    fn line(&self) -> String {
        match (self.checked, self.problems.len()) {
            (0, 0) => "none is checked (no trust bundle, or no STRICT port)".to_owned(),
            (checked, 0) => format!("{} of {checked} servers proven, no problem", self.good),
            (checked, bad) => format!("{} of {checked} servers proven, {bad} problems", self.good),
        }
    }
}

fn section(rows: &comfy_table::Table) -> io::Result<()> {
    writeln!(io::stdout().lock())?;
    print_table(rows)
}

fn none_or(words: &[String]) -> String {
    if words.is_empty() { "none".into() } else { words.join(", ") }
}

fn interfaces(states: &[InterfaceState], looks: &[Look], bypassed: &[BypassedPod]) -> Vec<InterfaceRow> {
    states.iter().zip(looks).map(|(state, look)| InterfaceRow::new(state, look, bypassed)).collect()
}

impl InterfaceRow {
    /// Whether the pod behind it is enforced, in a word.
    fn hooked_word(&self) -> &'static str {
        match (self.hooked, self.state.side) {
            (Some(false), _) => "NO",
            _ if self.bypassed => "BYPASSED",
            (None, _) => "?",
            (Some(true), Side::Host) => "yes",
            (Some(true), Side::Pod) => "yes (pod)",
        }
    }

    fn new(state: &InterfaceState, look: &Look, bypassed: &[BypassedPod]) -> Self {
        let mut state = state.clone();
        if let Some(neighbours) = &look.neighbours {
            // What is there now, not what the agent saw last.
            state.neighbours = neighbours.iter().map(Neighbour::describe).collect();
        }
        let text = |on_hook: &OnHook| format!("{}: {on_hook}", on_hook.way.program());
        Self {
            bypassed: bypassed.iter().any(|pod| pod.ifindex == state.index),
            programs: look.programs.iter().map(text).collect(),
            hooked: look.hooked,
            state,
        }
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
