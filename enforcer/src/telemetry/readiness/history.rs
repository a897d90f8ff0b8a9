//! What the agent remembers of its watch: which pods it saw, from when to when, under what names. Small, kept in a file
//! beside the agent's state; the clients themselves are in the pinned map `CLIENTS`.
//!
//! Times are `CLOCK_MONOTONIC` like those in the maps, so that a clock that is set does not stretch the watch. Both end
//! with the boot, and so does the history: another boot id starts it anew. Time without an agent counts as not watched,
//! although the kernel side goes on counting: a pod may have come that nobody hooked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use enforcer_common::{Reason, Verdict};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use self::entries::Entries;
use super::spans::{Span, Spans};
use super::{Class, ClientData, Labels, Mark, NodeData, PodData, Posture};
use crate::telemetry::hellos::Hellos;

mod entries;

/// Pods that are remembered at most; those that are gone longest are forgotten first.
const MOST_PODS: usize = 8192;
/// Stretches of one pod that are remembered at most; the oldest are forgotten, so that less counts as watched.
const MOST_STRETCHES: usize = 256;

/// A watch whose last look is longer ago has stopped.
const LOOK_AGE_NS: u64 = 30_000_000_000;

/// Extension of the history's file, beside the state file's.
pub const EXTENSION: &str = "readiness.json";

/// From one moment up to another, `CLOCK_MONOTONIC` ns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Stretch {
    from: u64,
    to: u64,
}

/// A pod, as the agent knows it at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObservedPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// The workload that it belongs to.
    pub workload: String,
    /// Its labels.
    pub labels: Labels,
    /// What is in force for it.
    pub posture: Posture,
    /// Why not every connection to it passes the hooks, one sentence; `None` when all do.
    pub unwatched: Option<String>,
    /// A sidecar or ambient holds it.
    pub data_plane: bool,
    /// When it was made; `None` when that is not known.
    pub created: Option<Timestamp>,
}

/// What the agent knows at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Observed {
    /// Meshed pods by workload id.
    pub pods: BTreeMap<u32, ObservedPod>,
    /// Who has an address.
    pub names: BTreeMap<IpAddr, String>,
    /// Names of the policies by namespace.
    pub policies: BTreeMap<String, BTreeSet<String>>,
}

/// One entry of the map `CLIENTS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The workload id.
    pub workload: u32,
    /// The pod's port.
    pub port: u16,
    /// What the client speaks.
    pub class: Class,
    /// Its address.
    pub client: IpAddr,
    /// Its connections.
    pub connections: u64,
    /// The first one, `CLOCK_MONOTONIC` ns.
    pub first_ns: u64,
    /// The last one.
    pub last_ns: u64,
    /// The last verdict.
    pub verdict: Verdict,
    /// Why it fell.
    pub reason: Reason,
}

/// The circumstances of one look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Look<'a> {
    /// The kernel's boot id.
    pub boot: &'a str,
    /// Now, `CLOCK_MONOTONIC` ns.
    pub now_ns: u64,
    /// Now.
    pub wall: Timestamp,
    /// The agent has just started: what was before was not watched.
    pub first: bool,
    /// `CLIENTS` is so full that entries may have been pushed out.
    pub crowded: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct PodHistory {
    namespace: String,
    pod: String,
    workload: String,
    labels: Labels,
    posture: Posture,
    present: bool,
    #[serde(default)]
    unwatched: Option<String>,
    #[serde(default)]
    data_plane: bool,
    watched: Vec<Stretch>,
    blind: Vec<Stretch>,
}

/// The history of one boot.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// The kernel's boot id.
    boot: String,
    /// The last look.
    seen_ns: u64,
    /// When `CLIENTS` was crowded last.
    crowded_ns: Option<u64>,
    /// By workload id.
    pods: BTreeMap<u32, PodHistory>,
    /// The entries of `CLIENTS`.
    entries: Entries,
    policies: BTreeMap<String, BTreeSet<String>>,
}

fn extend(stretches: &mut Vec<Stretch>, from: u64, to: u64) {
    match stretches.last_mut() {
        Some(last) if last.to >= from => {
            last.from = last.from.min(from);
            last.to = last.to.max(to);
        }
        _ => stretches.push(Stretch { from, to }),
    }
    let surplus = stretches.len().saturating_sub(MOST_STRETCHES);
    stretches.drain(..surplus);
}

