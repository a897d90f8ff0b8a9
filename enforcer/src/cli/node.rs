//! What `status`, `endpoints` and `flows` share: the pinned maps and the agent's state file. Both outlive the agent.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use enforcer_common::map::{Counter, WorkloadCounterKey};
use enforcer_common::settings::Settings;
use enforcer_common::{Reason, Verdict};
use serde::Serialize;

use super::output::OutputFormat;
use crate::agent::monotonic_ns;
use crate::agent::state::{self, State};
use crate::datapath::Pinned;
use crate::datapath::lock::LockError;
use crate::datapath::maps::SettingsMap;
use crate::datapath::pin::DEFAULT_DIR;

/// A heartbeat older than this comes from an agent that hangs or is gone.
const HEARTBEAT_LIMIT: f64 = 5.0;

/// Arguments of every subcommand that reads this node.
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    /// Folder of the pins.
    #[arg(long, env = "ENFORCER_BPFFS", default_value = DEFAULT_DIR, value_name = "DIR")]
    pub bpffs: PathBuf,
    /// Folder of the state file.
    #[arg(long, env = "ENFORCER_STATE_DIR", default_value = state::DEFAULT_DIR, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: OutputFormat,
}

/// The agent, as far as it can be seen from outside.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct AgentView {
    /// It holds the pin folder.
    pub running: bool,
    /// Its process id, where that can be seen.
    pub pid: Option<u32>,
    /// Seconds since its last sign of life; absent after a clean stop.
    pub heartbeat_seconds: Option<f64>,
    /// When it started.
    pub started: Option<String>,
}

impl AgentView {
    fn new(lock: Option<&LockError>, settings: &Settings, now_ns: u64, state: &State) -> Self {
        let held = match lock {
            Some(LockError::Held { pid, .. }) => Some(*pid),
            _ => None,
        };
        let recorded = (settings.agent_pid != 0).then_some(settings.agent_pid);
        let since = |then: u64| std::time::Duration::from_nanos(now_ns.saturating_sub(then)).as_secs_f64();
        Self {
            running: held.is_some(),
            pid: held.and_then(|seen| seen.or(recorded)),
            heartbeat_seconds: (settings.heartbeat_ns != 0).then(|| since(settings.heartbeat_ns)),
            started: state.started.map(|time| time.to_string()),
        }
    }

    /// One sentence when something is wrong with it.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let heartbeat = self.heartbeat_seconds;
        match (self.running, heartbeat) {
            (true, Some(age)) if age <= HEARTBEAT_LIMIT => None,
            (true, Some(age)) => Some(format!("the agent hangs: its last sign of life was {age:.0} s ago; restart it")),
            (true, None) => Some("the agent has not said anything yet".into()),
            (false, Some(age)) => Some(format!(
                "the agent is not running; its last sign of life was {age:.0} s ago. What it enforced stays enforced, policy changes do not arrive: start it"
            )),
            (false, None) => Some(
                "the agent was stopped. What it enforced stays enforced, policy changes do not arrive: start it, or run enforcer detach".into(),
            ),
        }
    }
}

/// What is pinned and known of this node.
#[derive(Debug)]
pub struct Node {
    /// The pins.
    pub pinned: Pinned,
    /// The state file's content; empty when there is none.
    pub state: State,
    /// The agent.
    pub agent: AgentView,
    /// What the kernel side was told last.
    pub settings: Settings,
}

impl Node {
    /// Opens the pins and reads the state file.
    ///
    /// # Errors
    /// When no agent has run here, or this is not root.
    pub fn open(args: &NodeArgs) -> anyhow::Result<Self> {
        let bpffs = std::path::absolute(&args.bpffs)?;
        let pinned = Pinned::open(&bpffs)?;
        let path = state::path(&args.state_dir, &bpffs);
        let state = State::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let settings = SettingsMap::new(pinned.map("SETTINGS")?)?.get()?;
        let agent = AgentView::new(pinned.agent().as_ref(), &settings, monotonic_ns(), &state);
        Ok(Self { pinned, state, agent, settings })
    }

