//! What happens to a packet of a meshed pod: the rules that tie endpoints, half-open connections, flows and policy
//! together. The kernel programs and the model in the tests run this same code over different tables.
//!
//! Who opened a flow is decided by the handshake alone: the pod's SYN-ACK makes a half-open entry, the client's packet
//! that acknowledges exactly the pod's initial sequence number makes the flow. A SYN of the pod marks its own outbound
//! connection, which is never judged.

use core::ops::DerefMut;

use crate::flow::{Opinion, Policy, Window};
use crate::map::{
    Endpoint, ExemptKind, Flow, FlowKey, FlowState, HalfOpen, PortKey, PortMode, endpoint_flags, flow_flags,
};
use crate::settings::{Action, Enforcement};
use crate::tcp::{ACK, FIN, RST, SYN, Segment};
use crate::tls::{CLIENT_PREFIX, POD_PREFIX};
use crate::{Address, Reason, Verdict};

mod bypass;
mod decision;
mod lifetime;
mod policy;

pub use self::decision::{Act, Carried, Decision, HelloPart, ResetNumbers};
pub use self::lifetime::end_of_socket;
use self::lifetime::{note_fin, note_pod_rst, protect};
pub use self::policy::{policy, unknown_pod, unreadable};

/// The tables of flows.
pub trait FlowTables {
    /// A flow entry that can be changed in place.
    type FlowRef<'a>: DerefMut<Target = Flow>
    where
        Self: 'a;

