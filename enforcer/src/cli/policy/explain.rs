//! `enforcer policy explain`: why a port has its mode.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::{Reading, all_read, ask_agent, load, warn};
use crate::agent::state::State;
use crate::cli::output::{OutputFormat, print_json, print_table, table};
use crate::object::{Map, ObjectName, Pod};
use crate::policy::compose::{Effective, Level};
use crate::policy::explain::{Explanation, Ruling, explain};
use crate::policy::membership::{ExemptPorts, MESH_PORTS, Membership, exempt_ports, membership};
use crate::policy::problem::Problem;
use crate::source::document::distance;
use crate::source::manifest::Loaded;
use crate::telemetry::DEFAULT_SOCKET;

/// Arguments of `enforcer policy explain`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("subject").required(true).args(["pod", "namespace"])))]
pub(super) struct Args {
    /// Manifest files and folders, such as the output of `kubectl get … -o yaml`; `-` is standard input. Without it: what
    /// the running agent knows, which of a cluster are this node's pods.
    #[arg(long, num_args = 1.., value_name = "PATH")]
    manifests: Vec<PathBuf>,
    /// The running agent's control socket.
    #[arg(long, env = "ENFORCER_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    #[command(flatten)]
    reading: Reading,
    /// The pod, which the manifests must hold or the agent know.
    #[arg(long, value_name = "NS/NAME", value_parser = object_name)]
    pod: Option<ObjectName>,
    /// In place of a pod: the namespace of an imagined one.
    #[arg(long, value_name = "NS", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    namespace: Option<String>,
    /// Labels of the imagined pod.
    #[arg(long, value_name = "KEY=VALUE,…", requires = "namespace", value_parser = labels)]
    labels: Option<Map>,
    /// Only this port of the pod (the container's port, not the Service's).
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputFormat,
}

fn object_name(text: &str) -> Result<ObjectName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(ObjectName::new(namespace, name))
        }
        _ => Err("write namespace/name, such as shop/cart-0".to_owned()),
    }
}

fn labels(text: &str) -> Result<Map, String> {
    text.split(',')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(format!("`{pair}` is no label: write key=value pairs with commas between them")),
        })
        .collect()
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Report {
    /// `None` for an imagined pod.
    pod: Option<String>,
    default: &'static str,
    ports: BTreeMap<u16, &'static str>,
    decided_by: Vec<Entry>,
}

#[derive(Serialize, schemars::JsonSchema)]
struct Entry {
    level: &'static str,
    policy: String,
    mode: &'static str,
}

