//! From an event of the kernel side to the record that people read: names instead of addresses and numbers, and the policy
//! that decided.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use enforcer_common::event::Event;
use enforcer_common::map::TrafficClass;
use enforcer_common::{Direction, Reason, Verdict, tls};
use jiff::{SignedDuration, Timestamp};

use super::connections::{Known, Ready};
use super::names::{Identity, Remote};
use super::plans::Plans;
use super::record::{Flow, Peer, Word};
use super::{View, protocol};
use crate::datapath::desired::EndpointPlan;
use crate::policy::compose::Decision;

/// What records are written with.
#[derive(Debug)]
pub struct Describer<'a> {
    /// What is known now, and what was known before: an event may tell of a pod that is gone.
    pub views: &'a [Arc<View>; 2],
    /// Policies by generation.
    pub plans: &'a Plans,
    /// Pods elsewhere.
    pub remote: &'a Remote,
    /// The wall clock at `CLOCK_MONOTONIC` 0.
    pub epoch: Timestamp,
    /// Now, for the lookups.
    pub now: Instant,
}

/// The wall clock at `CLOCK_MONOTONIC` 0, given both now.
#[must_use]
pub fn epoch(now: Timestamp, monotonic_ns: u64) -> Timestamp {
    let since = SignedDuration::try_from(Duration::from_nanos(monotonic_ns)).unwrap_or(SignedDuration::ZERO);
    now.checked_sub(since).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// What the client of an event speaks, as far as the kernel side knows.
#[must_use]
pub fn class(event: &Event) -> &'static str {
    match event.class {
        TrafficClass::PLAINTEXT => "plaintext",
        TrafficClass::TLS => "tls",
        TrafficClass::MESH_TLS => "mesh_tls",
        // Exempt connections are not judged; the packet at hand may tell.
        TrafficClass::UNKNOWN if event.direction == Direction::TO_POD => match tls::classify(event.head()) {
            tls::Class::Tls => "tls",
            tls::Class::Plaintext => "plaintext",
            tls::Class::Incomplete => "unknown",
        },
        TrafficClass::UNKNOWN | TrafficClass::EXISTING => "unknown",
    }
}

/// The same, with what the hello says: the kernel side does not read it, so only here a client of the mesh is told from any
/// other.
fn class_of(event: &Event, known: &Known) -> &'static str {
    if known.hello.as_ref().is_some_and(|hello| hello.is_mesh()) { "mesh_tls" } else { class(event) }
}

/// Guess at the protocol of a plaintext connection.
#[must_use]
pub fn protocol(event: &Event) -> Option<&'static str> {
    if class(event) != "plaintext" && event.reason != Reason::SERVER_FIRST {
        return None;
    }
    match event.direction {
        Direction::TO_POD => protocol::of_client(event.head()),
        Direction::FROM_POD => protocol::of_server(event.head()),
    }
}

fn refused(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::RESET | Verdict::DROP | Verdict::WOULD_RESET)
}

