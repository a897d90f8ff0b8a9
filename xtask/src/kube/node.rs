//! `cargo xtask kube node`: one real node. Control plane with all controllers, scheduler, containerd and kubelet, in a
//! network namespace of their own; containerd and kubelet in a mount and a process namespace of their own as well, so
//! that ending one process ends them and every pod. Nothing of the machine is changed, nothing is left behind.

mod cgroups;
mod config;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use self::config::Network;
use super::binaries::{self, Part};
use super::control_plane::{ControlPlane, down as plane_down, flag};
use super::daemon::Daemon;
use crate::image::archive::{Entry, Image};
use crate::shell::{command, output, require_root, root};

/// The node's address in its network namespace; no other namespace knows it.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Address of the Service `kubernetes`, given to loopback: clients in the cluster reach the API without kube-proxy.
const SERVICE: &str = "10.96.0.1/32";
/// The name that the API server has for the node.
const NODE: &str = "node-a";
/// How long a node may take to be Ready.
const PATIENCE: Duration = Duration::from_mins(2);

/// What to do with it.
#[derive(Subcommand)]
pub(crate) enum Task {
    /// Raise it; prints how to reach it
    Up(UpOptions),
    /// End it with all its pods, and remove everything
    Down(Place),
}

/// Which node.
#[derive(Args, Clone)]
pub(crate) struct Place {
    /// Name of its network namespace and its cgroup
    #[arg(long, default_value = "enforcer-node")]
    name: String,
    /// Folder of keys, data and logs [default: target/kube-NAME]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// How to raise one.
#[derive(Args)]
pub(crate) struct UpOptions {
    #[command(flatten)]
    place: Place,
    /// Archive of an image that the node gets; may be given several times
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// How pods are connected
    #[arg(long, value_enum, default_value_t)]
    network: Network,
}

/// Runs the task.
pub(crate) fn run(task: &Task) -> Result<()> {
    require_root("kube node")?;
    match task {
        Task::Up(options) => {
            let node = options.place.node()?;
            if let Err(error) = node.up(&options.image, options.network) {
                // What half a node left would stop the next one.
                node.down()?;
                return Err(error);
            }
            println!("export KUBECONFIG={}", node.plane.kubeconfig().display());
            println!("# {}", node.enter().join(" "));
            Ok(())
        }
        Task::Down(place) => place.node()?.down(),
    }
}

impl Place {
    /// The node of this name, running or not.
    fn node(&self) -> Result<Node> {
        let folder = self.dir.clone().unwrap_or_else(|| root().join(format!("target/kube-{}", self.name)));
        let folder = std::path::absolute(folder)?;
        let plane = ControlPlane {
            programs: binaries::ensure(&[Part::ControlPlane, Part::Node])?,
            folder: folder.clone(),
            address: ADDRESS.into(),
            bind: Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            port: 443,
            controllers: Some("*".to_owned()),
            without_admission: None,
            namespace: Some(Path::new("/run/netns").join(&self.name)),
        };
        Ok(Node { name: self.name.clone(), folder: folder.join("node"), plane })
    }
}

/// A node.
struct Node {
    name: String,
    /// What the node itself keeps, inside the control plane's folder.
    folder: PathBuf,
    plane: ControlPlane,
}

impl Node {
    fn daemon(&self) -> Daemon<'_> {
        // The program that the node's processes hang on.
        Daemon { folder: &self.plane.folder, name: "unshare" }
    }

    fn up(&self, images: &[PathBuf], network: Network) -> Result<()> {
        if self.daemon().pid().is_some() {
            bail!("the node {} is up: end it first (`cargo xtask kube node down`)", self.name);
        }
        // Left by one that was killed.
        self.down()?;
        self.network()?;
        let pki = self.plane.up()?;
        let scheduler = self.plane.folder.join("scheduler.kubeconfig");
        let server = format!("https://{ADDRESS}:443");
        pki.kubeconfig("scheduler", "/CN=system:kube-scheduler", &server, &scheduler)?;
        self.plane.start(
            "kube-scheduler",
            &[
                flag("kubeconfig", scheduler.display()),
                flag("leader-elect", false),
                flag("port", 0),
                flag("secure-port", 0),
            ],
        )?;
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot create {}", self.folder.display()))?;
        let subject = format!("/O=system:nodes/CN=system:node:{NODE}");
        pki.kubeconfig("node", &subject, &server, &self.folder.join("node.kubeconfig"))?;
        config::write(&self.folder, &self.plane.programs, &self.name, &pki.path("ca.crt"), network)?;
        cgroups::make(&self.name)?;
        let pause = self.pause()?;
        self.start(std::iter::once(&pause).chain(images))?;
        self.wait()
    }

