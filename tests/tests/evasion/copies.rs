//! Several copies of the first bytes that differ: whatever the pod's stack makes of each, only one content may pass.

use std::sync::Barrier;
use std::thread;

use anyhow::{Result, ensure};
use enforcer_common::{Mode, Reason};
use enforcer_tests::agent::policy;
use enforcer_tests::raw::Tcp;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::arena::{Arena, HELLO, HELLO_LEN, REQUEST, each_family, each_family_in};

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
    each_family(bad_checksum)
}

pub(crate) fn bad_checksum(arena: &Arena, v6: bool) -> Result<()> {
    decoy_then_request(arena, v6, |client| client.send(&client.data(0, HELLO).damaged()))
}

#[test]
fn first_bytes_changed_after_the_verdict_are_refused() -> Result<()> {
    each_family(changed_after_the_verdict)
}

pub(crate) fn changed_after_the_verdict(arena: &Arena, v6: bool) -> Result<()> {
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

/// Two processors judge two packets of one flow at once: what is wrong with one of them is held against that one, whatever the other
/// made of the flow in the meantime.
#[test]
fn a_hello_and_a_request_at_the_same_instant() -> Result<()> {
    each_family(|arena, v6| {
        let seen = arena.records.all()?.len();
        let rounds = 300;
        for _ in 0..rounds {
            let client = &arena.open(v6)?;
            let start = Barrier::new(2);
            thread::scope(|scope| -> Result<()> {
                let sender = |processor: usize, segment: Tcp| {
                    let (client, start) = (client, &start);
                    scope.spawn(move || -> Result<()> {
                        let mut one = CpuSet::new();
                        one.set(processor)?;
                        sched_setaffinity(Pid::from_raw(0), &one)?;
                        start.wait();
                        client.send(&segment)
                    })
                };
                let hello = sender(0, client.data(0, HELLO).damaged());
                let request = sender(1, client.data(0, REQUEST));
                hello.join().expect("a sender")?;
                request.join().expect("a sender")
            })?;
        }
        for record in arena.records.at_least(seen + rounds)?.get(seen..).unwrap_or_default() {
            ensure!(record.head.is_empty(), "the pod read {record:?}");
        }
        Ok(())
    })
}

/// That the cases of this suite can fail: without STRICT the same packets arrive, and are read.
#[test]
fn without_enforcement_the_same_request_is_read() -> Result<()> {
    let arena = Arena::new()?;
    let app = "frontend.hipstershopv1v2.svc.cluster.local";
    let permissive = policy("hipstershopv1v2", "frontend", Some(app), "PERMISSIVE", &[]);
    arena.scene.lab.apply("frontend.yaml", &permissive)?;
    arena.scene.lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    each_family_in(&arena, |arena, v6| {
        let mut client = arena.open(v6)?;
        client.send(&client.data(0, HELLO).damaged())?;
        client.send(&client.data(10, &REQUEST[10..]))?;
        client.send(&client.data(0, REQUEST))?;
        client.expect_heard(REQUEST)?;
        client.abort(u32::try_from(REQUEST.len())?)?;
        let record = arena.records.of_peer(client.local())?;
        ensure!(record.head == REQUEST, "{record:?}");
        arena.nothing_refused()
    })
}
