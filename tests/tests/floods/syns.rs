//! SYNs from addresses that nobody has.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer_common::{Reason, Verdict};
use enforcer_tests::client::{self, Outcome};
use enforcer_tests::flood::{raise_open_files, syns};
use enforcer_tests::load::{Load, Plaintext, Plan, value};
use enforcer_tests::poll;
use enforcer_tests::raw::{Client, Wire};

use crate::{LIMIT, REQUEST, number_of_flows, strict};

/// Every lasting connection is answered, still.
fn all_answer(load: Load, lasting: usize) -> Result<()> {
    let answers = value(&load.totals().tls_answers);
    poll::until("answers on every connection", Duration::from_mins(1), || {
        load.totals().check()?;
        ensure!(value(&load.totals().tls_answers) >= answers + 2 * lasting as u64, "not yet");
        Ok(())
    })?;
    load.finish()?;
    Ok(())
}

#[test]
fn a_thousand_tls_connections_live_through_a_syn_flood() -> Result<()> {
    const LASTING: usize = 1000;
    const SYNS: u64 = 400_000;
    raise_open_files(20_000)?;
    let (lab, _agent) = strict(&[])?;
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    let plan = Plan {
        to: "frontend",
        port: 8080,
        tls_from: "loadgenerator",
        plain_from: "sleep",
        lasting: LASTING,
        fresh: 0,
        plain: 0,
        expected: Plaintext::Reset,
        pause: Duration::from_millis(700),
    };
    let load = Load::start(&lab, plan)?;
    assert_eq!(number_of_flows(&lab)?, LASTING);
    let transient = lab.transient()?.len();
    let flood = syns(&lab, "sleep", lab.address("frontend", 8080, false), 200_000, SYNS)?;
    let rate = u128::from(flood.sent) * 1000 / flood.took.as_millis().max(1);
    println!("{} SYNs in {:.2?}: {rate}/s", flood.sent, flood.took);
    assert_eq!(lab.transient()?.len(), transient, "the flood entered TRANSIENT");
    assert_eq!(number_of_flows(&lab)?, LASTING, "the flood entered FLOWS");
    all_answer(load, LASTING)
}

/// Both families at once, to the same port.
#[test]
fn tls_connections_live_through_syn_floods_of_both_families() -> Result<()> {
    const LASTING: usize = 50;
    const SYNS: u64 = 100_000;
    let (lab, _agent) = strict(&[])?;
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    let plan = Plan {
        to: "frontend",
        port: 8080,
        tls_from: "loadgenerator",
        plain_from: "adservice",
        lasting: LASTING,
        fresh: 0,
        plain: 0,
        expected: Plaintext::Reset,
        pause: Duration::from_millis(100),
    };
    let load = Load::start(&lab, plan)?;
    let transient = lab.transient()?.len();
    let families = [("sleep", false), ("adservice", true)];
    thread::scope(|scope| -> Result<()> {
        let flood = |(from, v6): (&'static str, bool)| {
            let lab = &lab;
            scope.spawn(move || syns(lab, from, lab.address("frontend", 8080, v6), 100_000, SYNS))
        };
        for running in families.map(flood) {
            let flood = running.join().expect("a flood")?;
            println!("{} SYNs in {:.2?}", flood.sent, flood.took);
        }
        Ok(())
    })?;
    // That they came as far as the pod's stack, in both families.
    let half_open = lab.half_open()?;
    for v6 in [false, true] {
        assert!(half_open.iter().any(|key| key.client.is_v4() != v6), "IPv6 {v6}");
    }
    assert_eq!(lab.transient()?.len(), transient, "the flood entered TRANSIENT");
    assert_eq!(number_of_flows(&lab)?, LASTING, "the flood entered FLOWS");
    all_answer(load, LASTING)
}

/// The oldest half-open connection makes room. Whoever comes with data after that has never shaken hands, so far as is known.
#[test]
fn a_full_half_open_table_lets_nothing_through() -> Result<()> {
    let (lab, _agent) = strict(&["--map-size", "HALF_OPEN=1024"])?;
    let (_server, records) = lab.raw_server("frontend", 8080, &[])?;
    let wire = Wire::open(&lab, "sleep", "frontend")?;
    let mut slow = Client::new(&wire, 40_000, lab.address("frontend", 8080, false), 7_000);
    slow.knock()?;
    syns(&lab, "sleep", lab.address("frontend", 8080, false), 20_000, 20_000)?;
    // The answers to the flood would stand before the pod's.
    slow.listen(Duration::from_millis(500))?;
    slow.send(&slow.ack(0))?;
    slow.send(&slow.data(0, REQUEST))?;
    slow.expect_reset()?;
    // Forgotten, or, where the pod's own queue of handshakes was full before, still known: refused either way.
    let forgotten = lab.count(Verdict::RESET, Reason::MIDSTREAM)?.connections;
    let known = lab.count(Verdict::RESET, Reason::PLAINTEXT)?.connections;
    assert_eq!(forgotten + known, 1);
    // Who shakes hands at once is served and judged as ever.
    let plain = lab.connect("sleep", lab.address("frontend", 8080, false))?;
    assert_eq!(client::exchange(&plain, REQUEST, usize::MAX, LIMIT)?.outcome, Outcome::Reset);
    assert!(records.all()?.iter().all(|record| record.read == 0));
    Ok(())
}
