//! What the agent tells: flow records, metrics and health, on a unix socket and at an address for scrapes.
//!
//! All of it runs on threads of its own and reads what the policy loop publishes ([`Shared::publish`]) and the pinned maps:
//! however slow a reader is, policy is not delayed, and a record that nobody takes is counted, not waited for.

pub mod bypass;
pub mod client;
pub mod connections;
pub mod counts;
pub mod describe;
mod events;
pub mod filter;
pub mod health;
pub mod hello;
pub mod hellos;
pub mod metrics;
pub mod names;
pub mod plans;
pub mod problems;
pub mod protocol;
pub mod readiness;
pub mod record;
pub mod ring;
pub mod server;
mod verdict_log;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use enforcer_common::Address;
use tokio::runtime::Runtime;

use self::hellos::HelloCounts;
use self::metrics::{Metrics, Timings};
use self::names::{Index, Remote};
use self::plans::Plans;
use self::ring::FlowLog;
use crate::agent::monotonic_ns;
use crate::agent::state::State;
use crate::datapath::desired::Desired;
use crate::datapath::load::Pinned;
use crate::object::{ObjectName, Objects};

/// Where the control socket is by default.
pub const DEFAULT_SOCKET: &str = "/run/enforcer/agent.sock";

/// How many remote addresses are remembered with the pods behind them.
const REMOTE_PODS: usize = 4096;
/// How many ports are kept for the policy loop until it asks.
const SERVED: usize = 4096;

/// What is told, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The control socket.
    pub socket: PathBuf,
    /// Address for scrapes and health checks; `None`: the socket only.
    pub metrics_address: Option<SocketAddr>,
    /// How many flow records are kept.
    pub flow_log_size: usize,
    /// How many workloads have metrics of their own.
    pub metrics_workloads: usize,
    /// The pins.
    pub bpffs: PathBuf,
    /// The file with the results of the certificate checks.
    pub certificates: PathBuf,
    /// Name of this node, where it is known.
    pub node: Option<String>,
}

/// What the policy loop publishes. Never changed, only replaced.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The agent's objects.
    pub objects: Arc<Objects>,
    /// What the maps are meant to hold.
    pub wanted: Arc<Desired>,
    /// Generation of each endpoint's policy in the maps.
    pub generations: BTreeMap<Address, u16>,
    /// This node's own addresses.
    pub node_addresses: Arc<BTreeSet<IpAddr>>,
    /// What `status` and `endpoints` read.
    pub state: State,
    /// Interfaces behind which addresses were found.
    pub placed: BTreeSet<u32>,
    /// Pods that packets reach past the hook on the host side of their interface.
    pub bypassed: BTreeSet<String>,
    /// Addresses that are behind several interfaces and are enforced on all.
    pub shared: BTreeSet<Address>,
    /// Interfaces of pods that could not be hooked, with the reason.
    pub unhooked: Vec<String>,
}

/// A snapshot with what follows from it.
#[derive(Debug, Default)]
pub struct View {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Its pods by address.
    pub index: Arc<Index>,
}

/// What the policy loop and telemetry share.
#[derive(Debug)]
pub struct Shared {
    /// The view in force, and the last one with other objects.
    views: RwLock<[Arc<View>; 2]>,
    /// The policies in force and those before.
    pub plans: Plans,
    /// The flow log.
    pub log: FlowLog,
    /// Pods elsewhere.
    pub remote: Remote,
    /// Whose TLS is the mesh's.
    pub hellos: HelloCounts,
    /// What the policy loop measures.
    pub timings: Timings,
    /// When the policy loop last went round, `CLOCK_MONOTONIC` ns.
    alive_ns: AtomicU64,
    /// Ports where clients were seen, since the policy loop last asked.
    served: Mutex<BTreeSet<(ObjectName, u16)>>,
    counting: Mutex<()>,
}

