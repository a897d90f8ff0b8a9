//! Development tasks of the project: `cargo xtask --help`.

mod bench;
mod build;
mod chart;
mod clean_lab;
mod demo;
mod deny;
mod image;
mod kube;
mod lint;
mod load;
mod setup;
mod shell;
mod soak;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set-up, build, demo and checks of the project.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what a build and the tests need: bpf-linker, rust-src, system tools
    Setup,
    /// Build the agent with its eBPF programs
    Build(build::Options),
    /// Play the walk-through in a lab of network namespaces (as root)
    Demo(demo::Options),
    /// The Helm chart and the plain manifests that come from it
    #[command(subcommand)]
    Chart(chart::Task),
    /// Build the agent's container image and its bill of materials
    Image(image::Options),
    /// Run every check and test (as root): set-up, format, clippy, unit and end-to-end tests
    Test(test::Options),
    /// Check the format and run clippy, on the host workspace and on the eBPF crate
    Lint,
    /// Check licences, sources and duplicates of all dependencies
    Deny,
    /// Run the benchmarks (as root)
    Bench(bench::Options),
    /// A real Kubernetes API server on this machine, built from Debian's source
    #[command(subcommand)]
    Kube(kube::Task),
    /// Load, restarts, kills and policy changes for a long time, every guarantee checked all along (as root)
    Soak(soak::Options),
    /// As many new connections as the machine can make, and what the agent takes for them (as root)
    Load(load::Options),
    /// Remove what killed labs left behind: network namespaces, pins, files (as root)
    CleanLab,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup => setup::run(),
        Task::Build(options) => build::run(&options),
        Task::Demo(options) => demo::run(&options),
        Task::Chart(task) => chart::run(&task),
        Task::Image(options) => image::run(&options),
        Task::Test(options) => return exit_code(test::run(&options)),
        Task::Lint => lint::run(),
        Task::Deny => deny::run(),
        Task::Bench(options) => bench::run(&options),
        Task::Kube(task) => kube::run(&task),
        Task::Soak(options) => soak::run(&options),
        Task::Load(options) => load::run(&options),
        Task::CleanLab => clean_lab::run(),
    };
    exit_code(result.map(|()| ExitCode::SUCCESS))
}

fn exit_code(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
