//! From wanted to held: the difference as an ordered list of map writes.
//!
//! For one endpoint a change is atomic: the ports of the new generation are written first, then one write of the endpoint
//! turns to that generation, and only later, when no packet can still hold the old endpoint, the old ports go.

use std::collections::{BTreeMap, BTreeSet};

use enforcer_common::map::{Endpoint, ExemptKind, PortKey, PortMode, endpoint_flags};
use enforcer_common::{Address, Mode};

use super::desired::{Desired, EndpointPlan};

/// What the maps hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// `ENDPOINTS` and `LINKS`, the latter by [`Address::link`].
    pub endpoints: BTreeMap<Address, Endpoint>,
    /// `PORT_MODES`, by (workload, generation, port).
    pub ports: BTreeMap<(u32, u16, u16), PortMode>,
    /// `EXEMPT`.
    pub exempt: BTreeMap<Address, ExemptKind>,
}

/// One write to one map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// Write an entry of `PORT_MODES`.
    Port(PortKey, PortMode),
    /// Write an entry of `EXEMPT`.
    Exempt(Address, ExemptKind),
    /// Remove an entry of `EXEMPT`.
    Unexempt(Address),
    /// Write an entry of `ENDPOINTS`, or of `LINKS`.
    Endpoint(Address, Endpoint),
    /// Remove one.
    RemoveEndpoint(Address),
}

/// A change of the maps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// Writes in their order.
    pub writes: Vec<Write>,
    /// Addresses that were not listed before or belong to another pod now: their open connections are not known yet.
    pub fresh: BTreeSet<Address>,
    /// Entries of `PORT_MODES` to remove once no packet can still be using them.
    pub stale: Vec<PortKey>,
}

impl Held {
    /// Enters a write, as the kernel does.
    pub fn enter(&mut self, write: &Write) {
        match *write {
            Write::Port(key, mode) => drop(self.ports.insert(tuple(key), mode)),
            Write::Exempt(address, kind) => drop(self.exempt.insert(address, kind)),
            Write::Unexempt(address) => drop(self.exempt.remove(&address)),
            Write::Endpoint(address, endpoint) => drop(self.endpoints.insert(address, endpoint)),
            Write::RemoveEndpoint(address) => drop(self.endpoints.remove(&address)),
        }
    }

    fn ports_of(&self, workload: u32, generation: u16) -> BTreeMap<u16, PortMode> {
        self.ports
            .range((workload, generation, 0)..=(workload, generation, u16::MAX))
            .map(|((_, _, port), mode)| (*port, *mode))
            .collect()
    }

    /// A generation that neither the workload nor an earlier owner of its addresses uses: flows carry the generation
    /// that they were judged under, and those of an earlier owner must not pass for settled.
    fn free_generation(&self, workload: u32, wanted: &Desired) -> u16 {
        let addresses = wanted.listed().filter(|(_, plan)| plan.workload == workload);
        let owners = addresses.filter_map(|(address, _)| self.endpoints.get(address));
        let own = self.endpoints.values().filter(|endpoint| endpoint.workload == workload);
        let used: BTreeSet<u16> = owners.chain(own).map(|endpoint| endpoint.generation).collect();
        let after = used.last().copied().unwrap_or(0);
        (1..=u16::MAX)
            .map(|step| after.wrapping_add(step))
            .find(|generation| !used.contains(generation) && self.ports_of(workload, *generation).is_empty())
            .unwrap_or_else(|| after.wrapping_add(1))
    }
}

fn tuple(key: PortKey) -> (u32, u16, u16) {
    (key.workload, key.generation, key.port)
}

