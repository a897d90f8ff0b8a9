//! The pinned programs and what a packet costs in them, by the kernel's own statistics.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use aya::programs::ProgramInfo;
use schemars::JsonSchema;
use serde::Serialize;

use crate::cli::node::Node;

/// A program.
#[derive(Clone, PartialEq, Debug, Serialize, JsonSchema)]
pub(super) struct Program {
    /// Its name.
    pub(super) name: String,
    /// Its id.
    pub(super) id: u32,
    /// Kernel memory, bytes.
    pub(super) memory_bytes: u64,
    /// Runs since the statistics were turned on, or in the time of `--measure`; absent where none were counted.
    pub(super) runs: Option<u64>,
    /// Nanoseconds of one run on average, the cost of counting included.
    pub(super) nanoseconds_per_run: Option<f64>,
}

/// What the kernel has counted of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Counted {
    memory: u64,
    time_ns: u64,
    runs: u64,
}

impl Counted {
    /// From `/proc/self/fdinfo/FD` of a program.
    fn parse(text: &str) -> Self {
        let field = |name: &str| -> u64 {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        Self { memory: field("memlock"), time_ns: field("run_time_ns"), runs: field("run_cnt") }
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let fd = ProgramInfo::from_pin(path)?.fd()?;
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))?;
        Ok(Self::parse(&text))
    }

    /// What came since `before`.
    fn since(self, before: Self) -> Self {
        Self {
            memory: self.memory,
            time_ns: self.time_ns.saturating_sub(before.time_ns),
            runs: self.runs.saturating_sub(before.runs),
        }
    }
}

fn count(node: &Node) -> anyhow::Result<Vec<(String, u32, Counted)>> {
    let dir = node.pinned.pins().programs();
    let programs = node.pinned.programs()?.into_iter();
    programs
        .map(|p| Ok((p.name.clone(), p.id, Counted::read(&dir.join(&p.name)).unwrap_or_default())))
        .collect()
}

/// Reads the programs. With `measure` the statistics are turned on for that long and only what came meanwhile counts.
pub(super) fn read(node: &Node, measure: Option<Duration>) -> anyhow::Result<Vec<Program>> {
    let counted = match measure {
        None => count(node)?,
        Some(time) => {
            let _on = aya::sys::enable_stats(aya::sys::Stats::RunTime)
                .context("cannot turn the kernel's BPF statistics on; --measure needs CAP_SYS_ADMIN")?;
            let before = count(node)?;
            thread::sleep(time);
            let then = |id: u32| {
                before
                    .iter()
                    .find(|(_, other, _)| *other == id)
                    .map_or_else(Counted::default, |found| found.2)
            };
            count(node)?.into_iter().map(|(name, id, now)| (name, id, now.since(then(id)))).collect()
        }
    };
    #[expect(clippy::cast_precision_loss, reason = "an average for people")]
    let average = |counted: Counted| counted.time_ns as f64 / counted.runs as f64;
    let program = |(name, id, counted): (String, u32, Counted)| Program {
        name,
        id,
        memory_bytes: counted.memory,
        runs: (counted.runs > 0 || measure.is_some()).then_some(counted.runs),
        nanoseconds_per_run: (counted.runs > 0).then(|| average(counted)),
    };
    Ok(counted.into_iter().map(program).collect())
}

impl Program {
    /// For people.
    pub(super) fn line(&self) -> String {
        let Self { name, id, runs, nanoseconds_per_run, .. } = self;
        match (nanoseconds_per_run, runs) {
            (Some(ns), Some(runs)) => format!("{name} (id {id}, {ns:.0} ns a packet over {runs})"),
            (None, Some(_)) => format!("{name} (id {id}, no packet)"),
            _ => format!("{name} (id {id})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_text_is_read() {
        let text = "pos:\t0\nprog_type:\t3\nprog_jited:\t1\nmemlock:\t4096\nprog_id:\t7\nrun_time_ns:\t900\nrun_cnt:\t3\n";
        let counted = Counted::parse(text);
        assert_eq!(counted, Counted { memory: 4096, time_ns: 900, runs: 3 });
        assert_eq!(Counted::parse(""), Counted::default());
        let later = Counted { memory: 4096, time_ns: 1000, runs: 5 };
        assert_eq!(later.since(counted), Counted { memory: 4096, time_ns: 100, runs: 2 });
    }

    #[test]
    fn people_are_told_what_is_known() {
        let program = Program {
            name: "to_pod".into(),
            id: 7,
            memory_bytes: 0,
            runs: Some(10),
            nanoseconds_per_run: Some(120.4),
        };
        assert_eq!(program.line(), "to_pod (id 7, 120 ns a packet over 10)");
        assert_eq!(
            Program { runs: None, nanoseconds_per_run: None, ..program.clone() }.line(),
            "to_pod (id 7)"
        );
        assert_eq!(
            Program { runs: Some(0), nanoseconds_per_run: None, ..program }.line(),
            "to_pod (id 7, no packet)"
        );
    }
}
