//! `enforcer run`: the agent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use enforcer_common::settings::{Action, Enforcement, Settings, UnknownPods};
use rustls_pki_types::DnsName;
use tracing_subscriber::EnvFilter;

use super::certs::{Switch, seconds};
use crate::agent::certificates::CertificateOptions;
use crate::agent::tables::ExistingFlows;
use crate::agent::{self, Attach, Config, state};
use crate::certificate::bundle::{DEFAULT_CONFIG_MAP, DEFAULT_CRL_CONFIG_MAP};
use crate::certificate::schedule::ScheduleSettings;
use crate::certificate::state::{Consequences, OnFailure, UncheckedPorts};
use crate::certificate::target::DEFAULT_CLUSTER_DOMAIN;
use crate::datapath::bpffs::ensure_bpffs;
use crate::datapath::desired;
use crate::datapath::kubelet::KubeletCgroup;
use crate::datapath::pin::DEFAULT_DIR;
use crate::datapath::{Hook, OpenOptions, Selector};
use crate::source;
use crate::source::kube::{self, Access, in_cluster};
use crate::telemetry;

/// Whether verdicts are carried out.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// Refused connections are refused.
    Enforce,
    /// Nothing is touched; what would be refused is counted and reported as `would_reset`.
    Audit,
}

/// What is done with a refused connection.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum RefuseBy {
    /// Both ends get a reset.
    Reset,
    /// Packets are dropped without an answer.
    Drop,
}

/// What happens to pods whose policy is not known yet.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Unknown {
    /// Their connections pass.
    Allow,
    /// New inbound connections are refused until the policy is known.
    Strict,
}

/// The hook on an interface.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum HookChoice {
    /// TCX where the kernel takes it, else clsact.
    Auto,
    /// TCX links.
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

/// Libraries that tell every failed request by themselves; the agent tells it once. A filter of the user comes behind it.
const QUIET: &str = "kube_client=off,kube_runtime=off,tower=off";

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people.
    Human,
    /// One json object a line.
    Json,
}

/// Level of the kernel side's debug lines.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum KernelLog {
    /// None: they cost nothing.
    Off,
    /// Errors and warnings.
    Warn,
    /// Everything.
    Debug,
}

