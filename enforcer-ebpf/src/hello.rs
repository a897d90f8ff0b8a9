//! The first bytes of TLS clients on their way to user space, which reads server name and ALPN from them.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use enforcer_common::datapath::{Decision, HelloPart};
use enforcer_common::event::{CHUNK_BYTES, EventKind, HELLO_LIMIT, HelloChunk};
use enforcer_common::map::Endpoint;

use crate::packet::Packet;
use crate::report::{Telling, lose, spend};
use crate::skb::{Skb, bounded};
use crate::tables::{EVENT_BUDGET, EVENTS};

/// Bytes of a packet that one record takes: before them is room for judged bytes that came in earlier packets.
const ROOM: u32 = CHUNK_BYTES as u32 - 8;
/// Records that one packet makes at most.
const MAX_CHUNKS: u32 = HELLO_LIMIT.div_ceil(ROOM);

/// Sends the bytes of a TLS client that user space does not have yet, in as many records as they need.
#[inline(always)]
pub fn send(skb: &Skb, packet: &Packet, endpoint: &Endpoint, decision: &mut Decision) {
    let mut chunks = 0;
    while decision.hello.count > 0 && chunks < MAX_CHUNKS {
        chunk(skb, packet, endpoint, decision);
        chunks += 1;
    }
}

/// Sends one record and takes its bytes off the part.
#[inline(never)]
fn chunk(skb: &Skb, packet: &Packet, endpoint: &Endpoint, decision: &mut Decision) {
    let HelloPart { offset, index, count, first, prefix } = decision.hello;
    let known = bounded::<7>(if first { offset } else { 0 });
    let len = bounded::<0x3ff>(if count < ROOM { count } else { ROOM });
    decision.hello =
        HelloPart { offset: offset + len, index: index + len, count: count - len, first: false, prefix };
    let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if !spend(budget, now, Telling::Hello) {
        return;
    }
    let Some(mut record) = EVENTS.reserve_untyped::<HelloChunk>(0) else {
        return lose(budget);
    };
    let chunk: *mut HelloChunk = record.as_mut_ptr();
    // SAFETY: the header is written field by field; of the data only what its `len` covers means anything.
    unsafe {
        let header = &raw mut (*chunk).header;
        (*header).kind = EventKind::HELLO;
        (*header).ifindex = skb.ifindex();
        (*header).time_ns = now;
        (*header).opened_ns = decision.carried.opened_ns;
        (*header).key = packet.key;
        (*header).workload = endpoint.workload;
        (*header).offset = offset - known;
        (*header).reserved = 0;
        let data = (&raw mut (*chunk).data).cast::<u8>();
        data.cast::<u64>().write(prefix);
        let loaded =
            len != 0 && len <= ROOM && skb.load(packet.payload_offset + index, data.add(known as usize), len);
        (*header).len = (known + if loaded { len } else { 0 }) as u16;
        record.submit(0);
    }
}
