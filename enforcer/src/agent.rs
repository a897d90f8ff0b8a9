//! The agent: objects and facts about the node in, map writes out.

mod aging;
pub mod certificates;
pub mod farewell;
mod gap;
mod hooks;
mod interfaces;
mod kernel_log;
pub mod pods;
mod reconcile;
pub(crate) mod retired;
mod sides;
mod snapshot;
pub mod state;
pub mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use enforcer_common::settings::Settings;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, info, warn};

use self::certificates::{CertificateOptions, Certificates};
use self::gap::Gaps;
use self::pods::SourceState;
pub use self::sides::Attach;
use self::state::State;
use self::tables::{ExistingFlows, Tables};
use crate::certificate::report::PodPort;
use crate::datapath::addresses::AddressWatch;
use crate::datapath::desired::{self, Desired, Facts, GonePod, WorkloadIds};
use crate::datapath::kubelet::KubeletCgroup;
use crate::datapath::load::OpenError;
use crate::datapath::lock::LockError;
use crate::datapath::memory;
use crate::datapath::nudge::Nudge;
use crate::datapath::{Attachment, Datapath, LinkWatch, OpenOptions, Selector};
use crate::object::{ObjectName, Objects};
use crate::source::{self, Source};
use crate::telemetry::{self, Shared, Telemetry};

/// How often the agent shows that it lives, looks for pods' addresses and removes what is stale.
const TICK: Duration = Duration::from_millis(500);

/// How long to wait for the agent before to let go of the pins.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// How to run the agent.
pub struct Config {
    /// The datapath.
    pub open: OpenOptions,
    /// Where objects come from.
    pub source: source::Origin,
    /// Interfaces to hook.
    pub selector: Selector,
    /// At which end of a pod's pair of devices.
    pub attach: Attach,
    /// How objects are read.
    pub objects: desired::Options,
    /// What the kernel side is told; the agent fills heartbeat and pid in.
    pub settings: Settings,
    /// Whose sockets may probe pods.
    pub kubelet_cgroup: KubeletCgroup,
    /// What happens to connections that were open before.
    pub existing: ExistingFlows,
    /// Remove everything at the end.
    pub detach_on_exit: bool,
    /// Folder of the state file.
    pub state_dir: PathBuf,
    /// How certificates are checked.
    pub certificates: CertificateOptions,
    /// What is told, and where.
    pub telemetry: telemetry::Options,
}

/// The interfaces that are there at the start are told at once; this long after the last one all are known.
const FIRST_LINKS: Duration = Duration::from_millis(30);

