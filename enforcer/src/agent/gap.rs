//! How long a new pod's interface is there before the pod's policy is in the maps.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use enforcer_common::Address;

/// What is still open: interfaces without an endpoint yet, endpoints without an interface yet.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    appeared: BTreeMap<u32, Instant>,
    entered: BTreeMap<Address, Instant>,
}

impl Gaps {
    /// An interface appeared.
    pub(super) fn appeared(&mut self, ifindex: u32, now: Instant) {
        self.appeared.entry(ifindex).or_insert(now);
    }

    /// An interface is gone.
    pub(super) fn gone(&mut self, ifindex: u32) {
        self.appeared.remove(&ifindex);
    }

    /// The policy of an address is in the maps for the first time.
    pub(super) fn entered(&mut self, address: Address, now: Instant) {
        self.entered.entry(address).or_insert(now);
    }

    /// An address that is in the maps was found behind an interface: how long it was there without the policy; once for
    /// each interface.
    pub(super) fn found(&mut self, address: Address, ifindex: u32) -> Option<Duration> {
        let entered = *self.entered.get(&address)?;
        let appeared = self.appeared.remove(&ifindex)?;
        // Policy that was there before the interface: no gap at all.
        Some(entered.saturating_duration_since(appeared))
    }

    /// Forgets addresses that are endpoints no more.
    pub(super) fn retain(&mut self, is_endpoint: impl Fn(&Address) -> bool) {
        self.entered.retain(|address, _| is_endpoint(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_measured_once_and_never_negative() {
        let address = Address::from(std::net::IpAddr::from([10, 0, 0, 1]));
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut gaps = Gaps::default();
        gaps.appeared(7, after(0));
        assert_eq!(gaps.found(address, 7), None, "not in the maps yet");
        gaps.entered(address, after(30));
        assert_eq!(gaps.found(address, 7), Some(Duration::from_millis(30)));
        assert_eq!(gaps.found(address, 7), None, "told already");
        gaps.appeared(8, after(40));
        assert_eq!(gaps.found(address, 8), Some(Duration::ZERO), "policy was there first");
        gaps.appeared(9, after(50));
        gaps.gone(9);
        assert_eq!(gaps.found(address, 9), None);
        gaps.appeared(10, after(60));
        gaps.retain(|_| false);
        assert_eq!(gaps.found(address, 10), None);
    }
}
