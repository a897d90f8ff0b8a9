//! Limits of resets, of the node and of each client.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Result;
use enforcer_common::{Reason, Verdict};
use enforcer_tests::client::{self, Outcome};

use crate::{LIMIT, REQUEST, strict};

#[test]
fn beyond_the_limit_of_resets_packets_are_dropped() -> Result<()> {
    const ATTEMPTS: usize = 100;
    let (lab, _agent) = strict(&["--resets-per-second", "10"])?;
    let (_server, records) = lab.raw_server("frontend", 8080, &[])?;
    let to = lab.address("frontend", 8080, false);
    let streams: Vec<TcpStream> = lab.inside("sleep", || {
        (0..ATTEMPTS).map(|_| TcpStream::connect(to)).collect::<std::io::Result<_>>()
    })??;
    for mut stream in &streams {
        stream.write_all(REQUEST)?;
    }
    let dropped = lab.count(Verdict::DROP, Reason::RESET_LIMIT)?;
    let reset = lab.count(Verdict::RESET, Reason::PLAINTEXT)?.connections;
    assert!(dropped.packets >= 50 && reset <= 50, "{dropped:?}, {reset} reset");
    // Each of them hears of it in the end: what is sent again finds the budget of another second.
    for stream in streams.iter().take(5) {
        assert_eq!(client::read_to_end(stream, LIMIT)?.outcome, Outcome::Reset);
    }
    drop(streams);
    assert!(records.all()?.iter().all(|record| record.read == 0));
    Ok(())
}

/// What one client is refused costs no other its resets, and not the node's either, of which there are fewer than the storm has
/// attempts.
#[test]
fn a_storm_of_one_client_leaves_the_resets_of_others_alone() -> Result<()> {
    const STORM: usize = 100;
    const OTHERS: usize = 8;
    /// Before a client's stack sends again what was not acknowledged (200 ms at the least).
    const AT_ONCE: Duration = Duration::from_millis(180);
    let (lab, _agent) = strict(&["--resets-per-second", "40", "--resets-per-second-per-client", "10"])?;
    let (_server, records) = lab.raw_server("frontend", 8080, &[])?;
    for v6 in [false, true] {
        let to = lab.address("frontend", 8080, v6);
        let many = |from: &str, count: usize| -> Result<Vec<TcpStream>> {
            let connect = || (0..count).map(|_| TcpStream::connect(to)).collect::<std::io::Result<_>>();
            Ok(lab.inside(from, connect)??)
        };
        let (storm, others) = (many("sleep", STORM)?, many("adservice", OTHERS)?);
        let dropped = lab.count(Verdict::DROP, Reason::RESET_LIMIT)?.packets;
        for mut stream in &storm {
            stream.write_all(REQUEST)?;
        }
        for stream in &others {
            let ending = client::exchange(stream, REQUEST, usize::MAX, LIMIT)?;
            assert_eq!(ending.outcome, Outcome::Reset, "IPv6 {v6}");
            assert!(ending.elapsed < AT_ONCE, "IPv6 {v6}: {ending:?}");
        }
        let dropped = lab.count(Verdict::DROP, Reason::RESET_LIMIT)?.packets - dropped;
        assert!(dropped >= 50, "IPv6 {v6}: only {dropped} of the storm's were beyond the limit");
    }
    assert!(records.all()?.iter().all(|record| record.read == 0));
    Ok(())
}