struct Agent {
    config: Config,
    datapath: Datapath,
    tables: Tables,
    ids: WorkloadIds,
    source: SourceState,
    objects: Arc<Objects>,
    /// Objects were there once: before, nothing that is pinned is changed.
    loaded: bool,
    facts: Facts,
    /// Gone pods of the agent before this one, until the first policy.
    remembered: Vec<GonePod>,
    node_addresses: Arc<BTreeSet<IpAddr>>,
    wanted: Arc<Desired>,
    attachments: BTreeMap<u32, Attachment>,
    unsupported: BTreeMap<u32, String>,
    /// Problems of the objects and their source, and of the node.
    source_problems: Vec<String>,
    source_warnings: Vec<String>,
    /// Port entries that do nothing.
    port_warnings: BTreeSet<String>,
    hooks: hooks::Hooks,
    retired: retired::Retired,
    sides: sides::Sides,
    /// Of the certificate checks, and of the search for the kubelet.
    checks_problem: Option<String>,
    probers_problem: Option<&'static str>,
    looks: interfaces::Looks,
    /// Interfaces that could not be hooked.
    failed: BTreeMap<u32, interfaces::Failed>,
    /// Why closes of pods' sockets are not seen.
    sockets_problem: Option<String>,
    aging: aging::Aging,
    /// What an earlier layout left is still pinned.
    unretired: bool,
    kept: retired::Kept,
    /// Policy that the maps did not take.
    refused: BTreeSet<String>,
    started: Timestamp,
    policy_applied: Option<Timestamp>,
    written: Option<State>,
    /// Workloads of pods, gone ones too, where they have other names.
    owners: BTreeMap<String, String>,
    telemetry: Arc<Shared>,
    gaps: Gaps,
    /// Without it, silent clients are judged at their next packet only.
    nudge: Option<Nudge>,
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
    let sockets_problem = datapath.watch_sockets().err().map(|error| error.to_string());
    if let Some(problem) = &sockets_problem {
        warn!("{problem}");
    }
    match memory::of_maps(datapath.pins()) {
        Ok(maps) => info!("memory of the maps: {}", memory::in_words(&maps)),
        Err(error) => warn!("the memory of the maps cannot be read: {error}"),
    }
    let tables = Tables::open(&mut datapath)?;
    let mut kernel_lines = kernel_log::open(&mut datapath, config.open.log_level);
    let remembered = state::path(&config.state_dir, &config.open.bpffs);
    let mut source = Source::open(config.source.clone(), &remembered)?;
    let (asked, questions) = source::kube::lookup::channel();
    let in_cluster = matches!(config.source, source::Origin::Kubernetes { .. });
    let telemetry = Telemetry::start(&config.telemetry, in_cluster.then_some(asked))?;
    if let source::Origin::Kubernetes { access, options } = &config.source {
        let client = source::kube::Access::clone(access).client()?;
        tokio::spawn(source::kube::lookup::answer(client.clone(), telemetry.shared().clone(), questions));
        tokio::spawn(source::kube::events::tell(client, telemetry.shared().clone(), options.node.clone()));
    }
    telemetry
        .read_events(datapath.take_map("EVENTS").context("map EVENTS is missing")?, &config.open.bpffs)?;
    telemetry.spawn(telemetry::readiness::watch::run(
        telemetry.shared().clone(),
        config.open.bpffs.clone(),
        config.state_dir.clone(),
        config.telemetry.node.clone(),
    ));
    let mut agent = Agent::new(config, datapath, tables, telemetry.shared().clone())?;
    agent.sockets_problem = sockets_problem;
    agent.heartbeat()?;
    let mut certificates = agent.certificates()?;
    // Before the first write: a port that an earlier agent closed is not open for a moment.
    (agent.facts.blocked, agent.facts.passed) = certificates.closed();
    if let Some(update) = source.first() {
        agent.load(update, &source);
    }
    let node_addresses = AddressWatch::open().context("cannot watch this node's addresses")?;
    agent.read_node_addresses()?;
    let mut links = LinkWatch::open(agent.config.selector.clone()).context("cannot watch the interfaces")?;
    agent.prepare();
    // What is there already is hooked before any policy is new to it: connections that are open then can be found behind
    // the interfaces, and all others are followed from their first packet.
    while let Ok(event) = tokio::time::timeout(FIRST_LINKS, links.next()).await {
        agent.interface(event.context("cannot watch the interfaces")?);
    }
    agent.forget_other_interfaces();
    agent.retire()?;
    // How long these are without policy is not known.
    agent.gaps = Gaps::default();
    agent.reconcile()?;
    agent.finish_earlier()?;
    agent.choose_sides()?;
    agent.leave_other_devices();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    info!(pid = std::process::id(), "agent is running");
    loop {
        tokio::select! {
            event = links.next() => {
                agent.interface(event.context("cannot watch the interfaces")?);
                // Whatever came with it is looked at in one go.
                while let Ok(event) = tokio::time::timeout(Duration::ZERO, links.next()).await {
                    agent.interface(event.context("cannot watch the interfaces")?);
                }
                agent.reconcile()?;
                agent.choose_sides()?;
            }
            changed = node_addresses.changed() => {
                changed.context("cannot watch this node's addresses")?;
                if agent.read_node_addresses()? {
                    agent.reconcile()?;
                }
            }
            update = source.next() => {
                agent.load(update, &source);
                agent.reconcile()?;
            }
            _ = tick.tick() => {
                agent.tick()?;
                for (pod, port) in telemetry.shared().take_served() {
                    certificates.observe(&pod, port);
                }
                certificates.update(&agent.objects, &agent.wanted);
                if let Some(lines) = &mut kernel_lines {
                    lines.flush();
                }
            }
            () = certificates.changed() => agent.take_checks(&certificates)?,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    drop(telemetry);
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
    fn new(
        config: Config,
        datapath: Datapath,
        tables: Tables,
        telemetry: Arc<Shared>,
    ) -> anyhow::Result<Self> {
        let path = state::path(&config.state_dir, &config.open.bpffs);
        farewell::withdraw(&path)?;
        let last = State::read(&path).unwrap_or_else(|error| {
            warn!("{}: {error}: workloads get new ids", path.display());
            State::default()
        });
        let known = last.workloads.iter().filter_map(|(pod, id)| {
            let (namespace, name) = pod.split_once('/')?;
            Some((ObjectName::new(namespace, name), *id))
        });
        let nudge = Nudge::open()
            .inspect_err(|error| warn!("clients that fall silent are judged at their next packet only: {error}; grant CAP_NET_RAW"))
            .ok();
        Ok(Self {
            ids: WorkloadIds::restore(known.collect(), last.last_workload),
            config,
            datapath,
            tables,
            source: SourceState::default(),
            objects: Arc::default(),
            loaded: false,
            facts: Facts::default(),
            remembered: last.gone,
            node_addresses: Arc::default(),
            wanted: Arc::default(),
            attachments: BTreeMap::new(),
            unsupported: BTreeMap::new(),
            source_problems: Vec::new(),
            source_warnings: Vec::new(),
            port_warnings: BTreeSet::new(),
            hooks: hooks::Hooks::default(),
            retired: retired::Retired::default(),
            sides: sides::Sides::default(),
            checks_problem: None,
            probers_problem: None,
            looks: interfaces::Looks::default(),
            failed: BTreeMap::new(),
            sockets_problem: None,
            aging: aging::Aging::default(),
            unretired: true,
            kept: retired::Kept::restore(&last.retired),
            refused: BTreeSet::new(),
            started: Timestamp::now(),
            policy_applied: None,
            written: None,
            owners: last.owners,
            telemetry,
            gaps: Gaps::default(),
            nudge,
        })
    }

    /// The certificate checks, whose connections pods' own devices are told of.
    fn certificates(&mut self) -> anyhow::Result<Certificates> {
        Certificates::new(
            CertificateOptions {
                announcer: Some(sides::own_probes(&mut self.datapath)?),
                ..self.config.certificates.clone()
            },
            state::certificates_path(&self.config.state_dir, &self.config.open.bpffs),
        )
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        self.telemetry.beat();
        self.heartbeat()?;
        self.tables.sweep()?;
        let hooked = self.retry_failed();
        if self.look_behind() || hooked || !self.refused.is_empty() {
            self.reconcile()?;
        }
        if self.unretired {
            self.retire()?;
        }
        self.choose_sides()?;
        self.check_hooks()?;
        self.age_flows()?;
        self.retire_workloads();
        self.nudge_silent()
    }

    /// Clients that fell silent before they said enough are judged for their silence.
    fn nudge_silent(&mut self) -> anyhow::Result<()> {
        let Some(nudge) = &self.nudge else { return Ok(()) };
        for (key, mut pending, flow) in
            self.tables.silent(monotonic_ns(), self.config.settings.undecided_ns)?
        {
            let link = self.wanted.links.get(&key.pod.listed()).map(|plan| plan.ifindex);
            let places = self.facts.places.of(&IpAddr::from(key.pod));
            if let Some(interface) = link.or_else(|| places.first().copied().filter(|_| places.len() == 1)) {
                // At the pod's own device the index is that one's; the way there is by its other end.
                pending.ifindex = interface;
            }
            match nudge.send(&key, &pending, &flow) {
                // Nobody is left to judge.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {}
                Err(error) => {
                    debug!(interface = pending.ifindex, "a silent client is judged later: {error}");
                    continue;
                }
                Ok(()) => {}
            }
            self.tables.heard(&key)?;
        }
        Ok(())
    }

    /// Takes over what the certificate checks found: which ports are closed, and what a person should look at.
    fn take_checks(&mut self, certificates: &Certificates) -> anyhow::Result<()> {
        let (blocked, passed) = certificates.closed();
        for PodPort { pod, port, .. } in blocked.difference(&self.facts.blocked) {
            warn!(%pod, port, "port is blocked: its server failed the certificate check; see enforcer certs");
        }
        for PodPort { pod, port, .. } in self.facts.blocked.difference(&blocked) {
            info!(%pod, port, "port is open again: its server passed the certificate check");
        }
        self.checks_problem = certificates.problem();
        if (&self.facts.blocked, &self.facts.passed) == (&blocked, &passed) {
            self.write_state();
        } else {
            (self.facts.blocked, self.facts.passed) = (blocked, passed);
            self.reconcile()?;
        }
        Ok(())
    }

    /// Once the programs of this version are on every interface, what an earlier layout left is not needed any more.
    fn retire(&mut self) -> anyhow::Result<()> {
        if !self.failed.is_empty() {
            return Ok(());
        }
        self.unretired = false;
        let old =
            self.datapath.retire_old_versions().context("cannot remove the pins of an earlier version")?;
        if !old.is_empty() {
            let flows = self.tables.protect_judged()?;
            let maps = self.datapath.carried().join(",");
            info!(flows, maps, "taken over from an earlier version, whose pins are gone");
        }
        Ok(())
    }

    fn heartbeat(&mut self) -> anyhow::Result<()> {
        self.find_probers();
        let settings =
            Settings { heartbeat_ns: monotonic_ns(), agent_pid: std::process::id(), ..self.config.settings };
        Ok(self.tables.set_settings(&settings)?)
    }

    /// The kubelet gets a new cgroup when it is restarted.
    fn find_probers(&mut self) {
        let found = self.config.kubelet_cgroup.find();
        if found.missing {
            let text = "the cgroup of --kubelet-cgroup does not exist: no probe of the kubelet reaches a STRICT port; correct the path";
            if self.probers_problem.replace(text).is_none() {
                warn!("{text}");
            }
        } else if self.probers_problem.take().is_some() {
            info!("the cgroup of --kubelet-cgroup is there");
        }
        self.config.settings.probe_cgroup = found.cgroup;
    }

    fn stop(mut self) -> anyhow::Result<()> {
        self.tables.set_settings(&Settings { heartbeat_ns: 0, agent_pid: 0, ..self.config.settings })?;
        let state = state::path(&self.config.state_dir, &self.config.open.bpffs);
        if self.config.detach_on_exit || farewell::announced(&state) {
            let pins = self.datapath.pins().clone();
            let removed = crate::datapath::detach::remove_all(&pins)?;
            farewell::remove_state(&state)?;
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
}

/// `CLOCK_MONOTONIC`, which is what `bpf_ktime_get_ns` reads.
#[must_use]
pub fn monotonic_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}
