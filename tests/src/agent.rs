//! The agent under test, driven by its command line as a user does; what it did is read from the pinned maps and from
//! the kernel's list of programs on a hook, so that the agent's own word is not the only witness.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use enforcer::datapath::attach::{HookedProgram, Side, hooked_programs, hooked_programs_at};
use enforcer::datapath::load::Pinned;
use enforcer::datapath::maps::{Counters, Endpoints, PortModes};
use enforcer::telemetry::client;
use enforcer_common::map::{Counter, Endpoint, PortKey, endpoint_flags};
use enforcer_common::{Address, Mode, Reason, Verdict};
use nix::net::if_::if_nametoindex;

use crate::lab::{NODE, Output, Running, binary};
use crate::{Lab, poll};

/// The walk-through's policy for the whole mesh.
pub const MESH_STRICT: &str = include_str!("../../demo/policies/mesh-strict.yaml");
/// The walk-through's policy for the frontend.
pub const FRONTEND_PERMISSIVE: &str = include_str!("../../demo/policies/frontend-permissive.yaml");

/// How long the agent may take to start: a second or two, and much longer on a machine with ten times the work.
const START: Duration = Duration::from_mins(1);
/// How long a changed manifest may take to be in force. The contract is one second; waiting longer tells slow from never.
const APPLY: Duration = Duration::from_secs(10);

/// A lab with a running agent and its policies in force.
#[derive(Debug)]
pub struct Scene {
    /// The agent; dropped before the lab.
    pub agent: Running,
    /// The lab.
    pub lab: Lab,
}

impl Scene {
    /// The cast under the given manifests (file name, text).
    ///
    /// # Errors
    /// When the lab or the agent does not come up.
    pub fn new(manifests: &[(&str, &str)]) -> Result<Self> {
        Self::in_lab(Lab::new()?, manifests)
    }

    /// An agent for a lab.
    ///
    /// # Errors
    /// When the agent does not come up.
    pub fn in_lab(lab: Lab, manifests: &[(&str, &str)]) -> Result<Self> {
        lab.describe()?;
        for (file, text) in manifests {
            lab.apply(file, text)?;
        }
        let agent = lab.agent()?;
        Ok(Self { agent, lab })
    }

    /// The cast under a mesh-wide STRICT policy.
    ///
    /// # Errors
    /// When the lab or the agent does not come up.
    pub fn strict() -> Result<Self> {
        let scene = Self::new(&[("mesh.yaml", MESH_STRICT)])?;
        for pod in scene.lab.pods().iter().filter(|pod| pod.is_meshed()) {
            scene.lab.wait_mode(&pod.name, Mode::STRICT)?;
        }
        Ok(scene)
    }
}

/// A `PeerAuthentication` document. `app` is the value of the label `app` that it selects; without it the policy is for
/// the whole namespace.
#[must_use]
pub fn policy(namespace: &str, name: &str, app: Option<&str>, mode: &str, ports: &[(u16, &str)]) -> String {
    let mut text = format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: {name}\n  \
         namespace: {namespace}\nspec:\n"
    );
    if let Some(app) = app {
        let _ = write!(text, "  selector:\n    matchLabels:\n      app: {app}\n");
    }
    let _ = write!(text, "  mtls:\n    mode: {mode}\n");
    if !ports.is_empty() {
        text.push_str("  portLevelMtls:\n");
    }
    for (port, mode) in ports {
        let _ = write!(text, "    {port}:\n      mode: {mode}\n");
    }
    text
}

/// What the agents of all labs are told about `--attach`, where a test does not say it itself: `ENFORCER_TEST_ATTACH`. So the
/// suites can be run against pods that are enforced at their own device.
#[must_use]
pub fn attach_switch() -> Option<String> {
    std::env::var("ENFORCER_TEST_ATTACH").ok().filter(|attach| !attach.is_empty())
}

/// The agent's binary: `ENFORCER_BIN`, or the one of this build.
///
/// # Errors
/// When it was not built.
pub fn enforcer_binary() -> Result<PathBuf> {
    match std::env::var_os("ENFORCER_BIN") {
        Some(path) => Ok(path.into()),
        None => binary("enforcer"),
    }
}

