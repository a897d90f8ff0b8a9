//! Where objects come from: manifest files and folders, the Kubernetes API. Both feed one loop.

pub mod document;
pub mod kube;
pub mod manifest;
pub mod text;
pub mod watch;

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::object::Objects;

/// What a source has to tell.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// Every object that is known; `None`: nothing is known yet that may be put in force.
    pub objects: Option<Objects>,
    /// What was refused or cannot be read, one sentence each.
    pub problems: Vec<String>,
    /// What deserves a look.
    pub warnings: Vec<String>,
}

impl From<manifest::Loaded> for Update {
    fn from(loaded: manifest::Loaded) -> Self {
        let sentences = |problems: &[manifest::Problem]| problems.iter().map(ToString::to_string).collect();
        Self {
            problems: sentences(&loaded.problems),
            warnings: sentences(&loaded.warnings),
            objects: Some(loaded.objects),
        }
    }
}

/// How one kind of the Kubernetes API is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct KindState {
    /// Its name in the plural, such as `peerauthentications`.
    pub kind: String,
    /// The version of the API under which it was listed.
    pub version: Option<String>,
    /// Nothing is enforced anew before it was listed once.
    pub essential: bool,
    /// How many objects are known.
    pub objects: usize,
    /// When its last complete list was read; it is followed since.
    pub synced: Option<Timestamp>,
    /// Since when it cannot be followed; absent while it is.
    pub failing_since: Option<Timestamp>,
    /// Why, in one sentence.
    pub error: Option<String>,
}

impl KindState {
    /// Seconds since which what is known of it may be out of date: 0 while it is followed, `None` when it was never
    /// listed.
    #[must_use]
    pub fn age_seconds(&self, now: Timestamp) -> Option<f64> {
        self.synced?;
        let since = self.failing_since.map_or(0.0, |since| now.duration_since(since).as_secs_f64());
        Some(since.max(0.0))
    }
}

/// Where the agent's objects come from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Manifest files and folders.
    Manifests(Vec<PathBuf>),
    /// A Kubernetes cluster.
    Kubernetes {
        /// How it is reached.
        access: Box<kube::Access>,
        /// What is asked of it.
        options: kube::Options,
    },
}

/// An open source.
pub enum Source {
    /// Manifest files and folders.
    Manifests(Box<Manifests>),
    /// A Kubernetes cluster.
    Kubernetes(Box<kube::Cluster>),
}

/// Watched manifests.
pub struct Manifests {
    paths: Vec<PathBuf>,
    store: watch::Store,
    watch: watch::Watch,
}

impl Source {
    /// Opens a source. `memory`: where it keeps what it must know after a restart, without an extension.
    ///
    /// # Errors
    /// When the cluster's address or credentials make no sense; not when it cannot be reached.
    pub fn open(origin: Origin, memory: &std::path::Path) -> Result<Self, kube::AccessError> {
        match origin {
            Origin::Manifests(paths) => Ok(Self::Manifests(Box::new(Manifests {
                store: watch::Store::new(paths.clone()).with_memory(memory.with_extension("manifests")),
                watch: watch::Watch::open(&paths),
                paths,
            }))),
            Origin::Kubernetes { access, options } => {
                let cluster = kube::Cluster::open(*access, options, memory.with_extension("cluster.json"))?;
                Ok(Self::Kubernetes(Box::new(cluster)))
            }
        }
    }

    /// What is known at once, before anything is waited for.
    pub fn first(&mut self) -> Option<Update> {
        match self {
            Self::Manifests(manifests) => manifests.store.reload().map(Update::from),
            Self::Kubernetes(_) => None,
        }
    }

    /// Waits for something to tell. Safe to cancel.
    pub async fn next(&mut self) -> Update {
        match self {
            Self::Manifests(manifests) => loop {
                manifests.watch.changed().await;
                if let Some(loaded) = manifests.store.reload() {
                    return loaded.into();
                }
            },
            Self::Kubernetes(cluster) => cluster.next().await,
        }
    }

    /// Where the objects come from, in words.
    #[must_use]
    pub fn description(&self) -> String {
        match self {
            Self::Manifests(manifests) => {
                let paths: Vec<String> =
                    manifests.paths.iter().map(|path| path.display().to_string()).collect();
                paths.join(", ")
            }
            Self::Kubernetes(cluster) => cluster.description().to_owned(),
        }
    }

    /// How each kind of the Kubernetes API is doing; empty for manifests.
    #[must_use]
    pub fn kinds(&self) -> Vec<KindState> {
        match self {
            Self::Manifests(_) => Vec::new(),
            Self::Kubernetes(cluster) => cluster.kinds(),
        }
    }

    /// A pod that the source no longer has may still run: it stays enforced until its interface is gone.
    #[must_use]
    pub const fn pods_outlive_objects(&self) -> bool {
        matches!(self, Self::Kubernetes(_))
    }
}
