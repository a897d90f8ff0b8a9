//! Which policy an address had under which generation: what a flow record's policy is looked up in. The policy loop enters a
//! policy before it writes it to the maps, so that no event can be of a generation that is not here yet.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};

use enforcer_common::Address;

use crate::datapath::desired::EndpointPlan;

/// Policies that are remembered of one address: a connection's end tells of the policy that it was judged by, which may be
/// an old one.
const EACH: usize = 16;
/// Addresses without a policy now that are remembered.
const GONE: usize = 1024;

/// A policy of an address.
#[derive(Debug)]
struct Entry {
    generation: u16,
    /// Since when, `CLOCK_MONOTONIC` ns.
    since_ns: u64,
    plan: Arc<EndpointPlan>,
}

/// The policies.
#[derive(Debug, Default)]
pub struct Plans(RwLock<BTreeMap<Address, VecDeque<Entry>>>);

impl Plans {
    /// From now on (`CLOCK_MONOTONIC` ns) these are in force under these generations, and no others.
    pub fn enter<'a>(&self, now_ns: u64, plans: impl Iterator<Item = (Address, u16, &'a EndpointPlan)>) {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut present = Vec::new();
        for (address, generation, plan) in plans {
            present.push(address);
            let entries = held.entry(address).or_default();
            let same = |last: &Entry| last.generation == generation && *last.plan == *plan;
            if entries.back().is_some_and(same) {
                continue;
            }
            if entries.len() >= EACH {
                entries.pop_front();
            }
            entries.push_back(Entry { generation, since_ns: now_ns, plan: Arc::new(plan.clone()) });
        }
        let surplus = held.len().saturating_sub(present.len() + GONE);
        let gone: Vec<_> =
            held.keys().filter(|address| !present.contains(address)).take(surplus).copied().collect();
        for address in gone {
            held.remove(&address);
        }
    }

    /// What was entered for a workload under a generation did not come into force.
    pub fn withdraw(&self, workload: u32, generation: u16) {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for entries in held.values_mut() {
            entries.retain(|entry| entry.generation != generation || entry.plan.workload != workload);
        }
    }

    /// The policy of a workload's address under a generation at a time (`CLOCK_MONOTONIC` ns). A policy may be replaced by
    /// another with the same effect, which the generation does not show.
    #[must_use]
    pub fn find(
        &self,
        address: Address,
        workload: u32,
        generation: u16,
        time_ns: u64,
    ) -> Option<Arc<EndpointPlan>> {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let of_event = |entry: &&Entry| entry.generation == generation && entry.plan.workload == workload;
        let entries = held.get(&address.listed())?;
        let then = entries.iter().rev().filter(of_event).find(|entry| entry.since_ns <= time_ns);
        // An agent before this one put it in force.
        then.or_else(|| entries.iter().find(of_event)).map(|entry| entry.plan.clone())
    }
}

#[cfg(test)]
mod tests {
    use enforcer_common::Mode;

    use super::*;
    use crate::telemetry::describe::tests::plan;

    fn address(number: u16) -> Address {
        let [high, low] = number.to_be_bytes();
        Address::from(std::net::IpAddr::from([10, 0, high, low]))
    }

    fn names(plans: &Plans, generation: u16, time: u64) -> Option<String> {
        let found = plans.find(address(1), 7, generation, time)?;
        found.decided_by.get(1).map(|decision| decision.policy.name.clone())
    }

    #[test]
    fn an_event_has_the_policy_of_its_generation_or_none() {
        let plans = Plans::default();
        plans.enter(100, [(address(1), 1, &plan(Mode::PERMISSIVE, "old"))].into_iter());
        plans.enter(200, [(address(1), 2, &plan(Mode::STRICT, "new"))].into_iter());
        assert_eq!(names(&plans, 1, 150).as_deref(), Some("old"));
        assert_eq!(names(&plans, 1, 250).as_deref(), Some("old"), "judged before the change, told after it");
        assert_eq!(names(&plans, 2, 200).as_deref(), Some("new"));
        assert_eq!(names(&plans, 1, 50).as_deref(), Some("old"), "in force since an agent before this one");
        assert_eq!(names(&plans, 3, 250), None, "rather none than a wrong one");
        assert!(plans.find(address(1), 8, 2, 250).is_none(), "another pod's");
    }

    #[test]
    fn policies_with_the_same_effect_are_told_apart_by_time() {
        let plans = Plans::default();
        plans.enter(100, [(address(1), 1, &plan(Mode::STRICT, "old"))].into_iter());
        plans.enter(200, [(address(1), 1, &plan(Mode::STRICT, "renamed"))].into_iter());
        assert_eq!(names(&plans, 1, 199).as_deref(), Some("old"));
        assert_eq!(names(&plans, 1, 200).as_deref(), Some("renamed"));
    }

    #[test]
    fn what_the_maps_refused_is_withdrawn() {
        let plans = Plans::default();
        plans.enter(100, [(address(1), 1, &plan(Mode::PERMISSIVE, "old"))].into_iter());
        plans.enter(200, [(address(1), 2, &plan(Mode::STRICT, "new"))].into_iter());
        plans.withdraw(7, 2);
        assert_eq!((names(&plans, 2, 250), names(&plans, 1, 250).as_deref()), (None, Some("old")));
    }

    #[test]
    fn it_is_bounded() {
        let plans = Plans::default();
        let strict = plan(Mode::STRICT, "policy");
        for generation in 1..1000 {
            plans.enter(u64::from(generation), [(address(1), generation, &strict)].into_iter());
        }
        assert_eq!((names(&plans, 999, 1000).is_some(), names(&plans, 900, 1000)), (true, None));
        for number in 2..5000 {
            plans.enter(2000, [(address(number), 1, &strict)].into_iter());
        }
        let held = plans.0.read().expect("no thread panicked");
        assert_eq!(held.len(), GONE + 1);
        assert!(held.values().all(|entries| entries.len() <= EACH));
    }
}
