//! What the data say: a verdict for each port and workload that could turn STRICT.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spans::Spans;
use super::{Class, ClientData, Mode, NodeData, Nodes, PodData};

/// What is asked before anything is called ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Criteria {
    /// The moment of the question.
    pub now: Timestamp,
    /// Clients that were last seen longer ago do not count.
    pub window_seconds: u64,
    /// The least time that a workload must have been watched within the window.
    pub min_watched_seconds: u64,
    /// The fewest TLS connections that a port must have had.
    pub min_connections: u64,
}

impl Criteria {
    /// The window's beginning.
    fn since(&self) -> Timestamp {
        let window = SignedDuration::from_secs(i64::try_from(self.window_seconds).unwrap_or(i64::MAX));
        self.now.checked_sub(window).unwrap_or(Timestamp::MIN)
    }
}

/// Safe to turn STRICT? The worst one orders last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Readiness {
    /// Nobody was seen who would break, over long enough.
    Ready,
    /// Nobody was seen who would break, but that says too little.
    NotEnoughData,
    /// Somebody would break.
    NotReady,
}

impl Readiness {
    /// For people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ready => "READY",
            Self::NotEnoughData => "NOT ENOUGH DATA",
            Self::NotReady => "NOT READY",
        }
    }
}

/// The answer for one workload, over all nodes that were asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub workload: String,
    /// The worst of its ports; `NOT_ENOUGH_DATA` without any.
    pub verdict: Readiness,
    /// Why, one sentence.
    pub why: String,
    /// Pods of it that are there now.
    pub pods: usize,
    /// The nodes that have or had pods of it.
    pub nodes: BTreeSet<String>,
    /// How long it was watched within the window: no pod of it unseen meanwhile.
    pub watched_seconds: u64,
    /// Since when, gaps included.
    pub watched_since: Option<Timestamp>,
    /// Gaps in the watch since then.
    pub gaps: usize,
    /// Their length altogether.
    pub gap_seconds: u64,
    /// Its ports that could turn STRICT.
    pub ports: Vec<Port>,
}

/// The answer for one port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct Port {
    /// The pod's port.
    pub port: u16,
    /// The mode in force; `STRICT` in audit mode only.
    pub mode: Mode,
    /// Safe to turn STRICT?
    pub verdict: Readiness,
    /// Why, one sentence.
    pub why: String,
    /// The pods declare it.
    pub declared: bool,
    /// Connections as TLS, as far as they are not known to be the mesh's, of clients in the window.
    pub tls: u64,
    /// Connections as TLS of the mesh.
    pub mesh_tls: u64,
    /// Connections in plaintext.
    pub plaintext: u64,
    /// Connections from before the watch.
    pub existing: u64,
    /// The first connection that is known.
    pub first: Option<Timestamp>,
    /// The last one.
    pub last: Option<Timestamp>,
    /// Who speaks plaintext, the latest first.
    pub plaintext_clients: Vec<Client>,
}

/// A client that would break.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct Client {
    /// Who it is (`namespace/name`), where that is known.
    pub name: Option<String>,
    /// Its address.
    pub address: IpAddr,
    /// Its plaintext connections.
    pub connections: u64,
    /// The first of them.
    pub first: Timestamp,
    /// The last of them.
    pub last: Timestamp,
}

/// The workloads that could turn STRICT, in order of namespace and name.
#[must_use]
pub fn judge(nodes: &Nodes, criteria: &Criteria) -> Vec<Workload> {
    let mut workloads: BTreeMap<(&str, &str), Vec<(&NodeData, &PodData)>> = BTreeMap::new();
    for node in nodes.iter() {
        for pod in &node.pods {
            workloads.entry((&pod.namespace, &pod.workload)).or_default().push((node, pod));
        }
    }
    workloads.values().filter_map(|pods| workload(pods, criteria)).collect()
}

/// The mode of a port that could turn STRICT; `None` where it is STRICT already, DISABLE by somebody's will, or exempt.
fn open_mode(node: &NodeData, pod: &PodData, port: Option<u16>) -> Option<Mode> {
    let posture = &pod.posture;
    if port.is_some_and(|port| posture.exempt.contains(&port)) {
        return None;
    }
    let mode = port.and_then(|port| posture.ports.get(&port)).copied().unwrap_or(posture.mode);
    match mode {
        Mode::Permissive => Some(mode),
        Mode::Strict if !node.enforcing => Some(mode),
        Mode::Strict | Mode::Disable => None,
    }
}

