//! What must hold all along.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Done, Stage};
use crate::load::value;
use crate::poll;

/// How much the agent's memory may grow over the quiet part, KiB. A leak of a few bytes per verdict is more.
const GROWTH: u64 = 2 * 1024;
/// The same in a run so short that the agent's bounded tables are still filling.
const GROWTH_WHILE_FILLING: u64 = 4 * 1024;
/// How long a run is that sees them full.
const LONG: Duration = Duration::from_mins(10);

/// What is compared with.
#[derive(Debug)]
pub(super) struct Invariants {
    /// The pins without those of interfaces, which come and go with their pods.
    pins: BTreeSet<PathBuf>,
    programs: BTreeSet<u32>,
    links: usize,
    checks: u64,
    read: usize,
}

/// Resident memory and open files of the agent while it is left alone.
#[derive(Debug, Default)]
pub(super) struct Memory(Vec<(u64, usize)>);

fn without_links(pins: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    pins.iter().filter(|pin| !pin.components().any(|part| part.as_os_str() == "links")).cloned().collect()
}

impl Invariants {
    pub(super) fn new(stage: &Stage) -> Result<Self> {
        let pins = stage.lab.pins()?;
        let own = without_links(&pins);
        let links = pins.len() - own.len();
        Ok(Self { pins: own, programs: BTreeSet::new(), links, checks: 0, read: 0 })
    }

    /// To be called between two actions.
    pub(super) fn check(&mut self, stage: &mut Stage) -> Result<()> {
        stage.watch.check()?;
        for load in [&stage.strict, &stage.flipping] {
            load.totals().check()?;
        }
        for records in &stage.records {
            let all = records.all()?;
            for record in all.iter().skip(self.read) {
                ensure!(record.class == "tls" || record.read == 0, "plaintext came through: {record:?}");
            }
            self.read = all.len();
        }
        let (pins, links) = (&self.pins, self.links);
        // The pins of a guest's interface go a moment after the interface.
        poll::until("the pins to be as before", Duration::from_secs(15), || {
            let now = stage.lab.pins()?;
            let own = without_links(&now);
            ensure!(own == *pins, "{:?}", own.symmetric_difference(pins));
            ensure!(now.len() - own.len() == links, "{now:?}");
            Ok(())
        })?;
        self.programs.extend(stage.lab.own_hooks("frontend")?.iter().map(|hook| hook.program));
        self.checks += 1;
        Ok(())
    }

    /// Ends the load and compares the accounts; gives the summary.
    pub(super) fn finish(
        mut self,
        mut stage: Stage,
        took: Duration,
        memory: &Memory,
        done: &Done,
    ) -> Result<String> {
        self.check(&mut stage)?;
        let Stage { strict, flipping, watch, lab, mut agent, .. } = stage;
        let (strict, flipping) = (strict.finish()?, flipping.finish()?);
        let looks = watch.finish()?;
        let (node, workloads) = lab.both_totals()?;
        ensure!(
            node == workloads,
            "the workloads' counters do not add up to the node's: {node:?} {workloads:?}"
        );
        ensure!(value(&strict.plain_sent) == value(&strict.plain_reset), "not all were reset: {strict:?}");

        let programs = self.programs;
        agent.kill()?;
        lab.enforcer(&["detach"])?.success()?;
        ensure!(lab.pins()?.is_empty(), "detach left {:?}", lab.pins()?);
        poll::until("every program to be gone", Duration::from_secs(30), || {
            let left: Vec<u32> = aya::programs::loaded_programs()
                .flatten()
                .map(|program| program.id())
                .filter(|id| programs.contains(id))
                .collect();
            ensure!(left.is_empty(), "{left:?} are loaded");
            Ok(())
        })?;

        let (first, last) = memory.ends().context("no memory was measured")?;
        let sum = |pick: fn(&crate::load::Totals) -> &std::sync::atomic::AtomicU64| {
            value(pick(&strict)) + value(pick(&flipping))
        };
        let mut text = String::from("| what | number |\n|---|---:|\n");
        for (what, number) in [
            ("minutes".to_owned(), format!("{:.1}", took.as_secs_f64() / 60.0)),
            ("TLS connections opened, none lost".to_owned(), sum(|t| &t.tls_opened).to_string()),
            ("answers over TLS".to_owned(), sum(|t| &t.tls_answers).to_string()),
            (
                "plaintext connections to the STRICT pod, all reset".to_owned(),
                value(&strict.plain_reset).to_string(),
            ),
            ("plaintext bytes read by its server".to_owned(), "0".to_owned()),
            ("plaintext connections to the flipping pod".to_owned(), value(&flipping.plain_sent).to_string()),
            ("restarts of the agent (SIGTERM)".to_owned(), done.restarts.to_string()),
            ("kills of the agent (SIGKILL)".to_owned(), done.kills.to_string()),
            ("slowest start of an agent, s".to_owned(), format!("{:.1}", done.slowest_start.as_secs_f64())),
            ("policy flips".to_owned(), done.flips.to_string()),
            ("pods that came and went".to_owned(), done.pods.to_string()),
            ("looks at hooks and counters".to_owned(), looks.to_string()),
            ("checks of pins, records and clients".to_owned(), self.checks.to_string()),
            (
                "programs that followed each other on one hook, none left".to_owned(),
                (programs.len() / 2).to_string(),
            ),
            (
                "agent's memory at the start and the end of the quiet part, KiB".to_owned(),
                format!("{} → {}", first.0, last.0),
            ),
            ("agent's open files there".to_owned(), format!("{} → {}", first.1, last.1)),
        ] {
            let _ = writeln!(text, "| {what} | {number} |");
        }
        Ok(text)
    }
}

impl Memory {
    pub(super) fn sample(&mut self, stage: &Stage) -> Result<()> {
        let proc = PathBuf::from(format!("/proc/{}", stage.agent.pid()));
        let status = fs::read_to_string(proc.join("status")).context("the agent is gone")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let resident = line.split_whitespace().next().context("no VmRSS")?.parse()?;
        let files = fs::read_dir(proc.join("fd"))?.count();
        self.0.push((resident, files));
        Ok(())
    }

    /// The medians of the first and the last quarter, what a single moment holds is not what leaks; without the first third, in
    /// which the agent's bounded tables fill (records, remembered connections).
    fn ends(&self) -> Option<((u64, usize), (u64, usize))> {
        let samples = self.0.get(self.0.len() / 3..)?;
        let quarter = (samples.len() / 4).max(1);
        let median = |part: &[(u64, usize)]| {
            let (mut memory, mut files): (Vec<u64>, Vec<usize>) = part.iter().copied().unzip();
            memory.sort_unstable();
            files.sort_unstable();
            Some((*memory.get(memory.len() / 2)?, *files.get(files.len() / 2)?))
        };
        Some((median(samples.get(..quarter)?)?, median(samples.get(samples.len() - quarter..)?)?))
    }

    pub(super) fn check(&self, duration: Duration) -> Result<()> {
        let growth = if duration < LONG { GROWTH_WHILE_FILLING } else { GROWTH };
        let (first, last) = self.ends().context("no memory was measured")?;
        ensure!(last.0 <= first.0 + growth, "the agent grew from {} to {} KiB", first.0, last.0);
        ensure!(last.1 <= first.1 + 8, "the agent had {} files open, then {}", first.1, last.1);
        Ok(())
    }
}
