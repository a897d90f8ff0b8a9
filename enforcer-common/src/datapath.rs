//! What happens to a packet of a meshed pod: the rules that tie endpoints, half-open connections, flows and policy
//! together. The kernel programs and the model in the tests run this same code over different tables.
//!
//! Who opened a flow is decided by the handshake alone: the pod's SYN-ACK makes a half-open entry, the client's packet
//! that acknowledges exactly the pod's initial sequence number makes the flow. A SYN of the pod marks its own outbound
//! connection, which is never judged.

use core::ops::DerefMut;

use crate::flow::{Opinion, Policy, Window};
use crate::map::{
    Endpoint, ExemptKind, Flow, FlowKey, FlowState, HalfOpen, Outbound, PortKey, PortMode, endpoint_flags,
    flow_flags, half_open_flags,
};
use crate::settings::{Action, Enforcement};
use crate::tcp::{ACK, FIN, RST, SYN, Segment};
use crate::tls::{CLIENT_PREFIX, POD_PREFIX};
use crate::{Address, Reason, Verdict};

mod bypass;
mod decision;
mod lifetime;
mod outbound;
mod policy;

pub use self::decision::{Act, Carried, Decision, HelloPart, ResetNumbers};
pub use self::lifetime::end_of_socket;
use self::lifetime::{forget, note_client_rst, note_fin, note_pod_rst, protect};
use self::outbound::{note_outbound, note_refused};
pub use self::policy::{policy, unknown_pod, unreadable};

/// The tables of flows.
pub trait FlowTables {
    /// A flow entry that can be changed in place.
    type FlowRef<'a>: DerefMut<Target = Flow>
    where
        Self: 'a;

