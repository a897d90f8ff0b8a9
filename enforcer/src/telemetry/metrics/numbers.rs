//! The numbers behind the metrics, read from the maps, the published snapshot and the files of the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context as _;
use enforcer_common::map::{Counter, CounterKey, EventBudget, WorkloadCounterKey, endpoint_flags};
use enforcer_common::settings::{Action, Enforcement, UnknownPods};
use enforcer_common::{Mode, Reason, Verdict};

use super::slots::{Slots, Workload, other, unknown};
use crate::agent::monotonic_ns;
use crate::agent::state::{RetiredCount, State};
use crate::certificate::report::CertificateReport;
use crate::certificate::state::State as CertificateState;
use crate::datapath::fill::{self, MapFill};
use crate::datapath::load::Pinned;
use crate::datapath::look;
use crate::datapath::maps::{Counters, Endpoints, SettingsMap, WorkloadCounters, event_budget};
use crate::telemetry::bypass;
use crate::telemetry::hellos::Tally;
use crate::telemetry::problems::{self, Seen};
use crate::telemetry::{Shared, health};

/// What connections are counted under.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct ConnectionKey {
    pub(super) namespace: String,
    pub(super) workload: String,
    pub(super) verdict: Verdict,
    pub(super) reason: Reason,
}

/// The check of a port's server, the worst over the pod's addresses.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Check {
    pub(super) state: CertificateState,
    pub(super) expires: Option<f64>,
}

/// The numbers.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Numbers {
    pub(super) settings: Option<[&'static str; 3]>,
    pub(super) connections: BTreeMap<ConnectionKey, u64>,
    /// By namespace and workload: what hellos said since the agent's start.
    pub(super) hellos: BTreeMap<(String, String), Tally>,
    pub(super) node: Vec<(CounterKey, Counter)>,
    pub(super) endpoints: BTreeMap<Mode, usize>,
    pub(super) unprotected_pods: usize,
    pub(super) maps: Vec<MapFill>,
    pub(super) events: Option<EventBudget>,
    pub(super) flow_records: u64,
    pub(super) attached: usize,
    pub(super) unsupported: usize,
    pub(super) unhooked: usize,
    pub(super) bypassed: usize,
    pub(super) problems: Option<usize>,
    pub(super) policy_applied: Option<f64>,
    pub(super) started: Option<f64>,
    pub(super) ready: bool,
    pub(super) certificates: BTreeMap<(String, String, u16), Check>,
    pub(super) blocked_ports: usize,
    /// Seconds for which the check that has waited longest has been due.
    pub(super) check_overdue: f64,
    pub(super) resident_bytes: Option<f64>,
    pub(super) cpu_seconds: Option<f64>,
}

/// Connections by workload: what the map holds, and what it held for pods that are gone. `live` are the workloads that have
/// pods. No sum of a series falls as long as there is the series.
pub(super) fn connections(
    totals: &[(WorkloadCounterKey, Counter)],
    state: &State,
    live: &BTreeSet<Workload>,
    slots: &mut Slots,
) -> BTreeMap<ConnectionKey, u64> {
    let names: BTreeMap<u32, &str> = state.workloads.iter().map(|(pod, id)| (*id, pod.as_str())).collect();
    // The busiest get series of their own first.
    let mut totals: Vec<_> = totals.iter().collect();
    totals.sort_by_key(|(key, counter)| (std::cmp::Reverse(counter.connections), key.workload));
    let of_pod = |id: u32| names.get(&id).and_then(|pod| state.workload_of(pod));
    let counted = totals.into_iter().map(|(key, counter)| {
        (of_pod(key.workload).unwrap_or_else(unknown), key.verdict, key.reason, counter.connections)
    });
    let counts: Vec<_> = counted.chain(state.retired.iter().filter_map(RetiredCount::read)).collect();
    slots.arrange(counts.iter().map(|(workload, ..)| workload), live);
    let mut connections = BTreeMap::new();
    for (workload, verdict, reason, number) in counts {
        let (namespace, workload) = if slots.has(&workload) { workload } else { other() };
        *connections.entry(ConnectionKey { namespace, workload, verdict, reason }).or_insert(0) += number;
    }
    connections
}

