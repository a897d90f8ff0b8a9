//! Pods that packets reach past the hook on the host side of their interface, by what the kernel side saw of their answers.

use std::net::IpAddr;

use enforcer_common::map::endpoint_flags;
use schemars::JsonSchema;
use serde::Serialize;

use crate::agent::monotonic_ns;
use crate::agent::state::State;
use crate::datapath::Pinned;
use crate::datapath::maps::{BypassedPods, Endpoints};

/// A pod that is not enforced.
#[derive(Clone, PartialEq, Debug, Serialize, JsonSchema)]
pub struct BypassedPod {
    /// `namespace/name`.
    pub pod: String,
    /// Its address.
    pub address: IpAddr,
    /// The host side of its interface, by name where that is known.
    pub interface: String,
    /// The same by index.
    pub ifindex: u32,
    /// Packets of the pod that acknowledge what came past the hook.
    pub packets: u64,
    /// The client of the last one.
    pub client: IpAddr,
    /// The port of the pod that it spoke to.
    pub port: u16,
    /// Seconds since the last one.
    pub last_seconds_ago: u64,
}

/// Reads the evidence; void against pods that are enforced at their own device, or not listed any more.
///
/// # Errors
/// When a map cannot be read.
pub fn read(pinned: &Pinned, state: &State) -> anyhow::Result<Vec<BypassedPod>> {
    let endpoints = Endpoints::new("ENDPOINTS", pinned.map("ENDPOINTS")?)?;
    let mut pods = Vec::new();
    for (address, evidence) in BypassedPods::new("BYPASSED", pinned.map("BYPASSED")?)?.entries()? {
        let Some(endpoint) = endpoints.get(&address)? else { continue };
        if endpoint.flags & (endpoint_flags::POD_SIDE | endpoint_flags::NOT_MESHED) != 0 {
            continue;
        }
        let index = evidence.ifindex;
        let known = state.interfaces.iter().find(|interface| interface.index == index);
        let age = monotonic_ns().saturating_sub(evidence.last_ns);
        pods.push(BypassedPod {
            pod: pod(state, endpoint.workload),
            address: address.into(),
            interface: known.map_or_else(|| format!("interface {index}"), |known| known.name.clone()),
            ifindex: index,
            packets: evidence.packets,
            client: evidence.client.into(),
            port: evidence.port,
            last_seconds_ago: std::time::Duration::from_nanos(age).as_secs(),
        });
    }
    pods.sort_by(|a, b| (&a.pod, a.address).cmp(&(&b.pod, b.address)));
    Ok(pods)
}

fn pod(state: &State, workload: u32) -> String {
    let found = state.workloads.iter().find(|(_, id)| **id == workload);
    found.map_or_else(|| format!("workload {workload}"), |(pod, _)| pod.clone())
}

/// How every sentence about such a pod begins.
pub(super) const BEGINNING: &str = "packets reach pod ";

impl BypassedPod {
    /// One sentence for a person.
    #[must_use]
    pub fn problem(&self) -> String {
        let Self { pod, interface, packets, client, port, last_seconds_ago, .. } = self;
        format!(
            "{BEGINNING}{pod} past the hook on {interface} (it answered {packets} that were not seen there, the last {last_seconds_ago} s ago, \
             client {client}, port {port}): it is not enforced; run with --attach auto or pod"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_told_which_pod_and_what_to_do() {
        let pod = BypassedPod {
            pod: "shop/web".into(),
            address: IpAddr::from([10, 0, 0, 2]),
            interface: "veth1".into(),
            ifindex: 7,
            packets: 3,
            client: IpAddr::from([10, 0, 0, 9]),
            port: 8080,
            last_seconds_ago: 4,
        };
        let text = pod.problem();
        assert!(text.starts_with("packets reach pod shop/web past the hook on veth1 ("), "{text}");
        assert!(text.ends_with("): it is not enforced; run with --attach auto or pod"), "{text}");
    }
}
