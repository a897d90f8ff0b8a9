//! Runs `cargo test`, shows its output as it comes, and counts.

use std::io::{BufRead, BufReader, Write, stdout};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::summary::Tally;
use crate::shell::cargo;

/// How many tests of one program run at once.
const THREADS: &str = "RUST_TEST_THREADS";

/// Half as many again as there are processors: most tests wait more than they compute.
fn threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors + processors.div_ceil(2)
}

/// Runs the tests of the whole workspace that `targets` selects. A run that counts nothing is an error when
/// `some_expected`: a filter that matches nothing must not look like success. `image` is the
/// archive that the tests on a real node take.
pub(super) fn run_tests(targets: &[&str], some_expected: bool, image: Option<&Path>) -> Result<Tally> {
    let mut command = cargo(["test", "--locked", "--workspace", "--no-fail-fast"]);
    command.args(targets).stdout(Stdio::piped());
    if std::env::var_os(THREADS).is_none() {
        command.env(THREADS, threads().to_string());
    }
    if let Some(image) = image {
        command.env("ENFORCER_IMAGE", image);
    }
    println!("  $ cargo test --workspace {}", targets.join(" "));
    let mut child = command.spawn().context("cannot run cargo test")?;
    let output = child.stdout.take().context("cargo test has no output")?;

    let mut tally = Tally::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read what cargo test prints")?;
        let line = String::from_utf8_lossy(&line);
        if let Some(counted) = Tally::parse(&line) {
            tally += counted;
        }
        // A closed terminal must not end the tests.
        let _ = writeln!(stdout(), "{line}");
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    if !status.success() && tally.failed == 0 {
        // It did not compile, or a test binary died.
        if tally.passed == 0 {
            bail!("`cargo test {}` failed before it ran a test ({status})", targets.join(" "));
        }
        eprintln!("error: a test program ended without a result ({status})");
        tally.failed += 1;
    }
    if some_expected && tally.passed + tally.failed == 0 {
        bail!("`cargo test {}` ran no test", targets.join(" "));
    }
    Ok(tally)
}
