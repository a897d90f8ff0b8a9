//! Records out of the kernel's tables of connections: one for each, with what can be known without an agent.

use std::net::IpAddr;
use std::time::Duration;

use enforcer_common::map::{Flow as Entry, FlowKey, FlowState};
use enforcer_common::{Direction, Reason, Verdict};
use jiff::{SignedDuration, Timestamp};

use crate::agent::monotonic_ns;
use crate::cli::node::Node;
use crate::datapath::maps::Flows;
use crate::telemetry::describe::epoch;
use crate::telemetry::filter::Filter;
use crate::telemetry::record::{Flow, Line, Peer, Record, Word};

/// The connections that the filter takes, the latest last.
pub(super) fn records(node: &Node, filter: &Filter) -> anyhow::Result<Vec<Record>> {
    let mut entries = Vec::new();
    for map in ["FLOWS", "TRANSIENT"] {
        entries.extend(Flows::new(map, node.pinned.map(map)?)?.entries()?);
    }
    let epoch = epoch(Timestamp::now(), monotonic_ns());
    let mut lines: Vec<_> = entries
        .iter()
        .map(|(key, entry)| Line::Verdict(flow(node, epoch, key, entry)))
        .filter(|line| filter.takes(line))
        .collect();
    lines.sort_by_key(Line::time);
    lines.drain(..lines.len().saturating_sub(filter.last.unwrap_or(usize::MAX)));
    Ok((0..).zip(lines).map(|(id, line)| Record { id, line }).collect())
}

fn flow(node: &Node, epoch: Timestamp, key: &FlowKey, entry: &Entry) -> Flow {
    // Without a verdict: since the connection was opened.
    let then = if entry.phase_ns == 0 { entry.opened_ns } else { entry.phase_ns };
    let after = SignedDuration::try_from(Duration::from_nanos(then)).unwrap_or(SignedDuration::ZERO);
    let address = IpAddr::from(key.pod);
    let endpoint = node.state.endpoints.iter().find(|endpoint| endpoint.address == address);
    // Judged by an earlier policy: which one is not known any more.
    let judged_by = endpoint.filter(|endpoint| {
        (endpoint.workload, endpoint.generation) == (entry.workload, Some(entry.generation))
    });
    let decision = judged_by.and_then(|endpoint| {
        let of_port = endpoint.decided_by.iter().rfind(|decision| decision.port == Some(key.pod_port));
        of_port.or_else(|| endpoint.decided_by.iter().rfind(|decision| decision.port.is_none()))
    });
    let mut pod = Peer::at(address, key.pod_port);
    name(node, &mut pod, entry.workload);
    let client_address = IpAddr::from(key.client);
    let mut client = Peer::at(client_address, key.client_port);
    let client_pod = node.state.endpoints.iter().find(|endpoint| endpoint.address == client_address);
    if let Some(endpoint) = client_pod {
        name(node, &mut client, endpoint.workload);
    }
    let refused = matches!(entry.verdict, Verdict::RESET | Verdict::DROP | Verdict::WOULD_RESET);
    Flow {
        time: epoch.checked_add(after).unwrap_or(epoch),
        direction: Word::Borrowed(direction(entry)),
        client,
        pod,
        class: Word::Borrowed(class(entry)),
        protocol: None,
        sni: None,
        alpn: Vec::new(),
        tls_versions: Vec::new(),
        verdict: Word::Borrowed(entry.verdict.name()),
        reason: Word::Borrowed(entry.reason.name()),
        remedy: Word::Borrowed(if refused { entry.reason.remedy() } else { "" }),
        mode: None,
        policy: decision.map(|decision| decision.policy.as_str().into()),
        level: decision.map(|decision| Word::Owned(decision.level.clone())),
        generation: entry.generation,
        bytes_to_pod: entry.bytes_to_pod,
        bytes_from_pod: entry.bytes_from_pod,
        duration_seconds: None,
    }
}

fn name(node: &Node, peer: &mut Peer, workload: u32) {
    let found = node.state.workloads.iter().find(|(_, id)| **id == workload);
    let Some((pod, (namespace, name))) = found.and_then(|(pod, _)| Some((pod, pod.split_once('/')?))) else {
        return;
    };
    peer.namespace = Some(namespace.into());
    peer.pod = Some(name.into());
    peer.workload = Some(node.state.owners.get(pod).map_or(name, String::as_str).into());
}

/// Which packet decided. The table does not tell; most reasons do.
fn direction(entry: &Entry) -> &'static str {
    match entry.reason {
        Reason::SERVER_FIRST | Reason::SERVER_NOT_TLS => Direction::FROM_POD.name(),
        Reason::PLAINTEXT_PERMITTED if entry.fault == Reason::SERVER_FIRST => Direction::FROM_POD.name(),
        Reason::TLS | Reason::MESH_TLS | Reason::PLAINTEXT | Reason::PLAINTEXT_PERMITTED => {
            Direction::TO_POD.name()
        }
        _ => "unknown",
    }
}

/// What the client speaks, as far as the table tells.
fn class(entry: &Entry) -> &'static str {
    match entry.state {
        _ if entry.reason == Reason::MESH_TLS => "mesh_tls",
        FlowState::TLS | FlowState::HELLO => "tls",
        FlowState::PLAINTEXT if entry.fault == Reason::SERVER_NOT_TLS => "tls",
        FlowState::PLAINTEXT => "plaintext",
        FlowState::OPEN | FlowState::EXISTING => "unknown",
    }
}