fn workload(pods: &[(&NodeData, &PodData)], criteria: &Criteria) -> Option<Workload> {
    let (_, first) = pods.first()?;
    let present: Vec<_> = pods.iter().filter(|(_, pod)| pod.present).collect();
    // Pods that are gone tell of clients, not of what is in force now.
    let live = || present.iter().copied().copied();
    let mut ports = BTreeSet::new();
    for (_, pod) in pods.iter().filter(|_| !present.is_empty()) {
        ports.extend(pod.posture.declared.iter().copied());
        ports.extend(pod.posture.ports.keys().copied());
        ports.extend(pod.clients.iter().map(|client| client.port));
    }
    let open: Vec<(u16, Mode)> = ports
        .into_iter()
        .filter_map(|port| {
            Some((port, live().filter_map(|(node, pod)| open_mode(node, pod, Some(port))).max()?))
        })
        .collect();
    if open.is_empty() && !live().any(|(node, pod)| open_mode(node, pod, None).is_some()) {
        return None;
    }
    let all = |spans: fn(&PodData) -> &Spans| {
        pods.iter().fold(Spans::default(), |sum, (_, pod)| sum.union(spans(pod)))
    };
    let watched = all(|pod| &pod.watched).minus(&all(|pod| &pod.blind));
    let watched = watched.within(criteria.since(), criteria.now);
    let seconds = watched.seconds();
    let (gaps, gap_seconds) = watched.gaps();
    let ports: Vec<Port> =
        open.into_iter().map(|(port, mode)| judge_port(pods, port, mode, seconds, criteria)).collect();
    let verdict = ports.iter().map(|port| port.verdict).max().unwrap_or(Readiness::NotEnoughData);
    let worst = ports.iter().find(|port| port.verdict == verdict);
    Some(Workload {
        namespace: first.namespace.clone(),
        workload: first.workload.clone(),
        verdict,
        why: worst.map_or_else(
            || "no connection was seen, and the pods declare no port".to_owned(),
            |port| format!("port {}: {}", port.port, port.why),
        ),
        pods: present.len(),
        nodes: pods.iter().map(|(node, _)| node.node.clone()).collect(),
        watched_seconds: seconds,
        watched_since: watched.start(),
        gaps,
        gap_seconds,
        ports,
    })
}

fn judge_port(
    pods: &[(&NodeData, &PodData)],
    port: u16,
    mode: Mode,
    watched: u64,
    criteria: &Criteria,
) -> Port {
    let since = criteria.since();
    let clients: Vec<&ClientData> = pods
        .iter()
        .flat_map(|(_, pod)| &pod.clients)
        .filter(|client| client.port == port && client.last >= since)
        .collect();
    let count = |class| {
        clients.iter().filter(|c| c.class == class).fold(0_u64, |sum, c| sum.saturating_add(c.connections))
    };
    let (tls, mesh_tls, plaintext, existing) =
        (count(Class::Tls), count(Class::MeshTls), count(Class::Plaintext), count(Class::Existing));
    let plaintext_clients = plaintext_clients(&clients);
    let unknown = unknown(&clients);
    let (verdict, why) = if !plaintext_clients.is_empty() {
        let who = plaintext_clients.len();
        (Readiness::NotReady, format!("{who} {} plaintext, {plaintext} connections", speak(who)))
    } else if unknown > 0 {
        let why = format!(
            "{unknown} {} connections from before the watch: what is spoken there shows when they connect again",
            hold(unknown)
        );
        (Readiness::NotEnoughData, why)
    } else if watched < criteria.min_watched_seconds {
        let why = format!("watched for {} of {}", duration(watched), duration(criteria.min_watched_seconds));
        (Readiness::NotEnoughData, why)
    } else if tls.saturating_add(mesh_tls) < criteria.min_connections {
        let seen = tls.saturating_add(mesh_tls);
        let why =
            format!("{seen} connections in {}, fewer than {}", duration(watched), criteria.min_connections);
        (Readiness::NotEnoughData, why)
    } else {
        (Readiness::Ready, format!("no plaintext in {}", duration(watched)))
    };
    Port {
        port,
        mode,
        verdict,
        why,
        declared: pods.iter().any(|(_, pod)| pod.present && pod.posture.declared.contains(&port)),
        tls,
        mesh_tls,
        plaintext,
        existing,
        first: clients.iter().map(|client| client.first).min(),
        last: clients.iter().map(|client| client.last).max(),
        plaintext_clients,
    }
}

fn speak(clients: usize) -> &'static str {
    if clients == 1 { "client speaks" } else { "clients speak" }
}

fn hold(clients: usize) -> &'static str {
    if clients == 1 { "client holds" } else { "clients hold" }
}

/// One entry per client address, over all pods of the workload.
fn plaintext_clients(clients: &[&ClientData]) -> Vec<Client> {
    let mut found: BTreeMap<IpAddr, Client> = BTreeMap::new();
    for client in clients.iter().filter(|client| client.class == Class::Plaintext) {
        let entry = found.entry(client.address).or_insert(Client {
            name: None,
            address: client.address,
            connections: 0,
            first: client.first,
            last: client.last,
        });
        entry.name = entry.name.take().max(client.name.clone());
        entry.connections = entry.connections.saturating_add(client.connections);
        entry.first = entry.first.min(client.first);
        entry.last = entry.last.max(client.last);
    }
    let mut all: Vec<_> = found.into_values().collect();
    all.sort_by(|a, b| b.last.cmp(&a.last).then(a.address.cmp(&b.address)));
    all
}

/// Clients of whom nothing is known but connections from before the watch.
fn unknown(clients: &[&ClientData]) -> usize {
    let of = |existing: bool| -> BTreeSet<IpAddr> {
        let of_kind = clients.iter().filter(|client| (client.class == Class::Existing) == existing);
        of_kind.map(|client| client.address).collect()
    };
    of(true).difference(&of(false)).count()
}

/// A length of time in its two largest units: `2d 3h`, `40m 0s`.
#[must_use]
pub fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}
