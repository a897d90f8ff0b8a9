//! Whose TLS is the mesh's? Only the client's hello says, by its ALPN, and only user space reads it: here each connection is
//! counted once, when its hello was read. What all views tell of mesh TLS beyond the tunnel port comes from these numbers.
//!
//! A hello that did not come (events beyond the limit, or from before the agent) is counted nowhere: of that connection it is
//! not known.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use enforcer_common::Reason;
use enforcer_common::event::Event;
use enforcer_common::map::TrafficClass;
use serde::{Deserialize, Serialize};

use super::connections::Ready;

/// Clients that are kept until somebody takes them; the hellos of more count as not read.
const CLIENTS: usize = 65_536;
/// Workloads that are counted at most.
const WORKLOADS: usize = 65_536;

/// Connections by what their hello said.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// It offered one of Istio's own protocols.
    pub mesh: u64,
    /// It did not.
    pub other: u64,
}

impl Tally {
    /// Adds up, never to more than there were connections.
    pub fn add(&mut self, more: Self, connections: u64) {
        self.mesh = self.mesh.saturating_add(more.mesh).min(connections);
        self.other = self.other.saturating_add(more.other).min(connections - self.mesh);
    }

    fn count(&mut self, mesh: bool) {
        let number = if mesh { &mut self.mesh } else { &mut self.other };
        *number = number.saturating_add(1);
    }
}

/// What hellos said, by workload id, port of the pod and client.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hellos(BTreeMap<(u32, u16, IpAddr), Tally>);

impl Hellos {
    /// Of one client.
    #[must_use]
    pub fn of(&self, workload: u32, port: u16, client: IpAddr) -> Tally {
        self.0.get(&(workload, port, client)).copied().unwrap_or_default()
    }

    /// Counts one; false when there is no room.
    pub fn count(&mut self, workload: u32, port: u16, client: IpAddr, mesh: bool) -> bool {
        let key = (workload, port, client);
        if self.0.len() >= CLIENTS && !self.0.contains_key(&key) {
            return false;
        }
        self.0.entry(key).or_default().count(mesh);
        true
    }

    /// Adds others.
    pub fn extend(&mut self, others: Self) {
        for (key, tally) in others.0 {
            let held = self.0.entry(key).or_default();
            held.add(tally, u64::MAX);
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[derive(Debug, Default)]
struct Counts {
    fresh: Hellos,
    totals: BTreeMap<u32, Tally>,
}

/// Counts what hellos say, for those who ask.
#[derive(Debug, Default)]
pub struct HelloCounts(Mutex<Counts>);

/// The connection is counted under `TLS` in `CLIENTS`, where its hello decides.
fn is_asked(event: &Event) -> bool {
    event.class == TrafficClass::TLS
        && event.workload != 0
        && !matches!(event.reason, Reason::PROBE | Reason::EXEMPT_SOURCE | Reason::EXEMPT_PORT)
}

impl HelloCounts {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Nothing is left half done under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts those whose hello was read and not counted yet.
    pub fn note<'a>(&self, ready: impl IntoIterator<Item = &'a Ready>) {
        let mut fresh = ready.into_iter().filter(|ready| ready.fresh && is_asked(&ready.event)).peekable();
        if fresh.peek().is_none() {
            return;
        }
        let mut counts = self.counts();
        for Ready { event, known, .. } in fresh {
            let Some(hello) = &known.hello else { continue };
            let client = IpAddr::from(event.key.client);
            counts.fresh.count(event.workload, event.key.pod_port, client, hello.is_mesh());
            if counts.totals.len() < WORKLOADS || counts.totals.contains_key(&event.workload) {
                counts.totals.entry(event.workload).or_default().count(hello.is_mesh());
            }
        }
    }

    /// What was counted since this was last asked.
    #[must_use]
    pub fn take(&self) -> Hellos {
        std::mem::take(&mut self.counts().fresh)
    }

    /// By workload id, since the agent's start.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<u32, Tally> {
        self.counts().totals.clone()
    }
}

#[cfg(test)]
mod tests;