impl History {
    /// Takes a look in. `hellos`: what those said that were read since the last one, before `clients` were.
    pub fn look(&mut self, look: &Look<'_>, observed: &Observed, clients: &[Seen], hellos: &Hellos) {
        if self.boot != look.boot || look.now_ns < self.seen_ns {
            *self = Self { boot: look.boot.to_owned(), ..Self::default() };
        }
        let (before, now) = (self.seen_ns, look.now_ns);
        for (id, pod) in &mut self.pods {
            pod.present = observed.pods.contains_key(id) && pod.present;
        }
        for (id, seen) in &observed.pods {
            let known = self.pods.get(id).is_some_and(|pod| pod.present && pod.pod == seen.pod);
            let earlier =
                self.pods.remove(id).filter(|pod| pod.namespace == seen.namespace && pod.pod == seen.pod);
            let (mut watched, mut blind) =
                earlier.map_or_else(Default::default, |pod| (pod.watched, pod.blind));
            // A pod that appeared under the agent's eyes was never without the hooks.
            let since = if known { before } else { now };
            let missed =
                seen.created.map(|_| monotonic(look, seen.created)).filter(|made| !known && *made < before);
            if look.first {
                let unseen = if known { before } else { monotonic(look, seen.created) };
                extend(&mut blind, unseen, now);
            } else if seen.unwatched.is_none() {
                // One that was made before the last look, and comes only now, was behind no hook until now.
                if let Some(made) = missed {
                    extend(&mut blind, made, now);
                }
                extend(&mut watched, since, now);
            }
            if seen.unwatched.is_some() {
                extend(&mut blind, since, now.max(since + 1));
            }
            if look.crowded {
                extend(&mut blind, 0, now);
            }
            let pod = PodHistory {
                namespace: seen.namespace.clone(),
                pod: seen.pod.clone(),
                workload: seen.workload.clone(),
                labels: seen.labels.clone(),
                posture: seen.posture.clone(),
                present: true,
                unwatched: seen.unwatched.clone(),
                data_plane: seen.data_plane,
                watched,
                blind,
            };
            self.pods.insert(*id, pod);
        }
        if look.crowded {
            self.crowded_ns = Some(now);
        }
        self.entries.look((before, now), &observed.names, clients, hellos);
        self.bound();
        self.policies.clone_from(&observed.policies);
        self.seen_ns = now;
    }

    fn bound(&mut self) {
        while self.pods.len() > MOST_PODS {
            let end = |pod: &PodHistory| pod.watched.last().map_or(0, |stretch| stretch.to);
            let gone = self.pods.iter().filter(|(_, pod)| !pod.present).min_by_key(|(_, pod)| end(pod));
            let Some(id) = gone.map(|(id, _)| *id) else { break };
            self.pods.remove(&id);
        }
    }

    /// How many clients have a name.
    #[must_use]
    pub fn named(&self) -> usize {
        self.entries.named()
    }

    /// True for the history of this boot.
    #[must_use]
    pub fn is_of(&self, boot: &str) -> bool {
        self.boot == boot
    }

    /// An entry of `CLIENTS` with what is remembered of it.
    #[must_use]
    pub fn client(&self, reading: &Reading, seen: &Seen) -> ClientData {
        let entry = self.entries.of(seen);
        let marks = entry.map_or(&[][..], |entry| &entry.marks).iter().map(|mark| Mark {
            time: reading.wall_of(mark.at_ns),
            connections: mark.connections,
            mesh_hellos: mark.hellos.mesh,
            other_hellos: mark.hellos.other,
        });
        let hellos = entry.map(|entry| entry.hellos).unwrap_or_default();
        ClientData {
            port: seen.port,
            class: seen.class,
            address: seen.client,
            name: entry.and_then(|entry| entry.name.clone()),
            connections: seen.connections,
            mesh_hellos: hellos.mesh,
            other_hellos: hellos.other,
            first: reading.wall_of(seen.first_ns),
            last: reading.wall_of(seen.last_ns),
            marks: marks.collect(),
        }
    }