    /// Tells on stderr, where tables are for people, that what follows is of an agent that is gone.
    ///
    /// # Errors
    /// When stderr is gone.
    pub fn tell_agent(&self) -> io::Result<()> {
        match self.agent.problem() {
            Some(problem) => writeln!(io::stderr(), "note: {problem}"),
            None => Ok(()),
        }
    }

    /// `namespace/name` of the pod behind a workload id.
    #[must_use]
    pub fn pod(&self, workload: u32) -> Option<&str> {
        self.state.workloads.iter().find(|(_, id)| **id == workload).map(|(pod, _)| pod.as_str())
    }
}

/// Connections of one workload by class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Connections {
    /// Allowed as TLS or mesh TLS.
    pub tls: u64,
    /// Plaintext that was allowed.
    pub plaintext: u64,
    /// Refused, whatever the reason; in audit mode: would have been.
    pub refused: u64,
}

/// Connections of each workload by class.
#[must_use]
pub fn connections(entries: &[(WorkloadCounterKey, Counter)]) -> BTreeMap<u32, Connections> {
    let mut all: BTreeMap<u32, Connections> = BTreeMap::new();
    for (key, counter) in entries {
        let classes = all.entry(key.workload).or_default();
        let class = match (key.verdict, key.reason) {
            (Verdict::ALLOW, Reason::TLS | Reason::MESH_TLS) => &mut classes.tls,
            (Verdict::ALLOW, Reason::PLAINTEXT_PERMITTED) => &mut classes.plaintext,
            (Verdict::RESET | Verdict::DROP | Verdict::WOULD_RESET, _) => &mut classes.refused,
            _ => continue,
        };
        *class += counter.connections;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use enforcer_common::Direction;
    use std::path::PathBuf;

    #[test]
    fn connections_add_up_over_directions_and_reasons() {
        let entry = |verdict, reason, direction, connections| {
            let key = WorkloadCounterKey { workload: 7, verdict, reason, direction };
            (key, Counter { connections, packets: 9, bytes: 9 })
        };
        let all = connections(&[
            entry(Verdict::ALLOW, Reason::TLS, Direction::FROM_POD, 3),
            entry(Verdict::ALLOW, Reason::MESH_TLS, Direction::TO_POD, 4),
            entry(Verdict::ALLOW, Reason::PLAINTEXT_PERMITTED, Direction::TO_POD, 5),
            entry(Verdict::ALLOW, Reason::PROBE, Direction::TO_POD, 100),
            entry(Verdict::RESET, Reason::PLAINTEXT, Direction::TO_POD, 6),
            entry(Verdict::WOULD_RESET, Reason::SERVER_FIRST, Direction::FROM_POD, 1),
            entry(Verdict::WAIT, Reason::OUT_OF_ORDER, Direction::TO_POD, 100),
        ]);
        assert_eq!(all.get(&7), Some(&Connections { tls: 7, plaintext: 5, refused: 7 }));
    }

    #[test]
    fn an_agent_is_well_only_with_a_lock_and_a_fresh_heartbeat() {
        let lock = LockError::Held { dir: PathBuf::new(), pid: Some(42) };
        let beat = |heartbeat_ns, agent_pid| Settings { heartbeat_ns, agent_pid, ..Settings::DEFAULT };
        let now = 100_000_000_000;
        let view = |lock, settings: &Settings| AgentView::new(lock, settings, now, &State::default());
        let well = view(Some(&lock), &beat(99_000_000_000, 42));
        assert_eq!((well.problem(), well.pid, well.heartbeat_seconds), (None, Some(42), Some(1.0)));
        let problem = |lock, settings: &Settings| view(lock, settings).problem().expect("a problem");
        assert!(problem(Some(&lock), &beat(1, 42)).contains("hangs"));
        assert!(problem(None, &beat(90_000_000_000, 42)).contains("10 s ago"));
        assert!(problem(None, &beat(0, 0)).contains("stopped"));
    }
}
