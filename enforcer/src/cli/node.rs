//! What `status`, `endpoints` and `flows` read: the pinned maps and the state file. None of it needs a running agent.

use std::path::PathBuf;

use anyhow::Context as _;
use enforcer_common::settings::Settings;
use schemars::JsonSchema;
use serde::Serialize;

use crate::agent::monotonic_ns;
use crate::agent::state::{self, State};
use crate::certificate::report::CertificateReport;
use crate::datapath::load::Pinned;
use crate::datapath::lock::LockError;
use crate::datapath::maps::SettingsMap;
use crate::datapath::pin::DEFAULT_DIR;
use crate::telemetry::health;
use crate::telemetry::readiness::watch;

/// Where the node's maps and state are.
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    /// Folder of the pins.
    #[arg(long, env = "ENFORCER_BPFFS", default_value = DEFAULT_DIR, value_name = "DIR")]
    bpffs: PathBuf,
    /// Folder of the state file.
    #[arg(long, env = "ENFORCER_STATE_DIR", default_value = state::DEFAULT_DIR, value_name = "DIR")]
    state_dir: PathBuf,
    #[command(flatten)]
    _remote: super::kube::RemoteArgs,
}

/// The node as it is pinned.
pub struct Node {
    /// The pins.
    pub pinned: Pinned,
    /// The settings in force.
    pub settings: Settings,
    /// What the agent wrote last.
    pub state: State,
    /// Results of the certificate checks; empty where there are none.
    pub certificates: CertificateReport,
}

/// Whether the agent lives.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AgentStatus {
    /// It holds the pins.
    pub running: bool,
    /// Its process id.
    pub pid: Option<u32>,
    /// Seconds since its last sign of life; absent after a clean stop.
    pub heartbeat_age_seconds: Option<f64>,
    /// When it started.
    pub started: Option<jiff::Timestamp>,
}

impl NodeArgs {
    /// The file with the results of the certificate checks.
    ///
    /// # Errors
    /// When the present folder is gone.
    pub fn certificates(&self) -> std::io::Result<PathBuf> {
        Ok(state::certificates_path(&self.state_dir, &std::path::absolute(&self.bpffs)?))
    }

    /// The file with what was watched.
    ///
    /// # Errors
    /// When the present folder is gone.
    pub fn readiness(&self) -> std::io::Result<PathBuf> {
        Ok(watch::path(&self.state_dir, &std::path::absolute(&self.bpffs)?))
    }
}

impl Node {
    /// Opens the pins.
    ///
    /// # Errors
    /// When nothing is pinned, or it cannot be read.
    pub fn open(args: &NodeArgs) -> anyhow::Result<Self> {
        let bpffs = std::path::absolute(&args.bpffs)?;
        let pinned = Pinned::open(&bpffs)?;
        let settings = SettingsMap::new(pinned.map("SETTINGS")?)?.get()?;
        let path = state::path(&args.state_dir, &bpffs);
        let state = State::read(&path).with_context(|| {
            format!("{} cannot be read: remove it, the agent writes it anew", path.display())
        })?;
        let certificates = match CertificateReport::read(&args.certificates()?) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context("the results of the certificate checks cannot be read: remove the file, the agent writes it anew");
            }
            read => read.unwrap_or_default(),
        };
        Ok(Self { pinned, settings, state, certificates })
    }

    /// Whether the agent lives.
    #[must_use]
    pub fn agent(&self) -> AgentStatus {
        let holder = self.pinned.agent();
        let pid = match &holder {
            Some(LockError::Held { pid, .. }) => *pid,
            _ => None,
        };
        let age = monotonic_ns().saturating_sub(self.settings.heartbeat_ns);
        AgentStatus {
            running: matches!(holder, Some(LockError::Held { .. })),
            pid,
            heartbeat_age_seconds: (self.settings.heartbeat_ns != 0)
                .then(|| std::time::Duration::from_nanos(age).as_secs_f64()),
            started: self.state.started,
        }
    }

    /// The pod (`namespace/name`) behind a workload id; the id itself when it is not known.
    #[must_use]
    pub fn pod(&self, workload: u32) -> String {
        let found = self.state.workloads.iter().find(|(_, id)| **id == workload);
        found.map_or_else(|| format!("workload {workload}"), |(pod, _)| pod.clone())
    }
}

impl AgentStatus {
    /// One sentence when a person has to look at the agent.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        match (self.running, self.heartbeat_age_seconds) {
            (true, Some(age)) => health::hangs(std::time::Duration::try_from_secs_f64(age).unwrap_or_default()),
            (true, None) => None,
            (false, Some(age)) => Some(format!(
                "the agent is not running, its last sign of life was {age:.0} s ago: start enforcer run again, policy changes have no effect until then"
            )),
            (false, None) => Some(
                "the agent was stopped: start enforcer run again, policy changes have no effect until then; or run enforcer detach".to_owned(),
            ),
        }
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let age = self.heartbeat_age_seconds.map(|age| format!("{age:.1} s ago"));
        match (self.running, self.pid, age) {
            (true, pid, age) => format!(
                "running{}, last sign of life {}",
                pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(),
                age.unwrap_or_else(|| "not yet".to_owned())
            ),
            (false, _, Some(age)) => format!(
                "NOT RUNNING, died; last sign of life {age}; what it enforced stays enforced, policy changes have no effect"
            ),
            (false, _, None) => {
                "NOT RUNNING, stopped; what it enforced stays enforced, policy changes have no effect"
                    .to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::AgentStatus;

    #[test]
    fn an_agent_is_well_only_with_the_pins_and_a_fresh_heartbeat() {
        let problem = |running, heartbeat_age_seconds| {
            AgentStatus { running, pid: None, heartbeat_age_seconds, started: None }
                .problem()
                .unwrap_or_default()
        };
        assert_eq!(problem(true, Some(0.4)), "");
        assert_eq!(problem(true, None), "", "it has only just started");
        assert!(problem(true, Some(60.0)).contains("hangs"));
        assert!(problem(false, Some(10.0)).contains("10 s ago"));
        assert!(problem(false, None).contains("was stopped"));
    }
}