/// Runs the subcommand.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (loaded, reading) = if args.manifests.is_empty() {
        let (loaded, state) = ask_agent(&args.socket)
            .context("without --manifests the running agent is asked, which needs root")?;
        for problem in state.problems.iter().filter(|problem| problem.contains("PeerAuthentication")) {
            writeln!(io::stderr(), "warning: {problem}")?;
        }
        (loaded, args.reading.or_of(&state))
    } else {
        let mut loaded = load(&args.manifests);
        all_read(&loaded)?;
        if loaded.files.is_empty() && !loaded.incomplete {
            writeln!(io::stderr(), "warning: the folders given hold no *.yaml, *.yml or *.json")?;
        }
        for warning in
            loaded.warnings.iter().filter(|warning| matches!(warning.rule, "folder-skipped" | "empty"))
        {
            warn(warning)?;
        }
        // What Istio would make of them, as of all the rest: the question is not what gets in.
        for policy in std::mem::take(&mut loaded.bypassed) {
            loaded.objects.policies.insert(policy.name.clone(), policy);
        }
        (loaded, args.reading.or_of(&State::default()))
    };
    let none = Map::new();
    let pod = args.pod.as_ref().map(|name| find(&loaded, name)).transpose()?;
    let (namespace, labels) = match (pod, &args.namespace) {
        (Some(pod), _) => (pod.name.namespace.as_str(), &pod.labels),
        (None, Some(namespace)) => (namespace.as_str(), args.labels.as_ref().unwrap_or(&none)),
        (None, None) => bail!("say which pod: --pod NS/NAME, or --namespace NS and --labels KEY=VALUE"),
    };
    for problem in &loaded.problems {
        if matters(problem, namespace, reading.root_namespace()) {
            warn(problem)?;
        }
    }
    refused_but_read(&loaded, namespace, reading.root_namespace())?;
    let composer = reading.composer(&loaded);
    let explanation = explain(&loaded.objects, &composer, namespace, labels, args.port);
    match args.output {
        OutputFormat::Json => print_json(&report(pod, &explanation.effective))?,
        OutputFormat::Table => {
            let subject = match pod {
                Some(pod) => format!("pod {}", pod.name),
                None => format!("a pod in namespace {namespace}"),
            };
            print(&subject, labels, &explanation, args.port)?;
            if let Some(pod) = pod {
                notes(&loaded, pod, args.port)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The pod of that name, or an error that names close ones.
fn find<'a>(loaded: &'a Loaded, name: &ObjectName) -> anyhow::Result<&'a Pod> {
    let pods = &loaded.objects.pods;
    if let Some(pod) = pods.get(name) {
        return Ok(pod);
    }
    let key = format!("Pod {name}");
    if let Some(problem) = loaded.problems.iter().find(|problem| problem.object == key) {
        bail!("pod {name} cannot be read: {problem}");
    }
    if pods.is_empty() {
        bail!(
            "no pods are known: add the output of `kubectl get pods -A -o yaml`, or give --namespace and --labels instead of --pod"
        );
    }
    let wanted = name.to_string();
    let mut close: Vec<_> = pods
        .keys()
        .map(|other| {
            let starts = other.namespace == name.namespace && other.name.starts_with(&name.name);
            let far =
                if other.name == name.name || starts { 0 } else { distance(&wanted, &other.to_string()) };
            (far, other)
        })
        .filter(|(far, _)| *far <= 3.max(wanted.len() / 4))
        .collect();
    close.sort();
    let close: Vec<_> = close.iter().take(3).map(|(_, other)| other.to_string()).collect();
    if close.is_empty() {
        bail!(
            "no pod {name} among the {} that are known: check namespace and name, or give --namespace and --labels",
            pods.len()
        );
    }
    bail!("no pod {name}; did you mean {}?", close.join(" or "))
}

/// Says of which refused policies the answer shows what Istio does with them where they got in.
fn refused_but_read(loaded: &Loaded, namespace: &str, root: &str) -> io::Result<()> {
    let near = |policy: &&ObjectName| policy.namespace == namespace || policy.namespace == root;
    for name in loaded.objects.policies.keys().filter(near) {
        if loaded.refused.contains(&format!("PeerAuthentication {name}")) {
            writeln!(
                io::stderr(),
                "warning: PeerAuthentication {name} is refused by admission; the answer shows what it does where it got in nevertheless"
            )?;
        }
    }
    Ok(())
}

/// Whether a refused document could have changed the answer.
fn matters(problem: &Problem, namespace: &str, root: &str) -> bool {
    let (kind, name) = problem.object.split_once(' ').unwrap_or_default();
    let place = name.split_once('/').map_or("", |(place, _)| place);
    match kind {
        "PeerAuthentication" => place.is_empty() || place == namespace || place == root,
        "Pod" | "Service" | "ConfigMap" | "APIService" => false,
        "Namespace" => name == namespace,
        _ => !kind.ends_with("WebhookConfiguration"),
    }
}

fn report(pod: Option<&Pod>, effective: &Effective) -> Report {
    Report {
        pod: pod.map(|pod| pod.name.to_string()),
        default: effective.default.name(),
        ports: effective.ports.iter().map(|(port, mode)| (*port, mode.name())).collect(),
        decided_by: effective
            .decided_by
            .iter()
            .map(|decision| Entry {
                level: decision.level.name(),
                policy: decision.policy.to_string(),
                mode: decision.mode.name(),
            })
            .collect(),
    }
}

fn reason(effective: &Effective, port: Option<u16>) -> String {
    match effective.decision(port) {
        None => "no policy sets a mode: Istio's default".to_owned(),
        Some(decision) => match (decision.level, decision.port) {
            (Level::Port, Some(port)) => format!("portLevelMtls {port} of {}", decision.policy),
            (level, _) => format!("{level} policy {}", decision.policy),
        },
    }
}

fn print(subject: &str, labels: &Map, explanation: &Explanation, port: Option<u16>) -> io::Result<()> {
    let effective = &explanation.effective;
    let pairs: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let pairs = if pairs.is_empty() { "no labels".to_owned() } else { pairs.join(",") };
    writeln!(io::stdout(), "{subject} ({pairs})\n")?;
    let mut rows = table(["PORT", "MODE", "DECIDED BY"]);
    if let Some(port) = port {
        rows.add_row([port.to_string(), effective.mode(port).to_string(), reason(effective, Some(port))]);
    } else {
        for (port, mode) in &effective.ports {
            rows.add_row([port.to_string(), mode.to_string(), reason(effective, Some(*port))]);
        }
        let others = if effective.ports.is_empty() { "all" } else { "others" };
        rows.add_row([others.to_owned(), effective.default.to_string(), reason(effective, None)]);
    }
    print_table(&rows)?;
    if explanation.rulings.is_empty() {
        return writeln!(io::stdout(), "\nNo policy in the pod's namespace or the root namespace.");
    }
    writeln!(io::stdout())?;
    let mut rows = table(["POLICY", "LEVEL", "SAYS", "RESULT"]);
    for ruling in &explanation.rulings {
        let level = ruling.level.map_or("-", Level::name);
        rows.add_row([ruling.policy.to_string(), level.to_owned(), says(ruling), result(ruling, port)]);
    }
    print_table(&rows)?;
    if !explanation.elsewhere.is_empty() {
        let shown: Vec<_> = explanation.elsewhere.iter().take(5).map(ToString::to_string).collect();
        let more = explanation.elsewhere.len() - shown.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let names = shown.join(", ");
        writeln!(
            io::stdout(),
            "\nSelectors in other namespaces do not reach this pod, though the labels match: {names}{more}."
        )?;
    }
    Ok(())
}

/// What became of a policy.
fn result(ruling: &Ruling, port: Option<u16>) -> String {
    let ports: Vec<_> = ruling.decides.iter().take(8).map(ToString::to_string).collect();
    match (port, ports.as_slice()) {
        (Some(_), _) | (None, []) => ruling.outcome.to_string(),
        (None, [port]) => format!("{}; decides port {port}", ruling.outcome),
        (None, _) => {
            let more = if ruling.decides.len() > ports.len() { ", …" } else { "" };
            format!("{}; decides ports {}{more}", ruling.outcome, ports.join(", "))
        }
    }
}

/// What a policy says, in short: the mode, then the ports.
fn says(ruling: &Ruling) -> String {
    let word = |mode: Option<_>| {
        mode.map_or_else(|| "unset".to_owned(), |mode: enforcer_common::Mode| mode.to_string())
    };
    let mut words = vec![word(ruling.mode)];
    words.extend(ruling.ports.iter().take(4).map(|(port, mode)| format!("{port}: {}", word(*mode))));
    if ruling.ports.len() > 4 {
        words.push(format!("{} more ports", ruling.ports.len() - 4));
    }
    words.join(", ")
}

/// Why the modes may not matter for this pod.
fn notes(loaded: &Loaded, pod: &Pod, port: Option<u16>) -> io::Result<()> {
    let namespace = loaded.objects.namespaces.get(&pod.name.namespace);
    let note = match membership(pod, namespace) {
        Membership::Enforced { .. } => None,
        Membership::HostNetwork => {
            Some("The pod is in the node's network: PeerAuthentication has no effect on it.".to_owned())
        }
        Membership::OptedOut => {
            Some("The pod is opted out of enforcement by its label enforcer.io/enforce.".to_owned())
        }
        Membership::NotMeshed => {
            Some("The pod is not in the mesh: nothing holds it to these modes.".to_owned())
        }
        Membership::OutsideDataPlane { by } => {
            Some(format!("The pod keeps the mesh's data plane off ({by}): nothing holds it to these modes."))
        }
        Membership::Unprotected { by } => Some(format!(
            "The pod belongs to the mesh ({by}), but it has no sidecar and ambient does not hold it: nothing holds it to these modes."
        )),
    };
    if let Some(note) = note {
        writeln!(io::stdout(), "\n{note}")?;
    }
    let exempt = exempt_ports(pod);
    match port {
        Some(port) if exempt.contains(port) => {
            writeln!(io::stdout(), "\nThe mesh never captures this port of the pod: no mode is held there.")
        }
        Some(_) => Ok(()),
        None => print_exempt(&exempt),
    }
}

/// Ports that the pod's annotations keep from its sidecar.
fn print_exempt(exempt: &ExemptPorts) -> io::Result<()> {
    let list =
        |ports: &mut dyn Iterator<Item = &u16>| ports.map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let excluded = list(&mut exempt.ports.iter().filter(|port| !MESH_PORTS.contains(port)));
    if !excluded.is_empty() {
        writeln!(
            io::stdout(),
            "\nThe pod's annotations keep these ports from the mesh, so that no mode is held there: {excluded}."
        )?;
    }
    match &exempt.only {
        None => Ok(()),
        Some(only) if only.is_empty() => writeln!(
            io::stdout(),
            "\nThe pod's annotations keep every port from the mesh: no mode is held anywhere."
        ),
        Some(only) => writeln!(
            io::stdout(),
            "\nThe pod's annotations give these ports alone to the mesh, so that no mode is held at others: {}.",
            list(&mut only.iter())
        ),
    }
}
