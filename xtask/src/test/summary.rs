//! Counts, and the table at the end.

use std::fmt::Write as _;
use std::ops::AddAssign;
use std::time::Duration;

/// Counted tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Tally {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) ignored: u64,
}

impl Tally {
    /// Reads the line that ends each test program:
    /// `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s`.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
        let count = |word: &str| {
            counts.split(';').find_map(|part| part.trim().strip_suffix(word)?.trim_end().parse::<u64>().ok())
        };
        Some(Self { passed: count("passed")?, failed: count("failed")?, ignored: count("ignored")? })
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// How a step ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Passed(Tally),
    Failed(Tally),
    /// An earlier step failed that this one needs.
    NotRun,
}

impl Outcome {
    /// Of a step that ended by itself: an ignored test is one that nobody sees fail, so it counts as failed.
    pub(super) fn of(tally: Tally) -> Self {
        if tally.failed + tally.ignored > 0 { Self::Failed(tally) } else { Self::Passed(tally) }
    }

    /// Passed and failed for the closing line; a failed step without failed tests counts as one.
    fn counts(self) -> (u64, u64) {
        match self {
            Self::Passed(tally) => (tally.passed, 0),
            Self::Failed(tally) => (tally.passed, (tally.failed + tally.ignored).max(1)),
            Self::NotRun => (0, 1),
        }
    }
}

/// One line of the table.
pub(super) struct Record {
    pub(super) step: &'static str,
    pub(super) outcome: Outcome,
    pub(super) took: Duration,
}

impl Record {
    pub(super) fn not_run(step: &'static str) -> Self {
        Self { step, outcome: Outcome::NotRun, took: Duration::ZERO }
    }
}

/// The table with its closing line, and how many failed.
pub(super) fn render(records: &[Record]) -> (String, u64) {
    let mut text = format!("\n{:<22}{:<9}{:>8}  tests\n", "step", "result", "time");
    let (mut passed, mut failed) = (0, 0);
    for Record { step, outcome, took } in records {
        let (good, bad) = outcome.counts();
        passed += good;
        failed += bad;
        let (result, tests) = match outcome {
            Outcome::Passed(tally) => ("ok", tests(*tally)),
            Outcome::Failed(tally) => ("FAILED", tests(*tally)),
            Outcome::NotRun => ("not run", String::new()),
        };
        let line = format!("{step:<22}{result:<9}{:>6.1} s  {tests}", took.as_secs_f64());
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let _ = writeln!(text, "\n{passed} passed, {failed} failed");
    (text, failed)
}

fn tests(tally: Tally) -> String {
    let Tally { passed, failed, ignored } = tally;
    match (passed + failed + ignored, ignored) {
        (0, _) => String::new(),
        (_, 0) => format!("{passed} passed, {failed} failed "),
        _ => format!("{passed} passed, {failed} failed, {ignored} ignored"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(passed: u64, failed: u64, ignored: u64) -> Tally {
        Tally { passed, failed, ignored }
    }

    #[test]
    fn result_lines_are_read() {
        let line =
            "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 2 filtered out; finished in 1s";
        assert_eq!(Tally::parse(line), Some(tally(12, 3, 1)));
        assert_eq!(Tally::parse("test policy::tests::ok ... ok"), None);
        assert_eq!(Tally::parse("test result: ok."), None);
    }

    #[test]
    fn an_ignored_test_fails_the_step() {
        assert_eq!(Outcome::of(tally(4, 0, 0)), Outcome::Passed(tally(4, 0, 0)));
        assert_eq!(Outcome::of(tally(4, 0, 1)).counts(), (4, 1));
        assert_eq!(Outcome::of(tally(4, 2, 1)).counts(), (4, 3));
    }

    #[test]
    fn the_closing_line_is_the_only_one_and_counts_steps_that_failed_without_tests() {
        let record = |step, outcome| Record { step, outcome, took: Duration::from_millis(1500) };
        let (text, failed) = render(&[
            record("format", Outcome::Failed(Tally::default())),
            record("unit tests", Outcome::Passed(tally(7, 0, 0))),
            Record::not_run("end-to-end tests"),
        ]);
        assert_eq!(failed, 2);
        let closing: Vec<_> = text.lines().filter(|line| *line == "7 passed, 2 failed").collect();
        assert_eq!(closing.len(), 1, "{text}");
        assert_eq!(text.lines().last(), Some("7 passed, 2 failed"));
        assert!(text.contains("unit tests            ok          1.5 s  7 passed, 0 failed\n"), "{text}");
    }
}