/// The results of the checks; none where nothing was checked yet, or nothing is to be.
fn read_certificates(file: &Path) -> anyhow::Result<CertificateReport> {
    match CertificateReport::read(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(CertificateReport::default()),
        read => read.with_context(|| file.display().to_string()),
    }
}

fn seconds(time: jiff::Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}

impl Numbers {
    /// Reads everything that can be read; says what cannot.
    pub(super) fn read(
        bpffs: &Path,
        shared: &Shared,
        certificates: &Path,
        slots: &mut Slots,
    ) -> (Self, Vec<String>) {
        let mut numbers = Self::default();
        let mut problems = Vec::new();
        let mut note = |result: anyhow::Result<()>| {
            if let Err(error) = result {
                problems.push(format!("{error:#}"));
            }
        };
        numbers.of_snapshot(shared);
        match Pinned::open(bpffs) {
            Ok(pinned) => {
                note(numbers.of_settings(&pinned));
                note(numbers.of_node(&pinned));
                note(numbers.of_workloads(&pinned, shared, slots));
                note(numbers.of_endpoints(&pinned));
                note(numbers.of_events(&pinned));
            }
            Err(error) => note(Err(error.into())),
        }
        let mut report = CertificateReport::default();
        note(read_certificates(certificates).map(|read| report = read));
        note(numbers.of_node_as_a_whole(bpffs, shared, &report));
        numbers.of_certificates(report);
        note(numbers.of_process());
        (numbers, problems)
    }

    /// Connections of the node by verdict and reason.
    pub(super) fn verdicts(&self) -> BTreeMap<(Verdict, Reason), u64> {
        let mut verdicts = BTreeMap::new();
        for (key, counter) in &self.node {
            *verdicts.entry((key.verdict, key.reason)).or_insert(0) += counter.connections;
        }
        verdicts
    }

    pub(super) fn map(&self, name: &str) -> Option<&MapFill> {
        self.maps.iter().find(|map| map.name == name)
    }

    fn of_snapshot(&mut self, shared: &Shared) {
        let view = shared.view();
        let state = &view.snapshot.state;
        self.unprotected_pods = state.unprotected_pods.len();
        self.attached = state.interfaces.len();
        self.unsupported = state.unsupported_interfaces.len();
        self.bypassed = view.snapshot.bypassed.len();
        self.unhooked = view.snapshot.unhooked.len();
        self.policy_applied = state.policy_applied.map(seconds);
        self.started = state.started.map(seconds);
        self.ready = health::missing(&view.snapshot).is_empty();
        self.flow_records = shared.log.next();
    }

    fn of_settings(&mut self, pinned: &Pinned) -> anyhow::Result<()> {
        let settings = SettingsMap::new(pinned.map("SETTINGS")?)?.get()?;
        self.settings = Some([
            match settings.enforcement {
                Enforcement::ENFORCE => "enforce",
                Enforcement::AUDIT => "audit",
            },
            match settings.action {
                Action::RESET => "reset",
                Action::DROP => "drop",
            },
            match settings.unknown_pods {
                UnknownPods::ALLOW => "allow",
                UnknownPods::STRICT => "strict",
            },
        ]);
        Ok(())
    }

    fn of_node(&mut self, pinned: &Pinned) -> anyhow::Result<()> {
        self.node = Counters::new("COUNTERS", pinned.map("COUNTERS")?)?.totals()?;
        self.node.sort_by_key(|(key, _)| (key.verdict, key.reason, key.direction));
        Ok(())
    }

    fn of_workloads(&mut self, pinned: &Pinned, shared: &Shared, slots: &mut Slots) -> anyhow::Result<()> {
        // Counters of pods that are gone move from the map to the state meanwhile or not at all.
        let (view, totals) = {
            let _still = shared.counting();
            let map = WorkloadCounters::new("WORKLOAD_COUNTERS", pinned.map("WORKLOAD_COUNTERS")?)?;
            (shared.view(), map.totals()?)
        };
        let state = &view.snapshot.state;
        let pods = view.snapshot.wanted.endpoints.values();
        let live = pods.filter_map(|plan| state.workload_of(&plan.pod.to_string())).collect();
        self.connections = connections(&totals, state, &live, slots);
        for (id, tally) in shared.hellos.totals() {
            let pod = state.workloads.iter().find(|(_, known)| **known == id);
            let workload = pod.and_then(|(pod, _)| state.workload_of(pod)).unwrap_or_else(unknown);
            let place = if slots.has(&workload) { workload } else { other() };
            self.hellos.entry(place).or_default().add(tally, u64::MAX);
        }
        Ok(())
    }

