//! Counters, events, and the limits that keep both and the resets bounded.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_log_ebpf::debug;
use enforcer_common::datapath::{Act, Decision};
use enforcer_common::event::{Event, EventKind, HEAD_BYTES};
use enforcer_common::map::{
    Bypassed, Client, ClientBudget, ClientKey, Counter, CounterKey, Endpoint, EventBudget, FlowKey, Pending,
    PodLink, PodLinkKey, ResetBudget, WorkloadCounterKey,
};
use enforcer_common::{Direction, Reason, Verdict};

use crate::packet::Packet;
use crate::skb::{Skb, bounded};
use crate::tables::{
    BPF_NOEXIST, BYPASSED, CLIENT_RESETS, CLIENTS, COUNTERS, EEXIST, EVENT_BUDGET, EVENTS, PENDING,
    POD_LINKS, RESET_BUDGET, WORKLOAD_COUNTERS, settings,
};

const SECOND_NS: u64 = 1_000_000_000;

/// Turns a reset into a drop when this second's resets are spent: its client's, or the node's. The client's are looked at first,
/// so that one client does not spend the node's.
#[inline(never)]
pub fn limit_resets(packet: &Packet, decision: &mut Decision) {
    if decision.act != Act::Reset {
        return;
    }
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let client = &packet.key.client;
    let of_client = match CLIENT_RESETS.get_ptr_mut(client) {
        // SAFETY: the pointer comes from the map.
        Some(budget) => unsafe {
            spend_reset(&raw mut (*budget).resets, now, settings().resets_per_second_per_client())
        },
        None => {
            let resets = ResetBudget { window_ns: now, sent: 1 };
            let _ = CLIENT_RESETS.insert(client, ClientBudget { resets, told_ns: 0 }, 0);
            settings().resets_per_second_per_client() > 0
        }
    };
    let within = of_client
        && RESET_BUDGET
            .get_ptr_mut(0)
            .is_none_or(|budget| spend_reset(budget, now, settings().resets_per_second()));
    if !within {
        decision.act = Act::Drop;
        decision.verdict = Verdict::DROP;
        decision.reason = Reason::RESET_LIMIT;
    }
}

/// Whether a packet that belongs to no connection is told of: once a second for each client.
#[inline(never)]
pub fn is_told(packet: &Packet) -> bool {
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let client = &packet.key.client;
    match CLIENT_RESETS.get_ptr_mut(client) {
        // SAFETY: the pointer comes from the map. CPUs that write at once may tell of a packet more.
        Some(budget) => unsafe {
            let told = (*budget).told_ns == 0 || now.wrapping_sub((*budget).told_ns) >= SECOND_NS;
            if told {
                (*budget).told_ns = now;
            }
            told
        },
        None => {
            let resets = ResetBudget { window_ns: 0, sent: 0 };
            let _ = CLIENT_RESETS.insert(client, ClientBudget { resets, told_ns: now }, 0);
            true
        }
    }
}

/// Takes one reset out of a budget; false when this second's are spent.
#[inline(always)]
fn spend_reset(budget: *mut ResetBudget, now: u64, limit: u32) -> bool {
    // SAFETY: the pointer comes from a map. CPUs that write at once may let a few resets more through.
    unsafe {
        if now.wrapping_sub((*budget).window_ns) >= SECOND_NS {
            (*budget).window_ns = now;
            (*budget).sent = 0;
        }
        (*budget).sent += 1;
        (*budget).sent <= u64::from(limit)
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

/// Notes a client that has not said enough; false when there is no room, so that nobody would look again. Tagged frames are
/// left out: whoever looks again could not make one like them.
#[inline(never)]
pub fn pending(skb: &Skb, packet: &Packet) -> bool {
    // One that is there already stays.
    if packet.ip_offset != 14 || PENDING.get_ptr(packet.key).is_some() {
        return true;
    }
    let mut frame = [0_u8; 14];
    if !skb.load(0, frame.as_mut_ptr(), 14) {
        return true;
    }
    // SAFETY: the helper has no arguments.
    let since_ns = unsafe { bpf_ktime_get_ns() };
    let entry = Pending { since_ns, ifindex: skb.ifindex(), frame, reserved: [0; 6] };
    match PENDING.insert(packet.key, entry, BPF_NOEXIST) {
        Ok(()) => true,
        Err(error) => i64::from(error) == EEXIST,
    }
}

/// Keeps how frames of a pod to this client begin, for resets in its name.
#[inline(never)]
pub fn link(skb: &Skb, packet: &Packet) {
    let mut macs = [0; 12];
    if !skb.load(0, macs.as_mut_ptr(), 12) {
        return;
    }
    let key = PodLinkKey { pod: packet.key.pod, client: packet.key.client };
    let _ = POD_LINKS.insert(key, PodLink { macs }, 0);
}

/// Notes that packets reach a pod past the hook of `to_pod`.
#[inline(never)]
pub fn bypassed(skb: &Skb, key: &FlowKey) {
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(entry) = BYPASSED.get_ptr_mut(key.pod) {
        // SAFETY: the pointer comes from the map. Packets are added up in one step; of the other fields the last writer's stay.
        unsafe {
            atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*entry).packets, 1);
            (*entry).last_ns = now;
            (*entry).client = key.client;
            (*entry).ifindex = skb.ifindex();
            (*entry).port = key.pod_port;
        }
        return;
    }
    let entry = Bypassed {
        first_ns: now,
        last_ns: now,
        packets: 1,
        client: key.client,
        ifindex: skb.ifindex(),
        port: key.pod_port,
        reserved: 0,
    };
    let _ = BYPASSED.insert(key.pod, entry, 0);
}