    fn network(&self) -> Result<()> {
        let name = self.name.as_str();
        output(command("ip").args(["netns", "add", name]))?;
        for words in [
            "link set lo up",
            // Stands in for a network card.
            "link add node0 type bridge",
            &format!("addr add {ADDRESS}/24 dev node0"),
            "link set node0 up",
            &format!("addr add {SERVICE} dev lo"),
        ] {
            output(command("ip").args(["-n", name]).args(words.split_whitespace()))?;
        }
        Ok(())
    }

    /// The image that holds a pod's namespaces: busybox, asleep.
    fn pause(&self) -> Result<PathBuf> {
        let busybox = fs::read(self.plane.programs.join("busybox")).context("cannot read busybox")?;
        let image = Image {
            name: config::PAUSE,
            title: "pause",
            entrypoint: &["/busybox", "sleep", "1000d"],
            command: &[],
            path: "/",
            compression: flate2::Compression::none(),
        };
        let file = self.folder.join("pause.tar");
        fs::write(&file, image.write(vec![Entry::file("busybox", 0o755, busybox)])?.archive)?;
        Ok(file)
    }

    fn start<'a>(&self, images: impl Iterator<Item = &'a PathBuf>) -> Result<()> {
        let script = self.folder.join("inner.sh");
        fs::write(&script, include_str!("inner.sh"))?;
        let mut arguments: Vec<String> =
            ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
                .map(str::to_owned)
                .to_vec();
        arguments.extend(["bash".to_owned(), script.display().to_string()]);
        arguments.extend([&self.plane.programs, &self.folder].map(|path| path.display().to_string()));
        arguments.extend([NODE.to_owned(), ADDRESS.to_string()]);
        for image in images {
            let image =
                fs::canonicalize(image).with_context(|| format!("no image at {}", image.display()))?;
            arguments.push(image.display().to_string());
        }
        self.daemon().start(&self.plane.prefix(), Path::new("/usr/bin/unshare"), &arguments)
    }

    fn wait(&self) -> Result<()> {
        let start = Instant::now();
        let template = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        loop {
            let mut kubectl = self.plane.kubectl();
            let asked = kubectl.args(["get", "node", NODE, "-o", template]).output();
            if asked.is_ok_and(|output| output.status.success() && output.stdout == b"True") {
                return Ok(());
            }
            let folder = self.folder.display();
            if self.daemon().pid().is_none() {
                bail!("the node ended: {}; see the logs in {folder}", self.daemon().last_words());
            }
            if start.elapsed() > PATIENCE {
                bail!("the node is not Ready after {PATIENCE:?}: see {folder}/kubelet.log");
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// What a command is prefixed with to run on the node.
    fn enter(&self) -> Vec<String> {
        let child = self
            .daemon()
            .pid()
            .and_then(|pid| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok());
        let child = child.unwrap_or_default();
        let mut words = vec!["nsenter".to_owned(), "--target".to_owned(), child.trim().to_owned()];
        words.extend(["--mount", "--pid", "--net"].map(str::to_owned));
        words
    }

    fn down(&self) -> Result<()> {
        // With it goes the first process of the process namespace, and with that kubelet, containerd and pods.
        self.daemon().kill()?;
        plane_down(&self.plane.folder)?;
        if Path::new("/run/netns").join(&self.name).exists() {
            output(command("ip").args(["netns", "delete", &self.name]))?;
        }
        cgroups::remove(&self.name)?;
        for place in config::PLACES {
            // Only what is empty, which is what the node made.
            let _ = fs::remove_dir(place);
        }
        Ok(())
    }
}
