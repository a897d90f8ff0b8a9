//! What the policy says for a flow, and for packets that are no flow's.

use super::{Act, Decision, Env, ResetNumbers, refusal};
use crate::flow::Policy;
use crate::map::{Endpoint, ExemptKind, FlowKey, PortKey, endpoint_flags, port_flags};
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
            Decision { verdict: Verdict::WOULD_RESET, reason, report: true, ..Decision::PASS }
        }
        Enforcement::ENFORCE => {
            Decision { act: Act::Drop, verdict: Verdict::DROP, reason, report: true, ..Decision::PASS }
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
    Decision { reason: Reason::UNKNOWN_POD, report: true, ..refusal(env, numbers) }
}

/// The policy for one flow at this moment.
#[inline(always)]
pub fn policy<E: Env>(env: &E, endpoint: &Endpoint, key: &FlowKey) -> Policy {
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
    if env.is_own_probe(key) {
        policy.exempt = Reason::PROBE;
        return policy;
    }
    // Under PERMISSIVE nothing depends on it but what is counted: who is exempt would not break under STRICT.
    if policy.mode != Mode::DISABLE {
        match env.exempt(&key.client) {
            Some(ExemptKind::SOURCE) => policy.exempt = Reason::EXEMPT_SOURCE,
            Some(ExemptKind::NODE) if probe_port => policy.exempt = Reason::PROBE,
            _ => {}
        }
    }
    policy
}
