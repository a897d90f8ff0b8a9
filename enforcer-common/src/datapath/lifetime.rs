//! Where a flow is kept, and its end.
//!
//! `FLOWS` holds the judged TLS connections, and no connection is ever pushed out of it: when it is full, new ones wait for
//! room. `TRANSIENT` holds all others (just opened, plaintext, refused, ended) and pushes the oldest out.

use super::outbound::note_aborted;
use super::{Decision, Env, FlowTables};
use crate::Verdict;
use crate::map::{Flow, FlowKey, FlowState, SocketTag, flow_flags};
use crate::tcp::Segment;

/// Keeps a judged TLS flow from being pushed out. False when there is no room for it.
#[inline(always)]
pub(super) fn protect<E: FlowTables>(env: &E, key: &FlowKey, flow: &mut Flow) -> bool {
    let wanted = matches!(flow.state, FlowState::TLS)
        && flow.verdict == Verdict::ALLOW
        && !flow.passes_without_place()
        && flow.flags & (flow_flags::PROTECTED | flow_flags::ENDED) == 0;
    if !wanted {
        return true;
    }
    // The copy is complete: this entry is not looked at any more.
    flow.flags |= flow_flags::PROTECTED;
    flow.settle();
    if env.protect(key, flow) {
        return true;
    }
    flow.flags &= !(flow_flags::PROTECTED | flow_flags::SETTLED);
    false
}

/// Notes a RST of the pod's own stack. It was the end, unless something between socket and interface made it; so what is known
/// of the flow is only not protected any more.
#[inline(always)]
pub(super) fn note_pod_rst<E: Env>(env: &E, key: &FlowKey) -> Decision {
    match env.flow(key) {
        Some(mut flow) if flow.flags & flow_flags::TAGGED == 0 && flow.verdict != Verdict::NONE => {
            end(env, key, &mut flow)
        }
        Some(_) => Decision::PASS,
        None => {
            note_aborted(env, key);
            Decision::PASS
        }
    }
}

/// Notes a RST of the client. It may be forged, so what is known of the flow stays. One with exactly the number that the pod
/// expects ends the connection in the pod's stack (RFC 5961, section 3.2); where no socket will say so, this is its end.
#[inline(always)]
pub(super) fn note_client_rst<E: FlowTables>(
    env: &E,
    key: &FlowKey,
    segment: &Segment,
    flow: &mut Flow,
) -> Decision {
    // Without the flag the number may be one to look again from.
    let exact = segment.seq == flow.pod_ack && flow.flags & flow_flags::PREFIX_ACKED != 0;
    if flow.flags & flow_flags::TAGGED != 0 {
        return Decision::PASS;
    }
    if exact && flow.verdict != Verdict::NONE {
        return end(env, key, flow);
    }
    flow.look_again();
    Decision::PASS
}

/// The tuple is used again: what was known of its last connection goes, and its end is told, if it was not.
#[inline(always)]
pub(super) fn forget<E: FlowTables>(env: &E, key: &FlowKey) -> Decision {
    let told = match env.flow(key) {
        Some(flow) if flow.flags & flow_flags::ENDED == 0 => report(key, &flow),
        Some(_) => Decision::PASS,
        None => return Decision::PASS,
    };
    env.remove_flow(key);
    told
}

/// Notes a FIN that went by. With one of each end the connection is over, unless its socket will say so.
#[inline(always)]
pub(super) fn note_fin<E: FlowTables>(
    env: &E,
    key: &FlowKey,
    flow: &mut Flow,
    fin: u16,
    decision: &mut Decision,
) {
    flow.flags |= fin;
    let both = flow_flags::CLIENT_FIN | flow_flags::POD_FIN;
    if flow.flags & both == both && flow.flags & flow_flags::TAGGED == 0 {
        let ended = end(env, key, flow);
        decision.end = ended.end;
        decision.last_verdict = ended.last_verdict;
        decision.last_reason = ended.last_reason;
        decision.state = ended.state;
        decision.class = ended.class;
        decision.carried = ended.carried;
    }
}

/// Ends a flow: it is not protected any more, and its end is reported once. What is known of it stays for packets that are
/// still on their way.
#[inline(always)]
pub(super) fn end<E: FlowTables>(env: &E, key: &FlowKey, flow: &mut Flow) -> Decision {
    let told = flow.flags & flow_flags::ENDED != 0;
    flow.flags |= flow_flags::ENDED;
    flow.look_again();
    let decision = if told { Decision::PASS } else { report(key, flow) };
    if flow.flags & flow_flags::PROTECTED != 0 {
        flow.flags &= !flow_flags::PROTECTED;
        env.insert_flow(key, flow);
        // Last, because another connection may use the entry from here on.
        env.unprotect(key);
    }
    decision
}

#[inline(always)]
fn report(key: &FlowKey, flow: &Flow) -> Decision {
    if flow.verdict == Verdict::NONE {
        // Nothing was ever said on it.
        return Decision::PASS;
    }
    Decision {
        end: true,
        last_verdict: flow.verdict,
        last_reason: flow.reason,
        state: flow.state,
        class: flow.class(key.pod_port),
        carried: flow.carried(),
        ..Decision::PASS
    }
}

/// The pod's socket of a flow was closed.
#[inline(always)]
pub fn end_of_socket<E: FlowTables>(env: &E, tag: &SocketTag) -> Decision {
    match env.flow(&tag.key) {
        Some(mut flow) if flow.pod_start == tag.pod_start => {
            flow.flags |= flow_flags::GONE;
            end(env, &tag.key, &mut flow)
        }
        _ => Decision::PASS,
    }
}
