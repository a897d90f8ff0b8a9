//! The task that runs checks when they are due and publishes their results. Nothing waits for it: targets and
//! bundle are handed over, results are watched.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::sign::CertifiedKey;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::bundle::{BundleError, CurrentBundle, TrustBundle};
use super::forbidden::{ForbiddenClients, GenerateError};
use super::probe::{self, Probe, Request, Settings, istio_server_name};
use super::report::{CertificateReport, Entry};
use super::schedule::{Next, Schedule, ScheduleSettings};
use super::spiffe::Expected;
use super::state::{self, Consequences, History};
use super::verify;
use crate::object::ObjectName;

/// The file is written at most this often.
const WRITE_PAUSE: Duration = Duration::from_secs(1);

/// One endpoint and port that speaks for itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// The pod.
    pub pod: ObjectName,
    /// Its address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The identity that it must have; see [`super::spiffe::TrustDomains::expected`].
    pub expected: Expected,
    /// A Service in front of it, for the server name; without one it is made of the pod's own name.
    pub service: Option<Front>,
}

/// A Service in front of a port, by which mesh clients ask for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Front {
    /// Name of the Service, in the pod's namespace.
    pub name: String,
    /// The Service's own port.
    pub port: u16,
}

/// How the checker works.
#[derive(Clone, Debug, Default)]
pub struct CheckerConfig {
    /// How one check is made.
    pub probe: Settings,
    /// When checks are made.
    pub schedule: ScheduleSettings,
    /// What follows from their results.
    pub consequences: Consequences,
    /// The mesh's trust domain, which forbidden clients claim; `None` for Istio's default.
    pub trust_domain: Option<String>,
    /// Where results are kept; `None` for nowhere.
    pub file: Option<PathBuf>,
    /// What an earlier checker left there: its results stand until there are new ones, so that a restart neither
    /// opens a closed port nor forgets what is known.
    pub earlier: CertificateReport,
}

#[derive(Debug)]
enum Command {
    Targets(Vec<Target>),
    Bundle(Result<TrustBundle, BundleError>),
    MeshClient(Result<Arc<CertifiedKey>, String>),
}

/// The running checker. It ends when this is dropped.
#[derive(Debug)]
pub struct Checker {
    commands: mpsc::UnboundedSender<Command>,
    reports: watch::Receiver<CertificateReport>,
}

impl Checker {
    /// Starts it on the present tokio runtime.
    ///
    /// # Errors
    /// The forbidden clients' certificates cannot be made.
    pub fn spawn(config: CheckerConfig) -> Result<Self, GenerateError> {
        let forbidden = ForbiddenClients::generate(config.trust_domain.as_deref(), Timestamp::now())?;
        let (commands, receiver) = mpsc::unbounded_channel();
        let mut config = config;
        let earlier = std::mem::take(&mut config.earlier).entries;
        let (publish, reports) = watch::channel(CertificateReport::default());
        let task = Task {
            schedule: Schedule::new(config.schedule),
            config,
            earlier: earlier.into_iter().map(|entry| ((entry.address, entry.port), entry)).collect(),
            forbidden: Arc::new(forbidden),
            mesh_client: None,
            mesh_client_problem: None,
            bundle: CurrentBundle::default(),
            targets: BTreeMap::new(),
            start: Instant::now(),
            running: JoinSet::new(),
            publish,
            dirty: false,
        };
        tokio::spawn(task.run(receiver));
        Ok(Self { commands, reports })
    }

    /// All endpoints and ports that are to be checked from now on. What is new or has changed is checked at once,
    /// what is no longer named is forgotten.
    pub fn set_targets(&self, targets: Vec<Target>) {
        let _ = self.commands.send(Command::Targets(targets));
    }

    /// The outcome of reading the trust bundle. A changed bundle has everything checked; a broken one is reported
    /// and leaves the last good one in use.
    pub fn set_bundle(&self, loaded: Result<TrustBundle, BundleError>) {
        let _ = self.commands.send(Command::Bundle(loaded));
    }

    /// The outcome of reading the agent's own mesh certificate, again whenever it is renewed. A broken one is
    /// reported and leaves the last good one in use.
    pub fn set_mesh_client(&self, client: Result<Arc<CertifiedKey>, String>) {
        let _ = self.commands.send(Command::MeshClient(client));
    }

