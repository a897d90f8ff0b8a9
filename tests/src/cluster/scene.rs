//! A lab, its API server and an agent that reads from it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer::agent::state::{self, State};
use enforcer::source::KindState;

use super::Cluster;
use crate::lab::Running;
use crate::{Lab, poll};

/// Dropped in this order.
#[derive(Debug)]
pub struct KubeScene {
    /// The agent.
    pub agent: Running,
    /// The API server.
    pub cluster: Cluster,
    /// The lab.
    pub lab: Lab,
}

impl KubeScene {
    /// The cast of the walk-through, known to an API server that serves `PeerAuthentication` under these versions.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn new(versions: &[&str]) -> Result<Self> {
        Self::with(versions, &[])
    }

    /// The same with more arguments for the agent.
    ///
    /// # Errors
    /// As [`KubeScene::new`].
    pub fn with(versions: &[&str], more: &[&str]) -> Result<Self> {
        let lab = Lab::new()?;
        let cluster = Cluster::start(&lab)?;
        cluster.install(versions)?;
        cluster.describe(&lab)?;
        let agent = cluster.agent(&lab, more)?;
        Ok(Self { agent, cluster, lab })
    }

    /// What curl says to the client outside the mesh about the frontend: what was served, and the exit code.
    ///
    /// # Errors
    /// When curl cannot be run.
    pub fn curl(&self) -> Result<(String, i32)> {
        let output = self.lab.curl("sleep", &["http://frontend.hipstershopv1v2:8080"])?;
        Ok((output.stdout.trim().to_owned(), output.code))
    }

    /// How often the agent has said something.
    #[must_use]
    pub fn said(&self, words: &str) -> usize {
        self.agent.output().lines().filter(|line| line.contains(words)).count()
    }

    /// Waits until the agent has said something.
    ///
    /// # Errors
    /// When it does not, with all that it said.
    pub fn wait_said(&self, words: &str) -> Result<()> {
        poll::until(&format!("the agent to say {words:?}"), Duration::from_secs(20), || {
            ensure!(self.said(words) > 0, "it said:\n{}", self.agent.output());
            Ok(())
        })
    }

    /// How a kind of the API is doing, as the agent's state says.
    ///
    /// # Errors
    /// When there is no state.
    pub fn kind(&self, plural: &str) -> Result<KindState> {
        let state = State::read(&state::path(&self.lab.state(), &self.lab.bpffs()))?;
        state
            .kinds
            .into_iter()
            .find(|kind| kind.kind == plural)
            .with_context(|| format!("no {plural} in the state"))
    }

    /// Waits until a kind is followed (or is not).
    ///
    /// # Errors
    /// When that does not come within half a minute.
    pub fn wait_followed(&self, plural: &str, followed: bool) -> Result<()> {
        self.wait_followed_within(plural, followed, Duration::from_secs(30))
    }

    /// The same within `limit`.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_followed_within(&self, plural: &str, followed: bool, limit: Duration) -> Result<()> {
        poll::until(&format!("{plural} to be followed: {followed}"), limit, || {
            let kind = self.kind(plural)?;
            ensure!(kind.failing_since.is_none() == followed, "{kind:?}");
            Ok(())
        })
    }
}
