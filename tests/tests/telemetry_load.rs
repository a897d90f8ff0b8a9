//! Telemetry under as many new connections as the machine can make: nothing blocks, and what is not told is counted.
//!
//! `cargo xtask load` is the long form, whose numbers stand in `docs/benchmarks.md`.

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use enforcer::telemetry::client;
use enforcer::telemetry::record::{Line, Record};
use enforcer_common::{Mode, Reason, Verdict};
use enforcer_tests::agent::{FRONTEND_PERMISSIVE, MESH_STRICT};
use enforcer_tests::{Lab, Scene, poll};

/// Clients, each with one connection at a time.
const CLIENTS: usize = 4;
/// Threads of the server.
const SERVERS: usize = 2;
/// What a client sends.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: frontend\r\n\r\n";
/// The agent's processor time for each connection at most: a third of a core at 20,000 connections a second.
const CPU_PER_CONNECTION: Duration = Duration::from_nanos(1_000_000_000 / 3 / 20_000);
/// What the agent may take beside, of one core: its looks at maps and interfaces, and the scrapes of this test.
const CPU_AT_REST: f64 = 0.05;
/// The slowest answer to a health check, on a machine whose processors are all taken.
const SLOWEST: Duration = Duration::from_secs(2);
/// How long the short form runs.
const SHORT: Duration = Duration::from_secs(2);

/// Closing sends a reset: no `TIME_WAIT` eats up the ports.
fn abort_on_close(stream: &TcpStream) -> Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = libc::socklen_t::try_from(size_of_val(&linger))?;
    // SAFETY: the option's value is a `linger` of this size, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size,
        )
    };
    ensure!(result == 0, "SO_LINGER: {}", std::io::Error::last_os_error());
    Ok(())
}