    /// Looks a flow up in `FLOWS`, then in `TRANSIENT`.
    fn flow(&self, key: &FlowKey) -> Option<Self::FlowRef<'_>>;
    /// Enters a flow in `TRANSIENT`; false when the table does not take it.
    fn insert_flow(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Enters a flow in `FLOWS`; false when the table is full.
    fn protect(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Removes a flow from `FLOWS`.
    fn unprotect(&self, key: &FlowKey);
}

/// The tables and the packet that a decision is made from.
pub trait Env: FlowTables {
    /// Ties the socket that sent the packet to a flow; false where its close is not seen.
    fn tag_socket(&self, key: &FlowKey, pod_start: u32) -> bool;
    /// Looks a connection up in `HALF_OPEN`.
    fn half_open(&self, key: &FlowKey) -> Option<HalfOpen>;
    /// Enters a half-open connection.
    fn insert_half_open(&self, key: &FlowKey, half_open: &HalfOpen);
    /// Removes a half-open connection.
    fn remove_half_open(&self, key: &FlowKey);
    /// Whether the pod opened this connection itself.
    fn is_outbound(&self, key: &FlowKey) -> bool;
    /// Enters a connection of the pod's own; `pod_isn`: its initial sequence number.
    fn insert_outbound(&self, key: &FlowKey, pod_isn: u32);
    /// Removes a connection of the pod's own.
    fn remove_outbound(&self, key: &FlowKey);
    /// Looks a port up in `PORT_MODES`.
    fn port_mode(&self, key: &PortKey) -> Option<PortMode>;
    /// Looks a source address up in `EXEMPT`.
    fn exempt(&self, source: &Address) -> Option<ExemptKind>;
    /// Whether verdicts are carried out.
    fn enforcement(&self) -> Enforcement;
    /// What is done with a refused connection.
    fn action(&self) -> Action;
    /// How long a client may take from its first byte to its sixth, ns.
    fn undecided_ns(&self) -> u64;
    /// How many bytes of the stream of a TLS client go to user space.
    fn hello_bytes(&self) -> u32;
    /// The monotonic clock, ns.
    fn now_ns(&self) -> u64;
    /// Notes that the pod has received packets of this connection that `to_pod` did not see.
    fn note_bypass(&self, key: &FlowKey);
    /// The packet was sent by the agent itself, to check the server.
    fn is_own_probe(&self, key: &FlowKey) -> bool;
    /// The bytes of the packet's payload that fall on the first `limit` (at most 6) bytes of the stream that starts at
    /// sequence number `start`.
    fn window(&self, segment: &Segment, start: u32, limit: u32) -> Window;
}

/// True when the flow needs no look at this packet: the hot path. Counts the packet.
#[inline(always)]
pub fn passes_settled(flow: &mut Flow, endpoint: &Endpoint, segment: &Segment) -> bool {
    let settled = flow_flags::SETTLED;
    let settled = flow.flags & (settled | flow_flags::REOPENING | flow_flags::GONE) == settled;
    settled && flow.generation == endpoint.generation && !segment.has(SYN | RST | FIN)
}

/// Decides about a TCP packet towards the pod.
#[inline(always)]
pub fn to_pod<E: Env>(env: &E, endpoint: &Endpoint, key: &FlowKey, segment: &Segment) -> Decision {
    if endpoint.flags & endpoint_flags::NOT_MESHED != 0 {
        return Decision::PASS;
    }
    if segment.has(RST) {
        // A RST carries no data to the application and never changes what is known of a flow; the pod's own stack
        // decides whether it is genuine.
        if let Some(mut flow) = env.flow(key) {
            flow.look_again();
        }
        return Decision::PASS;
    }
    if segment.has(SYN) {
        return syn_to_pod(env, endpoint, key, segment);
    }
    // Once the pod has answered a new SYN, the old connection is gone in its stack, and so is what was known of it.
    let mut found = env.flow(key).filter(|flow| flow.flags & flow_flags::REOPENING == 0);
    let mut full = false;
    if found.is_none() {
        if env.is_outbound(key) {
            return Decision::PASS;
        }
        if let Some(half_open) = env.half_open(key) {
            let acknowledges = segment.has(ACK) && segment.ack == half_open.pod_isn.wrapping_add(1);
            if acknowledges && segment.seq == half_open.client_isn.wrapping_add(1) {
                found = promote(env, endpoint, key, &half_open);
                full = found.is_none();
            } else if (acknowledges || segment.payload_len == 0) && holds(env, endpoint, key) {
                // Under SYN cookies the pod makes a socket from any number it ever gave out for this tuple. Only the numbers
                // known here may open one: anything else would be judged at the wrong place of its stream.
                return Decision::WAIT;
            }
        }
    }
    if let Some(mut flow) = found {
        return client_segment(env, endpoint, key, segment, &mut flow);
    }
    let numbers =
        ResetNumbers { client_seq: segment.ack, client_ack: 0, pod_seq: segment.seq, pod_ack: segment.ack };
    let decision = unknown_flow(env, endpoint, key, segment, numbers, full);
    if full && decision.act == Act::Pass && segment.payload_len > 0 {
        // It goes on unfollowed. What the pod says to it must not look as if it had come past this hook.
        env.remove_half_open(key);
    }
    decision
}

/// Decides about a TCP packet from the pod.
#[inline(always)]
pub fn from_pod<E: Env>(env: &E, endpoint: &Endpoint, key: &FlowKey, segment: &Segment) -> Decision {
    if endpoint.flags & endpoint_flags::NOT_MESHED != 0 {
        return Decision::PASS;
    }
    if segment.has(RST) {
        return note_pod_rst(env, key);
    }
    if segment.has(SYN) {
        if segment.has(ACK) {
            syn_ack_from_pod(env, key, segment);
        } else {
            if let Some(mut flow) = env.flow(key) {
                // The pod uses the tuple of an old inbound connection for one of its own: the old one is gone in its stack.
                flow.flags |= flow_flags::REOPENING;
            }
            env.insert_outbound(key, segment.seq);
        }
        return Decision::PASS;
    }
    let mut found = env.flow(key).filter(|flow| flow.flags & flow_flags::REOPENING == 0);
    let mut full = false;
    if found.is_none() {
        if env.is_outbound(key) {
            return Decision::PASS;
        }
        if let Some(half_open) = env.half_open(key)
            && segment.seq == half_open.pod_isn.wrapping_add(1)
        {
            if bypass::acknowledges_unseen(segment, half_open.client_isn.wrapping_add(1)) {
                env.note_bypass(key);
            } else if segment.payload_len > 0 {
                // The pod speaks before the handshake is done, as TCP fast open lets it.
                found = promote(env, endpoint, key, &half_open);
                full = found.is_none();
            }
        }
    }
    if let Some(mut flow) = found {
        return pod_segment(env, endpoint, key, segment, &mut flow);
    }
    let numbers =
        ResetNumbers { client_seq: segment.seq, client_ack: 0, pod_seq: segment.ack, pod_ack: segment.seq };
    unknown_flow(env, endpoint, key, segment, numbers, full)
}

/// Whether segments of this flow are kept waiting until they can be judged.
#[inline(always)]
fn holds<E: Env>(env: &E, endpoint: &Endpoint, key: &FlowKey) -> bool {
    endpoint.flags & endpoint_flags::LEARNING == 0
        && env.enforcement() == Enforcement::ENFORCE
        && policy(env, endpoint, key).is_enforced()
}

/// A SYN never touches an entry. Its data, if any, is cut off, so that the stream starts after the handshake.
#[inline(always)]
fn syn_to_pod<E: Env>(env: &E, endpoint: &Endpoint, key: &FlowKey, segment: &Segment) -> Decision {
    if segment.payload_len == 0 || segment.has(ACK) {
        return Decision::PASS;
    }
    let policy = policy(env, endpoint, key);
    if policy.exempt != Reason::NONE || env.enforcement() == Enforcement::AUDIT {
        return Decision::PASS;
    }
    Decision { act: Act::TrimSyn, verdict: Verdict::WAIT, reason: Reason::SYN_DATA_TRIMMED, ..Decision::PASS }
}

#[inline(always)]
fn syn_ack_from_pod<E: Env>(env: &E, key: &FlowKey, segment: &Segment) {
    if let Some(mut flow) = env.flow(key) {
        if flow.pod_start == segment.seq.wrapping_add(1) && flow.client_start == segment.ack {
            // Sent again because the pod missed the client's ACK: the flow is the same.
            return;
        }
        flow.flags |= flow_flags::REOPENING;
    }
    env.insert_half_open(key, &HalfOpen { client_isn: segment.ack.wrapping_sub(1), pod_isn: segment.seq });
    env.remove_outbound(key);
}

/// The handshake is complete (or the pod did not wait for it): the connection becomes a flow. `None` when the table takes
/// no more; the half-open entry stays then, and the packet that is sent again gets another try.
#[inline(always)]
fn promote<'a, E: Env>(
    env: &'a E,
    endpoint: &Endpoint,
    key: &FlowKey,
    half_open: &HalfOpen,
) -> Option<E::FlowRef<'a>> {
    let flow = Flow::open(half_open, endpoint.workload, endpoint.generation, env.now_ns());
    // What an earlier connection of this tuple left in the table that is looked at first.
    env.unprotect(key);
    if !env.insert_flow(key, &flow) {
        return None;
    }
    env.remove_half_open(key);
    env.flow(key)
}