    /// Looks a flow up in `FLOWS`, then in `TRANSIENT`.
    fn flow(&self, key: &FlowKey) -> Option<Self::FlowRef<'_>>;
    /// Enters a new flow in `TRANSIENT`, unless there is one: another CPU may be quicker. Gives the entry, `None` when the table
    /// does not take it.
    fn open_flow(&self, key: &FlowKey, flow: &Flow) -> Option<Self::FlowRef<'_>>;
    /// Enters a flow in `TRANSIENT`, in place of what is there.
    fn insert_flow(&self, key: &FlowKey, flow: &Flow);
    /// Moves a flow from `TRANSIENT` to `FLOWS`; false when that is full.
    fn protect(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Removes a flow from `FLOWS`.
    fn unprotect(&self, key: &FlowKey);
    /// Removes a flow from both.
    fn remove_flow(&self, key: &FlowKey);
}

/// The tables and the packet that a decision is made from.
pub trait Env: FlowTables {
    /// Whether the packet still carries the socket, or the request for one, that sent it.
    fn has_socket(&self) -> bool;
    /// Ties the socket that sent the packet to a flow; false where its close is not seen.
    fn tag_socket(&self, key: &FlowKey, pod_start: u32) -> bool;
    /// Looks a connection up in `HALF_OPEN`.
    fn half_open(&self, key: &FlowKey) -> Option<HalfOpen>;
    /// Enters a half-open connection.
    fn insert_half_open(&self, key: &FlowKey, half_open: &HalfOpen);
    /// Removes a half-open connection.
    fn remove_half_open(&self, key: &FlowKey);
    /// Looks a connection of the pod's own up in `OUTBOUND`.
    fn outbound(&self, key: &FlowKey) -> Option<Outbound>;
    /// Looks one that is over up in `OUTBOUND_ENDED`.
    fn outbound_ended(&self, key: &FlowKey) -> Option<Outbound>;
    /// Enters a connection of the pod's own in `OUTBOUND`.
    fn insert_outbound(&self, key: &FlowKey, outbound: &Outbound);
    /// Moves a connection of the pod's own that is over to `OUTBOUND_ENDED`.
    fn end_outbound(&self, key: &FlowKey, outbound: &Outbound);
    /// Removes a connection of the pod's own from both.
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
    /// The packet still carries the socket that sent it, one of those that may probe pods: the kubelet's, or where that is not
    /// known any of the node's. A packet that the node only forwards carries none.
    fn is_node_probe(&self, key: &FlowKey) -> bool;
    /// The bytes of the packet's payload that fall on the first `limit` (at most 6) bytes of the stream that starts at
    /// sequence number `start`.
    fn window(&self, segment: &Segment, start: u32, limit: u32) -> Window;
}

/// True when the flow needs no look at this packet: the hot path. Counts the packet.
#[inline(always)]
pub fn passes_settled(flow: &mut Flow, endpoint: &Endpoint, segment: &Segment) -> bool {
    let settled = flow_flags::SETTLED;
    let settled = flow.flags & (settled | flow_flags::GONE) == settled;
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
        return match env.flow(key) {
            Some(mut flow) => note_client_rst(env, key, segment, &mut flow),
            None => note_refused(env, key, segment),
        };
    }
    if segment.has(SYN) {
        return syn_to_pod(env, endpoint, key, segment);
    }
    let mut found = env.flow(key);
    let mut full = false;
    if found.is_none() {
        if let Some(own) = env.outbound(key) {
            return note_outbound(env, key, segment, own, flow_flags::CLIENT_FIN);
        }
        let half_open = env.half_open(key);
        if half_open.is_none() {
            if let Some(own) = env.outbound_ended(key) {
                return note_outbound(env, key, segment, own, flow_flags::CLIENT_FIN);
            }
            // Another CPU may have made a flow of it since.
            found = env.flow(key);
        }
        if let Some(half_open) = half_open {
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
            return syn_ack_from_pod(env, key, segment);
        }
        env.insert_outbound(key, &Outbound { pod_isn: segment.seq, fins: 0 });
        // The pod uses the tuple of an old inbound connection for one of its own: the old one is gone in its stack, half open or
        // not.
        env.remove_half_open(key);
        return forget(env, key);
    }
    let mut found = env.flow(key);
    let mut full = false;
    if found.is_none() {
        if let Some(own) = env.outbound(key) {
            return note_outbound(env, key, segment, own, flow_flags::POD_FIN);
        }
        let half_open = env.half_open(key);
        if half_open.is_none()
            && let Some(own) = env.outbound_ended(key)
        {
            return note_outbound(env, key, segment, own, flow_flags::POD_FIN);
        }
        if let Some(half_open) = half_open
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
        && policy(env, endpoint, key, 0).is_enforced()
}

/// A SYN never touches an entry. Its data, if any, is cut off, so that the stream starts after the handshake.
#[inline(always)]
fn syn_to_pod<E: Env>(env: &E, endpoint: &Endpoint, key: &FlowKey, segment: &Segment) -> Decision {
    if segment.payload_len == 0 || segment.has(ACK) {
        return Decision::PASS;
    }
    let policy = policy(env, endpoint, key, 0);
    if policy.exempt != Reason::NONE || env.enforcement() == Enforcement::AUDIT {
        return Decision::PASS;
    }
    Decision { act: Act::TrimSyn, verdict: Verdict::WAIT, reason: Reason::SYN_DATA_TRIMMED, ..Decision::PASS }
}

#[inline(always)]
fn syn_ack_from_pod<E: Env>(env: &E, key: &FlowKey, segment: &Segment) -> Decision {
    // Sent again because the pod missed the client's ACK. A pod that has said anything since has not; then the same numbers are
    // those of another connection (a SYN cookie's come again within a minute).
    let over = flow_flags::GONE | flow_flags::ENDED;
    let mut cookie = !env.has_socket();
    if let Some(flow) = env.flow(key) {
        let again = flow.pod_start == segment.seq.wrapping_add(1)
            && flow.client_start == segment.ack
            && flow.packets_from_pod == 0
            && flow.flags & over == 0;
        if again {
            return Decision::PASS;
        }
        cookie |= flow.flags & flow_flags::COOKIE != 0;
    }
    // A cookie is good for minutes, whatever the pod answers to a later SYN of the same tuple.
    if !cookie && let Some(before) = env.half_open(key) {
        cookie = before.flags & half_open_flags::COOKIE != 0;
    }
    let flags = if cookie { half_open_flags::COOKIE } else { 0 };
    let client_isn = segment.ack.wrapping_sub(1);
    env.insert_half_open(key, &HalfOpen { client_isn, pod_isn: segment.seq, flags });
    env.remove_outbound(key);
    // Once the pod has answered a new SYN, the old connection is gone in its stack, and so is what was known of it.
    forget(env, key)
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
    let opened = env.open_flow(key, &flow)?;
    env.remove_half_open(key);
    Some(opened)
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
    let policy = policy(env, endpoint, key, flow.flags);
    if policy.exempt == Reason::PROBE && flow.flags & flow_flags::OWN_PROBE == 0 {
        flow.flags |= flow_flags::NODE_PROBE;
    }
    let hold = policy.is_enforced() && env.enforcement() == Enforcement::ENFORCE;
    let gone_cookie = flow_flags::GONE | flow_flags::COOKIE;
    if hold && flow.flags & gone_cookie == gone_cookie && segment.payload_len > 0 {
        // Answered as the pod's stack answers what is for no one. It might instead make a socket of the old cookie, and take
        // this for its first data.
        let numbers = ResetNumbers {
            client_seq: segment.ack,
            client_ack: 0,
            pod_seq: flow.pod_ack,
            pod_ack: segment.ack,
        };
        return Decision { reason: Reason::MIDSTREAM, stray: true, ..refusal(env, numbers) };
    }
    if hold && flow.may_open_another(segment) {
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
    let pod_seq = flow.pod_expects(segment);
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
    let policy = policy(env, endpoint, key, flow.flags);
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
    let policy = policy(env, endpoint, key, 0);
    if !policy.is_enforced() {
        return Decision::PASS;
    }
    match env.enforcement() {
        // It goes on, so it gets an entry: one connection is counted and told of once.
        Enforcement::AUDIT => {
            let now = env.now_ns();
            let mut flow = Flow::unseen(endpoint, now);
            let opinion = Opinion::Refuse(Reason::MIDSTREAM);
            let decision = conclude(env, &mut flow, opinion, &policy, key.pod_port, now, numbers);
            env.insert_flow(key, &flow);
            Decision { carried: flow.carried(), ..decision }
        }
        // Without an entry nothing can be judged, so data waits.
        Enforcement::ENFORCE if full => {
            Decision { act: Act::Drop, verdict: Verdict::DROP, reason: Reason::UNDECIDED, ..Decision::PASS }
        }
        // No entry: whoever sends such packets would push out the connections that are just being opened.
        Enforcement::ENFORCE => {
            let report = env.action() == Action::RESET;
            Decision { reason: Reason::MIDSTREAM, report, stray: !report, ..refusal(env, numbers) }
        }
    }
}

#[cfg(test)]
mod tests;
