//! What the data say: a verdict for each port and workload that could turn STRICT.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spans::Spans;
use super::{Absent, Class, Mode, NodeData, Nodes, PodData};

use self::port::{Circumstances, judge_port};

mod port;

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
    /// A node that was asked longer ago is not called ready.
    pub max_age_seconds: u64,
    /// TLS without the mesh's ALPN keeps a port from being ready.
    pub mesh_tls_only: bool,
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
    /// Its connections through the mesh's tunnel (HBONE, port 15008), whatever port they are for inside.
    pub tunnel: u64,
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
    /// Connections as TLS in the window that are not known to be the mesh's.
    pub tls: u64,
    /// Of these, those whose hello was not read: it is not known whose they are.
    pub tls_unread: u64,
    /// Connections as TLS of the mesh: its ALPN, or its tunnel port.
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
    /// Who speaks TLS and did not show the mesh's ALPN, the latest first: a sidecar or ambient serves them under STRICT only
    /// with a certificate of the mesh, which cannot be seen.
    pub tls_clients: Vec<Client>,
}

/// A client that would break, or might.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct Client {
    /// Who it is (`namespace/name`), where that is known.
    pub name: Option<String>,
    /// Its address.
    pub address: IpAddr,
    /// Its connections of this kind in the window.
    pub connections: u64,
    /// From when on they are counted: a moment before the window, else the first of them.
    pub counted_from: Timestamp,
    /// The first of them, also before the window.
    pub first: Timestamp,
    /// The last of them.
    pub last: Timestamp,
}

/// The whole answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The worst of the workloads, and at best `NOT_ENOUGH_DATA` where the answer is not complete.
    pub verdict: Readiness,
    /// What keeps it from being complete, one sentence each.
    pub incomplete: Vec<String>,
    /// The workloads that could turn STRICT, in order of namespace and name.
    pub workloads: Vec<Workload>,
}

/// The answer for all workloads, or those of one namespace. Ready is only what is proven: somebody must have seen the pods.
#[must_use]
pub fn answer(nodes: &Nodes, criteria: &Criteria, namespace: Option<&str>) -> Answer {
    let mut workloads = judge(nodes, criteria);
    workloads.retain(|workload| namespace.is_none_or(|wanted| wanted == workload.namespace));
    let mut incomplete: Vec<String> = nodes.iter().filter_map(|node| stale(node, criteria)).collect();
    incomplete.extend(nodes.absent().map(|absent| format!("node {}: {}", absent.node, absent.why)));
    let seen = nodes.iter().flat_map(|node| &node.pods).filter(|pod| pod.present);
    if !seen.into_iter().any(|pod| namespace.is_none_or(|wanted| wanted == pod.namespace)) {
        incomplete.push(match namespace {
            Some(name) => format!("no meshed pod of namespace {name} was seen: check the name"),
            None => "no meshed pod was seen: nothing says that nobody would break".to_owned(),
        });
    }
    let best = if incomplete.is_empty() { Readiness::Ready } else { Readiness::NotEnoughData };
    let verdict = workloads.iter().map(|workload| workload.verdict).fold(best, Readiness::max);
    Answer { verdict, incomplete, workloads }
}

/// Why what a node says does not hold at this moment.
fn stale(node: &NodeData, criteria: &Criteria) -> Option<String> {
    let age = |time: Timestamp| {
        duration(u64::try_from(criteria.now.duration_since(time).as_secs()).unwrap_or_default())
    };
    let Some(looked) = node.looked else {
        return Some(format!(
            "node {}: nothing was watched yet: ask again some seconds after the agent's start, and with its --state-dir and --bpffs",
            node.node
        ));
    };
    if !node.watching {
        return Some(format!("node {}: nobody has watched it for {}", node.node, age(looked)));
    }
    let asked = u64::try_from(criteria.now.duration_since(node.time).as_secs()).unwrap_or_default();
    (asked > criteria.max_age_seconds).then(|| {
        format!(
            "node {}: it was asked {} ago, longer than {}: ask it again, or give a longer --max-age",
            node.node,
            age(node.time),
            duration(criteria.max_age_seconds)
        )
    })
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
    let mut all: Vec<Workload> = workloads.values().filter_map(|pods| workload(pods, criteria)).collect();
    for workload in &mut all {
        let name = format!("{}/{}", workload.namespace, workload.workload);
        let unseen = nodes
            .absent()
            .find(|absent| absent.workloads.as_ref().is_none_or(|workloads| workloads.contains(&name)));
        if let Some(Absent { node, why, .. }) = unseen {
            workload.doubt(&format!("it may have pods on node {node}: {why}"));
        }
    }
    all
}