/// The change that turns what is held into what is wanted.
#[must_use]
pub fn change(held: &Held, wanted: &Desired) -> Change {
    let mut change = Change::default();
    let exempt_changed = exempt(held, wanted, &mut change.writes);
    // Two addresses of one pod share its ports: they turn to the same generation.
    let mut generations: BTreeMap<u32, u16> = BTreeMap::new();
    for (address, plan) in wanted.listed() {
        let old = held.endpoints.get(address).filter(|old| old.workload == plan.workload);
        // Nothing was followed of a pod outside the mesh: when it joins, what is open there is not known.
        let joins = |old: &&Endpoint| plan.meshed && old.flags & endpoint_flags::NOT_MESHED != 0;
        if old.is_none_or(|old| joins(&old)) {
            change.fresh.insert(*address);
        }
        let unchanged = old.filter(|old| !exempt_changed && same_policy(held, old, plan));
        let generation = match unchanged {
            Some(old) if !generations.contains_key(&plan.workload) => old.generation,
            _ => *generations.entry(plan.workload).or_insert_with(|| {
                let generation = held.free_generation(plan.workload, wanted);
                let key = |port: &u16| PortKey { workload: plan.workload, generation, port: *port };
                change.writes.extend(plan.ports.iter().map(|(port, mode)| Write::Port(key(port), *mode)));
                generation
            }),
        };
        let endpoint = endpoint(plan, generation);
        if held.endpoints.get(address) != Some(&endpoint) {
            change.writes.push(Write::Endpoint(*address, endpoint));
        }
    }
    let gone = held.endpoints.keys().filter(|address| wanted.plan(**address).is_none());
    change.writes.extend(gone.map(|address| Write::RemoveEndpoint(*address)));
    change.stale = stale(held, &change.writes);
    change
}

/// True when the policy of this address is in the maps already.
#[must_use]
pub fn holds(held: &Held, address: Address, plan: &EndpointPlan) -> bool {
    let old = held.endpoints.get(&address).filter(|old| old.workload == plan.workload);
    old.is_some_and(|old| same_policy(held, old, plan))
}

fn exempt(held: &Held, wanted: &Desired, writes: &mut Vec<Write>) -> bool {
    let before = writes.len();
    let new = wanted.exempt.iter().filter(|(address, kind)| held.exempt.get(address) != Some(kind));
    writes.extend(new.map(|(address, kind)| Write::Exempt(*address, *kind)));
    let gone = held.exempt.keys().filter(|address| !wanted.exempt.contains_key(address));
    writes.extend(gone.map(|address| Write::Unexempt(*address)));
    writes.len() != before
}

fn flags(plan: &EndpointPlan) -> u8 {
    if !plan.meshed {
        return endpoint_flags::NOT_MESHED;
    }
    let has_ports = if plan.ports.is_empty() { 0 } else { endpoint_flags::HAS_PORTS };
    let strict = plan.mode == Mode::STRICT || plan.ports.values().any(|port| port.mode == Mode::STRICT);
    has_ports | if strict { endpoint_flags::ANY_STRICT } else { 0 }
}

fn same_policy(held: &Held, old: &Endpoint, plan: &EndpointPlan) -> bool {
    old.mode == plan.mode
        && old.flags & !(endpoint_flags::LEARNING | endpoint_flags::POD_SIDE) == flags(plan)
        && held.ports_of(old.workload, old.generation) == plan.ports
}

fn endpoint(plan: &EndpointPlan, generation: u16) -> Endpoint {
    let (side, ifindex, netns_id) = match &plan.inside {
        None => (0, plan.ifindex, plan.netns_id),
        Some(device) => (endpoint_flags::POD_SIDE, device.index, device.stamp()),
    };
    Endpoint {
        workload: plan.workload,
        generation,
        mode: plan.mode,
        flags: flags(plan) | side,
        ifindex,
        netns_id,
    }
}

/// Ports that no endpoint uses once the writes are done.
fn stale(held: &Held, writes: &[Write]) -> Vec<PortKey> {
    let mut after = held.clone();
    for write in writes {
        after.enter(write);
    }
    let used: BTreeSet<(u32, u16)> =
        after.endpoints.values().map(|endpoint| (endpoint.workload, endpoint.generation)).collect();
    after
        .ports
        .keys()
        .filter(|(workload, generation, _)| !used.contains(&(*workload, *generation)))
        .map(|(workload, generation, port)| PortKey {
            workload: *workload,
            generation: *generation,
            port: *port,
        })
        .collect()
}

#[cfg(test)]
mod tests;