    /// Who the client of an entry of `CLIENTS` is, where that was seen.
    #[must_use]
    pub fn name(&self, seen: &Seen) -> Option<&str> {
        self.entries.of(seen)?.name.as_deref()
    }

    /// Connections of an entry of `CLIENTS` that are known to be the mesh's.
    #[must_use]
    pub fn mesh(&self, seen: &Seen) -> u64 {
        match seen.class {
            Class::MeshTls => seen.connections,
            Class::Tls => self.entries.of(seen).map_or(0, |entry| entry.hellos.mesh),
            Class::Plaintext | Class::Existing => 0,
        }
    }

    /// Pods are watched at the moment of a reading.
    fn is_watching(&self, reading: &Reading) -> bool {
        reading.alive && self.seen_ns != 0 && reading.now_ns.saturating_sub(self.seen_ns) <= LOOK_AGE_NS
    }

    /// The node's data at one moment.
    #[must_use]
    pub fn data(&self, node: &str, reading: &Reading, clients: &[Seen]) -> NodeData {
        let time = |ns: u64| reading.wall_of(ns);
        let watching = self.is_watching(reading);
        let spans = |stretches: &[Stretch], present: bool| -> Spans {
            let to = |stretch: &Stretch| {
                // The agent lives and has only not looked yet.
                let goes_on = watching && present && stretch.to == self.seen_ns;
                if goes_on { reading.wall } else { time(stretch.to) }
            };
            stretches
                .iter()
                .map(|s| Span {
                    // Since ever: before this boot as well.
                    from: if s.from == 0 { Timestamp::UNIX_EPOCH } else { time(s.from) },
                    to: to(s),
                })
                .collect::<Vec<_>>()
                .into()
        };
        let mut of: BTreeMap<u32, Vec<ClientData>> = BTreeMap::new();
        for seen in clients {
            of.entry(seen.workload).or_default().push(self.client(reading, seen));
        }
        let pods = self.pods.iter().map(|(id, pod)| {
            let mut clients = of.remove(id).unwrap_or_default();
            clients.sort();
            PodData {
                namespace: pod.namespace.clone(),
                pod: pod.pod.clone(),
                workload: pod.workload.clone(),
                labels: pod.labels.clone(),
                present: pod.present,
                unwatched: pod.unwatched.clone(),
                data_plane: pod.data_plane,
                posture: pod.posture.clone(),
                watched: spans(&pod.watched, pod.present),
                // While nobody looks, its connections are counted, but another pod of its kind may be behind no hook.
                blind: spans(&pod.blind, false).union(&if pod.present && !watching {
                    Spans::one(time(self.seen_ns), reading.wall)
                } else {
                    Spans::default()
                }),
                clients,
            }
        });
        let mut notes = reading.notes.clone();
        if let Some(ns) = self.crowded_ns {
            notes.push(format!(
                "the map CLIENTS was nearly full at {:.0}: what was watched before does not count; give it more room with --map-size CLIENTS=…",
                time(ns)
            ));
        }
        NodeData {
            time: reading.wall,
            node: node.to_owned(),
            looked: (self.seen_ns != 0).then(|| if watching { reading.wall } else { time(self.seen_ns) }),
            watching,
            enforcing: reading.enforcing,
            notes,
            pods: pods.collect(),
            policies: self.policies.clone(),
        }
    }
}

/// A creation time as `CLOCK_MONOTONIC` ns; 0 when it is not known or lies before the boot.
fn monotonic(look: &Look<'_>, created: Option<Timestamp>) -> u64 {
    let Some(created) = created else { return 0 };
    let ago = u64::try_from(look.wall.duration_since(created).as_nanos()).unwrap_or(0);
    look.now_ns.saturating_sub(ago)
}

/// The circumstances of a reading.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reading {
    /// Now.
    pub wall: Timestamp,
    /// Now, `CLOCK_MONOTONIC` ns.
    pub now_ns: u64,
    /// Verdicts are carried out.
    pub enforcing: bool,
    /// The agent watches at this moment.
    pub alive: bool,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl Reading {
    fn wall_of(&self, ns: u64) -> Timestamp {
        let ago = i64::try_from(self.now_ns.saturating_sub(ns)).unwrap_or(i64::MAX);
        self.wall.checked_sub(SignedDuration::from_nanos(ago)).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests;
