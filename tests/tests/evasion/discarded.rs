//! Hellos that the pod's stack discards for reasons that only it knows: none of them clears the way for a request.

use anyhow::Result;
use enforcer_common::Reason;
use enforcer_common::tcp::{ACK, URG};
use enforcer_tests::Topology;
use enforcer_tests::raw::{Client, Tcp, option};

use crate::arena::{Arena, ECHO, HELLO, ISN, REQUEST, each_family, each_family_in};

/// A hello changed by `spoil`, then a request as an honest stack would send it.
fn decoy(
    arena: &Arena,
    v6: bool,
    time_stamps: bool,
    spoil: impl Fn(&Client, Tcp) -> Tcp,
    reason: Reason,
) -> Result<()> {
    let seen = arena.records.all()?.len();
    let mut client = arena.client(v6, ISN);
    if time_stamps {
        client.syn_options.extend(option::timestamps(0x1000_0000, 0));
        client.options = option::timestamps(0x1000_0001, 0);
    }
    client.shake()?;
    client.send(&spoil(&client, client.data(0, HELLO)))?;
    client.send(&client.data(0, REQUEST))?;
    client.expect_reset()?;
    arena.pod_was_reset(seen, &client, b"")?;
    arena.was_reset_for(reason)
}

/// PAWS (RFC 7323, section 5): a segment with an older time stamp is discarded.
#[test]
fn a_hello_with_an_old_time_stamp_does_not_clear_the_way() -> Result<()> {
    each_family(|arena, v6| {
        let old = |_: &Client, segment: Tcp| segment.options(&option::timestamps(0x0fff_0000, 0));
        decoy(arena, v6, true, old, Reason::PLAINTEXT)
    })
}

#[test]
fn a_hello_that_acknowledges_what_was_never_sent_does_not_clear_the_way() -> Result<()> {
    each_family(|arena, v6| {
        for shift in [1000, 0x4000_0000, u32::MAX - 0x4000_0000] {
            let wrong = |_: &Client, segment: Tcp| Tcp { ack: segment.ack.wrapping_add(shift), ..segment };
            decoy(arena, v6, false, wrong, Reason::PLAINTEXT)?;
        }
        Ok(())
    })
}

#[test]
fn a_hello_without_an_acknowledgement_does_not_clear_the_way() -> Result<()> {
    each_family(|arena, v6| {
        let bare = |_: &Client, segment: Tcp| Tcp { flags: segment.flags & !ACK, ..segment };
        decoy(arena, v6, false, bare, Reason::PLAINTEXT)
    })
}

/// An MD5 signature (RFC 2385) that the pod did not ask for: discarded.
#[test]
fn a_hello_with_a_signature_does_not_clear_the_way() -> Result<()> {
    each_family(|arena, v6| {
        let mut signature = vec![option::NOP, option::NOP, option::MD5, 18];
        signature.extend([0x5a; 16]);
        decoy(arena, v6, false, |_, segment| segment.options(&signature), Reason::PLAINTEXT)
    })
}

/// No flag at all, or the wrong ones: the pod discards it, and the rules read it all the same.
#[test]
fn a_hello_with_odd_flags_does_not_clear_the_way() -> Result<()> {
    each_family(|arena, v6| {
        decoy(arena, v6, false, |_, segment| Tcp { flags: 0, ..segment }, Reason::PLAINTEXT)?;
        // Urgent data cannot be told apart from what shifts the stream.
        let urgent = |_: &Client, segment: Tcp| Tcp { urgent: 1, ..segment.with(URG).damaged() };
        decoy(arena, v6, false, urgent, Reason::MALFORMED)
    })
}

/// The pod's IP discards it: a wrong checksum of the IPv4 header, a length beyond the packet's end in IPv6. On a bridge nobody
/// discards it before.
#[test]
fn a_hello_in_a_damaged_ip_packet_does_not_clear_the_way() -> Result<()> {
    let arena = Arena::with(Topology::Bridge, ECHO)?;
    each_family_in(&arena, |arena, v6| {
        let seen = arena.records.all()?.len();
        let mut client = arena.open(v6)?;
        let mut packet = client.ip.encode(&client.encode(&client.data(0, HELLO)));
        // The last byte of the length, or of the checksum.
        packet[if v6 { 5 } else { 11 }] ^= 0x40;
        client.send_packet(&packet)?;
        client.send(&client.data(0, REQUEST))?;
        client.expect_reset()?;
        arena.pod_was_reset(seen, &client, b"")?;
        arena.was_reset_for(Reason::PLAINTEXT)
    })
}
