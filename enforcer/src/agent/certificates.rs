//! Certificate checks in the agent: which servers are checked against which bundle, and which ports are blocked for it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context as _;
use enforcer_common::Mode;
use enforcer_common::map::port_flags;
use enforcer_common::settings::OWN_PROBE_MARK;
use tokio::sync::watch;

use crate::certificate::bundle::TrustBundle;
use crate::certificate::checker::{Checker, CheckerConfig, Target};
use crate::certificate::report::{CertificateReport, FILE_NAME};
use crate::certificate::schedule::ScheduleSettings;
use crate::certificate::spiffe::TrustDomains;
use crate::certificate::state::Consequences;
use crate::certificate::{client, probe};
use crate::datapath::desired::Desired;
use crate::object::{ObjectName, Objects};

/// Key of the root certificates in the mesh's config map.
const BUNDLE_KEY: &str = "root-cert.pem";

/// How certificates are checked.
#[derive(Clone, Debug, Default)]
pub struct CertificateOptions {
    /// File with the mesh's root certificates; without it the config map is used.
    pub trust_bundle: Option<PathBuf>,
    /// Name of the mesh's config map.
    pub config_map: String,
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// Other trust domains that are accepted.
    pub aliases: Vec<String>,
    /// The agent's own mesh certificate and key, which servers must accept.
    pub client: Option<(PathBuf, PathBuf)>,
    /// What follows from results.
    pub consequences: Consequences,
    /// When checks are made.
    pub schedule: ScheduleSettings,
}

/// The checks; idle until there is a bundle.
pub(super) struct Certificates {
    options: CertificateOptions,
    domains: TrustDomains,
    state_dir: PathBuf,
    checker: Option<(Checker, watch::Receiver<CertificateReport>)>,
    loaded: Option<Loaded>,
    targets: Vec<Target>,
}

/// What the bundle in force was read from.
#[derive(PartialEq, Eq)]
enum Loaded {
    File(Option<SystemTime>),
    Text(String),
}

impl Certificates {
    pub(super) fn new(options: CertificateOptions, state_dir: PathBuf) -> Self {
        let domains = TrustDomains::new(&options.trust_domain, options.aliases.clone());
        Self { options, domains, state_dir, checker: None, loaded: None, targets: Vec::new() }
    }

    /// Hands on what is to be checked, and a bundle that changed.
    pub(super) fn update(&mut self, objects: &Objects, wanted: &Desired) -> anyhow::Result<()> {
        let (source, bundle) = match &self.options.trust_bundle {
            Some(path) => {
                let changed = std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
                (Loaded::File(changed), TrustBundle::from_file(path))
            }
            None => match config_map(objects, &self.options.config_map) {
                Some(text) => (Loaded::Text(text.clone()), TrustBundle::from_pem(text.as_bytes())),
                None => return Ok(()),
            },
        };
        if self.checker.is_none() {
            self.checker = Some(self.spawn()?);
        }
        let targets = self.targets(objects, wanted);
        let Some((checker, _)) = &self.checker else { return Ok(()) };
        if self.loaded.as_ref() != Some(&source) {
            checker.set_bundle(bundle);
            self.loaded = Some(source);
        }
        if self.targets != targets {
            checker.set_targets(targets.clone());
            self.targets = targets;
        }
        Ok(())
    }

    fn spawn(&self) -> anyhow::Result<(Checker, watch::Receiver<CertificateReport>)> {
        let config = CheckerConfig {
            probe: probe::Settings { mark: Some(OWN_PROBE_MARK), ..probe::Settings::default() },
            schedule: self.options.schedule,
            consequences: self.options.consequences,
            trust_domain: Some(self.options.trust_domain.clone()),
            file: Some(self.state_dir.join(FILE_NAME)),
        };
        let checker = Checker::spawn(config).context("cannot make the certificates of forbidden clients")?;
        if let Some((certificate, key)) = &self.options.client {
            checker.set_mesh_client(Some(client::load(certificate, key)?));
        }
        let report = checker.subscribe();
        Ok((checker, report))
    }

    /// Every STRICT port that a meshed pod declares or that a policy names.
    fn targets(&self, objects: &Objects, wanted: &Desired) -> Vec<Target> {
        let mut targets = Vec::new();
        for (address, plan) in wanted.endpoints.iter().filter(|(_, plan)| plan.meshed) {
            let Some(pod) = objects.pods.get(&plan.pod) else { continue };
            let Ok(expected) = self.domains.expected(&pod.name.namespace, &pod.service_account) else {
                continue;
            };
            let declared = pod.ports.iter().filter(|port| port.tcp).map(|port| port.port);
            let ports: BTreeSet<u16> = declared.chain(plan.ports.keys().copied()).collect();
            for port in ports {
                let (mode, flags) =
                    plan.ports.get(&port).map_or((plan.mode, 0), |entry| (entry.mode, entry.flags));
                if mode == Mode::STRICT && flags & port_flags::EXEMPT == 0 {
                    let pod = plan.pod.clone();
                    let address = IpAddr::from(*address);
                    targets.push(Target { pod, address, port, expected: expected.clone(), service: None });
                }
            }
        }
        targets
    }

    /// Waits for results.
    pub(super) async fn changed(&mut self) {
        let told = match &mut self.checker {
            Some((_, report)) => report.changed().await.is_ok(),
            None => false,
        };
        if !told {
            std::future::pending::<()>().await;
        }
    }

    /// The ports that are blocked now.
    pub(super) fn blocked(&self, wanted: &Desired) -> BTreeSet<(ObjectName, u16)> {
        let Some((_, report)) = &self.checker else { return BTreeSet::new() };
        let blocked = report.borrow().blocked();
        let pod = |address: IpAddr| wanted.endpoints.get(&address.into()).map(|plan| plan.pod.clone());
        blocked.into_iter().filter_map(|(address, port)| Some((pod(address)?, port))).collect()
    }
}

/// The bundle's text: of any namespace, they are all the same; the first one with a name in order.
fn config_map<'a>(objects: &'a Objects, name: &str) -> Option<&'a String> {
    objects.config_maps.values().filter(|map| map.name.name == name).find_map(|map| map.data.get(BUNDLE_KEY))
}
