//! One lab: a node, its pods and clients, each in a network namespace of its own, gone when dropped.
//!
//! All labs use the same addresses, since none can see another: node `10.244.0.1` and `fd00:10:244::1`, a pod
//! with number n `10.244.0.n` and `fd00:10:244::n`. Several labs run at once, in one process or in several.

mod identity;
mod network;
mod pki;
mod pod;
mod process;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};

pub use identity::clean;
use identity::{Identity, namespace_name};
pub use network::{NODE_V4, NODE_V6, Topology};
pub use pki::{Authority, Credentials};
pub use pod::Pod;
pub use process::{Output, Running, finish_within, quote, run};

use crate::record::Records;
use crate::server;

/// The name of the node's namespace in [`Lab::exec`] and its like.
pub const NODE: &str = "node";

/// A lab. Dropping it kills its processes and removes its namespaces, mounts and files.
#[derive(Debug)]
pub struct Lab {
    identity: Identity,
    topology: Topology,
    pods: Vec<Pod>,
    authority: Authority,
    logs: AtomicU32,
}

impl Lab {
    /// A lab with the cast of the walk-through, see [`Pod::cast`].
    ///
    /// # Errors
    /// When a part of it cannot be made: not root, or a tool that is missing.
    pub fn new() -> Result<Self> {
        Self::with(Topology::default(), Pod::cast())
    }

    /// A lab with these pods.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn with(topology: Topology, pods: Vec<Pod>) -> Result<Self> {
        let identity = Identity::take()?;
        clean()?;
        let authority = Authority::create(&identity.dir.join("tls"), "lab authority")?;
        // Built before the namespaces, so that whatever fails, dropping it cleans up.
        let mut lab = Self { identity, topology, pods: Vec::new(), authority, logs: AtomicU32::new(0) };
        fs::create_dir(lab.manifests())?;
        fs::create_dir(lab.bpffs())?;
        fs::create_dir(lab.state())?;
        mount(Some("bpf"), &lab.bpffs(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount bpffs on {}", lab.bpffs().display()))?;
        network::build_node(&lab.namespace(NODE), topology)?;
        for pod in pods {
            lab.add_pod(pod)?;
        }
        Ok(lab)
    }

    /// Adds a pod to the running lab. Its manifest is not written.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn add_pod(&mut self, pod: Pod) -> Result<()> {
        network::add_pod(&self.namespace(NODE), &self.namespace(&pod.name), &pod, self.topology)?;
        self.authority.issue(&pod)?;
        self.pods.push(pod);
        for pod in &self.pods {
            network::write_hosts(&self.namespace(&pod.name), &self.pods)?;
        }
        Ok(())
    }

