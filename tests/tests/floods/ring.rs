//! A full ring buffer.

use anyhow::{Context, Result};
use enforcer_common::{Reason, Verdict};
use enforcer_tests::client::{self, Outcome};
use nix::sys::signal::Signal;

use crate::{LIMIT, REQUEST, status, strict};

#[test]
fn a_full_ring_buffer_costs_records_and_no_verdict() -> Result<()> {
    const ATTEMPTS: u64 = 300;
    let (lab, agent) = strict(&["--map-size", "EVENTS=4096"])?;
    let (_server, records) = lab.raw_server("frontend", 8080, &[])?;
    agent.signal(Signal::SIGSTOP)?;
    for _ in 0..ATTEMPTS {
        let plain = lab.connect("sleep", lab.address("frontend", 8080, false))?;
        assert_eq!(client::exchange(&plain, REQUEST, usize::MAX, LIMIT)?.outcome, Outcome::Reset);
    }
    agent.signal(Signal::SIGCONT)?;
    assert_eq!(lab.count(Verdict::RESET, Reason::PLAINTEXT)?.connections, ATTEMPTS);
    let events = &status(&lab)?["events"];
    let (lost, sent) = (events["lost"].as_u64().context("no number")?, events["sent"].as_u64());
    assert!(lost > 0 && lost < 2 * ATTEMPTS, "{lost} lost, {sent:?} sent");
    assert!(records.all()?.iter().all(|record| record.read == 0));
    Ok(())
}