impl Lab {
    /// Writes a manifest with the namespaces and pods of the lab.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn describe(&self) -> Result<()> {
        let mut namespaces: Vec<&str> = self.pods().iter().map(|pod| pod.namespace.as_str()).collect();
        namespaces.push("istio-system");
        namespaces.sort_unstable();
        namespaces.dedup();
        let mut text = String::new();
        for name in namespaces {
            let _ = write!(text, "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n---\n");
        }
        for pod in self.pods() {
            let _ = writeln!(text, "{}---", pod.manifest());
        }
        self.apply("cluster.yaml", &text)
    }

    /// The command line of `enforcer run` for this lab.
    ///
    /// # Errors
    /// When the binary was not built.
    pub fn run_words(&self, more: &[&str]) -> Result<Vec<String>> {
        let path = |path: PathBuf| path.display().to_string();
        let mut words = vec![path(enforcer_binary()?), "run".to_owned()];
        words.extend(["--manifests".to_owned(), path(self.manifests())]);
        words.extend(self.places());
        if let Some(attach) = attach_switch().filter(|_| !more.contains(&"--attach")) {
            words.extend(["--attach".to_owned(), attach]);
        }
        words.extend(more.iter().map(|&word| word.to_owned()));
        Ok(words)
    }

    /// Starts `enforcer run` on the node, without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&self, more: &[&str]) -> Result<Running> {
        self.spawn(NODE, self.run_words(more)?)
    }

    /// Starts `enforcer run` on the node and waits until it enforces, see [`Lab::wait_enforcing`].
    ///
    /// # Errors
    /// When it ends or does not get there, with its log.
    pub fn agent(&self) -> Result<Running> {
        self.agent_with(&[])
    }

    /// The same with more arguments.
    ///
    /// # Errors
    /// As [`Lab::agent`].
    pub fn agent_with(&self, more: &[&str]) -> Result<Running> {
        let mut agent = self.start_agent(more)?;
        self.wait_enforcing(&mut agent)?;
        let said =
            more.iter().skip_while(|word| **word != "--attach").nth(1).map(|&attach| attach.to_owned());
        if said.or_else(attach_switch).as_deref() == Some("pod") {
            self.wait_inside().map_err(|error| error.context(agent.output()))?;
        }
        Ok(agent)
    }

    /// Waits until both addresses of every meshed pod are in the map and both directions of its interface are hooked, or of its
    /// own device.
    ///
    /// # Errors
    /// When the agent ends or does not get there, with its log.
    pub fn wait_enforcing(&self, agent: &mut Running) -> Result<()> {
        let mut ended = None;
        let ready = poll::until("the agent to enforce", START, || {
            ended = agent.ended()?;
            if ended.is_some() {
                return Ok(false);
            }
            for pod in self.pods().iter().filter(|pod| pod.is_meshed()) {
                for address in pod.addresses() {
                    let flags = self.endpoint(address)?.flags;
                    ensure!(flags & endpoint_flags::LEARNING == 0, "{address} is still being looked at");
                }
                let ours = self.own_hooks(&pod.name)?;
                ensure!(ours.len() == 2, "{} has hooks {ours:?}", pod.interface());
                let flags = self.endpoint(pod.v4().into())?.flags;
                let is_inside = flags & endpoint_flags::POD_SIDE != 0;
                ensure!(
                    is_inside || attach_switch().as_deref() != Some("pod"),
                    "{} is to change over",
                    pod.name
                );
            }
            let state: serde_json::Value = serde_json::from_str(&client::get(&self.socket(), "/v1/state")?)?;
            // Without its API server an agent enforces what is pinned.
            let in_cluster = state["kinds"].as_array().is_some_and(|kinds| !kinds.is_empty());
            let known = in_cluster || !state["policy_applied"].is_null();
            ensure!(known, "its answers do not know the policy yet");
            Ok(true)
        });
        match ready {
            Ok(true) => Ok(()),
            Ok(false) => bail!("the agent ended with {ended:?}:\n{}", agent.output()),
            Err(error) => Err(error.context(agent.output())),
        }
    }

    /// Waits until every pod is enforced at its own device, and only there.
    fn wait_inside(&self) -> Result<()> {
        poll::until("the pods to change over", START, || {
            for pod in self.pods() {
                let [host, inside] = self.own_hooks_by_side(&pod.name)?;
                ensure!(host.is_empty() && inside.len() == 2, "{} has {host:?} and {inside:?}", pod.name);
                for address in pod.addresses().into_iter().filter(|_| pod.is_meshed()) {
                    let flags = self.endpoint(address)?.flags;
                    ensure!(flags & endpoint_flags::POD_SIDE != 0, "{address} is enforced at the host side");
                }
            }
            Ok(())
        })
    }

    /// The arguments that keep an agent of this lab to this lab: its pins and its state.
    #[must_use]
    pub fn places(&self) -> [String; 4] {
        let path = |path: PathBuf| path.display().to_string();
        ["--bpffs".to_owned(), path(self.bpffs()), "--state-dir".to_owned(), path(self.state())]
    }

    /// Runs a subcommand of the binary on the node with this lab's bpffs.
    ///
    /// # Errors
    /// When it cannot be run; not when it fails.
    pub fn enforcer(&self, words: &[&str]) -> Result<Output> {
        let (program, places) = (enforcer_binary()?.display().to_string(), self.places());
        let places = places.iter().map(String::as_str);
        self.exec(NODE, std::iter::once(program.as_str()).chain(words.iter().copied()).chain(places))
    }

    /// The entry of an address in `ENDPOINTS`.
    ///
    /// # Errors
    /// When there is none.
    pub fn endpoint(&self, address: IpAddr) -> Result<Endpoint> {
        let table = Endpoints::new("ENDPOINTS", self.pinned("ENDPOINTS")?)?;
        table.get(&Address::from(address))?.with_context(|| format!("{address} is not in ENDPOINTS"))
    }

    /// Waits until a pod's default mode is `mode`, at both addresses.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_mode(&self, pod: &str, mode: Mode) -> Result<()> {
        poll::until(&format!("{pod} to be {mode}"), APPLY, || {
            for address in self.pod(pod).addresses() {
                let found = self.endpoint(address)?.mode;
                ensure!(found == mode, "{address} is {found}");
            }
            Ok(())
        })
    }

    /// Waits until the policy of a pod is `mode` behind its own interface: that of another pod which had its addresses before may
    /// be there still.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_mode_here(&self, pod: &str, mode: Mode) -> Result<()> {
        let ifindex = self.ifindex(pod)?;
        poll::until(&format!("{pod} to be {mode} behind interface {ifindex}"), APPLY, || {
            for address in self.pod(pod).addresses() {
                let found = self.endpoint(address)?;
                ensure!((found.mode, found.ifindex) == (mode, ifindex), "{address}: {found:?}");
            }
            Ok(())
        })
    }

    /// Index of the host side of a pod's interface.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn ifindex(&self, pod: &str) -> Result<u32> {
        let interface = self.pod(pod).interface();
        self.inside(NODE, || {
            if_nametoindex(interface.as_str()).with_context(|| format!("no interface {interface}"))
        })?
    }

    /// Waits until a port of a pod has a mode of its own.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_port_mode(&self, pod: &str, port: u16, mode: Mode) -> Result<()> {
        poll::until(&format!("port {port} of {pod} to be {mode}"), APPLY, || {
            let ports = PortModes::new("PORT_MODES", self.pinned("PORT_MODES")?)?;
            let endpoint = self.endpoint(self.pod(pod).v4().into())?;
            let key = PortKey { workload: endpoint.workload, generation: endpoint.generation, port };
            let found = ports.get(&key)?.context("it has no mode of its own")?.mode;
            ensure!(found == mode, "it is {found}");
            Ok(())
        })
    }

    /// The node's counter of a verdict and reason, both directions together.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn count(&self, verdict: Verdict, reason: Reason) -> Result<Counter> {
        let mut sum = Counter { connections: 0, packets: 0, bytes: 0 };
        for (key, counter) in Counters::new("COUNTERS", self.pinned("COUNTERS")?)?.totals()? {
            if key.verdict == verdict && key.reason == reason {
                sum.connections += counter.connections;
                sum.packets += counter.packets;
                sum.bytes += counter.bytes;
            }
        }
        Ok(sum)
    }

    /// The enforcer's own programs on the host side of a pod's interface and on the pod's own device.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn own_hooks_by_side(&self, pod: &str) -> Result<[Vec<HookedProgram>; 2]> {
        let inside = self.inside(pod, || {
            let index = if_nametoindex("eth0").context("no eth0")?;
            anyhow::Ok(hooked_programs_at(index, Side::Pod)?)
        })??;
        Ok([self.hooks(pod)?, inside].map(|mut hooks| {
            hooks.retain(|hook| matches!(hook.name.as_str(), "to_pod" | "from_pod"));
            hooks
        }))
    }

    /// Every program on the hooks of a pod's interface, first to run first.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn hooks(&self, pod: &str) -> Result<Vec<HookedProgram>> {
        let index = self.ifindex(pod)?;
        self.inside(NODE, || Ok(hooked_programs(index)?))?
    }

    /// The enforcer's own programs there and on the pod's own device: one per direction where it is attached.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn own_hooks(&self, pod: &str) -> Result<Vec<HookedProgram>> {
        Ok(self.own_hooks_by_side(pod)?.concat())
    }

    /// The path of a pinned map.
    ///
    /// # Errors
    /// When nothing is pinned.
    pub fn map_path(&self, name: &str) -> Result<PathBuf> {
        Ok(Pinned::open(&self.bpffs())?.pins().maps().join(name))
    }

    fn pinned(&self, name: &str) -> Result<aya::maps::Map> {
        Ok(Pinned::open(&self.bpffs())?.map(name)?)
    }
}