/// Enters a client under what it speaks.
#[inline(never)]
pub fn client(packet: &Packet, workload: u32, decision: &Decision) {
    if workload == 0 || !decision.names_client() {
        return;
    }
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let key = ClientKey {
        workload,
        class: decision.class,
        client: packet.key.client,
        port: packet.key.pod_port,
        reserved: 0,
    };
    let connections = u64::from(decision.new_client);
    let Decision { verdict, reason, .. } = *decision;
    if let Some(entry) = CLIENTS.get_ptr_mut(key) {
        // SAFETY: the pointer comes from the map. Connections are added up in one step, whichever CPU does; of the other
        // fields the last writer's stay.
        unsafe {
            atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*entry).connections, connections);
            (*entry).last_ns = now;
            (*entry).verdict = verdict;
            (*entry).reason = reason;
        }
    } else {
        let entry = Client { connections, first_ns: now, last_ns: now, verdict, reason };
        let _ = CLIENTS.insert(key, entry, 0);
    }
}

/// What a record tells: what it may take of this second's budget.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Telling {
    /// A refusal: all of it, so that no load of allowed connections silences refusals.
    Refusal,
    /// Any other verdict, or an end: three quarters.
    Rest,
    /// A piece of a hello, which has a budget of its own.
    Hello,
}

/// Takes one record out of this second's budget.
#[inline(always)]
pub fn spend(budget: *mut EventBudget, now: u64, telling: Telling) -> bool {
    let all = u64::from(settings().events_per_second());
    // SAFETY: the pointer comes from a per-CPU map: no other CPU writes this value.
    unsafe {
        if now - (*budget).window_ns >= SECOND_NS {
            (*budget).window_ns = now;
            (*budget).sent = 0;
            (*budget).hellos_sent = 0;
        }
        if telling == Telling::Hello {
            if (*budget).hellos_sent >= all {
                (*budget).hellos_suppressed += 1;
                return false;
            }
            (*budget).hellos_sent += 1;
            return true;
        }
        let limit = if telling == Telling::Refusal { all } else { all - (all >> 2) };
        if (*budget).sent >= limit {
            (*budget).suppressed += 1;
            return false;
        }
        (*budget).sent += 1;
        true
    }
}

/// A record could not be sent: the buffer is full.
#[inline(always)]
pub fn lose(budget: *mut EventBudget) {
    // SAFETY: as above.
    unsafe { (*budget).lost += 1 };
}

/// Reports the end of a connection, with its last verdict.
#[inline(never)]
pub fn end(key: &FlowKey, direction: Direction, endpoint: &Endpoint, decision: &Decision) {
    let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if !spend(budget, now, Telling::Rest) {
        return;
    }
    let Some(mut record) = EVENTS.reserve(0) else {
        return lose(budget);
    };
    let event: *mut Event = record.as_mut_ptr();
    // SAFETY: every field of the record is written before it is submitted.
    unsafe {
        (*event).kind = EventKind::END;
        (*event).ifindex = endpoint.ifindex;
        (*event).time_ns = now;
        (*event).key = *key;
        (*event).workload = endpoint.workload;
        (*event).verdict = decision.last_verdict;
        (*event).reason = decision.last_reason;
        (*event).direction = direction;
        (*event).payload_len = 0;
        (*event).generation = endpoint.generation;
        (*event).head_len = 0;
        (*event).head = [0; HEAD_BYTES];
        describe(event, decision);
    }
    record.submit(0);
}

/// What a decision says of the flow.
///
/// # Safety
/// `event` must be writable.
#[inline(always)]
unsafe fn describe(event: *mut Event, decision: &Decision) {
    // SAFETY: the caller's.
    unsafe {
        (*event).opened_ns = decision.carried.opened_ns;
        (*event).state = decision.state;
        (*event).bytes_to_pod = decision.carried.bytes_to_pod;
        (*event).bytes_from_pod = decision.carried.bytes_from_pod;
        (*event).packets_to_pod = decision.carried.packets_to_pod;
        (*event).packets_from_pod = decision.carried.packets_from_pod;
        (*event).class = decision.class;
        (*event).reserved = 0;
    }
}

/// Sends one event, unless this second's events are spent or the buffer is full.
#[inline(never)]
pub fn event(skb: &Skb, packet: &Packet, endpoint: &Endpoint, decision: &Decision) {
    let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let telling = if decision.verdict == Verdict::ALLOW { Telling::Rest } else { Telling::Refusal };
    if !spend(budget, now, telling) {
        return;
    }
    let Some(mut record) = EVENTS.reserve(0) else {
        return lose(budget);
    };
    let event: *mut Event = record.as_mut_ptr();
    // SAFETY: the record is written field by field, and the rest of its head zeroed, before it is submitted.
    unsafe {
        (*event).kind = EventKind::VERDICT;
        (*event).ifindex = skb.ifindex();
        (*event).time_ns = now;
        (*event).key = packet.key;
        (*event).workload = endpoint.workload;
        (*event).verdict = decision.verdict;
        (*event).reason = decision.reason;
        (*event).direction = packet.direction;
        (*event).payload_len = packet.segment.payload_len;
        (*event).generation = endpoint.generation;
        describe(event, decision);
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
