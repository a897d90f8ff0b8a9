//! The pod's side: what it says in plaintext does not leave it.

use anyhow::{Result, ensure};
use enforcer_common::Reason;
use enforcer_common::tcp::RST;
use enforcer_tests::Topology;
use enforcer_tests::raw::Client;
use enforcer_tests::record::End;

use crate::arena::{Arena, HELLO, ISN, each_family_in};

/// The reset that answers the pod's first data: the number of that data, and none of it.
fn silenced(arena: &Arena, client: &mut Client, seen: usize, reason: Reason) -> Result<()> {
    let reset = client.wait("a reset", |segment| segment.has(RST))?;
    ensure!(reset.seq == client.pod_isn.wrapping_add(1) && reset.payload.is_empty(), "{reset:?}");
    ensure!(client.heard().is_empty(), "the pod's words left it: {:?}", client.received);
    let record = arena.records.next(seen, client.local())?;
    ensure!(record.end == End::Reset, "{record:?}");
    arena.was_reset_for(reason)
}

#[test]
fn a_plaintext_answer_behind_a_fake_hello_does_not_leave() -> Result<()> {
    // The second begins like a record and has a length that none has.
    for answer in ["HTTP/1.1 200 OK\r\n\r\n", "\x16\x03\x03Xplaintext", "\x17\x03\x03\x01\x01plaintext"] {
        let arena = Arena::with(Topology::Routed, &["--answer", answer])?;
        each_family_in(&arena, |arena, v6| {
            let seen = arena.records.all()?.len();
            let mut client = arena.open(v6)?;
            client.send(&client.data(0, HELLO))?;
            silenced(arena, &mut client, seen, Reason::SERVER_NOT_TLS)
        })?;
    }
    Ok(())
}

#[test]
fn a_server_that_speaks_first_is_silenced() -> Result<()> {
    let arena = Arena::with(Topology::Routed, &["--greet", "220 ready\r\n"])?;
    each_family_in(&arena, |arena, v6| {
        let seen = arena.records.all()?.len();
        let mut client = arena.open(v6)?;
        silenced(arena, &mut client, seen, Reason::SERVER_FIRST)?;
        // Also when it speaks after a part of a hello.
        let seen = arena.records.all()?.len();
        let mut client = arena.client(v6, ISN);
        client.knock()?;
        client.send(&client.data(0, &HELLO[..5]))?;
        silenced(arena, &mut client, seen, Reason::SERVER_FIRST)
    })
}
