//! `cargo xtask chart`: the Helm chart in deploy/helm, and the plain manifests that are rendered from it.

mod check;
mod manifests;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::setup;
use crate::shell::{command, root};

pub(crate) use check::check;

/// What to do with it.
#[derive(Subcommand)]
pub(crate) enum Task {
    /// Write deploy/manifests from the chart
    Render,
    /// Lint the chart, compare deploy/manifests with it, and its values with the agent's flags
    Check,
    /// Install, upgrade or uninstall the chart, as helm would
    Helm(HelmOptions),
}

/// One helm operation on a cluster.
#[derive(Args)]
pub(crate) struct HelmOptions {
    /// install, upgrade or uninstall
    #[arg(value_parser = ["install", "upgrade", "uninstall"])]
    action: String,
    /// Name of the release
    #[arg(default_value = "enforcer")]
    release: String,
    /// Its namespace; made when it is not there
    #[arg(long, default_value = manifests::NAMESPACE)]
    namespace: String,
    /// The values, as JSON
    #[arg(long, default_value = "{}")]
    values: String,
    /// How to reach the cluster
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    kubeconfig: PathBuf,
}

/// Runs the task.
pub(crate) fn run(task: &Task) -> Result<()> {
    match task {
        Task::Render => manifests::write(),
        Task::Check => check().map(|passed| println!("  {passed} checks passed")),
        Task::Helm(options) => {
            let values: Value = serde_json::from_str(&options.values).context("--values is not JSON")?;
            let release = helm(&json!({
                "action": options.action,
                "chart": folder(),
                "release": options.release,
                "namespace": options.namespace,
                "values": values,
                "kubeconfig": options.kubeconfig,
            }))?;
            println!("{} {}", release["name"].as_str().unwrap_or(&options.release), options.action);
            Ok(())
        }
    }
}

/// Where the chart is.
fn folder() -> PathBuf {
    root().join("deploy/helm/enforcer")
}

/// Asks Helm's engine.
fn helm(request: &Value) -> Result<Value> {
    let mut python = command(setup::helm::ensure()?);
    python.args(["-c", include_str!("chart/helm.py")]);
    let mut child = python
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start helm's engine")?;
    let mut input = child.stdin.take().context("helm's engine has no input")?;
    input.write_all(&serde_json::to_vec(request)?).context("helm's engine does not listen")?;
    drop(input);
    let output = child.wait_with_output().context("helm's engine does not end")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("helm {}: {}", request["action"].as_str().unwrap_or_default(), said.trim());
    }
    serde_json::from_slice(&output.stdout).context("helm's engine did not answer in JSON")
}

/// The chart's documents by file name, for these values.
fn render(values: &Value) -> Result<Vec<(String, String)>> {
    let rendered = helm(&json!({
        "action": "render",
        "chart": folder(),
        "release": "enforcer",
        "namespace": manifests::NAMESPACE,
        "values": values,
    }))?;
    let files = rendered.as_object().context("helm rendered no files")?;
    Ok(files
        .iter()
        .map(|(path, text)| {
            let name = path.rsplit('/').next().unwrap_or(path).to_owned();
            (name, text.as_str().unwrap_or_default().trim().to_owned())
        })
        .collect())
}
