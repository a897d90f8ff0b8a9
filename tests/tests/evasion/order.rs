//! Segments in the wrong order, tiny ones, and data at places where a handshake has none.

use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer_common::Reason;
use enforcer_common::tcp::{ACK, FIN, RST, SYN};

use crate::arena::{Arena, HELLO, HELLO_LEN, ISN, PORT, REQUEST, each_family, hello};

#[test]
fn one_byte_segments_of_a_hello_pass() -> Result<()> {
    each_family(|arena, v6| {
        let mut client = arena.open(v6)?;
        // Not the whole of it: the pod may send ten pieces of its echo before one is acknowledged.
        for (offset, byte) in (0..).zip(&HELLO[..7]) {
            client.send(&client.data(offset, &[*byte]))?;
        }
        client.send(&client.data(7, &HELLO[7..]))?;
        client.expect_heard(HELLO)?;
        arena.lives_on(&mut client)?;
        arena.nothing_refused()
    })
}

#[test]
fn the_first_of_one_byte_segments_is_refused_when_it_is_plaintext() -> Result<()> {
    each_family(plaintext_byte_by_byte)
}

pub(crate) fn plaintext_byte_by_byte(arena: &Arena, v6: bool) -> Result<()> {
    let seen = arena.records.all()?.len();
    let mut client = arena.open(v6)?;
    for (offset, byte) in (0..).zip(REQUEST) {
        client.send(&client.data(offset, &[*byte]))?;
    }
    client.expect_reset()?;
    arena.pod_was_reset(seen, &client, b"")?;
    arena.was_reset_for(Reason::PLAINTEXT)
}

/// Whatever comes before the first bytes waits outside, and the pod gets it when it is sent again.
#[test]
fn a_gap_in_front_of_the_first_bytes_keeps_the_rest_waiting() -> Result<()> {
    each_family(gap)
}

pub(crate) fn gap(arena: &Arena, v6: bool) -> Result<()> {
    let mut client = arena.open(v6)?;
    let rest = b"behind the first record";
    client.send(&client.data(HELLO_LEN, rest))?;
    client.send(&client.data(6, &HELLO[6..]))?;
    client.send(&client.data(3, &HELLO[3..]))?;
    client.send(&client.data(1, &HELLO[1..]))?;
    ensure!(client.listen(Duration::from_millis(100))?.is_empty(), "the pod saw it: {:?}", client.received);
    let refused = arena.refused()?;
    ensure!(
        refused.keys().all(|(verdict, reason)| verdict == "wait" && reason == "OUT_OF_ORDER"),
        "{refused:?}"
    );
    ensure!(refused.len() == 1, "nothing waited");
    client.send(&client.data(0, HELLO))?;
    client.send(&client.data(HELLO_LEN, rest))?;
    client.expect_heard(&[HELLO, rest].concat())?;
    client.abort(HELLO_LEN + 23)?;
    let record = arena.records.of_peer(client.local())?;
    ensure!(record.head == [HELLO, rest].concat(), "{record:?}");
    Ok(())
}

/// The tail of a request first, then its head: neither arrives.
#[test]
fn plaintext_out_of_order_is_refused_at_its_first_byte() -> Result<()> {
    each_family(|arena, v6| {
        let seen = arena.records.all()?.len();
        let mut client = arena.open(v6)?;
        client.send(&client.data(8, &REQUEST[8..]))?;
        client.send(&client.data(4, &REQUEST[4..8]))?;
        client.send(&client.data(0, &REQUEST[..4]))?;
        client.expect_reset()?;
        arena.pod_was_reset(seen, &client, b"")?;
        ensure!(arena.refused()?.contains_key(&("reset".to_owned(), "PLAINTEXT".to_owned())));
        Ok(())
    })
}

/// A segment that begins before the stream and reaches into it: its first byte of the stream is what is judged.
#[test]
fn a_segment_that_begins_before_the_stream_is_judged_at_its_start() -> Result<()> {
    each_family(|arena, v6| {
        let seen = arena.records.all()?.len();
        let mut client = arena.open(v6)?;
        // Bytes -16 to -1 look like a hello, those that the pod would keep do not.
        client.send(&client.data(HELLO_LEN.wrapping_neg(), &[HELLO, REQUEST].concat()))?;
        client.expect_reset()?;
        arena.pod_was_reset(seen, &client, b"")?;
        arena.was_reset_for(Reason::PLAINTEXT)
    })
}

#[test]
fn sequence_numbers_that_wrap_inside_the_first_bytes() -> Result<()> {
    each_family(|arena, v6| {
        for before_wrap in 0..8 {
            let mut client = arena.client(v6, u32::MAX - before_wrap);
            client.shake()?;
            hello(&mut client)?;
            arena.lives_on(&mut client)?;
            arena.nothing_refused()?;
            let seen = arena.records.all()?.len();
            let mut client = arena.client(v6, u32::MAX - before_wrap);
            client.shake()?;
            client.send(&client.data(0, &HELLO[..3]))?;
            client.send(&client.data(3, REQUEST))?;
            client.expect_reset()?;
            let record = arena.records.next(seen, client.local())?;
            ensure!(HELLO[..3].starts_with(&record.head), "{record:?}");
            arena.was_reset_for(Reason::PLAINTEXT)?;
        }
        Ok(())
    })
}

#[test]
fn data_in_a_syn_is_cut_off() -> Result<()> {
    each_family(data_in_a_syn)
}

