//! Restarts and kills under load: enforcement has no gap, no TLS connection ends, nothing is counted twice or left over.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer::datapath::load::Pinned;
use enforcer::datapath::maps::Exempt;
use enforcer_common::{Address, Reason, Verdict};
use enforcer_tests::agent::FRONTEND_PERMISSIVE;
use enforcer_tests::lab::NODE;
use enforcer_tests::load::{Load, Plaintext, Plan, value};
use enforcer_tests::watch::Watch;
use enforcer_tests::{Lab, Scene, poll};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(20);
const RUNNING: &str = "agent is running";

/// 20 restarts and 20 kills.
const ROUNDS: u64 = 20;

const PLAN: Plan<'static> = Plan {
    to: "frontend",
    port: 8080,
    tls_from: "loadgenerator",
    plain_from: "sleep",
    lasting: 16,
    fresh: 1,
    plain: 2,
    expected: Plaintext::Reset,
    pause: Duration::from_millis(15),
};

/// A step of a linear congruential generator; the high bits are good enough to spread kills over a start.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

/// The programs on the hooks of the frontend.
fn programs(lab: &Lab) -> Result<BTreeSet<u32>> {
    Ok(lab.own_hooks("frontend")?.iter().map(|hook| hook.program).collect())
}

fn loaded() -> BTreeSet<u32> {
    aya::programs::loaded_programs().flatten().map(|program| program.id()).collect()
}

#[test]
fn twenty_restarts_and_twenty_kills_under_load() -> Result<()> {
    let mut scene = Scene::strict()?;
    let (_server, records) = scene.lab.sidecar("frontend", 8080)?;
    scene.agent.wait_for_output(RUNNING)?;
    let pins = scene.lab.pins()?;
    let mut watch = Watch::start(&scene.lab, &["frontend", "adservice", "loadgenerator"])?;
    let load = Load::start(&scene.lab, PLAN)?;

    let mut old = BTreeSet::new();
    for round in 0..ROUNDS {
        old.extend(programs(&scene.lab)?);
        let sent = value(&load.totals().plain_sent);
        scene.agent.signal(Signal::SIGTERM)?;
        assert_eq!(scene.agent.wait(LIMIT)?, 0, "round {round}: {}", scene.agent.output());
        scene.agent = scene.lab.start_agent(&[])?;
        scene.agent.wait_for_output(RUNNING)?;
        watch.check()?;
        load.totals().check()?;
        poll::until("plaintext to be tried", LIMIT, || {
            ensure!(value(&load.totals().plain_sent) > sent, "nobody did");
            Ok(())
        })?;
    }
    // Kills at every moment of an agent's life: from the start of the process to well after it runs.
    let (mut seed, mut young) = (0x5eed, 0);
    for _ in 0..ROUNDS {
        old.extend(programs(&scene.lab)?);
        std::thread::sleep(Duration::from_millis(next(&mut seed) % 400));
        young += u32::from(!scene.agent.output().contains(RUNNING));
        scene.agent.kill()?;
        scene.agent = scene.lab.start_agent(&[])?;
        watch.check()?;
        load.totals().check()?;
    }
    scene.agent.wait_for_output(RUNNING)?;
    assert!(young > 0, "no agent was killed while it started");

    let totals = load.finish()?;
    let looks = watch.finish()?;
    assert!(looks > 100, "the hooks were looked at {looks} times");
    let (sent, reset) = (value(&totals.plain_sent), value(&totals.plain_reset));
    assert!(sent > 2 * ROUNDS && value(&totals.tls_opened) > 2 * ROUNDS, "little load: {totals:?}");
    assert_eq!(sent, reset);
    // Every connection was counted, and once.
    let counted = |verdict, reason| Ok::<_, anyhow::Error>(scene.lab.count(verdict, reason)?.connections);
    assert_eq!(counted(Verdict::RESET, Reason::PLAINTEXT)?, sent);
    assert_eq!(counted(Verdict::ALLOW, Reason::TLS)?, value(&totals.tls_opened));
    let (node, workloads) = scene.lab.both_totals()?;
    assert_eq!(node, workloads);
    for record in records.all()?.iter().filter(|record| record.class != "tls") {
        assert_eq!(record.read, 0, "plaintext came through: {record:?}");
    }

    assert_eq!(scene.lab.pins()?, pins);
    let current = programs(&scene.lab)?;
    poll::until("the earlier programs to be gone", LIMIT, || {
        let left: Vec<_> =
            loaded().into_iter().filter(|id| old.contains(id) && !current.contains(id)).collect();
        ensure!(left.is_empty(), "{left:?} are loaded");
        Ok(())
    })
}

/// A restart says what is new, and nothing is: the policy is the one that the agent before put in force.
#[test]
fn a_restart_tells_no_change_where_nothing_changed() -> Result<()> {
    let mut scene = Scene::strict()?;
    scene.agent.wait_for_output(RUNNING)?;
    assert!(scene.agent.output().contains("policy changed"), "{}", scene.agent.output());
    scene.agent.kill()?;
    // One policy changes while nobody looks.
    scene.lab.apply("frontend.yaml", FRONTEND_PERMISSIVE)?;
    scene.agent = scene.lab.start_agent(&[])?;
    scene.agent.wait_for_output(RUNNING)?;
    let log = scene.agent.output();
    let changes: Vec<&str> = log.lines().filter(|line| line.contains("policy changed")).collect();
    assert_eq!(changes.len(), 2, "{log}");
    assert!(
        changes.iter().all(|line| line.contains("frontend") && line.contains("before=\"STRICT\"")),
        "{log}"
    );
    Ok(())
}

/// Probes come from the node's own addresses, whichever these are at the moment.
#[test]
fn addresses_that_the_node_gets_later_are_its_own() -> Result<()> {
    let scene = Scene::strict()?;
    let address: std::net::IpAddr = "10.244.77.1".parse()?;
    let known = || -> Result<bool> {
        let map = Pinned::open(&scene.lab.bpffs())?.map("EXEMPT")?;
        Ok(Exempt::new(map)?.entries()?.iter().any(|(known, _)| *known == Address::from(address)))
    };
    assert!(!known()?);
    for (word, expected) in [("add", true), ("del", false)] {
        scene.lab.exec(NODE, ["ip", "address", word, "10.244.77.1/32", "dev", "lo"])?.success()?;
        poll::until("the address to be known or forgotten", LIMIT, || {
            ensure!(known()? == expected, "{word}: it is not");
            Ok(())
        })?;
    }
    Ok(())
}
