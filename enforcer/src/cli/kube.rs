//! Commands about other nodes: the same command line, run beside the agent of a node through the API server.
//!
//! `--node NAME` shows what the agent of that node answers, `--kube` what all of them answer. As `kubectl enforcer` (the
//! binary under the name `kubectl-enforcer`), all of them are asked unless one is named.

mod coverage;
mod exec;
mod missing;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::ArgMatches;
use serde_json::{Value, json};

use super::EXIT_USAGE;
use crate::source::kube::Access;
use crate::telemetry::readiness::Absent;

pub use self::exec::{Agents, Answer};
pub use self::missing::Missing;

/// The name that makes the binary a plugin of kubectl.
const PLUGIN: &str = "kubectl-enforcer";

/// Which agents are asked, instead of this node.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Other nodes")]
pub struct RemoteArgs {
    /// Ask the agent of this node of the cluster.
    #[arg(id = "remote_node", long = "node", value_name = "NAME", conflicts_with = "remote_kube")]
    pub node: Option<String>,
    /// Ask every agent of the cluster.
    #[arg(id = "remote_kube", long = "kube")]
    pub kube: bool,
    /// How the cluster is reached; without it: what kubectl takes.
    #[arg(id = "remote_kubeconfig", long = "kubeconfig", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(id = "remote_context", long = "context", value_name = "NAME")]
    pub context: Option<String>,
    /// Namespace of the agents.
    #[arg(
        id = "remote_namespace",
        long = "agent-namespace",
        default_value = "enforcer-system",
        value_name = "NAMESPACE"
    )]
    pub namespace: String,
    /// Labels of the agents' pods.
    #[arg(
        id = "remote_selector",
        long = "agent-selector",
        default_value = "app.kubernetes.io/name=enforcer",
        value_name = "LABEL=VALUE,…"
    )]
    pub selector: String,
}

/// The options of [`RemoteArgs`]: they are for this side, and not handed on.
const OPTIONS: [(&str, bool); 6] = [
    ("--node", true),
    ("--kube", false),
    ("--kubeconfig", true),
    ("--context", true),
    ("--agent-namespace", true),
    ("--agent-selector", true),
];

/// The binary was called as a plugin of kubectl.
#[must_use]
pub fn is_plugin(program: Option<&OsString>) -> bool {
    let name = program.map(Path::new).and_then(Path::file_name);
    name.is_some_and(|name| name == PLUGIN)
}

/// What the command line asks of other nodes; `None`: it is about this one.
#[must_use]
pub fn remote(matches: &ArgMatches, plugin: bool) -> Option<RemoteArgs> {
    let mut command = matches;
    while let Some((_, inner)) = command.subcommand() {
        command = inner;
    }
    // An error: the command knows nothing of other nodes.
    let node = command.try_get_one::<String>("remote_node").ok()?.cloned();
    let kube = command.try_get_one::<bool>("remote_kube").ok()?.copied().unwrap_or(false);
    let text = |id: &str| command.try_get_one::<String>(id).ok().flatten().cloned();
    (node.is_some() || kube || plugin).then(|| RemoteArgs {
        kube: node.is_none(),
        node,
        kubeconfig: command.try_get_one::<PathBuf>("remote_kubeconfig").ok().flatten().cloned(),
        context: text("remote_context"),
        namespace: text("remote_namespace").unwrap_or_default(),
        selector: text("remote_selector").unwrap_or_default(),
    })
}

/// The words of a command line without the program and without what is for this side only.
fn words(line: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut line = line.into_iter().skip(1);
    let mut words = Vec::new();
    while let Some(word) = line.next() {
        let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
        match OPTIONS.iter().find(|(option, _)| *option == name) {
            Some((_, true)) if name == word => drop(line.next()),
            Some(_) => {}
            None => words.push(word),
        }
    }
    words
}

/// What is printed for several nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Text,
    Json,
}

fn form(words: &[String]) -> Form {
    let mut asked = words.iter().skip_while(|word| !matches!(word.as_str(), "-o" | "--output")).skip(1);
    let json = asked.next().is_some_and(|value| value == "json")
        || words.iter().any(|word| matches!(word.as_str(), "-ojson" | "-o=json" | "--output=json"));
    if json { Form::Json } else { Form::Text }
}