pub(crate) fn data_in_a_syn(arena: &Arena, v6: bool) -> Result<()> {
    // With a made-up cookie of fast open, and without.
    for options in [vec![34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1], vec![34, 2, 1, 1], Vec::new()] {
        let seen = arena.records.all()?.len();
        let mut client = arena.client(v6, ISN);
        let mut syn = client.syn().options(&options);
        syn.payload = REQUEST.to_vec();
        // The acknowledgement of exactly the SYN shows that no byte of data came with it.
        client.knock_with(&syn)?;
        let refused = arena.refused()?;
        ensure!(refused.keys().all(|(_, reason)| reason == "SYN_DATA_TRIMMED"), "{refused:?}");
        ensure!(refused.len() == 1, "nothing was cut off: {refused:?}");
        client.send(&client.ack(0))?;
        client.send(&client.data(0, REQUEST))?;
        client.expect_reset()?;
        arena.pod_was_reset(seen, &client, b"")?;
        arena.was_reset_for(Reason::PLAINTEXT)?;
    }
    Ok(())
}

#[test]
fn data_in_the_third_packet_is_judged() -> Result<()> {
    each_family(data_in_the_third_packet)
}

pub(crate) fn data_in_the_third_packet(arena: &Arena, v6: bool) -> Result<()> {
    let mut client = arena.client(v6, ISN);
    client.knock()?;
    hello(&mut client)?;
    arena.lives_on(&mut client)?;
    let mut client = arena.client(v6, ISN);
    client.knock()?;
    client.send(&client.data(0, REQUEST))?;
    client.expect_reset()?;
    // The pod's socket was not even made.
    arena.scene.lab.wait_no_sockets("frontend", PORT)?;
    arena.was_reset_for(Reason::PLAINTEXT)
}

/// The third packet is lost, so the pod sends its SYN-ACK again; the client's data completes the handshake.
#[test]
fn a_lost_third_packet_changes_nothing() -> Result<()> {
    each_family(|arena, v6| {
        let mut client = arena.client(v6, ISN);
        client.knock()?;
        client.send(&client.ack(0).damaged())?;
        let number = client.pod_isn;
        client.wait("the SYN-ACK again", |segment| segment.is_syn_ack() && segment.seq == number)?;
        hello(&mut client)?;
        arena.lives_on(&mut client)?;
        arena.nothing_refused()?;
        let mut client = arena.client(v6, ISN);
        client.knock()?;
        client.send(&client.ack(0).damaged())?;
        client.send(&client.data(0, HELLO).damaged())?;
        let number = client.pod_isn;
        client.wait("the SYN-ACK again", |segment| segment.is_syn_ack() && segment.seq == number)?;
        client.send(&client.data(0, REQUEST))?;
        client.expect_reset()?;
        arena.scene.lab.wait_no_sockets("frontend", PORT)?;
        arena.was_reset_for(Reason::PLAINTEXT)
    })
}

#[test]
fn a_half_close_before_the_sixth_byte_is_refused() -> Result<()> {
    each_family(|arena, v6| {
        let seen = arena.records.all()?.len();
        let mut client = arena.open(v6)?;
        client.send(&client.data(0, &HELLO[..4]).with(FIN))?;
        client.expect_reset()?;
        arena.pod_was_reset(seen, &client, b"")?;
        arena.was_reset_for(Reason::UNDECIDED)
    })
}

#[test]
fn a_half_close_after_the_hello_leaves_the_answer_alone() -> Result<()> {
    each_family(|arena, v6| {
        let mut client = arena.open(v6)?;
        client.send(&client.data(0, HELLO).with(FIN))?;
        client.expect_heard(HELLO)?;
        client.wait("the pod's FIN", |segment| segment.has(FIN))?;
        client.abort(HELLO_LEN + 1)?;
        let record = arena.records.of_peer(client.local())?;
        ensure!(record.head == HELLO, "{record:?}");
        arena.nothing_refused()
    })
}

/// The pod's stack forgets the connection at once, and so nothing comes of what follows.
#[test]
fn a_reset_in_the_middle_of_a_hello_opens_nothing() -> Result<()> {
    each_family(|arena, v6| {
        let seen = arena.records.all()?.len();
        let mut client = arena.open(v6)?;
        client.send(&client.data(0, &HELLO[..4]))?;
        client.expect_acked(4)?;
        client.abort(4)?;
        arena.pod_was_reset(seen, &client, &HELLO[..4])?;
        client.send(&client.data(4, &HELLO[4..]))?;
        client.send(&client.data(4, REQUEST))?;
        client.wait("an answer to a packet of no connection", |segment| segment.has(RST))?;
        arena.scene.lab.wait_no_sockets("frontend", PORT)?;
        ensure!(arena.records.all()?.len() == seen + 1, "one connection, one record");
        Ok(())
    })
}

/// Segments of connections that never were.
#[test]
fn packets_without_a_handshake_are_refused() -> Result<()> {
    each_family(no_handshake)
}

pub(crate) fn no_handshake(arena: &Arena, v6: bool) -> Result<()> {
    let seen = arena.records.all()?.len();
    for first in [HELLO, REQUEST] {
        let mut client = arena.client(v6, ISN);
        client.pod_isn = 0x0102_0304;
        client.send(&client.data(0, first))?;
        client.expect_reset()?;
        arena.was_reset_for(Reason::MIDSTREAM)?;
        client.send(&client.data(0, first).with(FIN))?;
        client.wait("a reset", |segment| segment.has(RST))?;
        arena.was_reset_for(Reason::MIDSTREAM)?;
        // The pod's own stack answers what carries no data.
        for flags in [ACK, FIN | ACK, SYN | ACK] {
            let mut segment = client.ack(0);
            segment.flags = flags;
            client.send(&segment)?;
            client.wait("a reset of the pod", |segment| segment.has(RST))?;
        }
        arena.nothing_refused()?;
    }
    ensure!(arena.records.all()?.len() == seen, "no socket was made");
    Ok(())
}
