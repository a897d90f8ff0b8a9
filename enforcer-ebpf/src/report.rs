//! Counters, events, and the limits that keep both and the resets bounded.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_log_ebpf::debug;
use enforcer_common::datapath::{Act, Decision};
use enforcer_common::event::{Event, HEAD_BYTES};
use enforcer_common::map::{Counter, CounterKey, Endpoint, WorkloadCounterKey};
use enforcer_common::{Reason, Verdict};

use crate::packet::Packet;
use crate::skb::{Skb, bounded};
use crate::tables::{COUNTERS, EVENT_BUDGET, EVENTS, RESET_BUDGET, WORKLOAD_COUNTERS, settings};

const SECOND_NS: u64 = 1_000_000_000;

/// Turns a reset into a drop when this second's resets are spent.
#[inline(never)]
pub fn limit_resets(decision: &mut Decision) {
    if decision.act != Act::Reset {
        return;
    }
    if let Some(budget) = RESET_BUDGET.get_ptr_mut(0) {
        // SAFETY: the pointer comes from the map. CPUs that write at once may let a few resets more through.
        unsafe {
            let now = bpf_ktime_get_ns();
            if now - (*budget).window_ns >= SECOND_NS {
                (*budget).window_ns = now;
                (*budget).sent = 0;
            }
            (*budget).sent += 1;
            if (*budget).sent > u64::from(settings().resets_per_second()) {
                decision.act = Act::Drop;
                decision.verdict = Verdict::DROP;
                decision.reason = Reason::RESET_LIMIT;
            }
        }
    }
}

/// Counts a packet, and a connection where the verdict is new.
#[inline(never)]
pub fn count(packet: &Packet, workload: u32, decision: &Decision) {
    let (direction, payload_len) = (packet.direction, packet.segment.payload_len);
    let Decision { verdict, reason, .. } = *decision;
    let connections = u64::from(decision.report);
    let first = Counter { connections, packets: 1, bytes: u64::from(payload_len) };
    let key = CounterKey { verdict, reason, direction };
    match COUNTERS.get_ptr_mut(key) {
        Some(counter) => add(counter, &first),
        None => drop(COUNTERS.insert(key, first, 0)),
    }
    if workload == 0 {
        return;
    }
    let key = WorkloadCounterKey { workload, verdict, reason, direction };
    match WORKLOAD_COUNTERS.get_ptr_mut(key) {
        Some(counter) => add(counter, &first),
        None => drop(WORKLOAD_COUNTERS.insert(key, first, 0)),
    }
}

#[inline(always)]
fn add(counter: *mut Counter, by: &Counter) {
    // SAFETY: the pointer comes from a per-CPU map: no other CPU writes this value.
    unsafe {
        (*counter).connections += by.connections;
        (*counter).packets += by.packets;
        (*counter).bytes += by.bytes;
    }
}

/// Sends one event, unless this second's events are spent or the buffer is full.
#[inline(never)]
pub fn event(skb: &Skb, packet: &Packet, endpoint: &Endpoint, decision: &Decision) {
    let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the pointers come from maps and the ring buffer; the record is written field by field and the rest of its
    // head zeroed before it is submitted.
    unsafe {
        let now = bpf_ktime_get_ns();
        if now - (*budget).window_ns >= SECOND_NS {
            (*budget).window_ns = now;
            (*budget).sent = 0;
        }
        if (*budget).sent >= u64::from(settings().events_per_second()) {
            (*budget).suppressed += 1;
            return;
        }
        let Some(mut record) = EVENTS.reserve(0) else {
            (*budget).lost += 1;
            return;
        };
        (*budget).sent += 1;
        let event: *mut Event = record.as_mut_ptr();
        (*event).time_ns = now;
        (*event).key = packet.key;
        (*event).ifindex = skb.ifindex();
        (*event).workload = endpoint.workload;
        (*event).verdict = decision.verdict;
        (*event).reason = decision.reason;
        (*event).direction = packet.direction;
        (*event).state = decision.state;
        (*event).payload_len = packet.segment.payload_len;
        (*event).reserved = 0;
        (*event).generation = endpoint.generation;
        (*event).head = [0; HEAD_BYTES];
        let available = packet.segment.payload_len;
        let mut len =
            bounded::<0x7f>(if available < HEAD_BYTES as u32 { available } else { HEAD_BYTES as u32 });
        let head = (&raw mut (*event).head).cast::<u8>();
        if len == 0 || len > HEAD_BYTES as u32 || !skb.load(packet.payload_offset, head, len) {
            len = 0;
        }
        (*event).head_len = len as u16;
        record.submit(0);
    }
}

/// A debug line on every packet that was not simply let through; free while the log is off.
#[inline(never)]
pub fn debug_line(skb: &Skb, packet: &Packet, decision: &Decision) {
    debug!(
        &skb.context(),
        "verdict {} reason {} client port {} pod port {} seq {} len {}",
        decision.verdict as u32,
        decision.reason as u32,
        packet.key.client_port,
        packet.key.pod_port,
        packet.segment.seq,
        packet.segment.payload_len
    );
}
