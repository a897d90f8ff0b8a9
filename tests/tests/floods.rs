//! Floods and full tables: judged TLS connections live, `FLOWS` holds nothing that did not shake hands and speak TLS, and
//! whatever is full has its fixed verdict and counter.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_common::{Mode, Reason, Verdict};
use enforcer_tests::agent::MESH_STRICT;
use enforcer_tests::client::{self, Outcome, tls};
use enforcer_tests::flood::{raise_open_files, syns};
use enforcer_tests::lab::Running;
use enforcer_tests::load::{Load, Plaintext, Plan, value};
use enforcer_tests::raw::{Client, Crowd, Wire};
use enforcer_tests::{Lab, poll};
use nix::sys::signal::Signal;
use serde_json::Value;

const HOST: &str = "frontend.hipstershopv1v2";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
const RUNNING: &str = "agent is running";
const LIMIT: Duration = Duration::from_secs(20);
/// A server's first record, as far as anybody looks at it: a handshake record with the start of a hello.
const SERVER_HELLO: &str = "\u{16}\u{3}\u{3}\u{1}\u{7a}\u{2}\u{1}\u{1}\u{76}";

fn strict(arguments: &[&str]) -> Result<(Lab, Running)> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let mut agent = lab.start_agent(arguments)?;
    agent.wait_for_output(RUNNING)?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    Ok((lab, agent))
}

fn number_of_flows(lab: &Lab) -> Result<usize> {
    Ok(lab.flows()?.len())
}

fn status(lab: &Lab) -> Result<Value> {
    Ok(serde_json::from_str(&lab.enforcer(&["status", "-o", "json"])?.stdout)?)
}

fn secure(lab: &Lab, limit: Duration) -> Result<tls::Stream> {
    let stream = lab.connect("loadgenerator", lab.address("frontend", 8080, false))?;
    stream.set_read_timeout(Some(limit))?;
    let config = tls::config(lab, "loadgenerator", tls::Shape::default())?;
    tls::start(stream, config, HOST, tls::Shape::default())
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
    let answers = value(&load.totals().tls_answers);
    poll::until("answers on every connection", Duration::from_mins(1), || {
        load.totals().check()?;
        ensure!(value(&load.totals().tls_answers) >= answers + 2 * LASTING as u64, "not yet");
        Ok(())
    })?;
    load.finish()?;
    Ok(())
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

/// Nobody is pushed out of a full table: the pod's first answer to one more connection waits until there is room.
#[test]
fn one_more_connection_than_the_flow_table_holds_waits() -> Result<()> {
    const ROOM: usize = 8;
    let (lab, _agent) = strict(&["--map-size", "FLOWS=8"])?;
    let (_server, records) = lab.sidecar("frontend", 8080)?;
    let mut held = Vec::new();
    for _ in 0..ROOM {
        let mut stream = secure(&lab, LIMIT)?;
        tls::get(&mut stream, HOST)?;
        held.push(stream);
    }
    assert_eq!(number_of_flows(&lab)?, ROOM);
    let mut more = secure(&lab, Duration::from_secs(2))?;
    assert!(tls::get(&mut more, HOST).is_err(), "the table holds more than it can");
    assert!(lab.count(Verdict::DROP, Reason::UNDECIDED)?.packets > 0);
    for stream in &mut held {
        tls::get(stream, HOST)?;
    }
    // Plaintext gains nothing by it.
    let plain = lab.connect("sleep", lab.address("frontend", 8080, false))?;
    assert_eq!(client::exchange(&plain, REQUEST, usize::MAX, LIMIT)?.outcome, Outcome::Reset);
    let problems = status(&lab)?["problems"].to_string();
    assert!(problems.contains("map FLOWS is nearly full"), "{problems}");
    drop((more, held));
    poll::until("room for another connection", LIMIT, || {
        tls::get(&mut secure(&lab, LIMIT)?, HOST)?;
        Ok(())
    })?;
    assert!(records.all()?.iter().all(|record| record.class == "tls" || record.read == 0));
    Ok(())
}

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

/// 10,000 by default; `ENFORCER_TEST_FLOWS=100000` for the long form. The client has no sockets, the servers share the connections,
/// so that nobody needs more descriptors than a process may usually have.
#[test]
fn many_judged_flows_at_once() -> Result<()> {
    const PER_SERVER: usize = 15_000;
    let wanted: usize = std::env::var("ENFORCER_TEST_FLOWS").map_or(Ok(10_000), |text| text.parse())?;
    raise_open_files(20_000)?;
    let (lab, _agent) = strict(&["--log", "warn,enforcer::agent=info,enforcer::agent::verdicts=error"])?;
    let mut servers = Vec::new();
    let mut to = Vec::new();
    for port in (8080..).take(wanted.div_ceil(PER_SERVER)) {
        servers.push(lab.raw_server("frontend", port, &["--answer", SERVER_HELLO])?);
        to.extend([false, true].map(|v6| lab.address("frontend", port, v6)));
    }
    let hello = tls::hello(&lab, "loadgenerator", HOST, tls::Shape::default())?;
    let wire = Wire::open(&lab, "loadgenerator", "frontend")?;
    let start = Instant::now();
    let mut crowd = Crowd::new(&wire, &to, wanted)?;
    crowd.open(&hello, u32::try_from(SERVER_HELLO.len())?)?;
    let opened = start.elapsed();
    assert_eq!(number_of_flows(&lab)?, wanted);
    let status = status(&lab)?;
    let maps = status["maps"].as_array().context("no maps")?;
    let memory: u64 = maps.iter().filter_map(|map| map["memory_bytes"].as_u64()).sum();
    let flows = maps.iter().find(|map| map["name"] == "FLOWS").context("FLOWS is not told")?;
    assert_eq!(flows["entries"], wanted);
    assert!(memory < 256 << 20, "the maps take {memory} bytes");
    // None of them is forgotten: more bytes pass on each, and the pod acknowledges them.
    let start = Instant::now();
    crowd.go_on(b"\x17\x03\x03\x00\x01x").context("a judged flow was reset")?;
    println!(
        "{wanted} flows to {} servers, opened in {opened:.1?}, more on each in {:.1?}; maps take {} MiB, FLOWS {} MiB",
        servers.len(),
        start.elapsed(),
        memory >> 20,
        flows["memory_bytes"].as_u64().unwrap_or(0) >> 20
    );
    assert_eq!(number_of_flows(&lab)?, wanted);
    assert_eq!(lab.count(Verdict::ALLOW, Reason::TLS)?.connections, wanted as u64);
    assert_eq!(lab.count(Verdict::RESET, Reason::MIDSTREAM)?.connections, 0);
    Ok(())
}