/// As many connections as go, one after the other from each client.
struct Storm {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Storm {
    fn start(lab: &Lab, to: SocketAddr) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let made = Arc::new(AtomicU64::new(0));
        let listener = Arc::new(lab.inside("frontend", || TcpListener::bind(to))??);
        for _ in 0..SERVERS {
            let listener = listener.clone();
            // Ends with the process: accept has nobody to wake it.
            thread::spawn(move || {
                let mut buffer = [0; 256];
                while let Ok((mut stream, _)) = listener.accept() {
                    // The answer, then the client's reset.
                    while stream.read(&mut buffer).is_ok_and(|count| count > 0) {
                        let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
                    }
                }
            });
        }
        let mut threads = Vec::new();
        for _ in 0..CLIENTS {
            let (stop, made) = (stop.clone(), made.clone());
            let namespace = std::fs::File::open(format!("/run/netns/{}", lab.namespace("sleep")))?;
            threads.push(thread::spawn(move || {
                nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
                let mut buffer = [0; 256];
                while !stop.load(Ordering::Relaxed) {
                    let mut stream = TcpStream::connect(to)?;
                    stream.write_all(REQUEST)?;
                    ensure!(stream.read(&mut buffer)? > 0, "no answer");
                    abort_on_close(&stream)?;
                    made.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        Ok(Self { stop, made, threads })
    }

    fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(self.made.load(Ordering::Relaxed))
    }
}

/// What a follower of the flow log saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Seen {
    verdicts: u64,
    ends: u64,
    missing: u64,
}

impl Seen {
    fn add(&mut self, record: &Record) {
        match &record.line {
            Line::Verdict(_) => self.verdicts += 1,
            Line::End(_) => self.ends += 1,
            Line::Suppressed(gap) => self.missing += gap.suppressed + gap.lost + gap.missed,
        }
    }
}

/// Follows the flow log until `stop`, and a moment longer.
fn follow(lab: &Lab, stop: Arc<AtomicBool>) -> Result<JoinHandle<Result<Seen>>> {
    let mut answer = client::follow(&lab.socket(), "/v1/flows?follow=1&last=0&port=8080")?;
    answer.get_ref().set_read_timeout(Some(Duration::from_millis(500)))?;
    Ok(thread::spawn(move || {
        let mut seen = Seen::default();
        let mut line = Vec::new();
        loop {
            let done = stop.load(Ordering::Relaxed);
            match answer.read_until(b'\n', &mut line) {
                Ok(0) => return Ok(seen),
                Ok(_) if line.ends_with(b"\n") => {
                    seen.add(&serde_json::from_slice(&line)?);
                    line.clear();
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if done {
                        return Ok(seen);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }))
}

/// Processor time of a process, user and system.
fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(") ").context("no name in stat")?.1;
    let ticks: u64 = after.split(' ').skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    // A hundred ticks a second on every architecture of Linux that this runs on.
    Ok(Duration::from_millis(ticks * 10))
}

fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or(f64::NAN)
}

fn scene() -> Result<Scene> {
    let scene = Scene::new(&[("mesh.yaml", MESH_STRICT), ("frontend.yaml", FRONTEND_PERMISSIVE)])?;
    scene.lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    Ok(scene)
}

#[test]
fn every_connection_is_told_or_counted_as_missing() -> Result<()> {
    let scene = scene()?;
    let lab = &scene.lab;
    let stop = Arc::new(AtomicBool::new(false));
    let follower = follow(lab, stop.clone())?;
    // One that never reads harms nobody.
    let _stuck = client::open(&lab.socket(), "/v1/flows?follow=1")?;
    let storm = Storm::start(lab, lab.address("frontend", 8080, false))?;
    poll::until("connections", Duration::from_secs(20), || {
        ensure!(storm.made() > 100, "{} were made", storm.made());
        Ok(())
    })?;
    // Policy and health go on meanwhile.
    let begun = Instant::now();
    lab.withdraw("mesh.yaml")?;
    lab.wait_mode("adservice", Mode::PERMISSIVE)?;
    client::get(&lab.socket(), "/healthz")?;
    client::get(&lab.socket(), "/metrics")?;
    let took = begun.elapsed();
    assert!(took < SLOWEST * 2, "a change of policy, a health check and a scrape took {took:?}");
    thread::sleep(SHORT);
    let made = storm.finish()?;
    // What is counted is exact, whatever was told.
    let counted = poll::until("the counters", Duration::from_secs(5), || {
        let counted = lab.count(Verdict::ALLOW, Reason::PLAINTEXT_PERMITTED)?.connections;
        ensure!(counted >= made, "{counted} of {made}");
        Ok(counted)
    })?;
    assert_eq!(counted, made);
    stop.store(true, Ordering::Relaxed);
    let seen = follower.join().map_err(|_| anyhow::anyhow!("the follower panicked"))??;
    assert!(seen.verdicts <= made, "{seen:?} of {made}");
    assert!(seen.verdicts + seen.missing >= made, "{seen:?} of {made}");
    if seen.missing == 0 {
        assert_eq!(seen.verdicts, made, "{seen:?}");
        assert!(seen.ends <= made, "{seen:?}");
    }
    Ok(())
}

#[test]
fn the_agent_stays_small_under_load() -> Result<()> {
    let seconds = std::env::var("ENFORCER_LOAD_SECONDS").ok().and_then(|text| text.parse().ok());
    let time = seconds.map_or(SHORT, Duration::from_secs);
    let scene = scene()?;
    let lab = &scene.lab;
    let storm = Storm::start(lab, lab.address("frontend", 8080, false))?;
    let (begun, used) = (Instant::now(), cpu(scene.agent.pid())?);
    let before = client::get(&lab.socket(), "/metrics")?;
    let mut slowest = Duration::ZERO;
    while begun.elapsed() < time {
        let asked = Instant::now();
        client::get(&lab.socket(), "/healthz")?;
        slowest = slowest.max(asked.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
    let (elapsed, used) = (begun.elapsed(), cpu(scene.agent.pid())?.saturating_sub(used));
    let made = storm.finish()?;
    let after = poll::until("the records", Duration::from_secs(5), || {
        let text = client::get(&lab.socket(), "/metrics")?;
        let told = metric(&text, "enforcer_flow_records_total");
        let missing =
            metric(&text, "enforcer_events_lost_total") + metric(&text, "enforcer_events_suppressed_total");
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let enough = told + missing >= made as f64;
        ensure!(enough, "{told} told, {missing} missing of {made}");
        Ok(text)
    })?;
    let allowed = CPU_PER_CONNECTION * u32::try_from(made)? + elapsed.mul_f64(CPU_AT_REST);
    let difference = |name: &str| metric(&after, name) - metric(&before, name);
    println!(
        "{made} connections in {elapsed:.1?}: {:.0}/s; agent {:.3} cores; records {}, suppressed {}, lost {}; slowest health \
         check {slowest:.1?}; resident {:.1} MiB",
        f64::from(u32::try_from(made)?) / elapsed.as_secs_f64(),
        used.as_secs_f64() / elapsed.as_secs_f64(),
        difference("enforcer_flow_records_total"),
        difference("enforcer_events_suppressed_total"),
        difference("enforcer_events_lost_total"),
        metric(&after, "enforcer_process_resident_memory_bytes") / 1_048_576.0,
    );
    assert!(
        used <= allowed,
        "the agent took {used:?} for {made} connections in {elapsed:?}, more than {allowed:?}"
    );
    assert!(
        used.as_secs_f64() < elapsed.as_secs_f64() / 3.0,
        "{used:?} of {elapsed:?}: more than a third of a core"
    );
    assert!(slowest < SLOWEST, "a health check took {slowest:?}");
    Ok(())
}
