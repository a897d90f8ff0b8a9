//! The published results of all checks, and the file that keeps them readable when the agent is dead.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::probe::Probe;
use super::state::{History, State};

/// Name of the file in the agent's state folder.
pub const FILE_NAME: &str = "certificates.json";

/// What is known about one endpoint and port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
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
    /// The last check; `None` before the first one.
    pub probe: Option<Probe>,
}

/// All results at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CertificateReport {
    /// When this was put together.
    pub time: Timestamp,
    /// Fingerprint of the trust bundle; `None` when there is none.
    pub bundle: Option<String>,
    /// Why the newest trust bundle is not used, if it is not.
    pub bundle_problem: Option<String>,
    /// All endpoints and ports, in a stable order.
    pub entries: Vec<Entry>,
}

impl CertificateReport {
    /// The ports that are to be closed.
    #[must_use]
    pub fn blocked(&self) -> BTreeSet<(IpAddr, u16)> {
        let blocked = self.entries.iter().filter(|entry| entry.history.blocked);
        blocked.map(|entry| (entry.address, entry.port)).collect()
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
