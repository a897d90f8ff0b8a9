//! Runs `cargo test`, shows its output as it comes, and counts.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write, pipe, stdout};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::summary::Tally;
use crate::shell::{cargo, output, run as run_command};

/// How many tests of one program run at once.
const THREADS: &str = "RUST_TEST_THREADS";
/// What the names of the suites with an API server begin with.
const CLUSTER: &str = "kube_";

/// Half as many again as there are processors: most tests wait more than they compute.
fn threads() -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    processors + processors.div_ceil(2)
}

/// Runs the tests of the whole workspace that `targets` selects. A run that counts nothing is an error when
/// `some_expected`: a filter that matches nothing must not look like success.
pub(super) fn run_tests(targets: &[&str], some_expected: bool) -> Result<Tally> {
    let tally = Lane { name: "", threads: threads(), image: None }.run(targets)?;
    if some_expected && tally.passed + tally.failed == 0 {
        bail!("`cargo test {}` ran no test", targets.join(" "));
    }
    Ok(tally)
}

/// Runs the integration tests. Those with an API server wait for most of their time, so they run beside the others, one at a
/// time. `image` is the archive that the tests on a real node take.
pub(super) fn run_suites(image: Option<&Path>) -> Result<Tally> {
    // Before the lanes part, so that none waits for the other's build.
    run_command(&mut cargo(["test", "--locked", "--workspace", "--no-run", "--test", "*"]))?;
    let (cluster, machine): (Vec<_>, Vec<_>) =
        suites()?.into_iter().partition(|suite| suite.starts_with(CLUSTER));
    if cluster.is_empty() || machine.is_empty() {
        bail!("no suite is called {CLUSTER}*, or every one: the lanes of the end-to-end tests are wrong");
    }
    let run = |lane: Lane, suites: &[String]| {
        let targets: Vec<_> = suites.iter().flat_map(|suite| ["--test", suite]).collect();
        lane.run(&targets)
    };
    thread::scope(|scope| {
        let beside = scope.spawn(|| run(Lane { name: "cluster | ", threads: 1, image }, &cluster));
        let mut tally = run(Lane { name: "", threads: threads(), image }, &machine);
        let beside = beside.join().unwrap_or_else(|_| bail!("the lane of the cluster's suites panicked"));
        if let Ok(tally) = &mut tally {
            *tally += beside?;
        }
        tally
    })
}

/// The names of all integration tests of the workspace.
fn suites() -> Result<BTreeSet<String>> {
    let metadata = output(&mut cargo(["metadata", "--locked", "--no-deps", "--format-version", "1"]))
        .context("no list of suites")?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata prints no JSON")?;
    Ok(test_targets(&metadata).collect())
}

fn test_targets(metadata: &Value) -> impl Iterator<Item = String> {
    let list = |value: &'_ Value, field: &str| value[field].as_array().cloned().unwrap_or_default();
    list(metadata, "packages")
        .into_iter()
        .flat_map(move |package| list(&package, "targets"))
        .filter(|target| target["kind"] == serde_json::json!(["test"]))
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
}

/// One `cargo test`, beside others or alone.
#[derive(Clone, Copy)]
struct Lane<'a> {
    /// What each of its lines begins with.
    name: &'a str,
    /// Tests at once, where the environment does not say.
    threads: usize,
    /// The image's archive.
    image: Option<&'a Path>,
}

impl Lane<'_> {
    fn run(self, targets: &[&str]) -> Result<Tally> {
        let (output, input) = pipe().context("cannot make a pipe")?;
        let mut command = cargo(["test", "--locked", "--workspace", "--no-fail-fast"]);
        // One pipe for both, so that the name of a suite comes before its tests.
        let again = input.try_clone().context("cannot copy a pipe")?;
        command.args(targets).stdout(input).stderr(again);
        if std::env::var_os(THREADS).is_none() {
            command.env(THREADS, self.threads.to_string());
        }
        if let Some(image) = self.image {
            command.env("ENFORCER_IMAGE", image);
        }
        self.say(&format!("  $ cargo test --workspace {}", targets.join(" ")));
        let mut child = command.spawn().context("cannot run cargo test")?;
        // It holds the pipe's input, which would never end.
        drop(command);

        let mut tally = Tally::default();
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("cannot read what cargo test prints")?;
            let line = String::from_utf8_lossy(&line);
            if let Some(counted) = Tally::parse(&line) {
                tally += counted;
            }
            self.say(&line);
        }
        let status = child.wait().context("cannot wait for cargo test")?;
        if !status.success() && tally.failed == 0 {
            // It did not compile, or a test binary died.
            if tally.passed == 0 {
                bail!("`cargo test {}` failed before it ran a test ({status})", targets.join(" "));
            }
            self.say(&format!("error: a test program ended without a result ({status})"));
            tally.failed += 1;
        }
        Ok(tally)
    }

    fn say(self, line: &str) {
        // A closed terminal must not end the tests.
        let _ = writeln!(stdout(), "{}{line}", self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_the_targets_of_kind_test() {
        let metadata = serde_json::json!({"packages": [
            {"targets": [{"kind": ["lib"], "name": "a"}, {"kind": ["test"], "name": "kube_x"}]},
            {"targets": [{"kind": ["bench"], "name": "b"}, {"kind": ["test"], "name": "c"}]},
        ]});
        assert_eq!(test_targets(&metadata).collect::<Vec<_>>(), ["kube_x", "c"]);
    }

    #[test]
    fn this_workspace_has_suites_of_both_lanes() {
        let suites = suites().expect("cargo metadata works");
        assert!(suites.contains("kube_node") && suites.contains("tls"), "{suites:?}");
    }
}
