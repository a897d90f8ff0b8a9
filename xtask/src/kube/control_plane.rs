//! A real control plane on this machine: etcd and kube-apiserver, on request the controllers; all state in one folder.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::daemon::Daemon;
use super::pki::Pki;
use crate::shell::command;

/// How long the API server may take to be ready: a machine under load has needed 15 s.
const PATIENCE: Duration = Duration::from_mins(2);

/// What is started, in the order in which one needs the other.
const DAEMONS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// What is read of it, and how: tests ask whether that is cheap.
const AUDIT: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    verbs: [list, watch]
  - level: None
";

/// Controllers that the API alone is odd without: namespaces go away, service accounts and their tokens come.
pub(crate) const FEW_CONTROLLERS: &str =
    "namespace,serviceaccount,serviceaccount-token,root-ca-cert-publisher,garbagecollector,podgc";

/// How to run one.
pub(crate) struct ControlPlane {
    /// Folder of the programs.
    pub(crate) programs: PathBuf,
    /// Folder of all state; disposable.
    pub(crate) folder: PathBuf,
    /// Address of the API server and of etcd.
    pub(crate) address: IpAddr,
    /// Address that the API server listens on, where that is another one.
    pub(crate) bind: Option<IpAddr>,
    /// Port of the API server; etcd takes the two behind it.
    pub(crate) port: u16,
    /// Controllers to run; none without.
    pub(crate) controllers: Option<String>,
    /// Admission plug-ins that are switched off. `ServiceAccount` refuses every pod while no controller makes accounts.
    pub(crate) without_admission: Option<&'static str>,
    /// Network namespace to run in, by its file.
    pub(crate) namespace: Option<PathBuf>,
}

impl ControlPlane {
    /// The kubeconfig of the administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// A command in the control plane's network namespace.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut words = self.prefix().into_iter();
        let Some(first) = words.next() else { return command(program) };
        let mut prefixed = command(first);
        prefixed.args(words).arg(program);
        prefixed
    }

    /// kubectl as administrator.
    pub(crate) fn kubectl(&self) -> Command {
        let mut kubectl = self.command(self.programs.join("kubectl"));
        kubectl.env("KUBECONFIG", self.kubeconfig());
        kubectl
    }

    /// What a program is started through to be in the control plane's network namespace.
    pub(crate) fn prefix(&self) -> Vec<String> {
        // Not `ip netns exec`, which hides the cgroups.
        let namespace = self.namespace.iter();
        namespace.flat_map(|file| ["nsenter".to_owned(), format!("--net={}", file.display())]).collect()
    }

    fn url(&self, scheme: &str, port: u16) -> String {
        match self.address {
            IpAddr::V4(address) => format!("{scheme}://{address}:{port}"),
            IpAddr::V6(address) => format!("{scheme}://[{address}]:{port}"),
        }
    }

    /// Starts what does not run and waits until the API answers. Keys and data that are there are used again.
    pub(crate) fn up(&self) -> Result<Pki> {
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot create {}", self.folder.display()))?;
        let pki = Pki::open(&self.folder.join("pki"), self.address)?;
        let server = self.url("https", self.port);
        pki.kubeconfig("admin", "/O=system:masters/CN=admin", &server, &self.kubeconfig())?;
        self.start("etcd", &self.etcd())?;
        let audit = self.folder.join("audit.yaml");
        fs::write(&audit, AUDIT).with_context(|| format!("cannot write {}", audit.display()))?;
        self.start("kube-apiserver", &self.api_server(&pki))?;
        self.wait()?;
        if let Some(controllers) = &self.controllers {
            let kubeconfig = self.folder.join("controllers.kubeconfig");
            let subject = "/O=system:masters/CN=system:kube-controller-manager";
            pki.kubeconfig("controllers", subject, &server, &kubeconfig)?;
            self.start(
                "kube-controller-manager",
                &[
                    flag("kubeconfig", kubeconfig.display()),
                    // Only the metrics, which nobody reads; several control planes would fight for the ports.
                    flag("port", 0),
                    flag("secure-port", 0),
                    flag("leader-elect", false),
                    flag("root-ca-file", pki.path("ca.crt").display()),
                    flag("service-account-private-key-file", pki.path("sa.key").display()),
                    flag("controllers", controllers),
                ],
            )?;
        }
        Ok(pki)
    }

    /// Starts a program of the control plane; its state is in files called as it is.
    pub(crate) fn start(&self, name: &str, arguments: &[String]) -> Result<()> {
        let daemon = Daemon { folder: &self.folder, name };
        daemon.start(&self.prefix(), &self.programs.join(name), arguments)
    }

    fn etcd(&self) -> Vec<String> {
        let (client, peer) = (self.url("http", self.port + 1), self.url("http", self.port + 2));
        vec![
            flag("name", "test"),
            flag("data-dir", self.folder.join("etcd").display()),
            flag("listen-client-urls", &client),
            flag("advertise-client-urls", &client),
            flag("listen-peer-urls", &peer),
            flag("initial-advertise-peer-urls", &peer),
            flag("initial-cluster", format!("test={peer}")),
            flag("snapshot-count", 5000),
        ]
    }

    fn api_server(&self, pki: &Pki) -> Vec<String> {
        let file = |name: &str| pki.path(name).display().to_string();
        let mut arguments = vec![
            flag("etcd-servers", self.url("http", self.port + 1)),
            flag("bind-address", self.bind.unwrap_or(self.address)),
            flag("advertise-address", self.address),
            flag("secure-port", self.port),
            // Else it asks for a default route, and refuses loopback as its endpoint.
            flag("endpoint-reconciler-type", "none"),
            flag("service-cluster-ip-range", "10.96.0.0/16"),
            flag("tls-cert-file", file("apiserver.crt")),
            flag("tls-private-key-file", file("apiserver.key")),
            flag("client-ca-file", file("ca.crt")),
            flag("kubelet-client-certificate", file("kubelet-client.crt")),
            flag("kubelet-client-key", file("kubelet-client.key")),
            // No DNS knows the node's name.
            flag("kubelet-preferred-address-types", "InternalIP"),
            flag("service-account-issuer", "https://kubernetes.default.svc"),
            flag("service-account-signing-key-file", file("sa.key")),
            flag("service-account-key-file", file("sa.pub")),
            flag("authorization-mode", "Node,RBAC"),
            flag("allow-privileged", true),
            flag("audit-policy-file", self.folder.join("audit.yaml").display()),
            flag("audit-log-path", self.folder.join("audit.log").display()),
        ];
        arguments.extend(self.without_admission.map(|names| flag("disable-admission-plugins", names)));
        arguments
    }

    fn wait(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            for name in ["etcd", "kube-apiserver"] {
                let daemon = Daemon { folder: &self.folder, name };
                if daemon.pid().is_none() {
                    bail!("{name} ended: {}; see {}", daemon.last_words(), self.folder.display());
                }
            }
            if self.answers("/readyz") && self.answers("/api/v1/namespaces/default") {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!("the API server is not ready after {PATIENCE:?}: see {}", self.folder.display());
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn answers(&self, path: &str) -> bool {
        let status = self.kubectl().args(["get", "--raw", path]).output();
        status.is_ok_and(|output| output.status.success())
    }
}

/// Ends what runs in a folder, and removes the folder.
pub(crate) fn down(folder: &Path) -> Result<()> {
    for name in DAEMONS.into_iter().rev() {
        Daemon { folder, name }.kill()?;
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// `--NAME=VALUE`.
pub(super) fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}