/// Run the agent: enforce the policies of a cluster, or of a folder of manifests, on this node's pods.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Manifest file or folder to read and watch; may be given several times.
    #[arg(long, env = "ENFORCER_MANIFESTS", value_delimiter = ',', num_args = 1.., value_name = "PATH", conflicts_with = "kube")]
    manifests: Vec<PathBuf>,
    /// Read objects from the Kubernetes API; what a pod of a cluster does without --manifests anyway.
    #[arg(long, env = "ENFORCER_KUBE")]
    kube: bool,
    /// How the cluster is reached; without it: the pod's service account, else what kubectl takes.
    #[arg(long, env = "ENFORCER_KUBECONFIG", value_name = "FILE", conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, env = "ENFORCER_CONTEXT", value_name = "NAME", conflicts_with = "manifests")]
    context: Option<String>,
    /// Name of this node in the cluster: its pods are watched. Without it: the variable `NODE_NAME`.
    #[arg(long, env = "ENFORCER_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Whether verdicts are carried out.
    #[arg(long, env = "ENFORCER_MODE", value_enum, default_value = "enforce")]
    mode: Mode,
    /// What is done with a refused connection.
    #[arg(long, env = "ENFORCER_ACTION", value_enum, default_value = "reset")]
    action: RefuseBy,
    /// Interfaces to hook, by name; `*` and `?` match. Without it: every veth whose peer is in another network namespace.
    #[arg(long = "interface", env = "ENFORCER_INTERFACE", value_delimiter = ',', num_args = 1.., value_name = "GLOB")]
    interfaces: Vec<String>,
    /// Istio's root namespace (`meshConfig.rootNamespace`).
    #[arg(long, env = "ENFORCER_ROOT_NAMESPACE", default_value = "istio-system", value_name = "NAMESPACE")]
    root_namespace: String,
    /// Revision of the control plane; policies labelled `istio.io/rev` with another one do not count.
    #[arg(long, env = "ENFORCER_REVISION", value_name = "REVISION")]
    revision: Option<String>,
    /// Folder of the pins: on a bpffs, or it becomes one.
    #[arg(long, env = "ENFORCER_BPFFS", default_value = DEFAULT_DIR, value_name = "DIR")]
    bpffs: PathBuf,
    /// Folder of the state file.
    #[arg(long, env = "ENFORCER_STATE_DIR", default_value = state::DEFAULT_DIR, value_name = "DIR")]
    state_dir: PathBuf,
    /// What happens to pods whose policy is not known yet.
    #[arg(long, env = "ENFORCER_UNKNOWN_PODS", value_enum, default_value = "allow")]
    unknown_pods: Unknown,
    /// What happens to inbound connections that were open before their pod was enforced.
    #[arg(long, env = "ENFORCER_EXISTING_FLOWS", value_enum, default_value = "allow")]
    existing_flows: ExistingFlows,
    /// Resets per second on this node; what is beyond is dropped and counted as `RESET_LIMIT`.
    #[arg(long, env = "ENFORCER_RESETS_PER_SECOND", default_value_t = Settings::DEFAULT.resets_per_second, value_name = "N")]
    resets_per_second: u32,
    /// The same in answer to one client's address, so that one client does not spend the resets of all.
    #[arg(long, env = "ENFORCER_RESETS_PER_SECOND_PER_CLIENT", default_value_t = Settings::DEFAULT.resets_per_second_per_client, value_name = "N")]
    resets_per_second_per_client: u32,
    /// The cgroup (v2) of the kubelet, whose sockets may probe in plaintext the ports that a pod names for probes: a path below the
    /// root of the hierarchy, `any` for every process of the node, or `auto`: where service managers put it, else `any`.
    #[arg(long, env = "ENFORCER_KUBELET_CGROUP", default_value = "auto", value_name = "PATH")]
    kubelet_cgroup: KubeletCgroup,
    /// Verdict events per second and CPU; what is beyond is counted as suppressed.
    #[arg(long, env = "ENFORCER_EVENTS_PER_SECOND", default_value_t = Settings::DEFAULT.events_per_second, value_name = "N")]
    events_per_second: u32,
    /// Seconds a client may take from its first byte to its sixth.
    #[arg(long, env = "ENFORCER_UNDECIDED_TIMEOUT", default_value_t = 10.0, value_name = "SECONDS")]
    undecided_timeout: f64,
    /// Entries of a map, such as FLOWS=524288; may be given several times.
    #[arg(long, env = "ENFORCER_MAP_SIZE", value_delimiter = ',', value_parser = map_size, value_name = "MAP=ENTRIES")]
    map_size: Vec<(String, u32)>,
    /// At which end of a pod's pair of devices it is enforced. At its own device only TCX works, and the agent needs
    /// `CAP_SYS_ADMIN` to enter the pod's network namespace.
    #[arg(long, env = "ENFORCER_ATTACH", value_enum, default_value = "auto")]
    attach: Attach,
    /// The hook to use.
    #[arg(long, env = "ENFORCER_HOOK", value_enum, default_value = "auto")]
    hook: HookChoice,
    /// Remove everything when the agent stops; else what it enforces stays enforced.
    #[arg(long, env = "ENFORCER_DETACH_ON_EXIT")]
    detach_on_exit: bool,
    /// File with the mesh's root certificates (PEM). Without it: the config map, where a manifest has it. Servers of STRICT
    /// ports are checked once there is a bundle.
    #[arg(long, env = "ENFORCER_TRUST_BUNDLE", value_name = "FILE")]
    trust_bundle: Option<PathBuf>,
    /// Name of the config map with the mesh's root certificates, key `root-cert.pem`.
    #[arg(
        long,
        env = "ENFORCER_TRUST_BUNDLE_CONFIG_MAP",
        default_value = DEFAULT_CONFIG_MAP,
        value_name = "NAME"
    )]
    trust_bundle_config_map: String,
    /// File with revocation lists (PEM). Without it: the config map, where a manifest has it.
    #[arg(long, env = "ENFORCER_CRL", value_name = "FILE")]
    crl: Option<PathBuf>,
    /// Name of the config map with revocation lists, key `ca-crl.pem`.
    #[arg(long, env = "ENFORCER_CRL_CONFIG_MAP", default_value = DEFAULT_CRL_CONFIG_MAP, value_name = "NAME")]
    crl_config_map: String,
    /// The mesh's trust domain.
    #[arg(long, env = "ENFORCER_TRUST_DOMAIN", default_value = "cluster.local", value_name = "DOMAIN")]
    trust_domain: String,
    /// Another trust domain whose identities are accepted; may be given several times.
    #[arg(long, env = "ENFORCER_TRUST_DOMAIN_ALIAS", value_delimiter = ',', value_name = "DOMAIN")]
    trust_domain_alias: Vec<String>,
    /// What follows when a server of a STRICT port fails its certificate check.
    #[arg(long, env = "ENFORCER_ON_CERTIFICATE_FAILURE", value_enum, default_value = "report")]
    on_certificate_failure: OnFailure,
    /// What happens to ports whose server was not checked yet; `block` needs --on-certificate-failure block.
    #[arg(long, env = "ENFORCER_UNCHECKED_PORTS", value_enum, default_value = "allow")]
    unchecked_ports: UncheckedPorts,
    /// Seconds from one good certificate check of a server to the next.
    #[arg(long, env = "ENFORCER_CERTIFICATE_CHECK_INTERVAL", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..), value_name = "SECONDS")]
    certificate_check_interval: u64,
    /// How long a check waits for a refusal after the handshake, seconds.
    #[arg(long, env = "ENFORCER_ALERT_WAIT", value_name = "SECONDS", default_value = "0.75", value_parser = seconds)]
    alert_wait: Duration,
    /// Whether a server that asks for a certificate but goes on without one may be sent `OPTIONS / HTTP/1.1`, to find out
    /// whether it refuses in HTTP, as nginx does.
    #[arg(long, env = "ENFORCER_HTTP_PROBE", value_enum, default_value_t)]
    http_probe: Switch,
    /// The cluster's DNS domain, for the names by which servers are asked for.
    #[arg(long, env = "ENFORCER_CLUSTER_DOMAIN", default_value = DEFAULT_CLUSTER_DOMAIN, value_name = "DOMAIN")]
    cluster_domain: String,
    /// The agent's own mesh certificate (PEM), which servers must accept.
    #[arg(long, env = "ENFORCER_CLIENT_CERTIFICATE", requires = "client_key", value_name = "FILE")]
    client_certificate: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, env = "ENFORCER_CLIENT_KEY", requires = "client_certificate", value_name = "FILE")]
    client_key: Option<PathBuf>,
    /// Control socket, for root: flow records, objects, metrics and health.
    #[arg(long, env = "ENFORCER_SOCKET", default_value = telemetry::DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// Serve /metrics, /healthz and /readyz at this address too, such as 127.0.0.1:9464.
    #[arg(long, env = "ENFORCER_METRICS_ADDRESS", value_name = "ADDRESS:PORT")]
    metrics_address: Option<SocketAddr>,
    /// How many flow records the agent keeps.
    #[arg(long, env = "ENFORCER_FLOW_LOG_SIZE", default_value_t = 8192, value_name = "N")]
    flow_log_size: usize,
    /// How many workloads have metrics of their own; those of the others are summed up.
    #[arg(long, env = "ENFORCER_METRICS_WORKLOADS", default_value_t = 500, value_name = "N")]
    metrics_workloads: usize,
    /// How log lines look.
    #[arg(long, env = "ENFORCER_LOG_FORMAT", value_enum, default_value = "human")]
    log_format: LogFormat,
    /// What is logged, as `tracing` filters: `info`, `enforcer=debug`.
    #[arg(long, env = "ENFORCER_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
    /// Level of the kernel side's debug lines.
    #[arg(long, env = "ENFORCER_KERNEL_LOG", value_enum, default_value = "off")]
    kernel_log: KernelLog,
}

