//! A full flow table, and a large one.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use enforcer_common::{Reason, Verdict};
use enforcer_tests::client::{self, Outcome, tls};
use enforcer_tests::flood::raise_open_files;
use enforcer_tests::poll;
use enforcer_tests::raw::{Crowd, Wire};

use crate::{HOST, LIMIT, REQUEST, number_of_flows, secure, status, strict};

/// A server's first record, as far as anybody looks at it: a handshake record with the start of a hello.
const SERVER_HELLO: &str = "\u{16}\u{3}\u{3}\u{1}\u{7a}\u{2}\u{1}\u{1}\u{76}";

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
    let told = "map FLOWS is nearly full, and the pods' answers on TLS connections beyond it wait";
    assert!(problems.contains(told), "{problems}");
    drop((more, held));
    poll::until("room for another connection", LIMIT, || {
        tls::get(&mut secure(&lab, LIMIT)?, HOST)?;
        Ok(())
    })?;
    assert!(records.all()?.iter().all(|record| record.class == "tls" || record.read == 0));
    Ok(())
}

/// What a client can have without the pod's consent stands elsewhere: the oldest of it makes room, and no judged connection.
#[test]
fn handshakes_without_end_push_out_only_what_is_not_judged() -> Result<()> {
    const OPENED: usize = 3000;
    const LOOKED_AT: u64 = 200;
    raise_open_files(20_000)?;
    let (lab, _agent) = strict(&["--map-size", "TRANSIENT=1024"])?;
    let (_server, records) = lab.sidecar("frontend", 8080)?;
    let mut judged = secure(&lab, LIMIT)?;
    tls::get(&mut judged, HOST)?;
    let to = lab.address("frontend", 8080, false);
    let idle: Vec<TcpStream> =
        lab.inside("sleep", || (0..OPENED).map(|_| TcpStream::connect(to)).collect::<std::io::Result<_>>())??;
    assert!(lab.transient()?.len() <= 1024);
    // A connection that nobody knows is refused like plaintext; it carried plaintext anyway.
    for stream in idle.iter().take(usize::try_from(LOOKED_AT)?) {
        assert_eq!(client::exchange(stream, REQUEST, usize::MAX, LIMIT)?.outcome, Outcome::Reset);
    }
    let forgotten = lab.count(Verdict::RESET, Reason::MIDSTREAM)?.connections;
    let known = lab.count(Verdict::RESET, Reason::PLAINTEXT)?.connections;
    assert!(forgotten + known == LOOKED_AT && forgotten >= LOOKED_AT / 2, "{forgotten} and {known}");
    tls::get(&mut judged, HOST).context("a judged connection was pushed out")?;
    tls::get(&mut secure(&lab, LIMIT)?, HOST).context("nobody gets in any more")?;
    drop(idle);
    assert!(records.all()?.iter().all(|record| record.class == "tls" || record.read == 0));
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