/// Runs the command line beside the agents. `merge` runs a command line here: it puts several nodes' readiness together.
///
/// # Errors
/// When the cluster cannot be asked, or an agent does not answer.
pub fn run(
    args: &RemoteArgs,
    merge: impl FnOnce(Vec<String>) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let line: Option<Vec<String>> = std::env::args_os().map(|word| word.into_string().ok()).collect();
    let words = words(line.context("the command line is not UTF-8")?);
    ensure!(
        words.first().is_none_or(|word| word != "top"),
        "`top` draws on the terminal of its node: use kubectl exec -it beside that node's agent"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let agents: Agents = runtime.block_on(async {
        let access = Access::find(args.kubeconfig.clone(), args.context.clone()).await?;
        Agents::find(access, args).await
    })?;
    if let Some(node) = &args.node {
        return runtime.block_on(agents.stream(node, &words)).map(ExitCode::from);
    }
    if words.first().is_some_and(|word| word == "readiness") {
        let asked = ["readiness", "-o", "json"].map(str::to_owned);
        let answers = runtime.block_on(agents.ask(&asked));
        let absent = runtime.block_on(coverage::absent(&agents, silent(&answers)));
        return readiness(&answers, &absent, words, merge);
    }
    ensure!(
        !words.iter().any(|word| word == "--follow" || word == "-f"),
        "only one node can be followed: give --node NAME"
    );
    let form = form(&words);
    let answers = runtime.block_on(agents.ask(&words));
    show(&answers, agents.missing(), form)
}

/// Prints what the nodes said. The exit code is the worst of theirs.
fn show(answers: &[Answer], missing: &Missing, form: Form) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let mut nodes = serde_json::Map::new();
    for answer in answers {
        match (&answer.said, form) {
            (Ok(said), Form::Text) => writeln!(out, "node {}:\n{said}", answer.node)?,
            (Ok(said), Form::Json) => {
                // One document, or one object a line.
                let lines = || said.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
                let value = serde_json::from_str(said).or_else(|_| lines().map(Value::from));
                nodes.insert(answer.node.clone(), value.unwrap_or_else(|_| json!(said)));
            }
            (Err(error), _) => writeln!(io::stderr(), "node {}: {error}", answer.node)?,
        }
        if form == Form::Text && !answer.complained.trim().is_empty() {
            writeln!(io::stderr(), "node {}: {}", answer.node, answer.complained.trim())?;
        }
    }
    if form == Form::Json {
        writeln!(out, "{:#}", json!({"nodes": nodes}))?;
    }
    for sentence in missing.nodes.iter().chain(&missing.note) {
        writeln!(io::stderr(), "note: {sentence}")?;
    }
    let worst = answers.iter().map(|answer| answer.code).max().unwrap_or(EXIT_USAGE);
    // Not everything that was asked for is there.
    let worst = if missing.nodes.is_some() { EXIT_USAGE } else { worst };
    Ok(ExitCode::from(worst))
}

/// Nodes whose agent gave no answer, with the reason.
fn silent(answers: &[Answer]) -> BTreeMap<String, String> {
    let why = |answer: &Answer| match &answer.said {
        Ok(_) if answer.code < EXIT_USAGE => None,
        Ok(_) => Some(format!("its agent says: {}", answer.complained.trim())),
        Err(error) => Some(format!("{error:#}")),
    };
    answers.iter().filter_map(|answer| Some((answer.node.clone(), why(answer)?))).collect()
}

/// The cluster's readiness, from the nodes' answers by the command's own rules. What a node would say that gave none is not
/// known: then nothing that may live there is ready.
fn readiness(
    answers: &[Answer],
    absent: &[Absent],
    words: Vec<String>,
    merge: impl FnOnce(Vec<String>) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let folder = Folder::new()?;
    let silent = silent(answers);
    let mut line = vec!["enforcer".to_owned()];
    line.extend(words);
    for absent in absent {
        line.push(format!("--absent={}", serde_json::to_string(absent)?));
    }
    line.push("--merge".to_owned());
    for (number, answer) in answers.iter().enumerate() {
        if let (Ok(said), false) = (&answer.said, silent.contains_key(&answer.node)) {
            let file = folder.0.join(format!("{number}.json"));
            std::fs::write(&file, said).with_context(|| format!("cannot write {}", file.display()))?;
            line.push(file.display().to_string());
        }
    }
    if silent.len() == answers.len() {
        let why: Vec<String> = silent.iter().map(|(node, why)| format!("node {node} ({why})")).collect();
        bail!("no agent gave an answer: {}", why.join("; "));
    }
    merge(line)
}

/// A folder that goes with the command.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = std::env::temp_dir().join(format!("enforcer-readiness-{}", std::process::id()));
        // Nobody else's folder of this name is taken.
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing is left to do about it at the end.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests;