fn map_size(text: &str) -> Result<(String, u32), String> {
    let (name, entries) = text.split_once('=').ok_or("expected MAP=ENTRIES, such as FLOWS=524288")?;
    let entries = entries.parse().map_err(|_| format!("{entries:?} is no number of entries"))?;
    Ok((name.to_owned(), entries))
}

/// Runs the subcommand.
///
/// # Errors
/// When the arguments make no sense, or the datapath cannot be opened.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", args.log))
        .with_context(|| format!("--log {:?} is no filter", args.log))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Human => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    if let Some(warning) = super::capabilities::check()? {
        tracing::warn!("{warning}");
    }
    for path in &args.manifests {
        std::fs::metadata(path).with_context(|| {
            format!("--manifests {} cannot be read: give an existing file or folder", path.display())
        })?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let source = origin(&args).await?;
        agent::run(config(args, source)?).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Where the objects come from.
async fn origin(args: &Args) -> anyhow::Result<source::Origin> {
    if !args.manifests.is_empty() {
        return Ok(source::Origin::Manifests(args.manifests.clone()));
    }
    if !(args.kube || args.kubeconfig.is_some() || args.context.is_some() || in_cluster()) {
        bail!("no source of policies: give --manifests PATH, or --kube for a cluster");
    }
    let node = node_name(args.node_name.as_ref()).context(
        "which node this is must be known to find its pods: give --node-name, or NODE_NAME from the pod's spec.nodeName",
    )?;
    let access = Access::find(args.kubeconfig.clone(), args.context.clone()).await?;
    let options = kube::Options {
        node,
        root_namespace: args.root_namespace.clone(),
        bundle: args.trust_bundle_config_map.clone(),
        revocations: args.crl_config_map.clone(),
    };
    Ok(source::Origin::Kubernetes { access: Box::new(access), options })
}

/// The name of this node in the cluster, where somebody says it.
fn node_name(given: Option<&String>) -> Option<String> {
    let name = given.cloned().or_else(|| std::env::var("NODE_NAME").ok());
    name.filter(|name| !name.is_empty())
}

fn config(args: Args, source: source::Origin) -> anyhow::Result<Config> {
    if args.attach == Attach::Pod && matches!(args.hook, HookChoice::Clsact) {
        bail!("--attach pod works with TCX only: leave --hook clsact out, or run with --attach host");
    }
    let undecided = Duration::try_from_secs_f64(args.undecided_timeout)
        .ok()
        .filter(|timeout| !timeout.is_zero())
        .with_context(|| {
            format!("--undecided-timeout {}: give a number of seconds above 0", args.undecided_timeout)
        })?;
    let certificates = certificate_options(&args)?;
    let unknown_pods = match args.unknown_pods {
        Unknown::Allow => UnknownPods::ALLOW,
        Unknown::Strict => UnknownPods::STRICT,
    };
    let bpffs = std::path::absolute(&args.bpffs)?;
    if in_cluster() {
        ensure_bpffs(&bpffs, false).context(
            "mount one on the node (`mount -t bpf bpf /sys/fs/bpf`): one of this container's own would end with it, and \
             enforcement too",
        )?;
    }
    Ok(Config {
        telemetry: telemetry::Options {
            socket: args.socket,
            metrics_address: args.metrics_address,
            flow_log_size: args.flow_log_size,
            metrics_workloads: args.metrics_workloads,
            certificates: state::certificates_path(&args.state_dir, &bpffs),
            node: node_name(args.node_name.as_ref()).or_else(super::readiness::host),
            bpffs: bpffs.clone(),
        },
        open: OpenOptions {
            bpffs,
            sizes: args.map_size.into_iter().collect::<BTreeMap<_, _>>(),
            log_level: match args.kernel_log {
                KernelLog::Off => 0,
                KernelLog::Warn => 2,
                KernelLog::Debug => 4,
            },
            hook: match args.hook {
                HookChoice::Auto => Hook::Auto,
                HookChoice::Tcx => Hook::Tcx,
                HookChoice::Clsact => Hook::Clsact,
            },
            ..OpenOptions::default()
        },
        source,
        selector: Selector::new(args.interfaces),
        attach: args.attach,
        objects: desired::Options {
            root_namespace: args.root_namespace,
            revision: args.revision,
            list_all_pods: unknown_pods == UnknownPods::STRICT,
        },
        settings: Settings {
            undecided_ns: u64::try_from(undecided.as_nanos()).unwrap_or(u64::MAX),
            enforcement: match args.mode {
                Mode::Enforce => Enforcement::ENFORCE,
                Mode::Audit => Enforcement::AUDIT,
            },
            action: match args.action {
                RefuseBy::Reset => Action::RESET,
                RefuseBy::Drop => Action::DROP,
            },
            unknown_pods,
            resets_per_second: args.resets_per_second,
            resets_per_second_per_client: args.resets_per_second_per_client,
            events_per_second: args.events_per_second,
            ..Settings::DEFAULT
        },
        kubelet_cgroup: args.kubelet_cgroup,
        existing: args.existing_flows,
        detach_on_exit: args.detach_on_exit,
        state_dir: args.state_dir,
        certificates,
    })
}

fn certificate_options(args: &Args) -> anyhow::Result<CertificateOptions> {
    if (args.unchecked_ports, args.on_certificate_failure) == (UncheckedPorts::Block, OnFailure::Report) {
        bail!(
            "--unchecked-ports block closes nothing by itself: give --on-certificate-failure block too, or leave it out"
        );
    }
    if DnsName::try_from(args.cluster_domain.as_str()).is_err() {
        bail!(
            "--cluster-domain {:?} is no DNS name: give the cluster's domain, such as cluster.local",
            args.cluster_domain
        );
    }
    Ok(CertificateOptions {
        trust_bundle: args.trust_bundle.clone(),
        config_map: args.trust_bundle_config_map.clone(),
        crl: args.crl.clone(),
        crl_config_map: args.crl_config_map.clone(),
        root_namespace: args.root_namespace.clone(),
        trust_domain: args.trust_domain.clone(),
        aliases: args.trust_domain_alias.clone(),
        cluster_domain: args.cluster_domain.clone(),
        http_probe: args.http_probe == Switch::On,
        alert_wait: args.alert_wait,
        client: args.client_certificate.clone().zip(args.client_key.clone()),
        consequences: Consequences {
            on_failure: args.on_certificate_failure,
            unchecked: args.unchecked_ports,
            ..Consequences::default()
        },
        schedule: ScheduleSettings {
            interval: Duration::from_secs(args.certificate_check_interval),
            ..ScheduleSettings::default()
        },
        announcer: None,
    })
}
