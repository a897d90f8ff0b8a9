//! What the agent knows beside the maps, kept in a file so that `status`, `endpoints` and the next agent can read it when
//! the agent is dead.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use enforcer_common::{Reason, Verdict};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::datapath::Side;
use crate::datapath::desired::GonePod;
use crate::datapath::pod_side::PodDevice;
use crate::source::KindState;

/// Folder of the state files.
pub const DEFAULT_DIR: &str = "/var/lib/enforcer";

/// The state.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// When the agent started.
    pub started: Option<Timestamp>,
    /// When policy was last read and put in force.
    pub policy_applied: Option<Timestamp>,
    /// Where the objects come from.
    pub source: String,
    /// The root namespace that policies are read with.
    pub root_namespace: String,
    /// The revision that policies are read with.
    pub revision: Option<String>,
    /// How each kind of the Kubernetes API is doing; empty for manifests.
    pub kinds: Vec<KindState>,
    /// Pods with a workload id, by `namespace/name`; those that are gone for long are left out.
    pub workloads: BTreeMap<String, u32>,
    /// The workload id that was given last: none is given twice.
    pub last_workload: u32,
    /// The workload that a pod belongs to, by `namespace/name` of the pod, where it has another name than the pod.
    pub owners: BTreeMap<String, String>,
    /// What was counted for pods that are gone and whose counters were removed.
    pub retired: Vec<RetiredCount>,
    /// The endpoints.
    pub endpoints: Vec<EndpointState>,
    /// Pods that are enforced although they are gone, for the next agent.
    pub gone: Vec<GonePod>,
    /// Hooked interfaces.
    pub interfaces: Vec<InterfaceState>,
    /// Interfaces that look like a pod's and cannot be hooked.
    pub unsupported_interfaces: Vec<String>,
    /// Pods that a mesh namespace leaves without a data plane.
    pub unprotected_pods: Vec<String>,
    /// Why closes of pods' sockets are not seen; harmless.
    pub sockets_problem: Option<String>,
    /// What is missing until every endpoint is enforced by its policy, one sentence each; what `/readyz` says.
    pub missing: Vec<String>,
    /// What a person should look at, one sentence each.
    pub problems: Vec<String>,
}

/// One address of a meshed pod.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EndpointState {
    /// Its address.
    pub address: IpAddr,
    /// `namespace/name` of the pod.
    pub pod: String,
    /// Its workload id.
    pub workload: u32,
    /// Generation under which this policy is in the maps; absent when it is not.
    #[serde(default)]
    pub generation: Option<u16>,
    /// The policies that decided.
    pub decided_by: Vec<DecisionState>,
}

/// Connections of pods that are gone, by the workload that they belonged to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RetiredCount {
    /// The workload's namespace.
    pub namespace: String,
    /// The workload.
    pub workload: String,
    /// The verdict.
    pub verdict: String,
    /// The reason.
    pub reason: String,
    /// How many.
    pub connections: u64,
}

impl RetiredCount {
    /// Workload (namespace and name), verdict, reason and number; `None` for words of another version.
    #[must_use]
    pub fn read(&self) -> Option<((String, String), Verdict, Reason, u64)> {
        let verdict = Verdict::ALL.into_iter().find(|verdict| verdict.name() == self.verdict)?;
        let reason = Reason::ALL.iter().copied().find(|reason| reason.name() == self.reason)?;
        Some(((self.namespace.clone(), self.workload.clone()), verdict, reason, self.connections))
    }
}

/// A policy that decided, as in `policy explain`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DecisionState {
    /// `mesh`, `namespace`, `workload` or `port`.
    pub level: String,
    /// `namespace/name` of the policy.
    pub policy: String,
    /// The mode.
    pub mode: String,
    /// The port, at level `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A hooked interface.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct InterfaceState {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Which end of the pod's pair of devices carries the programs.
    #[serde(default)]
    pub side: Side,
    /// The pod's own device, where that is the end.
    #[serde(default)]
    pub device: Option<PodDevice>,
    /// `tcx` or `clsact`.
    pub hook: String,
    /// Other programs on the same hooks.
    pub neighbours: Vec<String>,
}

/// The state file that belongs to a pin folder.
#[must_use]
pub fn path(dir: &Path, bpffs: &Path) -> PathBuf {
    let name: String = bpffs.to_string_lossy().trim_matches('/').replace('/', "-");
    dir.join(format!("{name}.json"))
}

/// The file with the results of the certificate checks that belongs to a pin folder.
#[must_use]
pub fn certificates_path(dir: &Path, bpffs: &Path) -> PathBuf {
    path(dir, bpffs).with_extension("certificates.json")
}

impl State {
    /// Namespace and name of the workload that a pod (`namespace/name`) belongs to.
    #[must_use]
    pub fn workload_of(&self, pod: &str) -> Option<(String, String)> {
        let (namespace, name) = pod.split_once('/')?;
        Some((namespace.to_owned(), self.owners.get(pod).map_or(name, String::as_str).to_owned()))
    }

    /// Reads a state file; a missing one is the empty state.
    ///
    /// # Errors
    /// When it cannot be read or is not valid.
    pub fn read(path: &Path) -> io::Result<Self> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Writes the state as a whole or not at all.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let new = path.with_extension("json.new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&new, path)
    }
}

impl From<&crate::policy::compose::Decision> for DecisionState {
    fn from(decision: &crate::policy::compose::Decision) -> Self {
        Self {
            level: decision.level.name().to_owned(),
            policy: decision.policy.to_string(),
            mode: decision.mode.to_string(),
            port: decision.port,
        }
    }
}
