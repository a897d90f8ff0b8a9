//! What the data say of one port.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use jiff::Timestamp;

use super::{Client, Criteria, Port, Readiness, duration};
use crate::telemetry::readiness::{Class, ClientData, Counted, Mode, NodeData, PodData};

/// What holds for all ports of a workload.
pub(super) struct Circumstances {
    /// Seconds.
    pub(super) watched: u64,
    /// Why it is not watched at this moment.
    pub(super) unwatched: Option<String>,
    /// Connections through the tunnel.
    pub(super) tunnel: u64,
    /// A sidecar or ambient asks for certificates of the mesh under STRICT.
    pub(super) data_plane: bool,
}

pub(super) fn judge_port(
    pods: &[(&NodeData, &PodData)],
    port: u16,
    mode: Mode,
    circumstances: &Circumstances,
    criteria: &Criteria,
) -> Port {
    let since = criteria.since();
    let clients: Vec<&ClientData> = pods
        .iter()
        .flat_map(|(_, pod)| &pod.clients)
        .filter(|client| client.port == port && client.last >= since)
        .collect();
    let sum = |class, number: fn(Counted) -> u64| {
        let of_class = clients.iter().filter(|client| client.class == class);
        of_class.fold(0_u64, |sum, client| sum.saturating_add(number(client.within(since))))
    };
    let connections: fn(Counted) -> u64 = |counted| counted.connections;
    let (plaintext, existing) = (sum(Class::Plaintext, connections), sum(Class::Existing, connections));
    let mut judged = Port {
        port,
        mode,
        verdict: Readiness::Ready,
        why: String::new(),
        declared: pods.iter().any(|(_, pod)| pod.present && pod.posture.declared.contains(&port)),
        tls: sum(Class::Tls, |counted| counted.connections - counted.mesh),
        tls_unread: sum(Class::Tls, |counted| counted.connections - counted.mesh - counted.other),
        mesh_tls: sum(Class::Tls, |counted| counted.mesh).saturating_add(sum(Class::MeshTls, connections)),
        plaintext,
        existing,
        first: clients.iter().map(|client| client.first).min(),
        last: clients.iter().map(|client| client.last).max(),
        plaintext_clients: gather(&clients, Class::Plaintext, since, |counted| counted.connections),
        tls_clients: without_alpn(&clients, since),
    };
    (judged.verdict, judged.why) = verdict(&judged, unknown(&clients), circumstances, criteria);
    judged
}

/// The verdict on a port; `unknown`: clients of which nothing is known but connections from before the watch.
fn verdict(
    port: &Port,
    unknown: usize,
    circumstances: &Circumstances,
    criteria: &Criteria,
) -> (Readiness, String) {
    let Circumstances { watched, unwatched, tunnel, data_plane } = circumstances;
    let seen = port.tls.saturating_add(port.mesh_tls).saturating_add(*tunnel);
    let not_enough = |why| (Readiness::NotEnoughData, why);
    let strangers = port.tls_clients.len();
    let caution = (*data_plane && strangers > 0).then(|| {
        format!(
            "{strangers} {} TLS without the mesh's ALPN: under STRICT the mesh serves them only with one of its certificates",
            speak(strangers)
        )
    });
    if !port.plaintext_clients.is_empty() {
        let (who, plaintext) = (port.plaintext_clients.len(), port.plaintext);
        return (Readiness::NotReady, format!("{who} {} plaintext, {plaintext} connections", speak(who)));
    }
    if unknown > 0 {
        return not_enough(format!(
            "{unknown} {} connections from before the watch: what is spoken there shows when they connect again",
            hold(unknown)
        ));
    }
    if let Some(why) = unwatched {
        return not_enough(why.clone());
    }
    if let Some(caution) = caution.as_ref().filter(|_| criteria.mesh_tls_only) {
        return not_enough(format!("{caution}; give them a sidecar, or leave --mesh-tls-only out"));
    }
    if *watched < criteria.min_watched_seconds {
        let asked = duration(criteria.min_watched_seconds);
        return not_enough(format!("watched for {} of {asked}", duration(*watched)));
    }
    if seen < criteria.min_connections {
        let asked = criteria.min_connections;
        return not_enough(format!("{seen} connections in {}, fewer than {asked}", duration(*watched)));
    }
    let mut why = format!("no plaintext in {}", duration(*watched));
    if *tunnel > 0 {
        let _ = write!(why, ", {tunnel} connections through the mesh's tunnel");
    }
    if let Some(caution) = caution {
        let _ = write!(why, "; but {caution}");
    }
    (Readiness::Ready, why)
}

fn speak(clients: usize) -> &'static str {
    if clients == 1 { "client speaks" } else { "clients speak" }
}

fn hold(clients: usize) -> &'static str {
    if clients == 1 { "client holds" } else { "clients hold" }
}

/// One entry per client address, over all pods of the workload; `number`: what of it counts.
fn gather(
    clients: &[&ClientData],
    class: Class,
    since: Timestamp,
    number: fn(Counted) -> u64,
) -> Vec<Client> {
    let mut found: BTreeMap<IpAddr, Client> = BTreeMap::new();
    for client in clients.iter().filter(|client| client.class == class) {
        let counted = client.within(since);
        let entry = found.entry(client.address).or_insert(Client {
            name: None,
            address: client.address,
            connections: 0,
            counted_from: counted.from,
            first: client.first,
            last: client.last,
        });
        entry.name = entry.name.take().max(client.name.clone());
        entry.connections = entry.connections.saturating_add(number(counted));
        entry.counted_from = entry.counted_from.min(counted.from);
        entry.first = entry.first.min(client.first);
        entry.last = entry.last.max(client.last);
    }
    let mut all: Vec<_> = found.into_values().collect();
    all.sort_by(|a, b| b.last.cmp(&a.last).then(a.address.cmp(&b.address)));
    all
}

/// Clients that speak TLS and do not belong to the mesh, as far as is known: a hello of theirs said so, or none was read. Who
/// showed the mesh's ALPN whenever a hello of his was read is taken for the mesh's.
fn without_alpn(clients: &[&ClientData], since: Timestamp) -> Vec<Client> {
    let mut hellos: BTreeMap<IpAddr, (u64, u64)> = BTreeMap::new();
    for client in clients.iter().filter(|client| client.class == Class::Tls) {
        let counted = client.within(since);
        let (mesh, other) = hellos.entry(client.address).or_default();
        *mesh = mesh.saturating_add(counted.mesh);
        *other = other.saturating_add(counted.other);
    }
    let mut found =
        gather(clients, Class::Tls, since, |counted| counted.connections.saturating_sub(counted.mesh));
    found.retain(|client| {
        let (mesh, other) = hellos.get(&client.address).copied().unwrap_or_default();
        client.connections > 0 && (other > 0 || mesh == 0)
    });
    found
}

/// Clients of whom nothing is known but connections from before the watch.
fn unknown(clients: &[&ClientData]) -> usize {
    let of = |existing: bool| -> BTreeSet<IpAddr> {
        let of_kind = clients.iter().filter(|client| (client.class == Class::Existing) == existing);
        of_kind.map(|client| client.address).collect()
    };
    of(true).difference(&of(false)).count()
}
