//! Connections that a pod opened itself: never judged, only remembered, so that their packets are not taken for those of
//! connections whose handshake was never seen.
//!
//! `OUTBOUND` pushes the oldest out when it is full. A pod that opens and closes many connections must not push out its own idle
//! ones like that, so what is over moves to `OUTBOUND_ENDED`, which is small: packets that are still on their way find it there.
//! A tuple that is in `HALF_OPEN` is in neither, so new connections, which are many, are looked for before those that are over.

use super::{Decision, Env};
use crate::map::{FlowKey, Outbound, flow_flags};
use crate::tcp::{ACK, FIN, Segment};

/// Both ends said that they are done.
const BOTH: u32 = (flow_flags::CLIENT_FIN | flow_flags::POD_FIN) as u32;

/// Notes a packet of such a connection, which passes; `fin`: the flag of its sender's FIN.
#[inline(always)]
pub(super) fn note_outbound<E: Env>(
    env: &E,
    key: &FlowKey,
    segment: &Segment,
    mut own: Outbound,
    fin: u16,
) -> Decision {
    let fins = own.fins | u32::from(fin);
    if segment.has(FIN) && fins != own.fins {
        own.fins = fins;
        if fins == BOTH {
            env.end_outbound(key, &own);
        } else {
            env.insert_outbound(key, &own);
        }
    }
    Decision::PASS
}

/// Notes a RST towards the pod: it ends an attempt to connect, if it acknowledges its SYN. Any other may be forged, and what
/// is true of it the pod's own packets will say.
#[inline(always)]
pub(super) fn note_refused<E: Env>(env: &E, key: &FlowKey, segment: &Segment) -> Decision {
    if segment.has(ACK)
        && let Some(own) = env.outbound(key)
        && segment.ack == own.pod_isn.wrapping_add(1)
    {
        env.end_outbound(key, &Outbound { fins: BOTH, ..own });
    }
    Decision::PASS
}

/// Notes a RST of the pod's own stack: it ended the connection.
#[inline(always)]
pub(super) fn note_aborted<E: Env>(env: &E, key: &FlowKey) {
    if let Some(own) = env.outbound(key) {
        env.end_outbound(key, &Outbound { fins: BOTH, ..own });
    }
}
