//! One look at the pinned maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use enforcer_common::map::endpoint_flags;
use enforcer_common::settings::Enforcement;
use enforcer_common::{Reason, Verdict};

use crate::agent::monotonic_ns;
use crate::cli::node::{Node, NodeArgs};
use crate::datapath::maps::{Endpoints, WorkloadCounters};
use crate::telemetry::counts::Counts;
use crate::telemetry::readiness::Class;
use crate::telemetry::readiness::clients::Table;
use crate::telemetry::readiness::history::{History, Seen};
use crate::telemetry::readiness::watch;

/// A workload.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Workload {
    /// Its default mode; `mixed` where its pods differ.
    pub(super) mode: &'static str,
    /// Its pods on this node.
    pub(super) pods: usize,
    /// Its connections so far, those to pods that are gone included.
    pub(super) counts: Counts,
}

/// A client of a port, as far as it speaks one thing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Client {
    /// The workload that it talks to.
    pub(super) workload: String,
    /// The pod of it.
    pub(super) pod: String,
    /// The port there.
    pub(super) port: u16,
    /// Its address.
    pub(super) address: IpAddr,
    /// Who that is, where it is known.
    pub(super) name: Option<String>,
    /// What it speaks.
    pub(super) class: &'static str,
    /// Its connections.
    pub(super) connections: u64,
    /// Seconds since its last verdict.
    pub(super) age: u64,
    /// The last verdict.
    pub(super) verdict: Verdict,
    /// Why.
    pub(super) reason: Reason,
}

impl Client {
    /// Its last connection was refused, or would have been.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self.verdict, Verdict::RESET | Verdict::DROP | Verdict::WOULD_RESET)
    }
}

/// Everything at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Sample {
    /// `CLOCK_MONOTONIC`, ns.
    pub(super) time_ns: u64,
    /// The agent lives.
    pub(super) agent: bool,
    /// Refusals are only counted.
    pub(super) audit: bool,
    /// By name.
    pub(super) workloads: BTreeMap<String, Workload>,
    /// Latest first.
    pub(super) clients: Vec<Client>,
}

impl Sample {
    /// Reads the maps.
    pub(super) fn read(args: &NodeArgs) -> anyhow::Result<Self> {
        let node = Node::open(args)?;
        let workload_of = |pod: &str| match node.state.workload_of(pod) {
            Some((namespace, name)) => format!("{namespace}/{name}"),
            None => pod.to_owned(),
        };
        let mut workloads: BTreeMap<String, Workload> = BTreeMap::new();
        let mut pods = BTreeSet::new();
        for (_, endpoint) in Endpoints::new("ENDPOINTS", node.pinned.map("ENDPOINTS")?)?.entries()? {
            if endpoint.flags & endpoint_flags::NOT_MESHED != 0 {
                continue;
            }
            let workload = workloads.entry(workload_of(&node.pod(endpoint.workload))).or_default();
            let mode = endpoint.mode.name();
            workload.mode = if workload.mode.is_empty() || workload.mode == mode { mode } else { "mixed" };
            // It has an address of each family.
            workload.pods += usize::from(pods.insert(endpoint.workload));
        }
        for (key, total) in
            WorkloadCounters::new("WORKLOAD_COUNTERS", node.pinned.map("WORKLOAD_COUNTERS")?)?.totals()?
        {
            let Some(workload) = workloads.get_mut(&workload_of(&node.pod(key.workload))) else { continue };
            workload.counts.add(key.verdict, key.reason, total.connections);
        }
        let time_ns = monotonic_ns();
        let history = watch::read_of_boot(&args.readiness()?);
        let mut seen = Table::read(&node.pinned)?.clients;
        seen.sort_by_key(|client| std::cmp::Reverse(client.last_ns));
        let clients =
            seen.into_iter().map(|client| (node.pod(client.workload), client)).map(|(pod, client)| Client {
                workload: workload_of(&pod),
                pod,
                port: client.port,
                address: client.client,
                name: history.name(&client).map(str::to_owned),
                class: word(&history, &client),
                connections: client.connections,
                age: time_ns.saturating_sub(client.last_ns) / 1_000_000_000,
                verdict: client.verdict,
                reason: client.reason,
            });
        Ok(Self {
            time_ns,
            agent: node.agent().running,
            audit: node.settings.enforcement == Enforcement::AUDIT,
            workloads,
            clients: clients.collect(),
        })
    }
}

/// What a client speaks; TLS of which some is the mesh's and some is not, or not known to be, is TLS.
fn word(history: &History, seen: &Seen) -> &'static str {
    match seen.class {
        Class::Tls if seen.connections > 0 && history.mesh(seen) == seen.connections => Class::MeshTls.word(),
        class => class.word(),
    }
}
