//! The soak: mixed load for as long as it is told, while policies flip, pods come and go and the agent is restarted and
//! killed at random; what must hold is checked all along.

mod actions;
mod invariants;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::agent::{MESH_STRICT, policy};
use crate::lab::{Lab, Pod, Running};
use crate::load::{Load, Plaintext, Plan, value};
use crate::record::Records;
use crate::watch::Watch;

use actions::Action;
use invariants::{Invariants, Memory};

/// The pod whose policy flips.
const FLIPPER: &str = "flipper";
/// Policy of the flipper alone.
const FLIPPER_FILE: &str = "flipper.yaml";
/// The last part of the time the agent is left alone, so that its memory can be compared.
const QUIET_PART: u32 = 3;

/// How long, and by which numbers.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long the load lasts.
    pub duration: Duration,
    /// The seed of everything random.
    pub seed: u64,
}

/// A generator of numbers that a seed reproduces (splitmix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit.max(1)
    }
}

/// Everything that runs.
struct Stage {
    agent: Running,
    lab: Lab,
    strict: Load,
    flipping: Load,
    watch: Watch,
    records: Vec<Records>,
    _servers: Vec<Running>,
    next_pod: u8,
    permissive: bool,
}

/// What was done, for the summary.
#[derive(Debug, Default)]
struct Done {
    restarts: u64,
    kills: u64,
    flips: u64,
    pods: u64,
    slowest_start: Duration,
}

fn plan(to: &str, expected: Plaintext, lasting: usize) -> Plan<'_> {
    Plan {
        to,
        port: 8080,
        tls_from: "loadgenerator",
        plain_from: "sleep",
        lasting,
        fresh: 2,
        plain: 2,
        expected,
        pause: Duration::from_millis(40),
    }
}

fn flipper(strict: bool) -> String {
    let app = format!("{FLIPPER}.hipstershopv1v2.svc.cluster.local");
    policy("hipstershopv1v2", FLIPPER, Some(&app), if strict { "STRICT" } else { "PERMISSIVE" }, &[])
}

fn stage() -> Result<Stage> {
    let mut pods = Pod::cast();
    pods.push(Pod::meshed("hipstershopv1v2", FLIPPER, 13).port(8080));
    let lab = Lab::with(crate::Topology::default(), pods)?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    lab.apply(FLIPPER_FILE, &flipper(true))?;
    let (frontend, frontend_records) = lab.sidecar("frontend", 8080)?;
    let (flipping, _) = lab.sidecar(FLIPPER, 8080)?;
    let mut agent = lab.start_agent(&[])?;
    agent.wait_for_output(actions::RUNNING)?;
    let watch = Watch::start(&lab, &["frontend", "adservice", "loadgenerator", FLIPPER])?;
    Ok(Stage {
        strict: Load::start(&lab, plan("frontend", Plaintext::Reset, 50))?,
        flipping: Load::start(&lab, plan(FLIPPER, Plaintext::Either, 20))?,
        agent,
        lab,
        watch,
        records: vec![frontend_records],
        _servers: vec![frontend, flipping],
        next_pod: 0,
        permissive: false,
    })
}

/// Runs the soak and gives its summary, a table.
///
/// # Errors
/// At the first thing that is not as it must be.
pub fn run(options: Options) -> Result<String> {
    println!("seed {}", options.seed);
    let mut random = Random::new(options.seed);
    let mut stage = stage()?;
    let mut invariants = Invariants::new(&stage)?;
    let (mut memory, mut done) = (Memory::default(), Done::default());
    let start = Instant::now();
    let quiet = options.duration.saturating_sub(options.duration / QUIET_PART);
    let mut told = start;
    while start.elapsed() < options.duration {
        let agent_stays = start.elapsed() >= quiet;
        let action = Action::choose(&mut random, agent_stays);
        action.run(&mut stage, &mut random, &mut done).with_context(|| {
            format!("{action:?}, {:.0?} after the start, seed {}", start.elapsed(), options.seed)
        })?;
        invariants
            .check(&mut stage)
            .with_context(|| format!("after {action:?}, {:.0?}, seed {}", start.elapsed(), options.seed))?;
        if agent_stays {
            memory.sample(&stage)?;
        }
        if told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            println!("{:5.0?} {}", start.elapsed(), line(&stage, &done));
        }
    }
    memory.check(options.duration)?;
    invariants.finish(stage, start.elapsed(), &memory, &done)
}

fn line(stage: &Stage, done: &Done) -> String {
    let mut text = String::new();
    for (name, load) in [("strict", &stage.strict), ("flipping", &stage.flipping)] {
        let totals = load.totals();
        let _ = write!(
            text,
            "{name}: {} answers over TLS, {} of {} plaintext reset; ",
            value(&totals.tls_answers),
            value(&totals.plain_reset),
            value(&totals.plain_sent)
        );
    }
    let _ = write!(text, "{done:?}");
    text
}
