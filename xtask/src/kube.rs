//! `cargo xtask kube`: a real Kubernetes API on this machine, for tests and for trying things out.

pub(crate) mod binaries;
pub(crate) mod control_plane;
pub(crate) mod daemon;
pub(crate) mod node;
pub(crate) mod pki;
mod recipe;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use self::binaries::Part;
use self::control_plane::{ControlPlane, FEW_CONTROLLERS, down};
use crate::demo::all_binaries;
use crate::shell::{binaries as binaries_folder, cargo, command, require_root, root, run as run_command};
use crate::{image, setup};

/// What to do with it.
#[derive(Subcommand)]
pub(crate) enum Task {
    /// Build what is needed of Kubernetes into the cache, once, and print the folder
    Build(BuildOptions),
    /// Start etcd and kube-apiserver on loopback; prints the kubeconfig. Starts again what was killed
    Up(UpOptions),
    /// Measure the agent in a cluster of thousands of objects, optimised (as root)
    Scale(ScaleOptions),
    /// End them and remove their data
    Down(DownOptions),
    /// A real node: kubelet, containerd and a network plug-in beside a control plane, in namespaces of their own (as root)
    #[command(subcommand)]
    Node(node::Task),
    /// Raise a node, install the chart with the image as it is shipped, and play the walk-through with kubectl (as root)
    Demo(DemoOptions),
}

/// What the demo gets.
#[derive(Args)]
pub(crate) struct DemoOptions {
    /// Take this build's program instead of the image as it is shipped, which takes minutes to build
    #[arg(long)]
    development: bool,
    /// Leave the node up at the end until Enter is pressed
    #[arg(long)]
    keep: bool,
}

/// What to build.
#[derive(Args)]
pub(crate) struct BuildOptions {
    /// Also what a node needs: controllers, scheduler, kubelet, containerd, network plug-ins
    #[arg(long)]
    node: bool,
}

/// What the measurement gets.
#[derive(Args)]
pub(crate) struct ScaleOptions {
    /// Arguments for the measurement itself; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Where a control plane keeps its state.
#[derive(Args)]
pub(crate) struct DownOptions {
    /// Folder of keys, data and logs [default: target/kube]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// How to start a control plane.
#[derive(Args)]
pub(crate) struct UpOptions {
    #[command(flatten)]
    place: DownOptions,
    /// Address of the API server
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// Its port; etcd takes the next two
    #[arg(long, default_value_t = 16443)]
    port: u16,
    /// Run the controllers for namespaces and service accounts too
    #[arg(long)]
    controllers: bool,
    /// Network namespace to run in, by its file
    #[arg(long, value_name = "FILE")]
    netns: Option<PathBuf>,
}

impl DownOptions {
    fn folder(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| root().join("target/kube"))
    }
}

/// Runs the task.
pub(crate) fn run(task: &Task) -> Result<()> {
    match task {
        Task::Build(options) => {
            let parts: &[Part] =
                if options.node { &[Part::ControlPlane, Part::Node] } else { &[Part::ControlPlane] };
            println!("{}", binaries::ensure(parts)?.display());
            Ok(())
        }
        Task::Up(options) => up(options),
        Task::Scale(options) => {
            require_root("kube scale")?;
            binaries::ensure(&[Part::ControlPlane])?;
            run_command(&mut cargo(["build", "--locked", "--release", "--workspace", "--bins"]))?;
            run_command(command(root().join("target/release/kube-scale")).args(&options.arguments))
        }
        Task::Down(options) => down(&options.folder()),
        Task::Node(task) => node::run(task),
        Task::Demo(options) => demo(options),
    }
}

fn up(options: &UpOptions) -> Result<()> {
    let parts: &[Part] =
        if options.controllers { &[Part::ControlPlane, Part::Node] } else { &[Part::ControlPlane] };
    let plane = ControlPlane {
        programs: binaries::ensure(parts)?,
        folder: options.place.folder(),
        address: options.address,
        bind: None,
        port: options.port,
        controllers: options.controllers.then(|| FEW_CONTROLLERS.to_owned()),
        without_admission: (!options.controllers).then_some("ServiceAccount"),
        namespace: options.netns.clone(),
    };
    plane.up()?;
    println!("{}", plane.kubeconfig().display());
    Ok(())
}

fn demo(options: &DemoOptions) -> Result<()> {
    require_root("kube demo")?;
    setup::run()?;
    run_command(&mut all_binaries())?;
    let mut demo = command(binaries_folder()?.join("kube-demo"));
    if !options.development {
        demo.env("ENFORCER_IMAGE", image::shipped()?);
    }
    if options.keep {
        demo.arg("--keep").stdin(std::process::Stdio::inherit());
    }
    run_command(&mut demo)
}
