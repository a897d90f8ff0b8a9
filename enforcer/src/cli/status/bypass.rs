//! Pods that packets reach past the hook on the host side of their interface, by what the kernel side saw of their answers.

use std::net::IpAddr;

use enforcer_common::map::endpoint_flags;
use schemars::JsonSchema;
use serde::Serialize;

use crate::agent::monotonic_ns;
use crate::cli::node::Node;
use crate::datapath::maps::{BypassedPods, Endpoints};

/// A pod that is not enforced.
#[derive(Clone, PartialEq, Debug, Serialize, JsonSchema)]
pub(in crate::cli) struct BypassedPod {
    /// `namespace/name`.
    pub(super) pod: String,
    /// Its address.
    pub(in crate::cli) address: IpAddr,
    /// The host side of its interface, by name where that is known.
    pub(super) interface: String,
    /// The same by index.
    pub(super) ifindex: u32,
    /// Packets of the pod that acknowledge what came past the hook.
    pub(super) packets: u64,
    /// The client of the last one.
    pub(super) client: IpAddr,
    /// The port of the pod that it spoke to.
    pub(super) port: u16,
    /// Seconds since the last one.
    pub(super) last_seconds_ago: u64,
}

/// Reads the evidence; void against pods that are enforced at their own device, or not listed any more.
pub(in crate::cli) fn read(node: &Node) -> anyhow::Result<Vec<BypassedPod>> {
    let endpoints = Endpoints::new("ENDPOINTS", node.pinned.map("ENDPOINTS")?)?;
    let mut pods = Vec::new();
    for (address, evidence) in BypassedPods::new("BYPASSED", node.pinned.map("BYPASSED")?)?.entries()? {
        let Some(endpoint) = endpoints.get(&address)? else { continue };
        if endpoint.flags & (endpoint_flags::POD_SIDE | endpoint_flags::NOT_MESHED) != 0 {
            continue;
        }
        let index = evidence.ifindex;
        let known = node.state.interfaces.iter().find(|interface| interface.index == index);
        let age = monotonic_ns().saturating_sub(evidence.last_ns);
        pods.push(BypassedPod {
            pod: node.pod(endpoint.workload),
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

impl BypassedPod {
    /// One sentence for a person.
    pub(super) fn problem(&self) -> String {
        let Self { pod, interface, packets, client, port, last_seconds_ago, .. } = self;
        format!(
            "packets reach pod {pod} past the hook on {interface} (it answered {packets} that were not seen there, the last {last_seconds_ago} s ago, \
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
