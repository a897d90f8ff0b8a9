//! `enforcer detach --on-exit --kube`: says the same to every agent of a cluster, through `exec` in their pods.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, AttachedProcess, ListParams};
use tokio::io::AsyncReadExt as _;

use crate::source::kube::Access;

/// How long one agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the agents are.
#[derive(clap::Args, Clone, Debug)]
pub struct RemoteArgs {
    /// Say it to every agent of the cluster, before their daemon set is deleted.
    #[arg(long, requires = "on_exit")]
    pub kube: bool,
    /// How the cluster is reached; without it: the pod's service account, else what kubectl takes.
    #[arg(long, env = "ENFORCER_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, env = "ENFORCER_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// Namespace of the agents.
    #[arg(
        long = "agent-namespace",
        alias = "namespace",
        default_value = "enforcer-system",
        value_name = "NAMESPACE",
        requires = "kube"
    )]
    pub namespace: String,
    /// Labels of the agents' pods.
    #[arg(
        long = "agent-selector",
        alias = "selector",
        default_value = "app.kubernetes.io/name=enforcer",
        value_name = "LABEL=VALUE,…",
        requires = "kube"
    )]
    pub selector: String,
}

/// Tells every agent; one line for each.
///
/// # Errors
/// When the cluster cannot be asked, when there is no agent, or when one of them did not answer: its node stays enforced.
pub(super) async fn announce(args: &RemoteArgs) -> anyhow::Result<()> {
    let access = Access::find(args.kubeconfig.clone(), args.context.clone()).await?;
    let pods: Api<Pod> = Api::namespaced(access.client()?, &args.namespace);
    let list = pods.list(&ListParams::default().labels(&args.selector)).await.with_context(|| {
        format!(
            "cannot list the pods of namespace {}: give --agent-namespace and the right to list pods",
            args.namespace
        )
    })?;
    ensure!(
        !list.items.is_empty(),
        "no pod in namespace {} has the labels {}: give --agent-namespace and --agent-selector",
        args.namespace,
        args.selector
    );
    let mut out = std::io::stdout().lock();
    let mut failed = Vec::new();
    for pod in list.items {
        let name = pod.metadata.name.unwrap_or_default();
        let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
        let answer = tokio::time::timeout(PATIENCE, tell(&pods, &name)).await;
        match answer.context("no answer").and_then(|answer| answer) {
            Ok(text) => writeln!(out, "node {node}: {}", text.trim())?,
            Err(error) => {
                writeln!(out, "node {node}: {error:#}")?;
                failed.push(node);
            }
        }
    }
    if !failed.is_empty() {
        bail!("these nodes stay enforced: {}; run enforcer detach on them", failed.join(", "));
    }
    Ok(())
}

/// Runs `enforcer detach --on-exit` beside one agent.
async fn tell(pods: &Api<Pod>, name: &str) -> anyhow::Result<String> {
    let words = ["enforcer", "detach", "--on-exit"];
    let mut process = pods.exec(name, words, &AttachParams::default().stdin(false)).await?;
    let (said, complained) = (read(process.stdout()).await, read(process.stderr()).await);
    succeeded(process, &complained).await?;
    Ok(said)
}

async fn read(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let mut text = Vec::new();
    if let Some(mut stream) = stream {
        // What came before it broke is what there is to show.
        let _ = stream.read_to_end(&mut text).await;
    }
    String::from_utf8_lossy(&text).into_owned()
}

async fn succeeded(mut process: AttachedProcess, complained: &str) -> anyhow::Result<()> {
    let status = process.take_status().context("the process has no status")?;
    let status = status.await.context("the connection to the pod ended early")?;
    ensure!(
        status.status.as_deref() == Some("Success"),
        "{}",
        if complained.trim().is_empty() {
            status.message.unwrap_or_default()
        } else {
            complained.trim().to_owned()
        }
    );
    Ok(())
}