    /// Removes a pod with its namespace and interface, and kills what runs in it.
    ///
    /// # Errors
    /// When there is no such pod or `ip` refuses.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        let interface = self.pod(name).interface();
        run("ip", ["-n", &self.namespace(NODE), "link", "delete", &interface])?.success()?;
        run("ip", ["netns", "delete", &self.namespace(name)])?.success()?;
        self.pods.retain(|pod| pod.name != name);
        Ok(())
    }

    /// How the pods are connected.
    #[must_use]
    pub const fn topology(&self) -> Topology {
        self.topology
    }

    /// The lab's folder: logs, records, certificates.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.identity.dir
    }

    /// The folder of manifests that the agent watches.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.dir().join("manifests")
    }

    /// The lab's own bpffs.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.dir().join("bpf")
    }

    /// The folder where the lab's agent keeps what must outlive it beside the pins. Not the machine's: a later lab may
    /// get the same name.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir().join("state")
    }

    /// The control socket of the lab's agent.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir().join("agent.sock")
    }

    /// The authority of the lab's mesh.
    #[must_use]
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A pod's certificate and key.
    #[must_use]
    pub fn credentials(&self, pod: &str) -> Credentials {
        let name = self.pod(pod).host();
        let file = |extension| self.dir().join("tls").join(format!("{name}.{extension}"));
        Credentials { certificate: file("pem"), key: file("key") }
    }

    /// The pods.
    #[must_use]
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// A pod by name.
    ///
    /// # Panics
    /// When the lab has no such pod: the test is wrong.
    #[must_use]
    pub fn pod(&self, name: &str) -> &Pod {
        let found = self.pods.iter().find(|pod| pod.name == name);
        found.unwrap_or_else(|| panic!("the lab has no pod {name}"))
    }

    /// The name of the network namespace of a pod or of [`NODE`].
    #[must_use]
    pub fn namespace(&self, member: &str) -> String {
        namespace_name(&self.identity.id, member)
    }

    /// A command in a pod's namespace (with the lab's names resolved) or in the node's.
    ///
    /// On the node only the network namespace changes, so that bpffs, cgroups and sysfs are the machine's; in a pod
    /// `ip netns exec` also puts `/etc/netns/<namespace>/hosts` over `/etc/hosts`.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, member: &str, words: impl IntoIterator<Item = S>) -> Command {
        let namespace = self.namespace(member);
        let mut command;
        if member == NODE {
            command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{namespace}"));
        } else {
            command = Command::new("ip");
            command.args(["netns", "exec", &namespace]);
        }
        // An agent's state and socket go with its lab.
        command.args(words).env("ENFORCER_STATE_DIR", self.state()).env("ENFORCER_SOCKET", self.socket());
        command
    }

    /// Runs a command to its end, see [`Lab::command`].
    ///
    /// # Errors
    /// When it cannot be started or runs longer than a minute; not when it ends with another code than 0.
    pub fn exec<S: AsRef<OsStr>>(&self, member: &str, words: impl IntoIterator<Item = S>) -> Result<Output> {
        process::finish(self.command(member, words), None)
    }

    /// Starts a command and leaves it running, see [`Lab::command`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<S: AsRef<OsStr>>(
        &self,
        member: &str,
        words: impl IntoIterator<Item = S>,
    ) -> Result<Running> {
        let log = self.new_file(&format!("{member}.log"));
        Running::start(self.command(member, words), &log)
    }

    /// A path in the lab's folder that nobody has used.
    #[must_use]
    pub fn new_file(&self, name: &str) -> PathBuf {
        self.dir().join(format!("{}-{name}", self.logs.fetch_add(1, Ordering::Relaxed)))
    }

    /// Runs `work` in the network namespace of a pod or of [`NODE`]. Sockets made there stay there.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn inside<T: Send>(&self, member: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        inside(&self.namespace(member), work)
    }

    /// Starts `lab-server` in a pod and waits until it listens; `words` are its arguments.
    ///
    /// # Errors
    /// When it does not listen within half a minute.
    pub fn serve<S: AsRef<OsStr>>(&self, member: &str, words: &[S]) -> Result<Running> {
        let program = binary("lab-server")?;
        let words = std::iter::once(program.as_os_str()).chain(words.iter().map(AsRef::as_ref));
        let mut server = self.spawn(member, words)?;
        server.wait_for_output(server::READY)?;
        Ok(server)
    }

    /// Starts a pod's application behind a front that serves mutual TLS and plaintext alike on `port`.
    ///
    /// # Errors
    /// As [`Lab::serve`].
    pub fn sidecar(&self, pod: &str, port: u16) -> Result<(Running, Records)> {
        let record = self.new_file(&format!("{pod}.records"));
        let files = self.files();
        fs::create_dir_all(&files)?;
        let own = self.credentials(pod);
        let mut words = vec![OsString::from("sidecar")];
        let options = [
            ("--port", port.to_string().into()),
            ("--record", record.clone().into_os_string()),
            ("--cert", own.certificate.into_os_string()),
            ("--key", own.key.into_os_string()),
            ("--ca", self.authority.certificate.clone().into_os_string()),
            ("--greeting", format!("hello from {pod}").into()),
            ("--files", files.into_os_string()),
        ];
        words.extend(options.into_iter().flat_map(|(name, value)| [OsString::from(name), value]));
        Ok((self.serve(pod, &words)?, Records::of(record)))
    }

    /// Starts a server without a protocol in a pod; `more` are further arguments of `lab-server raw`.
    ///
    /// # Errors
    /// As [`Lab::serve`].
    pub fn raw_server(&self, pod: &str, port: u16, more: &[&str]) -> Result<(Running, Records)> {
        let record = self.new_file(&format!("{pod}.records"));
        let (port, path) = (port.to_string(), record.display().to_string());
        let words: Vec<&str> =
            ["raw", "--port", &port, "--record", &path].into_iter().chain(more.iter().copied()).collect();
        Ok((self.serve(pod, &words)?, Records::of(record)))
    }

    /// The folder that the applications read files from and write files to.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        self.dir().join("files")
    }

    /// Writes a manifest into the watched folder, atomically: the agent never sees half of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn apply(&self, file: &str, text: &str) -> Result<()> {
        let partial = self.dir().join(format!("{file}.partial"));
        fs::write(&partial, text)?;
        fs::rename(&partial, self.manifests().join(file))
            .with_context(|| format!("cannot write manifest {file}"))
    }

    /// Removes a manifest from the watched folder.
    ///
    /// # Errors
    /// When there is none.
    pub fn withdraw(&self, file: &str) -> Result<()> {
        fs::remove_file(self.manifests().join(file)).with_context(|| format!("cannot remove manifest {file}"))
    }

    /// The socket address of a pod; `v6` chooses the family.
    #[must_use]
    pub fn address(&self, pod: &str, port: u16, v6: bool) -> SocketAddr {
        let [v4, six] = self.pod(pod).addresses();
        SocketAddr::new(if v6 { six } else { v4 }, port)
    }

    /// Turns checksum and segmentation offloads of a pod's link on or off, at both its ends.
    ///
    /// # Errors
    /// When `ethtool` refuses.
    pub fn offload(&self, pod: &str, on: bool) -> Result<()> {
        let state = if on { "on" } else { "off" };
        let host = self.pod(pod).interface();
        for (member, device) in [(pod, "eth0"), (NODE, host.as_str())] {
            let words =
                ["ethtool", "-K", device, "tx", state, "rx", state, "tso", state, "gso", state, "gro", state];
            self.exec(member, words)?.success()?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = identity::remove(&self.identity.id) {
            eprintln!("lab {}: {error:#}", self.identity.id);
        }
    }
}

/// Runs `work` on a thread of its own in a network namespace.
pub(crate) fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    let path = Path::new("/run/netns").join(namespace);
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    thread::scope(|scope| {
        scope
            .spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
                Ok(work())
            })
            .join()
            .map_err(|_| anyhow!("the work inside {namespace} panicked"))?
    })
}

/// The path of a binary of this build: beside the running program, or one folder up (test programs are in `deps`).
///
/// # Errors
/// When it was not built, with the command that builds it.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    for dir in own.ancestors().skip(1).take(2) {
        let path = dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!(
        "{name} is not built (looked beside {}): run `cargo build --workspace`, or `cargo xtask test`",
        own.display()
    )
}

/// The folder `demo` of the repository.
#[must_use]
pub fn demo_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo")
}