#[inline(always)]
fn client_segment<E: Env>(
    env: &E,
    endpoint: &Endpoint,
    key: &FlowKey,
    segment: &Segment,
    flow: &mut Flow,
) -> Decision {
    flow.packets_to_pod += 1;
    if passes_settled(flow, endpoint, segment) {
        flow.bytes_to_pod += u64::from(segment.payload_len);
        return Decision::PASS;
    }
    if env.is_own_probe(key) {
        flow.flags |= flow_flags::OWN_PROBE;
    }
    let policy = policy(env, endpoint, key);
    let hold = policy.is_enforced() && env.enforcement() == Enforcement::ENFORCE;
    if hold && flow.flags & flow_flags::GONE != 0 && segment.payload_len > 0 {
        // Answered as the pod's stack answers what is for no one. Under SYN cookies it might instead make a socket of an old
        // handshake, and take this for its first data.
        let numbers = ResetNumbers {
            client_seq: segment.ack,
            client_ack: 0,
            pod_seq: flow.pod_ack,
            pod_ack: segment.ack,
        };
        return Decision { verdict: Verdict::NONE, ..refusal(env, numbers) };
    }
    if hold && flow.is_unconfirmed() && segment.ack != flow.pod_start {
        // Not of this handshake: for all we know, of another one that the pod answered for the same tuple.
        return Decision::WAIT;
    }
    let now = env.now_ns();
    let window = if flow.flags & flow_flags::PREFIX_ACKED == 0 && segment.payload_len > 0 {
        env.window(segment, flow.client_start, CLIENT_PREFIX)
    } else {
        Window::default()
    };
    let seen = flow.observe_client(segment, &window, hold, now, env.undecided_ns());
    let payload = segment.payload_len > 0;
    let opinion = flow.decide(&policy, key.pod_port, payload).of(seen, &policy);
    if seen.early && hold && opinion == Opinion::Undecided {
        return Decision::WAIT;
    }
    // The client's next byte is what the pod expects, unless it is sent again; then the pod's challenge is answered exactly.
    let pod_seq = if flow.pod_ack_is_unknown() { segment.seq } else { flow.pod_ack };
    let numbers = ResetNumbers { client_seq: segment.ack, client_ack: 0, pod_seq, pod_ack: segment.ack };
    let mut decision = conclude(env, flow, opinion, &policy, key.pod_port, now, numbers);
    if decision.act == Act::Pass {
        flow.bytes_to_pod += u64::from(segment.payload_len);
        if segment.payload_len > 0 {
            decision.hello = flow.hello_part(segment, env.hello_bytes());
            decision.pending = hold && flow.is_incomplete();
        }
    }
    if decision.report || decision.hello.count > 0 {
        decision.carried = flow.carried();
    }
    if decision.act == Act::Pass && segment.has(FIN) {
        note_fin(env, key, flow, flow_flags::CLIENT_FIN, &mut decision);
    }
    decision
}