impl Shared {
    /// With nothing published.
    #[must_use]
    pub fn new(flow_log_size: usize, remote: Remote) -> Self {
        Self {
            views: RwLock::default(),
            plans: Plans::default(),
            log: FlowLog::new(flow_log_size),
            remote,
            hellos: HelloCounts::default(),
            timings: Timings::default(),
            alive_ns: AtomicU64::new(monotonic_ns()),
            served: Mutex::default(),
            counting: Mutex::default(),
        }
    }

    /// While this is held, nothing that is counted moves from the maps to the state.
    pub fn counting(&self) -> MutexGuard<'_, ()> {
        self.counting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what is known. Policies are entered into [`Self::plans`] on their own, before they are written.
    pub fn publish(&self, snapshot: Snapshot) {
        let [now, before] = self.views();
        let same = Arc::ptr_eq(&now.snapshot.objects, &snapshot.objects);
        let (index, before) =
            if same { (now.index.clone(), before) } else { (Arc::new(Index::new(&snapshot.objects)), now) };
        let view = Arc::new(View { snapshot, index });
        *self.views.write().unwrap_or_else(PoisonError::into_inner) = [view, before];
    }

    /// The view in force, and the last one with other objects: what happened a moment ago may tell of a pod that is gone.
    #[must_use]
    pub fn views(&self) -> [Arc<View>; 2] {
        self.views.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The view in force.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        let [now, _] = self.views();
        now
    }

    /// Clients were seen at a port of a pod. What is beyond a bound is seen again later.
    pub fn note_served(&self, pod: &ObjectName, port: u16) {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if served.len() < SERVED {
            served.insert((pod.clone(), port));
        }
    }

    /// Ports where clients were seen since this was last asked.
    #[must_use]
    pub fn take_served(&self) -> BTreeSet<(ObjectName, u16)> {
        std::mem::take(&mut *self.served.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The policy loop lives.
    pub fn beat(&self) {
        self.alive_ns.store(monotonic_ns(), Ordering::Relaxed);
    }

    /// How long ago the policy loop last went round.
    #[must_use]
    pub fn silent_for(&self) -> Duration {
        Duration::from_nanos(monotonic_ns().saturating_sub(self.alive_ns.load(Ordering::Relaxed)))
    }
}

/// The running telemetry; dropping it ends it.
#[derive(Debug)]
pub struct Telemetry {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    /// Removes the socket.
    _socket: Option<server::SocketFile>,
}

impl Telemetry {
    /// Starts it. A socket or address that cannot be had is logged and does not stop the agent: enforcing comes first.
    ///
    /// # Errors
    /// When there can be no threads.
    pub fn start(options: &Options, lookup: Option<Box<dyn names::Lookup>>) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::new(options.flow_log_size, Remote::new(lookup, REMOTE_PODS)));
        let metrics = Metrics::new(shared.clone(), options);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            // One for a scrape, one in reserve.
            .max_blocking_threads(2)
            .thread_name("telemetry")
            .enable_all()
            .build()
            .context("cannot start the threads of telemetry")?;
        let service = Arc::new(server::Service::new(shared.clone(), metrics));
        let socket = {
            let _inside = runtime.enter();
            server::start(options, &service)
        };
        Ok(Self { shared, runtime: Some(runtime), _socket: socket })
    }

    /// What it shares with the policy loop.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Runs a task on its threads.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(task);
        }
    }

    /// Reads the events of the kernel side from now on.
    ///
    /// # Errors
    /// When the map is no ring buffer.
    pub fn read_events(&self, map: aya::maps::Map, bpffs: &std::path::Path) -> anyhow::Result<()> {
        let Some(runtime) = &self.runtime else { return Ok(()) };
        let _inside = runtime.enter();
        let pinned = Pinned::open(bpffs).context("cannot open the maps for events")?;
        let events = events::Events::open(map, pinned, self.shared.clone())?;
        runtime.spawn(events.run());
        Ok(())
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Whoever still reads is cut off: the agent's end is not put off for it.
            runtime.shutdown_background();
        }
    }
}
