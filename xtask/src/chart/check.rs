//! What must hold of the chart without a cluster.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{folder, helm, manifests, render};
use crate::shell::{binaries, command, output};

/// Flags that the chart sets itself, from other values or because the agent runs in a pod.
const SET_BY_CHART: [&str; 11] = [
    "bpffs",
    "context",
    "help",
    "kube",
    "kubeconfig",
    "manifests",
    "metrics-address",
    "node-name",
    "socket",
    "state-dir",
    "version",
];

/// Values that the schema must refuse: what it is, and the values.
fn refused() -> Vec<(&'static str, Value)> {
    vec![
        ("an unknown flag", json!({"agent": {"modes": "audit"}})),
        ("an unknown mode", json!({"agent": {"mode": "Audit"}})),
        (
            "two agents on one node",
            json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
        ),
        ("a map size without entries", json!({"agent": {"mapSize": ["FLOWS"]}})),
        ("a digest that is none", json!({"image": {"digest": "sha256:1234"}})),
        ("a name to listen at", json!({"metrics": {"address": "localhost"}})),
        ("an address with its port", json!({"metrics": {"address": "127.0.0.1:9464"}})),
        ("a misspelt value", json!({"podmonitor": {"enabled": true}})),
    ]
}

/// Runs every check and gives their number.
pub(crate) fn check() -> Result<u64> {
    let mut passed = 0;
    lint()?;
    passed += 1;
    manifests::compare()?;
    passed += 1;
    flags()?;
    passed += 1;
    values_become_arguments()?;
    passed += 1;
    probes_find_the_agent()?;
    passed += 1;
    for (what, values) in refused() {
        ensure!(render(&values).is_err(), "the schema of the values accepts {what}: {values}");
        passed += 1;
    }
    Ok(passed)
}

fn lint() -> Result<()> {
    let report = helm(&json!({"action": "lint", "chart": folder()}))?;
    let findings = report["messages"].as_array().cloned().unwrap_or_default();
    // 1 is information.
    let bad: Vec<&Value> = findings.iter().filter(|found| found["severity"].as_i64() != Some(1)).collect();
    ensure!(bad.is_empty() && report["errors"] == json!([]), "helm lint: {bad:?} {}", report["errors"]);
    Ok(())
}

/// A value for every flag of `enforcer run`, and a flag for every value.
fn flags() -> Result<()> {
    let help = output(command(binaries()?.join("enforcer")).args(["run", "--help"]))?;
    let flags: BTreeSet<String> = help
        .lines()
        .filter_map(|line| {
            let word = line.split_whitespace().find(|word| word.starts_with("--"))?;
            // Only where a flag is defined, not where a text mentions one.
            let rest = line.trim_start();
            (rest.starts_with("--") || rest.starts_with('-') && rest.contains(", --")).then_some(word)
        })
        .map(|word| word.trim_start_matches('-').trim_end_matches(',').to_owned())
        .filter(|flag| !SET_BY_CHART.contains(&flag.as_str()))
        .collect();
    let schema: Value = serde_json::from_slice(&fs::read(folder().join("values.schema.json"))?)?;
    let properties = schema["properties"]["agent"]["properties"].as_object();
    let values: BTreeSet<String> =
        properties.context("the schema has no agent")?.keys().map(|key| kebab(key)).collect();
    let without_value: Vec<_> = flags.difference(&values).collect();
    let without_flag: Vec<_> = values.difference(&flags).collect();
    if !without_value.is_empty() || !without_flag.is_empty() {
        bail!(
            "flags without a value in the chart: {without_value:?}; values without a flag: {without_flag:?}"
        );
    }
    Ok(())
}

fn kebab(key: &str) -> String {
    key.chars().fold(String::new(), |mut text, c| {
        if c.is_ascii_uppercase() {
            text.push('-');
        }
        text.push(c.to_ascii_lowercase());
        text
    })
}

fn values_become_arguments() -> Result<()> {
    let values = json!({"agent": {
        "eventsPerSecond": 5_000_000, "undecidedTimeout": 2.5, "interface": ["cali*", "veth*"], "detachOnExit": true,
        "mode": "enforce", "logFormat": null,
    }});
    let rendered = render(&values)?;
    let (_, text) = rendered
        .iter()
        .find(|(name, _)| name == "daemonset.yaml")
        .context("the chart has no daemonset.yaml")?;
    for argument in [
        "\"--events-per-second=5000000\"",
        "\"--undecided-timeout=2.5\"",
        "\"--interface=cali*\"",
        "\"--interface=veth*\"",
        "--detach-on-exit",
        "\"--mode=enforce\"",
    ] {
        let line = format!("- {argument}");
        ensure!(
            text.lines().any(|found| found.trim() == line),
            "the values {values} give no argument {argument}"
        );
    }
    ensure!(!text.contains("--log-format"), "a value of null must leave the flag out");
    Ok(())
}

/// The probes ask where the agent listens.
fn probes_find_the_agent() -> Result<()> {
    for (address, listens, host) in [
        ("::", "[::]", None),
        ("[::]", "[::]", None),
        ("0.0.0.0", "0.0.0.0", None),
        ("127.0.0.1", "127.0.0.1", Some("127.0.0.1")),
        ("::1", "[::1]", Some("::1")),
        ("[fd00::7]", "[fd00::7]", Some("fd00::7")),
    ] {
        let rendered = render(&json!({"metrics": {"address": address}}))?;
        let (_, text) = rendered
            .iter()
            .find(|(name, _)| name == "daemonset.yaml")
            .context("the chart has no daemonset.yaml")?;
        let count = |line: &str| text.lines().filter(|found| found.trim() == line).count();
        ensure!(
            count(&format!("- \"--metrics-address={listens}:9464\"")) == 1,
            "metrics.address {address} gives no address to listen at"
        );
        let hosts = text.lines().filter(|line| line.trim().starts_with("host:")).count();
        let wanted = host.map_or(0, |host| count(&format!("host: \"{host}\"")));
        ensure!(
            hosts == wanted && wanted == if host.is_some() { 2 } else { 0 },
            "with metrics.address {address} the probes ask elsewhere"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::kebab;

    #[test]
    fn a_key_is_its_flag() {
        assert_eq!(kebab("onCertificateFailure"), "on-certificate-failure");
        assert_eq!(kebab("mode"), "mode");
    }
}