#[inline(always)]
fn pod_segment<E: Env>(
    env: &E,
    endpoint: &Endpoint,
    key: &FlowKey,
    segment: &Segment,
    flow: &mut Flow,
) -> Decision {
    flow.packets_from_pod += 1;
    if passes_settled(flow, endpoint, segment) {
        flow.note_pod_ack(segment);
        flow.bytes_from_pod += u64::from(segment.payload_len);
        return Decision::PASS;
    }
    let unheard = bypass::is_unheard(flow);
    if unheard && bypass::acknowledges_unseen(segment, flow.client_start) {
        env.note_bypass(key);
    }
    let mut policy = policy(env, endpoint, key);
    if flow.flags & flow_flags::OWN_PROBE != 0 {
        // Whatever the server answers to a check is for the agent to judge.
        policy.exempt = Reason::PROBE;
    }
    let hold = policy.is_enforced() && env.enforcement() == Enforcement::ENFORCE;
    let window = if segment.payload_len > 0 && matches!(flow.state, FlowState::OPEN | FlowState::HELLO) {
        env.window(segment, flow.pod_start, POD_PREFIX)
    } else {
        Window::default()
    };
    let seen = flow.observe_pod(segment, &window, hold);
    if seen.early {
        return Decision::WAIT;
    }
    let opinion = flow.decide(&policy, key.pod_port, false).of(seen, &policy);
    let numbers =
        ResetNumbers { client_seq: segment.seq, client_ack: 0, pod_seq: segment.ack, pod_ack: segment.seq };
    let mut decision = conclude(env, flow, opinion, &policy, key.pod_port, env.now_ns(), numbers);
    if flow.flags & flow_flags::TAGGED == 0 && env.tag_socket(key, flow.pod_start) {
        flow.flags |= flow_flags::TAGGED;
    }
    if decision.act == Act::Pass {
        let answered = flow.bytes_from_pod > 0;
        flow.bytes_from_pod += u64::from(segment.payload_len);
        if !protect(env, key, flow) && hold && !answered {
            // It could be pushed out while it lives. Its first answer waits until there is room.
            flow.bytes_from_pod = 0;
            return Decision {
                act: Act::Drop,
                verdict: Verdict::DROP,
                reason: Reason::UNDECIDED,
                ..Decision::PASS
            };
        }
    }
    if unheard {
        // Each of its segments is looked at until the client is heard.
        flow.flags &= !flow_flags::SETTLED;
    }
    if decision.report {
        decision.carried = flow.carried();
    }
    if decision.act == Act::Pass && segment.has(FIN) {
        note_fin(env, key, flow, flow_flags::POD_FIN, &mut decision);
    }
    decision
}

