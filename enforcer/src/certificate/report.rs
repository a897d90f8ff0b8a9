//! The published results of all checks, and the file that keeps them readable when the agent is dead.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::finding::Finding;
use super::probe::Probe;
use super::state::{History, State};
use crate::object::ObjectName;

/// What is known about one endpoint and port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Entry {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Its uid; empty in files without one.
    #[serde(default)]
    pub uid: String,
    /// Its address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The identity that it must have.
    pub expected: Option<String>,
    /// State and damping.
    #[serde(flatten)]
    pub history: History,
    /// When it was last checked.
    pub checked: Option<Timestamp>,
    /// End of the validity of whatever in its chain ends first.
    pub expires: Option<Timestamp>,
    /// The last check that said something; else the last one. `None` before the first one.
    pub probe: Option<Probe>,
    /// What kept the checks since then from saying anything.
    #[serde(default)]
    pub doubts: Vec<Finding>,
}

impl Entry {
    /// All that was found: by the last check that said something, and by one that could not since.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.probe.iter().flat_map(|probe| &probe.findings).chain(&self.doubts)
    }
}

/// A port of a pod.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PodPort {
    /// The pod.
    pub pod: ObjectName,
    /// Its uid: what is known of one pod says nothing about a later one of the same name. Empty where it is not known.
    pub uid: String,
    /// The port.
    pub port: u16,
}

/// One pod's port, all addresses of the pod together: what metrics show.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sample {
    /// The pod.
    pub pod: ObjectName,
    /// The port.
    pub port: u16,
    /// The worst state of its addresses.
    pub state: State,
    /// The earliest end of a validity that was seen; `None` where no chain was.
    pub expires: Option<Timestamp>,
    /// The port is closed.
    pub blocked: bool,
}

/// All results at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct CertificateReport {
    /// When this was put together.
    pub time: Timestamp,
    /// Fingerprint of the trust bundle; `None` when there is none.
    pub bundle: Option<String>,
    /// Why the newest trust bundle is not used, if it is not.
    pub bundle_problem: Option<String>,
    /// Revocation lists in use.
    #[serde(default)]
    pub revocation_lists: usize,
    /// Those of them that are past their time for renewal: what was revoked since is not known.
    #[serde(default)]
    pub old_revocation_lists: Vec<String>,
    /// Why the agent's newest own mesh certificate is not used, if it is not.
    #[serde(default)]
    pub client_problem: Option<String>,
    /// How long the check that has waited longest for its turn has done so, ms.
    #[serde(default)]
    pub overdue_ms: u64,
    /// All endpoints and ports, in a stable order.
    pub entries: Vec<Entry>,
}

impl CertificateReport {
    /// The ports that are closed.
    #[must_use]
    pub fn blocked(&self) -> BTreeSet<PodPort> {
        self.ports(|entry| entry.history.blocked)
    }

    /// The ports that are known and not closed at any address.
    #[must_use]
    pub fn open(&self) -> BTreeSet<PodPort> {
        let blocked = self.blocked();
        let mut open = self.ports(|entry| !entry.history.blocked);
        open.retain(|port| !blocked.contains(port));
        open
    }

    fn ports(&self, wanted: impl Fn(&Entry) -> bool) -> BTreeSet<PodPort> {
        let entries = self.entries.iter().filter(|entry| wanted(entry));
        let port_of = |entry: &Entry| PodPort {
            pod: ObjectName::new(&*entry.namespace, &*entry.pod),
            uid: entry.uid.clone(),
            port: entry.port,
        };
        entries.map(port_of).collect()
    }

    /// One sample per pod and port, in their order.
    #[must_use]
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples: BTreeMap<(ObjectName, u16), Sample> = BTreeMap::new();
        for entry in &self.entries {
            let pod = ObjectName::new(&*entry.namespace, &*entry.pod);
            let History { state, blocked, .. } = entry.history;
            let (port, expires) = (entry.port, entry.expires);
            let new = Sample { pod: pod.clone(), port, state, expires, blocked };
            let sample = samples.entry((pod, port)).or_insert(new);
            sample.state = sample.state.worse(state);
            sample.expires = sample.expires.into_iter().chain(expires).min();
            sample.blocked |= blocked;
        }
        samples.into_values().collect()
    }

    /// The state of one endpoint and port; `unchecked` when it is not known at all.
    #[must_use]
    pub fn state(&self, address: IpAddr, port: u16) -> State {
        let entry = self.entries.iter().find(|entry| entry.address == address && entry.port == port);
        entry.map_or(State::Unchecked, |entry| entry.history.state)
    }

    /// Writes it so that a reader never sees half of it.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("json.new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(&new, path)
    }

    /// Reads what [`Self::write`] wrote.
    ///
    /// # Errors
    /// There is no such file, or it holds something else.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(address: &str, port: u16, state: State, expires: Option<i64>, blocked: bool) -> Entry {
        Entry {
            namespace: "shop".to_owned(),
            pod: "web".to_owned(),
            uid: "u".to_owned(),
            address: address.parse().expect("an address"),
            port,
            expected: None,
            history: History { state, blocked, ..History::default() },
            checked: None,
            expires: expires.map(|second| Timestamp::from_second(second).expect("an instant")),
            probe: None,
            doubts: Vec::new(),
        }
    }

    #[test]
    fn the_addresses_of_a_pod_are_one_sample_with_the_worst_of_them() {
        let report = CertificateReport {
            entries: vec![
                entry("10.0.0.1", 80, State::Verified, Some(200), false),
                entry("fd00::1", 80, State::NoClientAuth, Some(100), true),
                entry("10.0.0.1", 81, State::Expiring, None, false),
                entry("fd00::1", 81, State::Verified, Some(7), false),
            ],
            ..CertificateReport::default()
        };
        let samples = report.samples();
        let summary: Vec<_> = samples
            .iter()
            .map(|sample| {
                (sample.port, sample.state, sample.expires.map(Timestamp::as_second), sample.blocked)
            })
            .collect();
        assert_eq!(
            summary,
            [(80, State::NoClientAuth, Some(100), true), (81, State::Expiring, Some(7), false)]
        );
        let web = |port| {
            BTreeSet::from([PodPort { pod: ObjectName::new("shop", "web"), uid: "u".to_owned(), port }])
        };
        assert_eq!((report.blocked(), report.open()), (web(80), web(81)));
    }
}
