//! IP fragments: none reaches a pod under STRICT, so that nothing has to be put together to be judged.

use anyhow::{Result, ensure};
use enforcer_common::Reason;
use enforcer_tests::raw::fragments;

use crate::arena::{Arena, HELLO, REQUEST, each_family, hello};

/// Sends these fragments of a request on an open connection, sees them dropped, and that none of it arrived.
fn dropped(arena: &Arena, v6: bool, cuts: &[usize], order: impl Fn(&mut Vec<Vec<u8>>)) -> Result<()> {
    let mut client = arena.open(v6)?;
    arena.refused()?;
    for content in [REQUEST, HELLO] {
        let segment = client.data(0, content);
        let mut packets = fragments(&client.ip, &client.encode(&segment), cuts);
        order(&mut packets);
        for packet in &packets {
            client.send_packet(packet)?;
        }
        arena.were_dropped_for(Reason::FRAGMENT, packets.len() as u64)?;
    }
    // Nothing arrived: the same offsets can still be said whole.
    hello(&mut client)?;
    arena.lives_on(&mut client)
}

/// Eight bytes hold the ports and the sequence number: neither flags nor data are in the first fragment.
#[test]
fn a_first_fragment_without_the_whole_header_is_dropped() -> Result<()> {
    each_family(|arena, v6| dropped(arena, v6, &[8], |_| ()))
}

#[test]
fn data_in_the_second_fragment_is_dropped() -> Result<()> {
    each_family(data_in_the_second)
}

pub(crate) fn data_in_the_second(arena: &Arena, v6: bool) -> Result<()> {
    dropped(arena, v6, &[24], |_| ())
}

#[test]
fn fragments_in_the_wrong_order_and_overlapping_are_dropped() -> Result<()> {
    each_family(|arena, v6| {
        dropped(arena, v6, &[16, 32], |packets| packets.reverse())?;
        dropped(arena, v6, &[24], |packets| {
            let again = packets.clone();
            packets.extend(again);
        })
    })
}

/// A fragment header around a whole packet (RFC 6946).
#[test]
fn an_atomic_fragment_is_dropped() -> Result<()> {
    let arena = Arena::new()?;
    dropped(&arena, true, &[], |_| ())
}

/// A handshake in fragments opens nothing.
#[test]
fn a_syn_in_fragments_is_dropped() -> Result<()> {
    each_family(|arena, v6| {
        let mut client = arena.client(v6, 1);
        let syn = client.encode(&client.syn());
        for packet in fragments(&client.ip, &syn, &[8]) {
            client.send_packet(&packet)?;
        }
        ensure!(client.listen(std::time::Duration::from_millis(200))?.is_empty(), "{:?}", client.received);
        arena.were_dropped_for(Reason::FRAGMENT, 2)
    })
}