/// Turns an opinion into a decision and enters it in the flow.
#[inline(always)]
fn conclude<E: Env>(
    env: &E,
    flow: &mut Flow,
    opinion: Opinion,
    policy: &Policy,
    pod_port: u16,
    now_ns: u64,
    numbers: ResetNumbers,
) -> Decision {
    let (mut decision, reason) = match opinion {
        Opinion::Undecided => {
            flow.generation = policy.generation;
            return Decision::PASS;
        }
        Opinion::Allow(reason) => (Decision { verdict: Verdict::ALLOW, ..Decision::PASS }, reason),
        Opinion::Refuse(reason) => (refusal(env, numbers), reason),
    };
    decision.reason = reason;
    decision.state = flow.state;
    decision.class = flow.class(pod_port);
    decision.report = flow.enter(decision.verdict, reason, policy.generation, now_ns);
    if decision.names_client() {
        decision.new_client = flow.count_client(decision.class);
    }
    flow.settle();
    if decision.act == Act::Reset {
        flow.flags |= flow_flags::ENDED;
    }
    if decision.verdict == Verdict::ALLOW && !decision.report {
        decision.verdict = Verdict::NONE;
    }
    decision
}

/// How a refusal is carried out under the settings of this moment.
#[inline(always)]
fn refusal<E: Env>(env: &E, numbers: ResetNumbers) -> Decision {
    let (act, verdict) = match (env.enforcement(), env.action()) {
        (Enforcement::AUDIT, _) => (Act::Pass, Verdict::WOULD_RESET),
        (Enforcement::ENFORCE, Action::DROP) => (Act::Drop, Verdict::DROP),
        (Enforcement::ENFORCE, Action::RESET) => (Act::Reset, Verdict::RESET),
    };
    Decision { act, verdict, numbers, ..Decision::PASS }
}

/// A packet whose handshake was never seen. Without data it is harmless: a connection that it might open has no flow, so
/// its first byte ends up here. `full`: the handshake was seen, and the table of flows takes no more.
#[inline(always)]
fn unknown_flow<E: Env>(
    env: &E,
    endpoint: &Endpoint,
    key: &FlowKey,
    segment: &Segment,
    numbers: ResetNumbers,
    full: bool,
) -> Decision {
    if segment.payload_len == 0 || endpoint.flags & endpoint_flags::LEARNING != 0 {
        return Decision::PASS;
    }
    if !policy(env, endpoint, key).is_enforced() {
        return Decision::PASS;
    }
    if full && env.enforcement() == Enforcement::ENFORCE {
        // Without an entry nothing can be judged, so data waits.
        return Decision {
            act: Act::Drop,
            verdict: Verdict::DROP,
            reason: Reason::UNDECIDED,
            ..Decision::PASS
        };
    }
    Decision { reason: Reason::MIDSTREAM, report: true, ..refusal(env, numbers) }
}

#[cfg(test)]
mod tests;