impl Describer<'_> {
    /// The record of an event.
    #[must_use]
    pub fn flow(&self, ready: &Ready, ended: bool) -> Flow {
        let Ready { event, known, .. } = ready;
        let [view, _] = self.views;
        let port = event.key.pod_port;
        // Rather no policy than a wrong one.
        let plan = self.plans.find(event.key.pod, event.workload, event.generation, event.time_ns);
        let plan = plan.as_deref();
        let decision = plan.and_then(|plan| decision(plan, port));
        let mode = plan.map(|plan| plan.ports.get(&port).map_or(plan.mode, |entry| entry.mode));
        let refused = refused(event.verdict);
        let after =
            SignedDuration::try_from(Duration::from_nanos(event.time_ns)).unwrap_or(SignedDuration::ZERO);
        let open = event.time_ns.checked_sub(event.opened_ns).filter(|_| event.opened_ns != 0 && ended);
        Flow {
            time: self.epoch.checked_add(after).unwrap_or(self.epoch),
            direction: Word::Borrowed(event.direction.name()),
            client: self.client(event),
            pod: pod(view, event, plan),
            class: Word::Borrowed(class_of(event, known)),
            protocol: known.protocol.map(Word::Borrowed),
            sni: known.hello.as_ref().and_then(|hello| hello.sni.clone()),
            alpn: known.hello.as_ref().map(|hello| hello.alpn.clone()).unwrap_or_default(),
            tls_versions: known.hello.as_ref().map(|hello| hello.versions.clone()).unwrap_or_default(),
            verdict: Word::Borrowed(event.verdict.name()),
            reason: Word::Borrowed(event.reason.name()),
            remedy: Word::Borrowed(if refused { event.reason.remedy() } else { "" }),
            mode: mode.map(|mode| Word::Borrowed(mode.name())),
            policy: decision.map(|decision| decision.policy.to_string().into()),
            level: decision.map(|decision| Word::Borrowed(decision.level.name())),
            generation: event.generation,
            bytes_to_pod: seen(event.bytes_to_pod, event, Direction::TO_POD, ended),
            bytes_from_pod: seen(event.bytes_from_pod, event, Direction::FROM_POD, ended),
            duration_seconds: open.map(|ns| Duration::from_nanos(ns).as_secs_f64()),
        }
    }

    fn client(&self, event: &Event) -> Peer {
        let address = IpAddr::from(event.key.client);
        let mut peer = Peer::at(address, event.key.client_port);
        let [now, before] = self.views;
        if let Some(identity) = now.index.get(address) {
            peer.name(identity);
        } else if now.snapshot.node_addresses.contains(&address) {
            peer.node = true;
        } else if let Some(identity) =
            self.remote.get(address, self.now).or_else(|| before.index.get(address).cloned())
        {
            peer.name(&identity);
        }
        peer
    }
}

/// Bytes let through, and at a verdict also those of the packet that decided.
fn seen(passed: u64, event: &Event, direction: Direction, ended: bool) -> u64 {
    let packet = if !ended && event.direction == direction { u64::from(event.payload_len) } else { 0 };
    passed.max(packet)
}

fn pod(view: &View, event: &Event, plan: Option<&EndpointPlan>) -> Peer {
    let address = IpAddr::from(event.key.pod);
    let mut peer = Peer::at(address, event.key.pod_port);
    match (view.index.get(address), plan) {
        (Some(identity), Some(plan)) if *identity.pod == *plan.pod.name => peer.name(identity),
        (_, Some(plan)) => peer.name(&gone(view, &plan.pod.namespace, &plan.pod.name)),
        // Its policy is not known, or it is no endpoint any more.
        (identity, None) => {
            let workloads = &view.snapshot.state.workloads;
            let by_id = || workloads.iter().find(|(_, id)| **id == event.workload && event.workload != 0);
            match by_id().and_then(|(pod, _)| pod.split_once('/')) {
                Some((namespace, name)) => peer.name(&gone(view, namespace, name)),
                None => {
                    if let Some(identity) = identity {
                        peer.name(identity);
                    }
                }
            }
        }
    }
    peer
}

/// A pod that the objects do not have under this address any more.
fn gone(view: &View, namespace: &str, name: &str) -> Identity {
    let owner = view.snapshot.state.owners.get(&format!("{namespace}/{name}"));
    Identity {
        namespace: namespace.into(),
        pod: name.into(),
        workload: owner.map_or(name, String::as_str).into(),
    }
}

fn decision(plan: &EndpointPlan, port: u16) -> Option<&Decision> {
    let of_port = plan.decided_by.iter().rfind(|decision| decision.port == Some(port));
    of_port.or_else(|| plan.decided_by.iter().rfind(|decision| decision.port.is_none()))
}

#[cfg(test)]
pub(crate) mod tests;
