//! Which packets are an endpoint's. A pod is enforced either at the host side of its interface or at its own device: no packet
//! is looked at twice, also while it changes over and programs are at both places.

use enforcer_common::map::{Endpoint, endpoint_flags};

use crate::skb::Skb;

/// Where a program runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// On the host-side interface, in the node's network namespace.
    Host,
    /// On the pod's own device, in the pod's.
    Pod,
}

/// Whether a packet with an endpoint's address is the endpoint's. An index says little in a pod, whose device has the same one
/// as those of others; so the entry program of each pod stamps its packets with the pod's namespace.
#[inline(always)]
pub fn is_here(skb: &Skb, endpoint: &Endpoint, side: Side) -> bool {
    let pod_side = endpoint.flags & endpoint_flags::POD_SIDE != 0;
    match side {
        Side::Host => !pod_side && (endpoint.ifindex == 0 || endpoint.ifindex == skb.ifindex()),
        Side::Pod if pod_side => endpoint.ifindex == skb.ifindex() && endpoint.netns_id == skb.stamp(),
        Side::Pod => endpoint.ifindex == 0,
    }
}

/// The link that a pod's link-local addresses are on.
#[inline(always)]
pub fn link(skb: &Skb, side: Side) -> u32 {
    match side {
        Side::Host => skb.ifindex(),
        Side::Pod => skb.stamp(),
    }
}

/// Whether an endpoint that is not here may be this pod all the same, enforced at the other end. An endpoint that is here is not
/// asked about.
#[inline(always)]
pub fn is_of_other_side(endpoint: &Endpoint, side: Side) -> bool {
    let pod_side = endpoint.flags & endpoint_flags::POD_SIDE != 0;
    pod_side != matches!(side, Side::Pod)
}
