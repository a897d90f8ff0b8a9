//! Multipath TCP (RFC 8684): bytes have a place in the connection that is not their place in the TCP stream.

use anyhow::{Context, Result, bail};
use enforcer_common::Reason;
use enforcer_tests::Topology;
use enforcer_tests::raw::option;
use sha2::{Digest, Sha256};

use crate::arena::{Arena, HELLO, ISN, REQUEST, each_family_in, hello};

const CLIENT_KEY: [u8; 8] = *b"client k";

/// The number of the first byte that the owner of a key sends (RFC 8684, section 3.1).
fn first_number(key: &[u8]) -> Result<u64> {
    let hash = Sha256::digest(key);
    Ok(u64::from_be_bytes(hash.as_slice()[24..32].try_into()?).wrapping_add(1))
}

/// A server that listens for multipath connections, as those of Go do by default. The TLS-like bytes come first in the TCP
/// stream, and a thousand bytes later in the connection: the application would read plaintext from its first byte.
#[test]
fn a_multipath_connection_is_plain_tcp_to_the_pod() -> Result<()> {
    let arena = Arena::with(Topology::Routed, &["--echo-after", "6", "--multipath"])?;
    each_family_in(&arena, |arena, v6| {
        let seen = arena.records.all()?.len();
        let mut client = arena.client(v6, ISN);
        // Version 1, HMAC-SHA256; no checksums.
        client.syn_options.extend([option::MPTCP, 4, 0x01, 0x01]);
        let answer = client.knock()?;
        if let Some(found) = answer.find_option(option::MPTCP) {
            let pod_key = found.get(2..10).context("no key")?;
            let mut third = vec![option::MPTCP, 20, 0x01, 0x01];
            third.extend(CLIENT_KEY);
            third.extend(pod_key);
            client.send(&client.ack(0).options(&third))?;
            let (mine, theirs) = (first_number(&CLIENT_KEY)?, first_number(pod_key)?);
            let mut offset = 0_u32;
            for (number, bytes) in [(mine + 1000, HELLO), (mine, REQUEST)] {
                // Eight bytes of both numbers.
                let mut mapping = vec![option::NOP, option::NOP, option::MPTCP, 26, 0x20, 0x0f];
                mapping.extend(theirs.to_be_bytes());
                mapping.extend(number.to_be_bytes());
                mapping.extend((offset + 1).to_be_bytes());
                mapping.extend(u16::try_from(bytes.len())?.to_be_bytes());
                client.send(&client.data(offset, bytes).options(&mapping))?;
                offset += u32::try_from(bytes.len())?;
            }
            client.listen(std::time::Duration::from_millis(300))?;
            // Whatever the server echoes is no record, so that its answer tells what it has read.
            bail!("the pod took it for a multipath connection; refused since: {:?}", arena.refused()?);
        }
        client.send(&client.ack(0))?;
        client.send(&client.data(0, REQUEST))?;
        client.expect_reset()?;
        arena.pod_was_reset(seen, &client, b"")?;
        arena.was_reset_for(Reason::PLAINTEXT)?;
        // An honest client falls back to TCP, in one packet and without waiting.
        let mut client = arena.client(v6, ISN);
        client.syn_options = vec![option::MSS, 4, 5, 0xa0, option::NOP, option::MPTCP, 4, 1, 1, 1, 1, 1];
        client.shake()?;
        hello(&mut client)?;
        arena.lives_on(&mut client)
    })
}
