//! `cargo xtask test`: every check and every test, a table of what they took, and one closing line.

mod runner;
mod summary;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::shell::{require_root, run as run_command};
use crate::{demo, kube, lint, setup};
use runner::{run_suites, run_tests};
use summary::{Outcome, Record, Tally};

/// Which steps to run.
#[derive(Args)]
pub(crate) struct Options {
    /// Run this step alone (may be given several times)
    #[arg(long, value_name = "STEP", conflicts_with = "quick")]
    only: Vec<Step>,
    /// Leave out the end-to-end tests; needs no root
    #[arg(long)]
    quick: bool,
    /// Give the tests on a real node the image as it is shipped, which takes minutes to build, instead of this build's
    /// program in an image
    #[arg(long)]
    shipped_image: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Step {
    /// What `cargo xtask setup` does
    Setup,
    /// rustfmt on both workspaces
    Format,
    /// clippy on both workspaces; a warning is an error
    Clippy,
    /// Every program, the eBPF object included
    Build,
    /// The Helm chart and the manifests that are rendered from it
    Chart,
    /// Unit tests of all packages
    Unit,
    /// Examples in the documentation
    Doc,
    /// Integration tests: the lab and its suites
    EndToEnd,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Setup => "set-up",
            Self::Format => "format",
            Self::Clippy => "clippy",
            Self::Build => "build",
            Self::Chart => "chart",
            Self::Unit => "unit tests",
            Self::Doc => "documentation tests",
            Self::EndToEnd => "end-to-end tests",
        }
    }

    /// The later steps are pointless when this one failed.
    fn is_needed_by_the_rest(self) -> bool {
        matches!(self, Self::Setup | Self::Build)
    }

    /// `image` is the archive that the tests on a real node take.
    fn run(self, image: Option<&Path>) -> Result<Tally> {
        let commands = match self {
            Self::Setup => {
                setup::run()?;
                // The end-to-end tests ask a real API server and raise real nodes.
                kube::binaries::ensure(&[kube::binaries::Part::ControlPlane, kube::binaries::Part::Node])?;
                setup::helm::ensure()?;
                Vec::new()
            }
            Self::Format => lint::format(),
            Self::Clippy => lint::clippy(),
            Self::Build => vec![demo::all_binaries()],
            Self::Chart => {
                return crate::chart::check().map(|passed| Tally { passed, ..Tally::default() });
            }
            Self::Unit => return run_tests(&["--lib", "--bins"], true),
            Self::Doc => return run_tests(&["--doc"], false),
            Self::EndToEnd => return run_suites(image),
        };
        // All of them, so that one run shows everything that is wrong.
        let results: Vec<_> = commands.into_iter().map(|mut command| run_command(&mut command)).collect();
        results.into_iter().collect::<Result<()>>()?;
        Ok(Tally::default())
    }
}

/// Runs the steps. The closing line is the last that is said, so a failure is the exit code alone.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let chosen = |step: &Step| match (options.only.is_empty(), options.quick) {
        (false, _) => options.only.contains(step),
        (true, quick) => !(quick && *step == Step::EndToEnd),
    };
    let steps: Vec<Step> = Step::value_variants().iter().copied().filter(chosen).collect();
    if steps.contains(&Step::EndToEnd) {
        require_root("test")?;
    }

    let image = options.shipped_image.then(crate::image::shipped).transpose()?;
    let mut records = Vec::new();
    let mut blocked = false;
    for step in steps {
        if blocked {
            records.push(Record::not_run(step.name()));
            continue;
        }
        println!("\n== {}", step.name());
        let start = Instant::now();
        let outcome = match step.run(image.as_deref()) {
            Ok(tally) => Outcome::of(tally),
            Err(error) => {
                eprintln!("error: {error:#}");
                blocked = step.is_needed_by_the_rest();
                Outcome::Failed(Tally::default())
            }
        };
        records.push(Record { step: step.name(), outcome, took: start.elapsed() });
    }

    let (text, failed) = summary::render(&records);
    print!("{text}");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
