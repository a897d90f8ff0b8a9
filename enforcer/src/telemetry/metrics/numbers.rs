//! The numbers behind the metrics, read from the maps, the published snapshot and the files of the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use enforcer_common::map::{Counter, CounterKey, EventBudget, endpoint_flags};
use enforcer_common::settings::{Action, Enforcement, UnknownPods};
use enforcer_common::{Mode, Reason, Verdict};

use crate::certificate::report::CertificateReport;
use crate::certificate::state::State as CertificateState;
use crate::datapath::load::Pinned;
use crate::datapath::maps::{
    Counters, Endpoints, Exempt, Flows, HalfOpens, Outbounds, PortModes, SettingsMap, WorkloadCounters,
    capacity, event_budget,
};
use crate::telemetry::{Shared, health};

/// What connections are counted under.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct ConnectionKey {
    pub(super) namespace: String,
    pub(super) workload: String,
    pub(super) verdict: Verdict,
    pub(super) reason: Reason,
}

/// How full a map is; `None` where that says nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fill {
    pub(super) entries: Option<usize>,
    pub(super) capacity: usize,
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
    pub(super) node: Vec<(CounterKey, Counter)>,
    pub(super) endpoints: BTreeMap<Mode, usize>,
    pub(super) unprotected_pods: usize,
    pub(super) maps: Vec<(&'static str, Fill)>,
    pub(super) events: Option<EventBudget>,
    pub(super) flow_records: u64,
    pub(super) attached: usize,
    pub(super) unsupported: usize,
    pub(super) unhooked: usize,
    pub(super) bypassed: usize,
    pub(super) problems: usize,
    pub(super) policy_applied: Option<f64>,
    pub(super) started: Option<f64>,
    pub(super) ready: bool,
    pub(super) certificates: BTreeMap<(String, String, u16), Check>,
    pub(super) blocked_ports: usize,
    pub(super) resident_bytes: Option<f64>,
    pub(super) cpu_seconds: Option<f64>,
}

/// Which workloads have series of their own. Who has them keeps them, so that no counter ever goes down.
#[derive(Debug)]
pub(super) struct Slots {
    most: usize,
    taken: BTreeSet<(String, String)>,
}

/// Stands for all workloads without series of their own.
const OTHER: &str = "other";

impl Slots {
    pub(super) fn new(most: usize) -> Self {
        Self { most, taken: BTreeSet::new() }
    }

    /// The names to count a workload under.
    pub(super) fn place(&mut self, namespace: &str, workload: &str) -> (String, String) {
        let name = (namespace.to_owned(), workload.to_owned());
        if self.taken.contains(&name) {
            return name;
        }
        if self.taken.len() < self.most {
            self.taken.insert(name.clone());
            return name;
        }
        (OTHER.to_owned(), OTHER.to_owned())
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
                note(numbers.of_maps(&pinned));
                note(numbers.of_events(&pinned));
            }
            Err(error) => note(Err(error.into())),
        }
        note(numbers.of_certificates(certificates));
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

    pub(super) fn map(&self, name: &str) -> Option<Fill> {
        self.maps.iter().find(|(map, _)| *map == name).map(|(_, fill)| *fill)
    }

    fn of_snapshot(&mut self, shared: &Shared) {
        let view = shared.view();
        let state = &view.snapshot.state;
        self.unprotected_pods = state.unprotected_pods.len();
        self.attached = state.interfaces.len();
        self.unsupported = state.unsupported_interfaces.len();
        self.bypassed = view.snapshot.bypassed.len();
        self.unhooked = view.snapshot.unhooked.len();
        self.problems = state.problems.len();
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
        let view = shared.view();
        let state = &view.snapshot.state;
        let names: BTreeMap<u32, &str> =
            state.workloads.iter().map(|(pod, id)| (*id, pod.as_str())).collect();
        let map = WorkloadCounters::new("WORKLOAD_COUNTERS", pinned.map("WORKLOAD_COUNTERS")?)?;
        let mut totals = map.totals()?;
        // The busiest get series of their own first.
        totals.sort_by_key(|(key, counter)| (std::cmp::Reverse(counter.connections), key.workload));
        for (key, counter) in totals {
            let (namespace, workload) = match names.get(&key.workload).and_then(|pod| pod.split_once('/')) {
                Some((namespace, pod)) => {
                    let owner = state.owners.get(&format!("{namespace}/{pod}"));
                    slots.place(namespace, owner.map_or(pod, String::as_str))
                }
                None => slots.place("unknown", "unknown"),
            };
            let key = ConnectionKey { namespace, workload, verdict: key.verdict, reason: key.reason };
            *self.connections.entry(key).or_insert(0) += counter.connections;
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

    fn of_maps(&mut self, pinned: &Pinned) -> anyhow::Result<()> {
        for name in [
            "ENDPOINTS",
            "PORT_MODES",
            "EXEMPT",
            "HALF_OPEN",
            "FLOWS",
            "TRANSIENT",
            "OUTBOUND",
            "COUNTERS",
            "WORKLOAD_COUNTERS",
        ] {
            let map = pinned.map(name)?;
            let Some(capacity) = capacity(&map) else { continue };
            let entries = match name {
                "ENDPOINTS" => Endpoints::new(name, map)?.len(),
                "PORT_MODES" => PortModes::new(name, map)?.len(),
                "EXEMPT" => Exempt::new(map)?.entries()?.len(),
                "HALF_OPEN" => HalfOpens::new(name, map)?.len(),
                "FLOWS" | "TRANSIENT" => Flows::new(name, map)?.len(),
                "OUTBOUND" => Outbounds::new(name, map)?.len(),
                "COUNTERS" => Counters::new(name, map)?.len(),
                _ => WorkloadCounters::new(name, map)?.len(),
            };
            self.maps.push((name, Fill { entries: Some(entries), capacity }));
        }
        Ok(())
    }

    fn of_events(&mut self, pinned: &Pinned) -> anyhow::Result<()> {
        self.events = Some(event_budget(pinned.map("EVENT_BUDGET")?)?);
        Ok(())
    }

    fn of_certificates(&mut self, file: &Path) -> anyhow::Result<()> {
        let report = match CertificateReport::read(file) {
            Ok(report) => report,
            // Nothing was checked yet, or nothing is to be.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(anyhow::Error::new(error).context(file.display().to_string())),
        };
        self.blocked_ports = report.blocked().len();
        for entry in report.entries {
            let check = Check { state: entry.history.state, expires: entry.expires.map(seconds) };
            let name = (entry.namespace, entry.pod, entry.port);
            self.certificates.entry(name).and_modify(|held| *held = worse(*held, check)).or_insert(check);
        }
        Ok(())
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