    /// The results, as they change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<CertificateReport> {
        self.reports.clone()
    }
}

type Key = (IpAddr, u16);

#[derive(Debug)]
struct Known {
    target: Target,
    entry: Entry,
}

#[derive(Debug)]
struct Done {
    key: Key,
    /// The bundle that the check was made with, by its address: results of an older one say nothing.
    bundle: Option<Arc<TrustBundle>>,
    target: Target,
    probe: Probe,
}

struct Task {
    config: CheckerConfig,
    schedule: Schedule<Key>,
    forbidden: Arc<ForbiddenClients>,
    mesh_client: Option<Arc<CertifiedKey>>,
    mesh_client_problem: Option<String>,
    bundle: CurrentBundle,
    /// Results of an earlier checker that no target has claimed yet.
    earlier: BTreeMap<Key, Entry>,
    targets: BTreeMap<Key, Known>,
    start: Instant,
    running: JoinSet<Done>,
    publish: watch::Sender<CertificateReport>,
    dirty: bool,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut write = tokio::time::interval(WRITE_PAUSE);
        write.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wake = self.start_due();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => break,
                },
                Some(done) = self.running.join_next() => {
                    // A check does not panic, and none is cancelled while this runs.
                    if let Ok(done) = done {
                        self.take(done);
                    }
                }
                () = sleep_until(wake) => {}
                _ = write.tick(), if self.dirty => self.write().await,
            }
        }
        self.write().await;
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Targets(targets) => self.set_targets(targets),
            Command::MeshClient(Ok(client)) => {
                self.mesh_client = Some(client);
                self.mesh_client_problem = None;
            }
            Command::MeshClient(Err(problem)) => {
                tracing::warn!("{problem}; the last good client certificate stays in use");
                self.mesh_client_problem = Some(problem);
            }
            Command::Bundle(loaded) => {
                if let Err(problem) = &loaded {
                    tracing::warn!("{problem}; the last good trust bundle stays in use");
                }
                if self.bundle.update(loaded) {
                    self.schedule.request_all(self.now());
                }
            }
        }
        self.published();
    }

    fn set_targets(&mut self, targets: Vec<Target>) {
        let now = self.now();
        let mut old = std::mem::take(&mut self.targets);
        for target in targets {
            let key = (target.address, target.port);
            let known = match old.remove(&key) {
                Some(known) if known.target == target => known,
                // Asked for by another name, it is still the same server: a closed port stays closed.
                Some(known) if known.target.pod == target.pod && known.target.expected == target.expected => {
                    self.schedule.request(key, now);
                    Known { entry: known.entry, target }
                }
                Some(_) | None => {
                    self.schedule.request(key, now);
                    Known { entry: self.new_entry(key, &target), target }
                }
            };
            self.targets.insert(key, known);
        }
        for gone in old.keys().filter(|key| !self.targets.contains_key(*key)) {
            self.schedule.remove(gone);
        }
    }

    fn new_entry(&mut self, key: Key, target: &Target) -> Entry {
        let expected = target.expected.id.to_string();
        let earlier = self.earlier.remove(&key).filter(|earlier| {
            (&earlier.namespace, &earlier.pod) == (&target.pod.namespace, &target.pod.name)
                && earlier.expected.as_ref() == Some(&expected)
        });
        if let Some(mut earlier) = earlier {
            earlier.history.resume(self.config.consequences);
            return earlier;
        }
        Entry {
            namespace: target.pod.namespace.clone(),
            pod: target.pod.name.clone(),
            address: target.address,
            port: target.port,
            expected: Some(expected),
            history: History::new(self.config.consequences),
            checked: None,
            expires: None,
            probe: None,
        }
    }

    /// Starts what is due; when to look again.
    fn start_due(&mut self) -> Option<Instant> {
        if self.bundle.good().is_none() && self.bundle.problem().is_none() {
            // Whether there is a bundle has not been told yet.
            return None;
        }
        loop {
            match self.schedule.next(self.now()) {
                Next::Idle => return None,
                Next::Wait(until) => return Some(self.start + until),
                Next::Start(key) => match self.targets.get(&key) {
                    Some(known) => {
                        let check = self.check(key, known.target.clone());
                        self.running.spawn(check);
                    }
                    None => self.schedule.finished(&key, self.now(), true, None, 0),
                },
            }
        }
    }

    fn check(&self, key: Key, target: Target) -> impl Future<Output = Done> + use<> {
        let (forbidden, mesh_client) = (Arc::clone(&self.forbidden), self.mesh_client.clone());
        let (bundle, settings) = (self.bundle.good().cloned(), self.config.probe.clone());
        async move {
            let (service, port) = match &target.service {
                Some(front) => (front.name.as_str(), front.port),
                None => (target.pod.name.as_str(), target.port),
            };
            let server_name = istio_server_name(port, service, &target.pod.namespace);
            let request = Request {
                address: SocketAddr::from(key),
                server_name: server_name.as_ref(),
                names: &[],
                tunnel: false,
                bundle: bundle.as_deref(),
                expected: Some(&target.expected),
                forbidden: &forbidden,
                mesh_client: mesh_client.as_ref(),
            };
            let probe = probe::probe(request, &settings).await;
            Done { key, bundle, target, probe }
        }
    }

    fn take(&mut self, done: Done) {
        let (now, time) = (self.now(), Timestamp::now());
        let state = state::judge(&done.probe.findings);
        let chain = done.probe.server.as_ref().map(|server| &server.chain[..]).unwrap_or_default();
        let change = verify::next_change(chain, self.config.probe.expiry, time);
        let change = change.map(|instant| now + time.duration_until(instant).unsigned_abs());
        self.schedule.finished(&done.key, now, state.is_good(), change, chance());
        let same_bundle = match (&done.bundle, self.bundle.good()) {
            (Some(used), Some(current)) => Arc::ptr_eq(used, current),
            (None, None) => true,
            _ => false,
        };
        let Some(known) = self.targets.get_mut(&done.key) else {
            return;
        };
        if !same_bundle || known.target != done.target {
            return;
        }
        let entry = &mut known.entry;
        let changed =
            entry.history.record(state, state::effect(&done.probe.findings), time, self.config.consequences);
        entry.checked = Some(time);
        entry.expires = chain.iter().map(|certificate| certificate.not_after).min();
        entry.probe = Some(done.probe);
        if changed {
            log(entry);
        }
        self.published();
    }

    fn published(&mut self) {
        let report = CertificateReport {
            time: Timestamp::now(),
            bundle: self.bundle.good().map(|bundle| bundle.fingerprint().to_owned()),
            bundle_problem: self.bundle.problem().map(ToString::to_string),
            revocation_lists: self.bundle.good().map_or(0, |bundle| bundle.revocation_lists().len()),
            client_problem: self.mesh_client_problem.clone(),
            entries: self.targets.values().map(|known| known.entry.clone()).collect(),
        };
        self.publish.send_replace(report);
        self.dirty = self.config.file.is_some();
    }

    async fn write(&mut self) {
        self.dirty = false;
        let Some(path) = self.config.file.clone() else {
            return;
        };
        let report = self.publish.borrow().clone();
        let written = tokio::task::spawn_blocking(move || report.write(&path).map_err(|e| (path, e))).await;
        if let Ok(Err((path, error))) = written {
            tracing::warn!(
                "results of the certificate checks cannot be written to {}: {error}",
                path.display()
            );
        }
    }
}

/// One line per change, which says what to do.
fn log(entry: &Entry) {
    let (state, remedy) = (entry.history.state, entry.history.state.remedy());
    let Entry { namespace, pod, address, port, .. } = entry;
    let findings = entry.probe.iter().flat_map(|probe| &probe.findings);
    let why = findings.map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let blocked = entry.history.blocked;
    if state.is_good() && why.is_empty() {
        tracing::info!(blocked, "certificate check of {namespace}/{pod} {address} port {port}: {state}");
    } else {
        tracing::warn!(
            blocked,
            "certificate check of {namespace}/{pod} {address} port {port}: {state}: {why}; {remedy}"
        );
    }
}

/// A random number, 0 to 999; 0 when there is no randomness, which only loses the jitter.
fn chance() -> u32 {
    ring::rand::generate::<[u8; 4]>(&ring::rand::SystemRandom::new())
        .map_or(0, |random| u32::from_ne_bytes(random.expose()) % 1000)
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
