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
use tokio::time::Instant;

use super::bundle::{BundleError, CurrentBundle, TrustBundle};
use super::forbidden::{ForbiddenClients, GenerateError};
use super::probe::{self, Probe, Request, Settings};
use super::report::{CertificateReport, Entry};
use super::schedule::{Ending, Next, Schedule, ScheduleSettings};
use super::state::{self, Consequences, History};
use super::target::Target;
use super::verify;
use own_client::OwnClient;
use running::Running;

mod own_client;
mod running;

/// Results that change nothing are published at most this often, and the file is written no more often.
const WRITE_PAUSE: Duration = Duration::from_secs(1);

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
            mesh_client: OwnClient::default(),
            bundle: CurrentBundle::default(),
            targets: BTreeMap::new(),
            start: Instant::now(),
            running: Running::new(),
            publish,
            stale: false,
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
    /// Counts its checks: of several names each has its turn.
    round: usize,
}

#[derive(Debug)]
struct Done {
    /// The bundle that the check was made with, by its address: results of an older one say nothing.
    bundle: Option<Arc<TrustBundle>>,
    target: Target,
    probe: Probe,
}

struct Task {
    config: CheckerConfig,
    schedule: Schedule<Key>,
    forbidden: Arc<ForbiddenClients>,
    mesh_client: OwnClient,
    bundle: CurrentBundle,
    /// Results of an earlier checker that no target has claimed yet.
    earlier: BTreeMap<Key, Entry>,
    targets: BTreeMap<Key, Known>,
    start: Instant,
    running: Running<Key, Done>,
    publish: watch::Sender<CertificateReport>,
    /// There are results that are not published.
    stale: bool,
    /// There are published results that are not in the file.
    dirty: bool,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut write = tokio::time::interval(WRITE_PAUSE);
        write.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut review = tokio::time::interval(WRITE_PAUSE);
        review.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wake = self.start_due();
            tokio::select! {
                command = commands.recv() => {
                    let Some(command) = command else { break };
                    self.obey(command);
                    // What was told at one time is one change: a new certificate comes with a new bundle.
                    while let Ok(command) = commands.try_recv() {
                        self.obey(command);
                    }
                    self.review_client();
                    self.publish();
                }
                Some((key, done)) = self.running.next() => self.take(key, done),
                () = sleep_until(wake) => {}
                // The first change after a pause is written at once: a successor is to know it.
                _ = write.tick(), if self.stale || self.dirty => {
                    if self.stale {
                        self.publish();
                    }
                    self.write().await;
                }
                _ = review.tick() => {
                    if self.mesh_client.is_due(Timestamp::now()) {
                        self.review_client();
                        self.publish();
                    }
                }
            }
        }
        self.publish();
        self.write().await;
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Targets(targets) => self.set_targets(targets),
            Command::MeshClient(loaded) => {
                let renewed = loaded.is_ok();
                self.mesh_client.load(loaded);
                if renewed {
                    self.schedule.request_all(self.now());
                }
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
    }

    /// Has another look at the agent's own certificate; servers that were shown one that is not fit, or none, are checked anew.
    fn review_client(&mut self) {
        if self.mesh_client.review(self.bundle.good().map(Arc::as_ref), Timestamp::now()) {
            self.schedule.request_all(self.now());
        }
    }

    fn set_targets(&mut self, targets: Vec<Target>) {
        let now = self.now();
        let mut old = std::mem::take(&mut self.targets);
        for target in targets {
            let key = (target.address, target.port);
            let known = match old.remove(&key) {
                Some(known) if known.target == target => known,
                // Asked for by another name, it is still the same server: a closed port stays closed.
                Some(known) if target.is_same_server(&known.target) => {
                    self.schedule.request(key, now);
                    Known { target, ..known }
                }
                Some(_) | None => {
                    self.schedule.request(key, now);
                    Known { entry: self.new_entry(key, &target), target, round: 0 }
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
                && (earlier.uid == target.uid || earlier.uid.is_empty())
                && earlier.expected.as_ref() == Some(&expected)
        });
        if let Some(mut earlier) = earlier {
            earlier.history.resume(self.config.consequences);
            earlier.uid.clone_from(&target.uid);
            return earlier;
        }
        Entry {
            namespace: target.pod.namespace.clone(),
            pod: target.pod.name.clone(),
            uid: target.uid.clone(),
            address: target.address,
            port: target.port,
            expected: Some(expected),
            history: History::new(self.config.consequences),
            checked: None,
            expires: None,
            probe: None,
            doubts: Vec::new(),
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
                        let check = self.check(key, known);
                        self.running.spawn(key, check);
                    }
                    None => self.schedule.finished(&key, self.now(), Ending::Good, None, 0),
                },
            }
        }
    }

    fn check(&self, key: Key, known: &Known) -> impl Future<Output = Done> + use<> {
        let (forbidden, mesh_client) = (Arc::clone(&self.forbidden), self.mesh_client.usable().cloned());
        let (bundle, settings) = (self.bundle.good().cloned(), self.config.probe.clone());
        let target = known.target.clone();
        let history = &known.entry.history;
        // A server that was found good is asked by one of its names at a time: that is what keeps checks cheap.
        let settled = history.known && history.state.is_good() && history.bad == 0;
        let turn = settled.then(|| known.round.checked_rem(target.names.len()).unwrap_or_default());
        async move {
            let names = match turn {
                Some(turn) => target.names.get(turn..=turn).unwrap_or_default(),
                None => &target.names,
            };
            let request = Request {
                address: SocketAddr::from(key),
                server_name: target.server_name.as_ref(),
                names,
                tunnel: target.tunnel,
                bundle: bundle.as_deref(),
                expected: Some(&target.expected),
                forbidden: &forbidden,
                mesh_client: mesh_client.as_ref(),
            };
            let probe = probe::probe(request, &settings).await;
            Done { bundle, target, probe }
        }
    }

    fn take(&mut self, key: Key, done: Option<Done>) {
        let (now, time) = (self.now(), Timestamp::now());
        let Some(done) = done else {
            tracing::error!(
                "the certificate check of {} port {} panicked: it is repeated; please report it",
                key.0,
                key.1
            );
            self.schedule.finished(&key, now, Ending::Uncertain, None, chance());
            return;
        };
        let findings = &done.probe.findings;
        let (state, effect) = (state::judge(findings), state::effect(findings));
        let chain = done.probe.server.as_ref().map(|server| &server.chain[..]).unwrap_or_default();
        let change = verify::next_change(chain, self.config.probe.expiry, time);
        let change = change.map(|instant| now + time.duration_until(instant).unsigned_abs());
        let ending = match state {
            state if state.is_good() => Ending::Good,
            state if state.is_bad() => Ending::Bad,
            _ => Ending::Uncertain,
        };
        self.schedule.finished(&key, now, ending, change, chance());
        let same_bundle = match (&done.bundle, self.bundle.good()) {
            (Some(used), Some(current)) => Arc::ptr_eq(used, current),
            (None, None) => true,
            _ => false,
        };
        let Some(known) = self.targets.get_mut(&key) else {
            return;
        };
        if !same_bundle || known.target != done.target {
            return;
        }
        known.round = known.round.wrapping_add(1);
        let entry = &mut known.entry;
        let changed = entry.history.record(state, effect, time, self.config.consequences);
        entry.checked = Some(time);
        // A check that found out nothing takes nothing away of what is known.
        if state.is_certain() || !entry.history.known {
            entry.expires = chain.iter().map(|certificate| certificate.not_after).min();
            entry.doubts = Vec::new();
            entry.probe = Some(done.probe);
        } else {
            entry.doubts = done.probe.findings;
        }
        if changed {
            log(entry);
            self.publish();
        } else {
            self.stale = true;
        }
    }

    fn publish(&mut self) {
        let (now, time) = (self.now(), Timestamp::now());
        let bundle = self.bundle.good();
        let report = CertificateReport {
            time,
            bundle: bundle.map(|bundle| bundle.fingerprint().to_owned()),
            bundle_problem: self.bundle.problem().map(ToString::to_string),
            revocation_lists: bundle.map_or(0, |bundle| bundle.revocation_lists().len()),
            old_revocation_lists: bundle.map(|bundle| bundle.old_revocation_lists(time)).unwrap_or_default(),
            client_problem: self.mesh_client.problem(),
            overdue_ms: u64::try_from(self.schedule.overdue(now).as_millis()).unwrap_or(u64::MAX),
            entries: self.targets.values().map(|known| known.entry.clone()).collect(),
        };
        self.publish.send_replace(report);
        self.stale = false;
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
    let why = entry.findings().map(ToString::to_string).collect::<Vec<_>>().join("; ");
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
