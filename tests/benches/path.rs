//! What the hooks cost a connection: throughput of one, and how many can be opened in a second, with and without the enforcer,
//! turn by turn in one run. Judged connections under STRICT that begin like TLS; nothing is encrypted, so nothing hides the cost.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use enforcer_common::Mode;
use enforcer_tests::Lab;
use enforcer_tests::agent::MESH_STRICT;
use nix::sys::signal::Signal;

const HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
const ANSWER: &[u8] = &[0x16, 3, 3, 0, 122, 2, 0, 0, 118];
/// Measurements of each kind, with and without.
const ROUNDS: usize = 7;
const BULK: Duration = Duration::from_secs(2);
const OPENING: Duration = Duration::from_secs(2);
const CLIENTS: usize = 2;
/// After its start an agent looks around.
const SETTLE: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    for (port, serve) in [(8080, answer as fn(TcpStream)), (8081, sink as fn(TcpStream))] {
        let listener = lab.inside("frontend", || TcpListener::bind(("::", port)))??;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || serve(stream));
            }
        });
    }
    let (mut without, mut with, mut paused) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(measure(&lab)?);
        let mut agent = lab.agent()?;
        lab.wait_mode_here("frontend", Mode::STRICT)?;
        thread::sleep(SETTLE);
        with.push(measure(&lab)?);
        // The programs alone, without an agent that reads their records on the same processors.
        agent.signal(Signal::SIGSTOP)?;
        paused.push(measure(&lab)?);
        agent.signal(Signal::SIGCONT)?;
        agent.signal(Signal::SIGTERM)?;
        ensure!(agent.wait(LIMIT)? == 0, "the agent failed");
        lab.enforcer(&["detach"])?.success()?;
    }
    println!(
        "{:<42}{:>13}{:>19}{:>19}",
        "median of seven turns each", "without", "programs alone", "with the agent"
    );
    for (name, unit, pick) in
        [("throughput of one connection", "MiB/s", 0), ("connections: open, hello, answer, close", "1/s", 1)]
    {
        let [without, paused, with] =
            [&without, &paused, &with].map(|all| median(all.iter().map(|pair| pair[pick]).collect()));
        let [ratio_paused, ratio] = [paused, with].map(|measured| measured / without);
        println!(
            "{name:<42}{:>13}{:>19}{:>19}",
            format!("{without:.0} {unit}"),
            format!("{paused:.0} ({ratio_paused:.2})"),
            format!("{with:.0} ({ratio:.2})")
        );
    }
    Ok(())
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// Throughput in MiB/s, connections per second.
fn measure(lab: &Lab) -> Result<[f64; 2]> {
    Ok([throughput(lab)?, openings(lab)?])
}

fn open(lab: &Lab, port: u16) -> Result<TcpStream> {
    let to = (lab.pod("frontend").v4(), port);
    let mut stream = lab.inside("sleep", || TcpStream::connect(to))??;
    stream.set_read_timeout(Some(LIMIT))?;
    hello(&mut stream)?;
    Ok(stream)
}

fn hello(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(HELLO)?;
    stream.read_exact(&mut [0; ANSWER.len()]).context("no answer")
}

fn throughput(lab: &Lab) -> Result<f64> {
    let mut stream = open(lab, 8081)?;
    let piece = vec![0x17; 256 * 1024];
    let (start, mut sent) = (Instant::now(), 0_u32);
    while start.elapsed() < BULK {
        stream.write_all(&piece)?;
        sent += 1;
    }
    Ok(f64::from(sent) / 4.0 / start.elapsed().as_secs_f64())
}

fn openings(lab: &Lab) -> Result<f64> {
    let to = (lab.pod("frontend").v4(), 8080);
    let (start, mut opened) = (Instant::now(), 0_u32);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    lab.inside("sleep", || -> Result<u32> {
                        let mut opened = 0;
                        while start.elapsed() < OPENING {
                            let mut stream = TcpStream::connect(to)?;
                            stream.set_read_timeout(Some(LIMIT))?;
                            hello(&mut stream)?;
                            // The server closes first, so that the client has no ports that wait for their time.
                            ensure!(stream.read(&mut [0; 1])? == 0, "more than an answer");
                            opened += 1;
                        }
                        Ok(opened)
                    })?
                })
            })
            .collect();
        for client in clients {
            opened += client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        anyhow::Ok(())
    })?;
    Ok(f64::from(opened) / start.elapsed().as_secs_f64())
}

/// Answers once and closes.
fn answer(mut stream: TcpStream) {
    // What fails here fails at the client.
    if stream.read_exact(&mut [0; HELLO.len()]).is_ok() {
        drop(stream.write_all(ANSWER));
    }
}

/// Answers once and reads on.
fn sink(mut stream: TcpStream) {
    if stream.read_exact(&mut [0; HELLO.len()]).is_ok() && stream.write_all(ANSWER).is_ok() {
        let mut buffer = vec![0; 256 * 1024];
        while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
    }
}
