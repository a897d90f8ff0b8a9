//! Options of TCP and IP, extension headers, urgent data.

use anyhow::{Context, Result};
use enforcer_common::Reason;
use enforcer_common::tcp::URG;
use enforcer_tests::raw::{Client, Extension, Tcp, option};

use crate::arena::{Arena, HELLO, HELLO_LEN, ISN, REQUEST, each_family, hello};

/// Both verdicts with packets of this shape: a hello lives, a request is refused at its first byte.
fn judged_as_any(arena: &Arena, v6: bool, shape: impl Fn(&mut Client)) -> Result<()> {
    let mut client = arena.client(v6, ISN);
    shape(&mut client);
    client.shake()?;
    hello(&mut client)?;
    arena.lives_on(&mut client)?;
    arena.nothing_refused()?;
    let seen = arena.records.all()?.len();
    let mut client = arena.client(v6, ISN);
    shape(&mut client);
    client.shake()?;
    client.send(&client.data(0, REQUEST))?;
    client.expect_reset()?;
    arena.pod_was_reset(seen, &client, b"")?;
    arena.was_reset_for(Reason::PLAINTEXT)
}

#[test]
fn time_stamps_and_forty_bytes_of_options() -> Result<()> {
    each_family(tcp_options)
}

pub(crate) fn tcp_options(arena: &Arena, v6: bool) -> Result<()> {
    judged_as_any(arena, v6, |client| {
        client.syn_options.extend(option::timestamps(1000, 0));
        client.options = option::timestamps(1001, 0);
    })?;
    judged_as_any(arena, v6, |client| {
        client.options = vec![option::NOP; 40];
        client.syn_options = vec![option::NOP; 40];
    })
}

#[test]
fn ip_options_are_stepped_over() -> Result<()> {
    let arena = Arena::new()?;
    for options in [vec![1; 4], vec![1; 40], vec![148, 4, 0, 0], vec![0; 8]] {
        arena.refused()?;
        judged_as_any(&arena, false, |client| client.ip.options.clone_from(&options))?;
    }
    Ok(())
}

#[test]
fn extension_headers_are_stepped_over() -> Result<()> {
    let arena = Arena::new()?;
    let (hop, destination, routing) = (Extension::padding(0), Extension::padding(60), Extension::routing(0));
    let chains = [
        vec![hop.clone()],
        vec![destination.clone()],
        vec![routing.clone()],
        vec![hop, destination.clone(), routing, destination.clone()],
        vec![destination; 7],
    ];
    for chain in chains {
        arena.refused()?;
        judged_as_any(&arena, true, |client| client.ip.extensions.clone_from(&chain))?;
    }
    Ok(())
}

/// What cannot be read is dropped and counted, and the pod's socket never hears of it.
#[test]
fn extension_headers_that_cannot_be_read_are_dropped() -> Result<()> {
    let arena = Arena::new()?;
    let authentication = Extension { kind: 51, rest: vec![1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0] };
    let too_long = Extension { kind: 60, rest: vec![200, 1, 4, 0, 0, 0, 0] };
    let chains =
        [vec![Extension::routing(1)], vec![authentication], vec![too_long], vec![Extension::padding(60); 9]];
    for chain in chains {
        let mut client = arena.open(true)?;
        arena.refused()?;
        client.ip.extensions.clone_from(&chain);
        client.send(&client.data(0, REQUEST))?;
        client.send(&client.data(0, HELLO))?;
        client.ip.extensions.clear();
        arena.were_dropped_for(Reason::MALFORMED, 2).with_context(|| format!("{chain:?}"))?;
        // Nothing arrived: the same offsets can still be said right.
        hello(&mut client)?;
        arena.lives_on(&mut client)?;
    }
    Ok(())
}

/// Eight options of 250 bytes that a stack skips: the TCP header begins beyond 2 KiB.
#[test]
fn an_extension_header_of_two_kilobytes_hides_nothing() -> Result<()> {
    let arena = Arena::new()?;
    for member in ["frontend", "sleep"] {
        let host = arena.scene.lab.pod(member).interface();
        arena.scene.lab.exec("node", ["ip", "link", "set", &host, "mtu", "9000"])?.success()?;
        arena.scene.lab.exec(member, ["ip", "link", "set", "eth0", "mtu", "9000"])?.success()?;
    }
    let seen = arena.records.all()?.len();
    let mut client = arena.open(true)?;
    // In the options: a TCP header with RST, which would pass unseen, where a parser that wraps at 2048 looks.
    let fake = Tcp { flags: 4, ..client.ack(0) };
    let fake = client.encode(&fake);
    let mut rest = vec![255];
    while rest.len() < 2047 {
        let size = (2047 - rest.len()).min(256);
        let mut body = vec![0; size - 2];
        if rest.len() == 1 {
            body[..fake.len()].copy_from_slice(&fake);
        }
        rest.extend([0x1e, u8::try_from(size - 2)?]);
        rest.extend(body);
    }
    // 14 + 40 + 2048 bytes in, the header begins; modulo 2048 that is the byte behind the IPv6 header.
    for shift in 0..8 {
        let mut chain = vec![Extension { kind: 60, rest: rest.clone() }];
        chain.extend(vec![Extension::padding(60); shift]);
        client.ip.extensions = chain;
        client.send(&client.data(0, REQUEST))?;
    }
    client.ip.extensions.clear();
    arena.were_dropped_for(Reason::MALFORMED, 8)?;
    client.send(&client.data(0, REQUEST))?;
    client.expect_reset()?;
    arena.pod_was_reset(seen, &client, b"")?;
    arena.was_reset_for(Reason::PLAINTEXT)
}

#[test]
fn urgent_data_in_the_first_bytes_is_refused() -> Result<()> {
    each_family(|arena, v6| {
        for pointer in [1, 3, 6] {
            let seen = arena.records.all()?.len();
            let mut client = arena.open(v6)?;
            client.send(&Tcp { urgent: pointer, ..client.data(0, HELLO).with(URG) })?;
            client.expect_reset()?;
            arena.pod_was_reset(seen, &client, b"")?;
            arena.was_reset_for(Reason::MALFORMED)?;
        }
        Ok(())
    })
}

#[test]
fn urgent_data_behind_the_first_bytes_is_the_pods_affair() -> Result<()> {
    each_family(|arena, v6| {
        let mut client = arena.judged(v6)?;
        client.expect_acked(HELLO_LEN)?;
        client.send(&Tcp { urgent: 4, ..client.data(HELLO_LEN, b"more").with(URG) })?;
        client.expect_acked(HELLO_LEN + 4)?;
        arena.nothing_refused()
    })
}
