//! Running the command line beside an agent: `exec` in its pod.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, AttachedProcess, ListParams};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::RemoteArgs;
use super::missing::{self, Missing};
use crate::cli::EXIT_USAGE;
use crate::source::kube::Access;

/// How long one agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What one agent's side said.
#[derive(Debug)]
pub struct Answer {
    /// The node.
    pub node: String,
    /// Its standard output; an error when it could not be asked.
    pub said: anyhow::Result<String>,
    /// Its standard error.
    pub complained: String,
    /// Its exit code.
    pub code: u8,
}

/// The agents of a cluster.
pub struct Agents {
    client: kube::Client,
    pods: Api<Pod>,
    /// Node and pod, by node.
    found: Vec<(String, String)>,
    /// Nodes without one.
    missing: Missing,
}

impl Agents {
    /// Looks for the agents.
    ///
    /// # Errors
    /// When the cluster cannot be asked, or there are none.
    pub async fn find(access: Access, args: &RemoteArgs) -> anyhow::Result<Self> {
        let client = access.client()?;
        let pods: Api<Pod> = Api::namespaced(client.clone(), &args.namespace);
        let query = ListParams::default().labels(&args.selector);
        let list = tokio::time::timeout(PATIENCE, pods.list(&query)).await;
        let list = list.context("the API server does not answer in time")?.with_context(|| {
            format!(
                "cannot list the agents in namespace {}: give --agent-namespace and the right to list pods",
                args.namespace
            )
        })?;
        let mut found: Vec<(String, String)> = list
            .items
            .into_iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .filter_map(|pod| Some((pod.spec?.node_name?, pod.metadata.name?)))
            .collect();
        found.sort();
        ensure!(
            !found.is_empty(),
            "no pod in namespace {} has the labels {}: give --agent-namespace and --agent-selector",
            args.namespace,
            args.selector
        );
        let nodes: BTreeSet<&str> = found.iter().map(|(node, _)| node.as_str()).collect();
        let missing = match args.node {
            Some(_) => Missing::default(),
            None => missing::find(&client, args, &nodes).await,
        };
        Ok(Self { client, pods, found, missing })
    }

    /// How the cluster is asked.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// The nodes with an agent.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.found.iter().map(|(node, _)| node.as_str())
    }

    /// Nodes of the cluster that have no agent to ask.
    #[must_use]
    pub const fn missing(&self) -> &Missing {
        &self.missing
    }

    /// Asks all of them, at once.
    pub async fn ask(&self, words: &[String]) -> Vec<Answer> {
        join_all(self.found.iter().map(|(node, pod)| async move {
            let answer = tokio::time::timeout(PATIENCE, self.exec(pod, words)).await;
            match answer.context("its agent did not answer in time").and_then(|answer| answer) {
                Ok((said, complained, code)) => {
                    Answer { node: node.clone(), said: Ok(said), complained, code }
                }
                Err(error) => Answer {
                    node: node.clone(),
                    said: Err(error),
                    complained: String::new(),
                    code: EXIT_USAGE,
                },
            }
        }))
        .await
    }

    /// Asks the agent of one node and prints what it says as it comes. Gives its exit code.
    ///
    /// # Errors
    /// When there is no such node, or its agent cannot be asked.
    pub async fn stream(&self, node: &str, words: &[String]) -> anyhow::Result<u8> {
        let known = || self.found.iter().map(|(node, _)| node.as_str()).collect::<Vec<_>>().join(", ");
        let pod = self.found.iter().find(|(found, _)| found == node);
        let (_, pod) =
            pod.with_context(|| format!("no agent runs on node {node}: there are agents on {}", known()))?;
        let mut process = self.start(pod, words).await?;
        let (out, error) = (process.stdout(), process.stderr());
        tokio::try_join!(copy(out, std::io::stdout()), copy(error, std::io::stderr()))?;
        code(process).await
    }

    async fn start(&self, pod: &str, words: &[String]) -> anyhow::Result<AttachedProcess> {
        let words = std::iter::once("enforcer").chain(words.iter().map(String::as_str));
        let attach = AttachParams::default().stdin(false);
        self.pods.exec(pod, words, &attach).await.with_context(|| {
            format!("cannot run a command in pod {pod}: the right to create pods/exec is needed")
        })
    }

    async fn exec(&self, pod: &str, words: &[String]) -> anyhow::Result<(String, String, u8)> {
        let mut process = self.start(pod, words).await?;
        let (out, error) = (process.stdout(), process.stderr());
        let (said, complained) = tokio::join!(read(out), read(error));
        Ok((said, complained, code(process).await?))
    }
}

async fn read(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut text = Vec::new();
    if let Some(mut stream) = stream {
        // What came before it broke is what there is to show.
        let _ = stream.read_to_end(&mut text).await;
    }
    String::from_utf8_lossy(&text).into_owned()
}

async fn copy(stream: Option<impl AsyncRead + Unpin>, mut to: impl std::io::Write) -> std::io::Result<()> {
    let Some(mut stream) = stream else { return Ok(()) };
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(buffer.get(..count).unwrap_or_default())?;
        to.flush()?;
    }
}

async fn code(mut process: AttachedProcess) -> anyhow::Result<u8> {
    let status = process.take_status().context("the command in the pod has no status")?;
    exit_code(&status.await.context("the connection to the pod ended early: ask again")?)
}

/// The exit code in the status that ends an `exec`.
fn exit_code(status: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Status) -> anyhow::Result<u8> {
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = status.details.iter().flat_map(|details| details.causes.iter().flatten());
    let code = causes
        .filter(|cause| cause.reason.as_deref() == Some("ExitCode"))
        .find_map(|cause| cause.message.as_ref()?.parse().ok());
    code.with_context(|| status.message.clone().unwrap_or_else(|| "the command in the pod failed".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_exit_code_is_read_from_the_status() {
        let status = |value| serde_json::from_value(value).expect("a status");
        assert_eq!(exit_code(&status(json!({"status": "Success"}))).ok(), Some(0));
        let failed = json!({"status": "Failure", "reason": "NonZeroExitCode", "message": "command terminated",
                            "details": {"causes": [{"reason": "ExitCode", "message": "1"}]}});
        assert_eq!(exit_code(&status(failed)).ok(), Some(1));
        let error = exit_code(&status(json!({"status": "Failure", "message": "no such container"})));
        assert_eq!(error.expect_err("no code").to_string(), "no such container");
    }
}
