//! The Kubernetes API as a source: every kind is listed and watched by a task of its own, and what they find comes
//! together in one store.

mod access;
mod backoff;
pub mod events;
mod failure;
mod follow;
mod kind;
pub mod lookup;
mod memory;
mod pulse;
mod served;
mod store;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::follow::{Follower, Told};
use self::memory::Memory;
use self::pulse::Pulse;
use self::store::{PATIENCE, Store};
use super::{KindState, Update};

pub use self::access::{Access, AccessError, in_cluster};
pub use self::failure::Failure;
pub use self::kind::Kind;

/// How long the first change waits for others.
const SETTLE: Duration = Duration::from_millis(25);
/// The shortest time between two updates: a storm of changes gives few of them.
const PACE: Duration = Duration::from_millis(150);
/// What is known is written down before it is put in force; in a storm of changes only so often that it takes one part in
/// this many of the time.
const MEMORY_SHARE: u32 = 20;

/// What is asked of a cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name of the node whose pods are watched.
    pub node: String,
    /// Istio's root namespace.
    pub root_namespace: String,
    /// Name of the config map with the mesh's trust bundle.
    pub bundle: String,
    /// Name of the config map with revocation lists.
    pub revocations: String,
}

/// An open cluster.
pub struct Cluster {
    description: String,
    store: Store,
    told: mpsc::Receiver<Told>,
    /// Ends with the source.
    _followers: JoinSet<()>,
    memory: Memory,
    /// When there is something to tell.
    due: Option<Instant>,
    last: Option<Instant>,
    /// When the first lists have been waited for long enough; `None` when that was told.
    patience: Option<Instant>,
    /// When to remember what is known.
    remember: Option<Instant>,
    /// When it may be remembered again.
    rested: Option<Instant>,
}

impl Cluster {
    /// Starts to follow a cluster. `memory`: the file where policies and namespaces are remembered.
    ///
    /// # Errors
    /// When its address or credentials make no sense; not when it cannot be reached.
    pub fn open(access: Access, options: Options, memory: PathBuf) -> Result<Self, AccessError> {
        let description = format!("{}, pods of node {}", access.description(), options.node);
        let client = access.clone().client()?;
        let asking = access.for_pulse().client()?;
        let (tell, told) = mpsc::channel(64);
        let (options, pulse) = (Arc::new(options), Arc::new(Pulse::new()));
        let mut followers = JoinSet::new();
        let own = Arc::clone(&pulse);
        followers.spawn(async move { own.run(asking).await });
        for kind in Kind::ALL {
            let follower = Follower {
                client: Client::clone(&client),
                kind,
                options: Arc::clone(&options),
                tell: tell.clone(),
                pulse: Arc::clone(&pulse),
            };
            followers.spawn(follower.run());
        }
        let memory = Memory::new(memory);
        let mut store = Store::default();
        let (policies, namespaces): (Vec<_>, Vec<_>) = memory
            .recall()
            .into_iter()
            .partition(|object| matches!(object, super::document::Object::Policy(_)));
        if !(policies.is_empty() && namespaces.is_empty()) {
            store.remember(Kind::Policies, policies);
            store.remember(Kind::Namespaces, namespaces);
        }
        Ok(Self {
            description,
            store,
            told,
            _followers: followers,
            memory,
            due: None,
            last: None,
            patience: Some(Instant::now() + PATIENCE),
            remember: None,
            rested: None,
        })
    }

    /// Waits for something to tell. Safe to cancel: what was told before is not forgotten.
    pub async fn next(&mut self) -> Update {
        loop {
            let now = Instant::now();
            if self.patience.is_some_and(|end| now >= end) {
                self.patience = None;
                self.due = Some(now);
            }
            if self.remember.is_some_and(|due| now >= due) {
                self.remember = None;
                self.keep();
                self.rested = Some(Instant::now() + now.elapsed() * MEMORY_SHARE);
            }
            if self.due.is_some_and(|due| now >= due) {
                self.due = None;
                self.last = Some(now);
                return self.store.update(self.patience.is_none());
            }
            let wake = [self.due, self.patience, self.remember].into_iter().flatten().min();
            let told = match wake {
                Some(wake) => tokio::time::timeout_at(wake, self.told.recv()).await.ok(),
                None => Some(self.told.recv().await),
            };
            match told {
                Some(Some((kind, change))) => self.apply(kind, change),
                // The followers end with this receiver only.
                Some(None) => std::future::pending().await,
                None => {}
            }
        }
    }

    fn apply(&mut self, kind: Kind, change: store::Change) {
        let changed = self.store.apply(kind, change, Timestamp::now());
        if !changed {
            return;
        }
        let now = Instant::now();
        let earliest = self.last.map_or(now, |last| last + PACE);
        self.due = self.due.or(Some(earliest.max(now + SETTLE)));
        if matches!(kind, Kind::Policies | Kind::Namespaces) {
            let earliest = now + SETTLE;
            self.remember =
                self.remember.or(Some(self.rested.map_or(earliest, |rested| rested.max(earliest))));
        }
        // Nobody is waited for any more: nothing is missing that would have to be told.
        if self.patience.is_some() && self.store.is_complete() {
            self.patience = None;
        }
    }

    fn keep(&mut self) {
        // Half of the truth must not replace the whole of an earlier one.
        if self.store.is_listed(Kind::Policies) && self.store.is_listed(Kind::Namespaces) {
            self.memory.keep(&self.store.objects());
        }
    }

    /// Which cluster, and which node of it.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// How each kind is doing.
    #[must_use]
    pub fn kinds(&self) -> Vec<KindState> {
        self.store.kinds()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.remember.is_some() {
            self.keep();
        }
    }
}
