//! How a cluster is reached: by the service account of the pod that the program runs in, or by a kubeconfig.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use thiserror::Error;

/// How long to wait for a connection to the API server.
const CONNECT: Duration = Duration::from_secs(5);
/// The same where nothing but its being there is asked for, again and again: an attempt begun while it was away must not
/// hold up the next one.
const CONNECT_PULSE: Duration = Duration::from_secs(2);

/// Why a cluster cannot be asked.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {path} cannot be used: correct it, or give another one with --kubeconfig")]
    Kubeconfig {
        /// Which one.
        path: String,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// There is no service account.
    #[error(
        "this is no pod with a service account: give --kubeconfig, or --manifests for a node without a cluster"
    )]
    InCluster(#[source] kube::config::InClusterError),
    /// The client cannot be made.
    #[error("no client can be made for the API server: check its address and certificates")]
    Client(#[source] kube::Error),
}

/// A way to a cluster.
#[derive(Clone, Debug)]
pub struct Access {
    config: Config,
    description: String,
}

/// This program runs in a pod of a cluster.
#[must_use]
pub fn in_cluster() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
        && Path::new("/var/run/secrets/kubernetes.io/serviceaccount/token").exists()
}

impl Access {
    /// The way that the arguments name: a kubeconfig and one of its contexts; without them, in a pod its service account,
    /// elsewhere the kubeconfig that kubectl takes.
    ///
    /// # Errors
    /// When there is none, or it makes no sense.
    pub async fn find(kubeconfig: Option<PathBuf>, context: Option<String>) -> Result<Self, AccessError> {
        if kubeconfig.is_none() && context.is_none() && in_cluster() {
            let config = Config::incluster().map_err(AccessError::InCluster)?;
            return Ok(Self::new(config, "the cluster of this pod".to_owned()));
        }
        let path = kubeconfig.as_ref().map_or_else(
            || std::env::var("KUBECONFIG").unwrap_or_else(|_| "~/.kube/config".to_owned()),
            |path| path.display().to_string(),
        );
        let wrong = |source| AccessError::Kubeconfig { path: path.clone(), source };
        let file = match &kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
        let config = Config::from_custom_kubeconfig(file.map_err(wrong)?, &options).await.map_err(wrong)?;
        let description = format!("cluster {}", config.cluster_url);
        Ok(Self::new(config, description))
    }

    fn new(mut config: Config, description: String) -> Self {
        config.connect_timeout = Some(CONNECT);
        // Whoever asks has intervals of his own.
        config.default_retry = false;
        Self { config, description }
    }

    /// The same with little patience.
    pub(super) fn for_pulse(mut self) -> Self {
        self.config.connect_timeout = Some(CONNECT_PULSE);
        self
    }

    /// Which cluster it is, in words.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// A client.
    ///
    /// # Errors
    /// When the certificates make no sense.
    pub fn client(self) -> Result<Client, AccessError> {
        // Several libraries of this program use rustls: which of its cryptography it takes is said once.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Client::try_from(self.config).map_err(AccessError::Client)
    }
}