impl Workload {
    /// It is not ready as long as this is so.
    fn doubt(&mut self, why: &str) {
        for port in self.ports.iter_mut().filter(|port| port.verdict == Readiness::Ready) {
            port.verdict = Readiness::NotEnoughData;
            why.clone_into(&mut port.why);
        }
        if self.verdict == Readiness::Ready {
            self.verdict = Readiness::NotEnoughData;
            why.clone_into(&mut self.why);
        }
    }
}

/// Why a workload's pods are not all watched at this moment.
fn unwatched(pods: &[(&NodeData, &PodData)], criteria: &Criteria) -> Option<String> {
    pods.iter().filter(|(_, pod)| pod.present).find_map(|(node, pod)| match &pod.unwatched {
        Some(why) => Some(format!("pod {}: {why}", pod.pod)),
        None => stale(node, criteria),
    })
}

/// When pods may have had connections that were not seen.
fn blind(node: &NodeData, pod: &PodData, criteria: &Criteria) -> Spans {
    match node.looked {
        // What was after the last look, nobody knows.
        Some(looked) if pod.present => pod.blind.union(&Spans::one(looked, criteria.now)),
        _ => pod.blind.clone(),
    }
}

/// Connections through the mesh's tunnel. Its port is exempt: what arrives there has shown a certificate of the mesh.
fn tunnel(pods: &[(&NodeData, &PodData)], criteria: &Criteria) -> u64 {
    let since = criteria.since();
    let clients = pods.iter().flat_map(|(_, pod)| &pod.clients);
    clients
        .filter(|client| client.class == Class::MeshTls && client.last >= since)
        .fold(0, |sum, client| sum.saturating_add(client.within(since).connections))
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
    let watched = pods.iter().fold(Spans::default(), |sum, (_, pod)| sum.union(&pod.watched));
    let blind = pods.iter().fold(Spans::default(), |sum, (node, pod)| sum.union(&blind(node, pod, criteria)));
    let watched = watched.minus(&blind);
    let watched = watched.within(criteria.since(), criteria.now);
    let seconds = watched.seconds();
    let (gaps, gap_seconds) = watched.gaps();
    let circumstances = Circumstances {
        watched: seconds,
        unwatched: unwatched(pods, criteria),
        tunnel: tunnel(pods, criteria),
        data_plane: live().any(|(_, pod)| pod.data_plane),
    };
    let ports: Vec<Port> =
        open.into_iter().map(|(port, mode)| judge_port(pods, port, mode, &circumstances, criteria)).collect();
    let verdict = ports.iter().map(|port| port.verdict).max().unwrap_or(Readiness::NotEnoughData);
    let worst = ports.iter().find(|port| port.verdict == verdict);
    Some(Workload {
        namespace: first.namespace.clone(),
        workload: first.workload.clone(),
        verdict,
        why: worst.map_or_else(
            || circumstances.unwatched.clone().unwrap_or_else(nothing_seen),
            |port| format!("port {}: {}", port.port, port.why),
        ),
        pods: present.len(),
        nodes: pods.iter().map(|(node, _)| node.node.clone()).collect(),
        watched_seconds: seconds,
        watched_since: watched.start(),
        gaps,
        gap_seconds,
        tunnel: circumstances.tunnel,
        ports,
    })
}

fn nothing_seen() -> String {
    "no connection was seen, and the pods declare no port".to_owned()
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
