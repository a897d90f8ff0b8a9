//! The agent: objects and facts about the node in, map writes out.

pub mod certificates;
mod kernel_log;
pub mod state;
pub mod tables;
mod verdicts;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use enforcer_common::Address;
use enforcer_common::settings::Settings;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use self::certificates::{CertificateOptions, Certificates};
use self::state::{DecisionState, EndpointState, InterfaceState, State};
use self::tables::{ExistingFlows, Refusal, Tables};
use self::verdicts::Verdicts;
use crate::datapath::apply::change;
use crate::datapath::desired::{self, Desired, Facts, Place, WorkloadIds, desired};
use crate::datapath::load::OpenError;
use crate::datapath::lock::LockError;
use crate::datapath::netns::{self, Namespaces};
use crate::datapath::sockdiag::PodSockets;
use crate::datapath::{Attachment, Datapath, Interface, InterfaceEvent, LinkWatch, OpenOptions, Selector};
use crate::object::{ObjectName, Objects};
use crate::source::watch::{Store, Watch};

/// How often the agent shows that it lives, looks for pods' addresses and removes what is stale.
const TICK: Duration = Duration::from_millis(500);

/// How long to wait for the agent before to let go of the pins.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// How to run the agent.
pub struct Config {
    /// The datapath.
    pub open: OpenOptions,
    /// Manifest files and folders.
    pub manifests: Vec<PathBuf>,
    /// Interfaces to hook.
    pub selector: Selector,
    /// How objects are read.
    pub objects: desired::Options,
    /// What the kernel side is told; the agent fills heartbeat and pid in.
    pub settings: Settings,
    /// What happens to connections that were open before.
    pub existing: ExistingFlows,
    /// Remove everything at the end.
    pub detach_on_exit: bool,
    /// Folder of the state file.
    pub state_dir: PathBuf,
    /// How certificates are checked.
    pub certificates: CertificateOptions,
}

/// The interfaces that are there at the start are told at once; this long after the last one all are known.
const FIRST_LINKS: Duration = Duration::from_millis(30);

