//! Certificate checks in the agent: which servers are checked against which bundle, and which ports are closed for it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use enforcer_common::settings::OWN_PROBE_MARK;
use tokio::sync::watch;
use tracing::warn;

use self::inputs::Inputs;
use self::targets::{Names, Observed, targets};
use crate::certificate::checker::{Checker, CheckerConfig};
use crate::certificate::probe;
use crate::certificate::report::{CertificateReport, PodPort};
use crate::certificate::schedule::ScheduleSettings;
use crate::certificate::spiffe::TrustDomains;
use crate::certificate::state::{Consequences, OnFailure, UncheckedPorts};
use crate::certificate::target::Target;
use crate::datapath::desired::Desired;
use crate::object::{ObjectName, Objects};

mod inputs;
mod targets;

/// Ports of pods.
type Ports = BTreeSet<PodPort>;

/// How certificates are checked.
#[derive(Clone, Debug, Default)]
pub struct CertificateOptions {
    /// File with the mesh's root certificates; without it the config map is used.
    pub trust_bundle: Option<PathBuf>,
    /// Name of the mesh's config map.
    pub config_map: String,
    /// File with revocation lists; without it the config map is used, where there is one.
    pub crl: Option<PathBuf>,
    /// Name of the mesh's config map with revocation lists.
    pub crl_config_map: String,
    /// Istio's root namespace, whose config maps are preferred.
    pub root_namespace: String,
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// Other trust domains that are accepted.
    pub aliases: Vec<String>,
    /// The cluster's DNS domain, by which Services are asked for.
    pub cluster_domain: String,
    /// Ask by HTTP; see [`probe::Settings::http_probe`].
    pub http_probe: bool,
    /// See [`probe::Settings::alert_wait`].
    pub alert_wait: Duration,
    /// The agent's own mesh certificate and key, which servers must accept.
    pub client: Option<(PathBuf, PathBuf)>,
    /// What follows from results.
    pub consequences: Consequences,
    /// When checks are made.
    pub schedule: ScheduleSettings,
    /// Is told of every connection of a check.
    pub announcer: Option<probe::Announcer>,
}

impl CertificateOptions {
    fn blocks_unchecked(&self) -> bool {
        self.consequences.on_failure == OnFailure::Block
            && self.consequences.unchecked == UncheckedPorts::Block
    }
}

/// The checks; idle until there is a bundle.
pub(super) struct Certificates {
    options: CertificateOptions,
    domains: TrustDomains,
    inputs: Inputs,
    checker: Checker,
    report: watch::Receiver<CertificateReport>,
    observed: Observed,
    /// What an earlier agent left, until the first targets are named.
    earlier: Option<CertificateReport>,
    targets: Vec<Target>,
}

impl Certificates {
    /// `file` keeps the results; what an earlier agent left there goes on.
    pub(super) fn new(options: CertificateOptions, file: PathBuf) -> anyhow::Result<Self> {
        let earlier = match CertificateReport::read(&file) {
            Ok(earlier) => earlier,
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    warn!("{} cannot be read ({error}): certificate checks start anew", file.display());
                }
                CertificateReport::default()
            }
        };
        let mut observed = Observed::default();
        for entry in &earlier.entries {
            observed.note(&ObjectName::new(&*entry.namespace, &*entry.pod), entry.port);
        }
        let config = CheckerConfig {
            probe: probe::Settings {
                mark: Some(OWN_PROBE_MARK),
                announcer: options.announcer.clone(),
                http_probe: options.http_probe,
                alert_wait: options.alert_wait,
                ..probe::Settings::default()
            },
            schedule: options.schedule,
            consequences: options.consequences,
            trust_domain: Some(options.trust_domain.clone()),
            file: Some(file),
            earlier: earlier.clone(),
        };
        let checker = Checker::spawn(config).context("cannot make the certificates of forbidden clients")?;
        Ok(Self {
            domains: TrustDomains::new(&options.trust_domain, options.aliases.clone()),
            inputs: Inputs::new(&options),
            report: checker.subscribe(),
            checker,
            observed,
            earlier: Some(earlier),
            targets: Vec::new(),
            options,
        })
    }

    /// A client was seen at this port.
    pub(super) fn observe(&mut self, pod: &ObjectName, port: u16) {
        self.observed.note(pod, port);
    }

    /// Hands on what is to be checked, and bundle and client certificate when they changed.
    pub(super) fn update(&mut self, objects: &Objects, wanted: &Desired) {
        let now = Instant::now();
        let bundle = self.inputs.bundle(objects, now);
        if self.inputs.has_bundle() || self.options.blocks_unchecked() {
            self.observed.retain(objects);
            let names = Names { domains: &self.domains, cluster: &self.options.cluster_domain };
            let targets = targets(objects, wanted, &self.observed, names);
            if self.targets != targets {
                self.checker.set_targets(targets.clone());
                self.targets = targets;
                self.earlier = None;
            }
        }
        // Both at one time: the client's certificate is looked at by the bundle that comes with it.
        if let Some(client) = self.inputs.client(now) {
            self.checker.set_mesh_client(client);
        }
        if let Some(bundle) = bundle {
            self.checker.set_bundle(bundle);
        }
    }

    /// Waits for results.
    pub(super) async fn changed(&mut self) {
        if self.report.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The ports that are closed now, and, where unchecked ports are closed too, those that are open.
    pub(super) fn closed(&self) -> (Ports, Option<Ports>) {
        let current = self.report.borrow();
        let report = self.earlier.as_ref().unwrap_or(&current);
        let block = self.options.consequences.on_failure == OnFailure::Block;
        let blocked = if block { report.blocked() } else { BTreeSet::new() };
        (blocked, self.options.blocks_unchecked().then(|| report.open()))
    }

    /// What a person should look at.
    pub(super) fn problem(&self) -> Option<String> {
        let report = self.report.borrow();
        let no_bundle = "ports are to be closed for failed certificate checks, but there is no trust bundle, so that nothing is checked: give --trust-bundle, or see that the mesh's config map is among the objects";
        let blocks = self.options.consequences.on_failure == OnFailure::Block;
        let kept = |problem: &String| {
            format!("{problem}; the last good trust bundle, if there was one, stays in use")
        };
        let problems: Vec<String> = report
            .bundle_problem
            .iter()
            .map(kept)
            .chain(report.client_problem.clone())
            .chain((blocks && !self.inputs.has_bundle()).then(|| no_bundle.to_owned()))
            .collect();
        (!problems.is_empty()).then(|| problems.join("; "))
    }
}
