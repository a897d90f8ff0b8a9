//! Where pods are: which addresses were seen behind which interface, and which pod may claim one of them.
//!
//! An address alone is no identity. A sandbox that was left over, or a pod that may change its own network, has the address
//! of another pod behind another interface; and an address is given to a new pod before the object of the old one is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::object::{ObjectName, Pod};

/// Where a pod's address was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Index of the host-side interface; 0: every one.
    pub ifindex: u32,
    /// Id of the pod's network namespace as this one numbers it; -1: unknown.
    pub netns_id: i32,
}

impl Place {
    /// Not known, or more than one: the policy counts on every hooked interface.
    pub const ANYWHERE: Self = Self { ifindex: 0, netns_id: -1 };
}

/// What was seen behind one interface.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Behind {
    netns_id: i32,
    addresses: BTreeSet<IpAddr>,
}

/// A pod that is no other one: another pod may get the same name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Identity {
    name: ObjectName,
    uid: String,
}

impl Identity {
    fn of(pod: &Pod) -> Self {
        Self { name: pod.name.clone(), uid: pod.uid.clone() }
    }
}

/// What is known of interfaces and of the pods behind them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Places {
    behind: BTreeMap<u32, Behind>,
    /// The interface of each pod; 0 once it is gone.
    homes: BTreeMap<Identity, u32>,
}

impl Places {
    /// An interface is there, and nothing is known of what is behind it.
    pub fn appeared(&mut self, ifindex: u32) {
        self.gone(ifindex);
        self.behind.insert(ifindex, Behind { netns_id: -1, addresses: BTreeSet::new() });
    }

    /// An interface is gone, or leads to another pod now.
    pub fn gone(&mut self, ifindex: u32) {
        self.behind.remove(&ifindex);
        // Kept: a pod on its way out does not move on to the next interface with its address.
        for home in self.homes.values_mut().filter(|home| **home == ifindex) {
            *home = 0;
        }
    }

    /// These addresses, and no others, are behind the interface. True when that is new.
    pub fn saw(&mut self, ifindex: u32, netns_id: i32, addresses: impl IntoIterator<Item = IpAddr>) -> bool {
        // Every namespace has these.
        let addresses = addresses.into_iter().filter(|address| !is_local(address)).collect();
        let seen = Behind { netns_id, addresses };
        match self.behind.get_mut(&ifindex) {
            Some(behind) if *behind != seen => {
                *behind = seen;
                true
            }
            _ => false,
        }
    }

    /// True while the interface is there.
    #[must_use]
    pub fn has(&self, ifindex: u32) -> bool {
        self.behind.contains_key(&ifindex)
    }

    /// True when an address was seen behind the interface.
    #[must_use]
    pub fn is_known(&self, ifindex: u32) -> bool {
        self.behind.get(&ifindex).is_some_and(|behind| !behind.addresses.is_empty())
    }

    /// The addresses that were seen behind the interface.
    #[must_use]
    pub fn behind(&self, ifindex: u32) -> BTreeSet<IpAddr> {
        self.behind.get(&ifindex).map(|behind| behind.addresses.clone()).unwrap_or_default()
    }

    /// Interfaces behind which an address was seen.
    #[must_use]
    pub fn known(&self) -> BTreeSet<u32> {
        self.behind.keys().copied().filter(|ifindex| self.is_known(*ifindex)).collect()
    }

    /// The interfaces behind which this address was seen.
    #[must_use]
    pub fn of(&self, address: &IpAddr) -> Vec<u32> {
        let having = self.behind.iter().filter(|(_, behind)| behind.addresses.contains(address));
        having.map(|(ifindex, _)| *ifindex).collect()
    }

    /// The interfaces of the pod behind this one, itself included: Linux takes packets for the address of one by any of them.
    fn siblings(&self, ifindex: u32) -> impl Iterator<Item = u32> {
        let netns_id = self.behind.get(&ifindex).map_or(-1, |behind| behind.netns_id);
        let of_pod = move |(other, behind): &(&u32, &Behind)| {
            **other == ifindex || (netns_id >= 0 && behind.netns_id == netns_id)
        };
        self.behind.iter().filter(of_pod).map(|(ifindex, _)| *ifindex)
    }

    /// The interfaces of the pod with this address; more than one pod's where several have it.
    #[must_use]
    pub fn interfaces(&self, address: &IpAddr) -> BTreeSet<u32> {
        self.of(address).into_iter().flat_map(|ifindex| self.siblings(ifindex)).collect()
    }

    /// Addresses behind more than one interface, with these.
    #[must_use]
    pub fn shared(&self) -> BTreeMap<IpAddr, Vec<u32>> {
        let mut all: BTreeMap<IpAddr, Vec<u32>> = BTreeMap::new();
        for (ifindex, behind) in &self.behind {
            for address in &behind.addresses {
                all.entry(*address).or_default().push(*ifindex);
            }
        }
        all.retain(|_, interfaces| interfaces.len() > 1);
        all
    }

    /// Notes where pods are. A pod that is `leaving` keeps the interface that it had; when none is known, `before` may
    /// know it from the agent before this one.
    pub fn settle<'a>(
        &mut self,
        pods: impl IntoIterator<Item = (&'a Pod, bool)>,
        before: impl Fn(&Pod) -> Option<u32>,
    ) {
        let mut homes = BTreeMap::new();
        for (pod, leaving) in pods {
            let identity = Identity::of(pod);
            let known = self.homes.get(&identity).copied();
            let now = || {
                pod.addresses.iter().find_map(|address| match self.of(address)[..] {
                    [one] => Some(one),
                    _ => None,
                })
            };
            let home = if leaving {
                known.or_else(|| before(pod).map(|home| if self.has(home) { home } else { 0 })).or_else(now)
            } else {
                now().or(known)
            };
            if let Some(home) = home {
                homes.insert(identity, home);
            }
        }
        self.homes = homes;
    }

    /// The interface of a pod, as far as one is known.
    #[must_use]
    pub fn home(&self, pod: &Pod) -> Option<u32> {
        self.homes.get(&Identity::of(pod)).copied().filter(|home| self.has(*home))
    }

    /// Where this address is this pod's; `None`: it is another pod's by now. A pod that lives follows its address; one that is
    /// leaving (deleted, being deleted, finished) has it behind its own interface or not at all.
    #[must_use]
    pub fn claim(&self, pod: &Pod, leaving: bool, address: &IpAddr) -> Option<Place> {
        let place = |ifindex: u32| Place {
            ifindex: if self.siblings(ifindex).count() > 1 { 0 } else { ifindex },
            netns_id: self.behind.get(&ifindex).map_or(-1, |behind| behind.netns_id),
        };
        let found = self.of(address);
        match (self.homes.get(&Identity::of(pod)), &found[..]) {
            (Some(home), _) if leaving => {
                let own = self.has(*home) && (found.is_empty() || found.contains(home));
                own.then(|| place(*home))
            }
            (_, [one]) => Some(place(*one)),
            _ => Some(Place::ANYWHERE),
        }
    }
}

fn is_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;
