//! Packets inside a live TLS flow that must not harm it.

use anyhow::{Result, ensure};
use enforcer_common::tcp::{ACK, RST, SYN};
use enforcer_tests::raw::Tcp;

use crate::arena::{Arena, HELLO, HELLO_LEN, REQUEST, each_family};

#[test]
fn forged_syns_and_resets_change_nothing() -> Result<()> {
    each_family(forged)
}

pub(crate) fn forged(arena: &Arena, v6: bool) -> Result<()> {
    let mut client = arena.judged(v6)?;
    let (isn, pod_isn) = (client.isn, client.pod_isn);
    for seq in [isn, isn.wrapping_add(0x4000), isn.wrapping_sub(0x4000_0000)] {
        let mut syn = client.syn();
        syn.seq = seq;
        client.send(&syn)?;
        client.send(&syn.clone().with(ACK))?;
        client.send(&Tcp { ack: pod_isn, ..syn.with(ACK) })?;
        // Not exact, so that the pod answers with a challenge at most (RFC 5961, section 3.2).
        let mut reset = client.ack(HELLO_LEN + 1000).with(RST);
        reset.seq = seq.wrapping_add(7);
        client.send(&reset)?;
        reset.flags = RST;
        client.send(&reset)?;
    }
    arena.lives_on(&mut client)?;
    ensure!(!client.received.iter().any(|segment| segment.has(RST)), "{:?}", client.received);
    ensure!(client.received.iter().filter(|segment| segment.has(SYN)).count() == 1, "one SYN-ACK");
    arena.nothing_refused()
}

#[test]
fn keepalive_probes_with_a_garbage_byte_survive() -> Result<()> {
    each_family(garbage_bytes)
}

pub(crate) fn garbage_bytes(arena: &Arena, v6: bool) -> Result<()> {
    let mut client = arena.judged(v6)?;
    client.expect_acked(HELLO_LEN)?;
    // Right behind the first bytes, and one below the next as probes have it (RFC 9293, section 3.8.4).
    for offset in [0, 4, 5, HELLO_LEN - 1] {
        client.send(&client.data(offset, b"\0"))?;
    }
    client.send(&client.data(u32::MAX, b"\0"))?;
    client.send(&client.data(u32::MAX - 2, REQUEST.get(..3).unwrap_or_default()))?;
    arena.lives_on(&mut client)?;
    arena.nothing_refused()
}

/// Neither end's window is open for a while; both ask whether it is by now (RFC 9293, section 3.8.6.1).
#[test]
fn zero_window_probes_of_both_ends_survive() -> Result<()> {
    each_family(|arena, v6| {
        let more = b"more of the same";
        let mut client = arena.judged(v6)?;
        let heard = client.pod_isn.wrapping_add(1 + HELLO_LEN);
        let closed = |segment: Tcp| Tcp { ack: heard, window: 0, ..segment };
        client.send(&closed(client.data(HELLO_LEN, more)))?;
        for _ in 0..2 {
            let probe = heard.wrapping_sub(1);
            client.wait("the pod's probe", |segment| segment.seq == probe && segment.payload.is_empty())?;
            client.send(&closed(client.ack(HELLO_LEN + 16)))?;
        }
        // The client's own: nothing, or a byte of garbage, below what it would say next.
        client.send(&closed(client.ack(HELLO_LEN + 15)))?;
        client.send(&closed(client.data(HELLO_LEN + 15, b"\0")))?;
        client.send(&Tcp { ack: heard, ..client.ack(HELLO_LEN + 16) })?;
        client.expect_heard(&[HELLO, more].concat())?;
        client.abort(HELLO_LEN + 16)?;
        let record = arena.records.of_peer(client.local())?;
        ensure!(record.head == [HELLO, more].concat(), "the pod read {record:?}");
        arena.nothing_refused()
    })
}
