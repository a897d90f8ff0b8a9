//! Several copies of the first bytes that differ: whatever the pod's stack makes of each, only one content may pass.

use anyhow::{Result, ensure};
use enforcer_common::Reason;

use crate::arena::{Arena, HELLO, HELLO_LEN, REQUEST, each_family};

/// A hello that the pod discards, then a request that it would take.
fn decoy_then_request(
    arena: &Arena,
    v6: bool,
    decoy: impl Fn(&mut enforcer_tests::raw::Client) -> Result<()>,
) -> Result<()> {
    let seen = arena.records.all()?.len();
    let mut client = arena.open(v6)?;
    decoy(&mut client)?;
    client.send(&client.data(0, REQUEST))?;
    client.expect_reset()?;
    arena.pod_was_reset(seen, &client, b"")?;
    arena.was_reset_for(Reason::PLAINTEXT)
}

#[test]
fn a_copy_with_a_bad_checksum_does_not_clear_the_way() -> Result<()> {
    each_family(|arena, v6| {
        decoy_then_request(arena, v6, |client| client.send(&client.data(0, HELLO).damaged()))
    })
}

#[test]
fn first_bytes_changed_after_the_verdict_are_refused() -> Result<()> {
    each_family(|arena, v6| {
        let seen = arena.records.all()?.len();
        let mut client = arena.open(v6)?;
        // Judged as TLS and discarded by the pod, so that its stack still waits for these bytes.
        client.send(&client.data(0, HELLO).damaged())?;
        let mut other = HELLO.to_vec();
        other[4] ^= 1;
        client.send(&client.data(0, &other))?;
        client.expect_reset()?;
        arena.pod_was_reset(seen, &client, b"")?;
        arena.was_reset_for(Reason::MALFORMED)
    })
}

#[test]
fn first_bytes_sent_again_with_other_content_after_they_were_taken_change_nothing() -> Result<()> {
    each_family(|arena, v6| {
        let mut client = arena.judged(v6)?;
        client.expect_acked(HELLO_LEN)?;
        client.send(&client.data(0, &REQUEST[..6]))?;
        // A copy that goes on behind what the pod has: only the new bytes count to its stack.
        arena.lives_on(&mut client)?;
        arena.nothing_refused()
    })
}

#[test]
fn one_wrong_byte_behind_right_ones_is_refused() -> Result<()> {
    each_family(|arena, v6| {
        let seen = arena.records.all()?.len();
        let mut client = arena.open(v6)?;
        for (offset, byte) in (0..5).zip(HELLO) {
            client.send(&client.data(offset, &[*byte]))?;
            client.expect_acked(offset + 1)?;
        }
        client.send(&client.data(5, b"\x02 and plaintext"))?;
        client.expect_reset()?;
        let record = arena.records.next(seen, client.local())?;
        ensure!(HELLO[..5].starts_with(&record.head), "{record:?}");
        arena.was_reset_for(Reason::PLAINTEXT)
    })
}