    fn of_endpoints(&mut self, pinned: &Pinned) -> anyhow::Result<()> {
        let endpoints = Endpoints::new("ENDPOINTS", pinned.map("ENDPOINTS")?)?.entries()?;
        self.endpoints = [Mode::DISABLE, Mode::PERMISSIVE, Mode::STRICT].map(|mode| (mode, 0)).into();
        for (_, endpoint) in endpoints {
            if endpoint.flags & endpoint_flags::NOT_MESHED == 0 {
                *self.endpoints.entry(endpoint.mode).or_insert(0) += 1;
            }
        }
        Ok(())
    }

    /// How full the maps are, and what needs a person.
    fn of_node_as_a_whole(
        &mut self,
        bpffs: &Path,
        shared: &Shared,
        certificates: &CertificateReport,
    ) -> anyhow::Result<()> {
        let pinned = Pinned::open(bpffs)?;
        self.maps = fill::all(&pinned)?;
        let view = shared.view();
        let state = &view.snapshot.state;
        let programs = pinned.programs()?;
        let looks = look::all(&state.interfaces, pinned.pins(), &programs);
        let bypassed = bypass::read(&pinned, state)?;
        let heartbeat_ns = SettingsMap::new(pinned.map("SETTINGS")?)?.get()?.heartbeat_ns;
        let age = std::time::Duration::from_nanos(monotonic_ns().saturating_sub(heartbeat_ns));
        let agent = if heartbeat_ns == 0 { None } else { health::hangs(age) };
        let problems = problems::find(&Seen {
            state,
            agent: agent.as_deref(),
            programs: &programs,
            interfaces: &looks,
            bypassed: &bypassed,
            maps: &self.maps,
            certificates,
            now: jiff::Timestamp::now(),
        });
        self.problems = Some(problems.len());
        Ok(())
    }

    fn of_events(&mut self, pinned: &Pinned) -> anyhow::Result<()> {
        self.events = Some(event_budget(pinned.map("EVENT_BUDGET")?)?);
        Ok(())
    }

    fn of_certificates(&mut self, report: CertificateReport) {
        self.blocked_ports = report.blocked().len();
        self.check_overdue = std::time::Duration::from_millis(report.overdue_ms).as_secs_f64();
        for entry in report.entries {
            let check = Check { state: entry.history.state, expires: entry.expires.map(seconds) };
            let name = (entry.namespace, entry.pod, entry.port);
            self.certificates.entry(name).and_modify(|held| *held = worse(*held, check)).or_insert(check);
        }
    }

    fn of_process(&mut self) -> anyhow::Result<()> {
        let pages = std::fs::read_to_string("/proc/self/statm")?;
        let resident = pages.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok());
        // SAFETY: sysconf reads a constant of the system.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        self.resident_bytes =
            resident.zip(i32::try_from(page).ok()).map(|(pages, page)| pages * f64::from(page));
        let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
        let time = |time: nix::sys::time::TimeVal| {
            let micros = u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000
                + u64::try_from(time.tv_usec()).unwrap_or(0);
            std::time::Duration::from_micros(micros).as_secs_f64()
        };
        self.cpu_seconds = Some(time(usage.user_time()) + time(usage.system_time()));
        Ok(())
    }
}

/// The worse of two checks: bad before not known before good, and the earlier end.
fn worse(one: Check, other: Check) -> Check {
    let badness = |check: &Check| (check.state.is_bad(), !check.state.is_good(), check.state);
    let state = if badness(&other) > badness(&one) { other.state } else { one.state };
    let expires = match (one.expires, other.expires) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    Check { state, expires }
}
