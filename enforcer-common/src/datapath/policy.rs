//! What the policy says for a flow, and for packets that are no flow's.

use super::{Act, Decision, Env, ResetNumbers, refusal};
use crate::flow::Policy;
use crate::map::{Endpoint, ExemptKind, FlowKey, PortKey, endpoint_flags, flow_flags, port_flags};
use crate::settings::Enforcement;
use crate::tcp::{ACK, RST, SYN, Segment};
use crate::{Address, Mode, Reason, Verdict};

/// A packet to or from the endpoint whose ports or bytes cannot be read: held to the strictest mode of the endpoint.
/// `source`: the address of the remote end.
#[inline(always)]
pub fn unreadable<E: Env>(env: &E, endpoint: &Endpoint, source: &Address, reason: Reason) -> Decision {
    let unjudged = endpoint_flags::NOT_MESHED | endpoint_flags::LEARNING;
    if endpoint.flags & endpoint_flags::ANY_STRICT == 0 || endpoint.flags & unjudged != 0 {
        return Decision::PASS;
    }
    if matches!(env.exempt(source), Some(ExemptKind::SOURCE)) {
        return Decision::PASS;
    }
    match env.enforcement() {
        Enforcement::AUDIT => {
            Decision { verdict: Verdict::WOULD_RESET, reason, stray: true, ..Decision::PASS }
        }
        Enforcement::ENFORCE => {
            Decision { act: Act::Drop, verdict: Verdict::DROP, reason, stray: true, ..Decision::PASS }
        }
    }
}

/// A new connection to an address that is no endpoint, on a pod's interface, while unknown pods are held to STRICT.
#[inline(always)]
pub fn unknown_pod<E: Env>(env: &E, segment: &Segment) -> Decision {
    if !segment.has(SYN) || segment.has(ACK | RST) {
        return Decision::PASS;
    }
    let client_ack = segment.seq.wrapping_add(segment.payload_len).wrapping_add(1);
    let numbers = ResetNumbers { client_seq: 0, client_ack, pod_seq: segment.seq, pod_ack: 0 };
    let refused = refusal(env, numbers);
    // A SYN that gets no answer comes again.
    let report = refused.act != Act::Drop;
    Decision { reason: Reason::UNKNOWN_POD, report, stray: !report, ..refused }
}

/// The policy for one flow at this moment; `known`: the [`flow_flags`] of its entry, 0 where there is none.
#[inline(always)]
pub fn policy<E: Env>(env: &E, endpoint: &Endpoint, key: &FlowKey, known: u16) -> Policy {
    let mut policy =
        Policy { mode: endpoint.mode, exempt: Reason::NONE, blocked: false, generation: endpoint.generation };
    let mut probe_port = false;
    if endpoint.flags & endpoint_flags::HAS_PORTS != 0 {
        let port =
            PortKey { workload: endpoint.workload, generation: endpoint.generation, port: key.pod_port };
        if let Some(port) = env.port_mode(&port) {
            policy.mode = port.mode;
            policy.blocked = port.flags & port_flags::BLOCKED != 0;
            probe_port = port.flags & port_flags::PROBE != 0;
            if port.flags & port_flags::EXEMPT != 0 {
                policy.exempt = Reason::EXEMPT_PORT;
                return policy;
            }
        }
    }
    if known & flow_flags::OWN_PROBE != 0 || env.is_own_probe(key) {
        // Whatever the server answers to a check is for the agent to judge.
        policy.exempt = Reason::PROBE;
        return policy;
    }
    // Under PERMISSIVE nothing depends on it but what is counted: who is exempt would not break under STRICT.
    if policy.mode != Mode::DISABLE {
        match env.exempt(&key.client) {
            Some(ExemptKind::SOURCE) => policy.exempt = Reason::EXEMPT_SOURCE,
            // What the node forwards may carry its address too (a NodePort, a load balancer): its address alone exempts nobody.
            // The pod's packets do not carry that socket, so the flow remembers it.
            Some(ExemptKind::NODE)
                if probe_port && (known & flow_flags::NODE_PROBE != 0 || env.is_node_probe(key)) =>
            {
                policy.exempt = Reason::PROBE;
            }
            _ => {}
        }
    }
    policy
}