struct Agent {
    config: Config,
    datapath: Datapath,
    tables: Tables,
    ids: WorkloadIds,
    objects: Objects,
    facts: Facts,
    wanted: Desired,
    attachments: BTreeMap<u32, Attachment>,
    unsupported: BTreeMap<u32, String>,
    /// Problems of the manifests, and of the node.
    manifest_problems: Vec<String>,
    manifest_warnings: Vec<String>,
    node_problems: BTreeMap<String, String>,
    /// Policy that the maps did not take.
    refused: BTreeSet<String>,
    started: Timestamp,
    policy_applied: Option<Timestamp>,
    written: Option<State>,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the datapath cannot be opened or the maps cannot be written.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut datapath = open(&config.open).await?;
    for warning in datapath.warnings() {
        warn!("{warning}");
    }
    let mut verdicts = Verdicts::open(&mut datapath)?;
    let tables = Tables::open(&mut datapath)?;
    let mut kernel_lines = kernel_log::open(&mut datapath, config.open.log_level);
    let mut agent = Agent::new(config, datapath, tables)?;
    agent.heartbeat()?;
    let mut certificates =
        Certificates::new(agent.config.certificates.clone(), agent.config.state_dir.clone());
    let mut store = Store::new(agent.config.manifests.clone()).with_memory(
        state::path(&agent.config.state_dir, &agent.config.open.bpffs).with_extension("manifests"),
    );
    let mut watch = Watch::open(&agent.config.manifests);
    if let Some(loaded) = store.reload() {
        agent.load(loaded);
    }
    let mut links = LinkWatch::open(agent.config.selector.clone()).context("cannot watch the interfaces")?;
    agent.forget_lost_interfaces();
    // What is there already is hooked before any policy is new to it: connections that are open then can be found behind
    // the interfaces, and all others are followed from their first packet.
    while let Ok(event) = tokio::time::timeout(FIRST_LINKS, links.next()).await {
        agent.interface(event.context("cannot watch the interfaces")?);
    }
    agent.reconcile()?;
    agent.finish_earlier()?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    info!(pid = std::process::id(), "agent is running");
    loop {
        tokio::select! {
            event = links.next() => {
                agent.interface(event.context("cannot watch the interfaces")?);
                agent.reconcile()?;
            }
            () = watch.changed() => {
                if let Some(loaded) = store.reload() {
                    agent.load(loaded);
                    agent.reconcile()?;
                }
            }
            result = verdicts.ready() => {
                result?;
                verdicts.drain(&agent.wanted);
            }
            _ = tick.tick() => {
                agent.tick()?;
                certificates.update(&agent.objects, &agent.wanted)?;
                if let Some(lines) = &mut kernel_lines {
                    lines.flush();
                }
            }
            () = certificates.changed() => agent.block(certificates.blocked(&agent.wanted))?,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    agent.stop()
}

/// Opens the datapath. The kernel needs a moment to close what a killed agent held, and its successor may be quicker.
async fn open(options: &OpenOptions) -> Result<Datapath, OpenError> {
    let deadline = tokio::time::Instant::now() + LOCK_PATIENCE;
    loop {
        match Datapath::open(options) {
            Err(OpenError::Lock(LockError::Held { .. })) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            result => return result,
        }
    }
}

impl Agent {
    fn new(config: Config, datapath: Datapath, tables: Tables) -> anyhow::Result<Self> {
        let path = state::path(&config.state_dir, &config.open.bpffs);
        let last = State::read(&path).unwrap_or_else(|error| {
            warn!("{}: {error}: workloads get new ids", path.display());
            State::default()
        });
        let known = last.workloads.iter().filter_map(|(pod, id)| {
            let (namespace, name) = pod.split_once('/')?;
            Some((ObjectName::new(namespace, name), *id))
        });
        let node_addresses = netns::addresses().context("cannot list this node's addresses")?;
        let facts = Facts {
            node_addresses: node_addresses.into_iter().map(|found| found.address).collect(),
            ..Facts::default()
        };
        Ok(Self {
            ids: WorkloadIds::restore(known.collect()),
            config,
            datapath,
            tables,
            objects: Objects::default(),
            facts,
            wanted: Desired::default(),
            attachments: BTreeMap::new(),
            unsupported: BTreeMap::new(),
            manifest_problems: Vec::new(),
            manifest_warnings: Vec::new(),
            node_problems: BTreeMap::new(),
            refused: BTreeSet::new(),
            started: Timestamp::now(),
            policy_applied: None,
            written: None,
        })
    }

    /// Takes new objects over; problems are told once.
    fn load(&mut self, loaded: crate::source::manifest::Loaded) {
        let problems: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
        for problem in problems.iter().filter(|problem| !self.manifest_problems.contains(problem)) {
            error!("{problem}");
        }
        let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        for warning in warnings.iter().filter(|warning| !self.manifest_warnings.contains(warning)) {
            warn!("{warning}");
        }
        self.manifest_warnings = warnings;
        self.manifest_problems = problems;
        self.objects = loaded.objects;
    }

    /// Brings the maps to what is wanted.
    fn reconcile(&mut self) -> anyhow::Result<()> {
        let wanted = desired(&self.objects, &self.facts, &self.config.objects, &mut self.ids);
        let change = change(self.tables.held(), &wanted);
        let refusals = self.tables.apply(&change);
        self.tell_changes(&wanted);
        self.wanted = wanted;
        self.tell_refusals(&refusals);
        if !change.fresh.is_empty() {
            self.finish(&change.fresh)?;
        }
        self.policy_applied = Some(Timestamp::now());
        self.write_state();
        Ok(())
    }

    /// Refused writes are told once, shown by `status` while they last, and tried again.
    fn tell_refusals(&mut self, refusals: &[Refusal]) {
        let mut problems = BTreeSet::new();
        for Refusal { workload, address, error } in refusals {
            let pod = self
                .wanted
                .endpoints
                .values()
                .find(|plan| plan.workload == *workload)
                .map(|plan| plan.pod.to_string());
            let what = pod
                .or_else(|| address.map(|address| address.to_string()))
                .unwrap_or_else(|| "exempt sources".into());
            problems.insert(format!(
                "the policy of {what} could not be written ({error}): it keeps the one before, or the strictest of its modes when it is new; \
                 run enforcer detach and start the agent with a larger --map-size for this map"
            ));
        }
        for problem in problems.difference(&self.refused) {
            error!("{problem}");
        }
        self.refused = problems;
    }

    fn tell_changes(&self, wanted: &Desired) {
        for (address, plan) in &wanted.endpoints {
            let old = self.wanted.endpoints.get(address);
            if old.is_some_and(|old| {
                old.mode == plan.mode && old.ports == plan.ports && old.decided_by == plan.decided_by
            }) {
                continue;
            }
            let policies: Vec<String> = plan
                .decided_by
                .iter()
                .map(|decision| format!("{} ({})", decision.policy, decision.level))
                .collect();
            info!(
                pod = %plan.pod, address = %address, mode = %plan.mode,
                before = old.map_or("unknown", |old| old.mode.name()), policies = policies.join(", "),
                "policy changed"
            );
        }
        for (address, plan) in
            self.wanted.endpoints.iter().filter(|(address, _)| !wanted.endpoints.contains_key(address))
        {
            info!(pod = %plan.pod, address = %address, "endpoint removed");
        }
        for pod in wanted.unprotected.difference(&self.wanted.unprotected) {
            warn!(%pod, "pod is in a mesh namespace and has no data plane: nothing protects it; restart it for injection or label it enforcer.io/enforce=true");
        }
    }

    /// Enters what is open at fresh endpoints. Their namespaces are looked at once more, now that handshakes are followed.
    fn finish(&mut self, fresh: &BTreeSet<Address>) -> anyhow::Result<()> {
        let sockets = self.sockets(fresh);
        for address in fresh {
            let found = sockets.get(address);
            self.tables.finish(*address, found, self.config.existing)?;
        }
        Ok(())
    }

    /// What an agent that died on the way left half done.
    fn finish_earlier(&mut self) -> anyhow::Result<()> {
        let unfinished: BTreeSet<Address> = self.tables.unfinished().into_keys().collect();
        if unfinished.is_empty() { Ok(()) } else { self.finish(&unfinished) }
    }

    fn sockets(&self, addresses: &BTreeSet<Address>) -> BTreeMap<Address, PodSockets> {
        let mut sockets = BTreeMap::new();
        let wanted: BTreeSet<u32> = addresses
            .iter()
            .filter_map(|address| Some(self.facts.places.get(&IpAddr::from(*address))?.ifindex))
            .collect();
        if wanted.is_empty() {
            return sockets;
        }
        let Ok(namespaces) = Namespaces::scan() else { return sockets };
        for ifindex in wanted {
            let Some(attachment) = self.attachments.get(&ifindex) else { continue };
            match namespaces.inspect(&attachment.interface) {
                Ok(found) => {
                    for address in &found.addresses {
                        sockets.insert(Address::from(address.address), found.sockets.clone());
                    }
                }
                Err(error) => warn!("{error}: connections that are open there are taken for unknown ones"),
            }
        }
        sockets
    }

    fn interface(&mut self, event: InterfaceEvent) {
        match event {
            InterfaceEvent::Appeared(interface) => self.attach(&interface),
            InterfaceEvent::Unsupported(interface) => {
                warn!(
                    interface = interface.name,
                    kind = interface.kind,
                    "interface looks like a pod's and cannot be hooked: its pod is not enforced"
                );
                self.unsupported.insert(interface.index, format!("{} ({})", interface.name, interface.kind));
            }
            InterfaceEvent::Gone(interface) => {
                self.attachments.remove(&interface.index);
                self.unsupported.remove(&interface.index);
                self.node_problems.remove(&interface.name);
                self.facts.places.retain(|_, place| place.ifindex != interface.index);
                if let Err(error) = self.datapath.forget(interface.index) {
                    warn!(
                        interface = interface.name,
                        "cannot remove the pins of an interface that is gone: {error}"
                    );
                }
                info!(interface = interface.name, "interface is gone");
            }
        }
    }

    fn attach(&mut self, interface: &Interface) {
        match self.datapath.attach(interface) {
            Ok(attachment) => {
                for warning in &attachment.warnings {
                    warn!(interface = interface.name, "{warning}");
                }
                info!(
                    interface = interface.name,
                    hook = hook_name(&attachment),
                    replaced = attachment.replaced,
                    "interface hooked"
                );
                self.attachments.insert(interface.index, attachment);
                self.node_problems.remove(&interface.name);
                self.find_places();
            }
            Err(error) => {
                error!(interface = interface.name, "{error}");
                self.node_problems.insert(interface.name.clone(), error.to_string());
            }
        }
    }

    /// Looks behind hooked interfaces where no address is known yet. True when something was found.
    fn find_places(&mut self) -> bool {
        let placed: BTreeSet<u32> = self.facts.places.values().map(|place| place.ifindex).collect();
        let missing: Vec<&Interface> = self
            .attachments
            .values()
            .map(|attachment| &attachment.interface)
            .filter(|interface| !placed.contains(&interface.index))
            .collect();
        if missing.is_empty() {
            return false;
        }
        let Ok(namespaces) = Namespaces::scan() else { return false };
        let mut found = false;
        for interface in missing {
            // Not visible yet, or made by somebody who keeps it to himself: its endpoints count on every interface.
            let Ok(pod) = namespaces.inspect(interface) else { continue };
            for address in pod.addresses {
                let place = Place { ifindex: interface.index, netns_id: pod.nsid };
                found |= self.facts.places.insert(address.address, place) != Some(place);
            }
        }
        found
    }

    fn forget_lost_interfaces(&self) {
        let present: Vec<u32> = crate::datapath::interface::list()
            .unwrap_or_default()
            .iter()
            .map(|interface| interface.index)
            .collect();
        if let Err(error) = self.datapath.forget_others(&present) {
            warn!("cannot remove the pins of interfaces that are gone: {error}");
        }
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        self.heartbeat()?;
        self.tables.sweep()?;
        if self.find_places() || !self.refused.is_empty() {
            self.reconcile()?;
        }
        Ok(())
    }

    /// Takes over which ports are blocked after their certificate checks.
    fn block(&mut self, blocked: BTreeSet<(ObjectName, u16)>) -> anyhow::Result<()> {
        for (pod, port) in blocked.difference(&self.facts.blocked) {
            warn!(%pod, port, "port is blocked: its server failed the certificate check; see enforcer certs");
        }
        for (pod, port) in self.facts.blocked.difference(&blocked) {
            info!(%pod, port, "port is open again: its server passed the certificate check");
        }
        if self.facts.blocked != blocked {
            self.facts.blocked = blocked;
            self.reconcile()?;
        }
        Ok(())
    }

    fn heartbeat(&mut self) -> anyhow::Result<()> {
        let settings =
            Settings { heartbeat_ns: monotonic_ns(), agent_pid: std::process::id(), ..self.config.settings };
        Ok(self.tables.set_settings(&settings)?)
    }

    fn stop(mut self) -> anyhow::Result<()> {
        self.tables.set_settings(&Settings { heartbeat_ns: 0, agent_pid: 0, ..self.config.settings })?;
        if self.config.detach_on_exit {
            let pins = self.datapath.pins().clone();
            let removed = crate::datapath::detach::remove_all(&pins)?;
            info!(
                links = removed.links.len(),
                maps = removed.maps.len(),
                "detached: nothing is enforced any more"
            );
        } else {
            info!("agent stops; what it enforced stays enforced");
        }
        Ok(())
    }

    fn write_state(&mut self) {
        let state = self.state();
        if self.written.as_ref().is_some_and(|written| {
            *written == State { policy_applied: written.policy_applied, ..state.clone() }
        }) {
            return;
        }
        let path = state::path(&self.config.state_dir, &self.config.open.bpffs);
        if let Err(error) = state.write(&path) {
            warn!(
                "{} cannot be written ({error}): status and endpoints show less while the agent is dead",
                path.display()
            );
        }
        self.written = Some(state);
    }

    fn state(&self) -> State {
        let endpoints =
            self.wanted.endpoints.iter().filter(|(_, plan)| plan.meshed).map(|(address, plan)| {
                EndpointState {
                    address: IpAddr::from(*address),
                    pod: plan.pod.to_string(),
                    workload: plan.workload,
                    decided_by: plan.decided_by.iter().map(DecisionState::from).collect(),
                }
            });
        let interfaces = self.attachments.values().map(|attachment| InterfaceState {
            index: attachment.interface.index,
            name: attachment.interface.name.clone(),
            hook: hook_name(attachment).to_owned(),
            neighbours: attachment.neighbours.iter().map(neighbour).collect(),
        });
        let manifests: Vec<String> =
            self.config.manifests.iter().map(|path| path.display().to_string()).collect();
        State {
            started: Some(self.started),
            policy_applied: self.policy_applied,
            source: manifests.join(", "),
            workloads: self.ids.all().iter().map(|(pod, id)| (pod.to_string(), *id)).collect(),
            endpoints: endpoints.collect(),
            interfaces: interfaces.collect(),
            unsupported_interfaces: self.unsupported.values().cloned().collect(),
            unprotected_pods: self.wanted.unprotected.iter().map(ToString::to_string).collect(),
            problems: self
                .manifest_problems
                .iter()
                .chain(self.node_problems.values())
                .chain(&self.refused)
                .cloned()
                .collect(),
        }
    }
}

fn neighbour(neighbour: &crate::datapath::attach::Neighbour) -> String {
    let place = if neighbour.before { "before" } else { "behind" };
    format!("{} (program {}) {place} {}", neighbour.name, neighbour.program, neighbour.way.program())
}

fn hook_name(attachment: &Attachment) -> &'static str {
    match attachment.hook {
        crate::datapath::Hook::Clsact => "clsact",
        _ => "tcx",
    }
}

/// `CLOCK_MONOTONIC`, which is what `bpf_ktime_get_ns` reads.
#[must_use]
pub fn monotonic_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}
