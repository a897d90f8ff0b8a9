//! A platform team's road on a real node: install in audit, enforce, update under load, remove. Each test has a node of
//! its own, with a real kubelet, real pods and the chart or the manifests as they are shipped.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_tests::lab::demo_dir;
use enforcer_tests::node::remains::Pinned;
use enforcer_tests::node::walk::{self, ADSERVICE, FRONTEND};
use enforcer_tests::node::{NAMESPACE, Node, PATIENCE, load};
use enforcer_tests::poll;
use serde_json::{Value, json};

/// What `curl -w` prints of a plaintext request from outside the mesh.
fn plaintext(node: &Node, server: &str) -> Result<String> {
    let url = format!("http://{server}");
    let write = "%{http_code} %{exitcode}";
    let output =
        node.exec("noistio/sleep", &["curl", "-s", "-m", "10", "-o", "/dev/null", "-w", write, &url])?;
    ensure!(!output.stdout.is_empty(), "no answer from curl: {} (exit code {})", output.stderr, output.code);
    Ok(output.stdout)
}

fn policy(node: &Node, file: &str) -> Result<()> {
    let path = demo_dir().join(file);
    node.apply(&fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?)
}

/// Waits until a plaintext request ends as wanted: a policy takes its moment.
fn until_plaintext(node: &Node, server: &str, wanted: &str) -> Result<()> {
    poll::until(&format!("plaintext to {server} to end with {wanted}"), PATIENCE, || {
        let found = plaintext(node, server)?;
        ensure!(found == wanted, "it ended with {found}");
        Ok(())
    })
}

/// Effective capabilities of the agent's process.
fn capabilities(node: &Node) -> Result<u64> {
    let pid = node.on_node(&["pgrep", "--exact", "enforcer"])?.success()?;
    let status = node.on_node(&["cat", &format!("/proc/{}/status", pid.stdout.trim())])?.success()?.stdout;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
    Ok(u64::from_str_radix(line.trim(), 16)?)
}

const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const SYS_ADMIN: u64 = 1 << 21;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

#[test]
fn the_chart_installs_in_audit_then_enforces_updates_without_a_gap_and_leaves_nothing() -> Result<()> {
    let node = Node::up()?;
    node.populate()?;
    policy(&node, "policies/mesh-strict.yaml")?;

    node.helm("install", &json!({})).context("install")?;
    ensure!(
        capabilities(&node)? == NET_ADMIN | NET_RAW | SYS_ADMIN | PERFMON | BPF,
        "the agent has other capabilities"
    );
    until_would_reset(&node).context("audit")?;

    node.helm("upgrade", &json!({"agent": {"mode": "enforce"}})).context("upgrade to enforce")?;
    until_plaintext(&node, FRONTEND, "000 56").context("enforce")?;

    let mut words = Vec::new();
    walk::play(&node, &mut words).with_context(|| String::from_utf8_lossy(&words).into_owned())?;
    node.kubectl(&["-n", "hipstershopv1v2", "delete", "peerauthentication", "frontend"])?;
    until_plaintext(&node, FRONTEND, "000 56").context("after the walk-through")?;

    let before = node.agent()?;
    let report = load::during(&node, || {
        let values = json!({"agent": {"mode": "enforce"}, "podAnnotations": {"update": "1"}});
        node.helm("upgrade", &values)?;
        ensure!(node.agent()? != before, "the update replaced no agent");
        Ok(())
    })
    .context("rolling update under load")?;
    println!("rolling update: {report:?}");
    kubelet_probes_pass(&node)?;

    // Without the right to look into pods the agent enforces all the same.
    let fewer = json!({"agent": {"mode": "enforce"}, "podNamespaces": {"enabled": false}});
    node.helm("upgrade", &fewer).context("without SYS_ADMIN")?;
    node.agent()?;
    ensure!(capabilities(&node)? == NET_ADMIN | NET_RAW | PERFMON | BPF, "the agent has other capabilities");
    until_plaintext(&node, ADSERVICE, "000 56").context("without SYS_ADMIN")?;
    node.kubectl(&["-n", "hipstershopv1v2", "delete", "pod", "adservice"])?;
    recreate_adservice(&node)?;
    let address = node.ready("hipstershopv1v2/adservice")?;
    until_plaintext(&node, &format!("{address}:9555"), "000 56").context("a new pod without SYS_ADMIN")?;

    let pinned = Pinned::now(&node)?;
    node.helm("uninstall", &json!({})).context("uninstall")?;
    poll::until("the node to be clean", PATIENCE, || pinned.all_gone(&node))?;
    ensure!(plaintext(&node, FRONTEND)? == "200 0", "plaintext is refused after the chart is gone");
    Ok(())
}

/// In audit a plaintext request is served and counted.
fn until_would_reset(node: &Node) -> Result<()> {
    let agent = node.agent()?;
    poll::until("a would-be reset to be counted", PATIENCE, || {
        let found = plaintext(node, FRONTEND)?;
        ensure!(found == "200 0", "in audit plaintext ended with {found}");
        let status = node.exec(&agent, &["enforcer", "status", "-o", "json"])?;
        let status: Value = serde_json::from_str(&status.stdout)?;
        ensure!(status.to_string().contains("would_reset"), "{status}");
        Ok(())
    })
}

/// The readiness probe of `frontend`, plaintext from the kubelet, goes on under STRICT.
fn kubelet_probes_pass(node: &Node) -> Result<()> {
    // Longer than its probe needs to fail.
    std::thread::sleep(Duration::from_secs(6));
    let pod = node.get(&["-n", "hipstershopv1v2", "pod", "frontend"])?;
    ensure!(pod["status"]["containerStatuses"][0]["ready"] == true, "the probe fails: {}", pod["status"]);
    Ok(())
}

fn recreate_adservice(node: &Node) -> Result<()> {
    let servers = fs::read_to_string(demo_dir().join("kubernetes/servers.yaml"))?;
    node.apply(&servers)
}

#[test]
fn the_plain_manifests_install_and_remove_without_helm() -> Result<()> {
    let node = Node::up()?;
    node.populate()?;
    policy(&node, "policies/mesh-strict.yaml")?;
    let folder = demo_dir().join("../deploy/manifests");
    let file = |name: &str| folder.join(name).display().to_string();

    let enforce = fs::read_to_string(file("enforcer.yaml"))?.replace("--mode=audit", "--mode=enforce");
    node.apply(&enforce)?;
    node.agent()?;
    until_plaintext(&node, FRONTEND, "000 56")?;
    let pinned = Pinned::now(&node)?;

    node.kubectl(&["apply", "-f", &file("uninstall.yaml")])?;
    node.kubectl(&[
        "-n",
        NAMESPACE,
        "wait",
        "--for=condition=complete",
        "--timeout=60s",
        "job/enforcer-uninstall",
    ])?;
    ensure!(plaintext(&node, FRONTEND)? == "000 56", "the announcement alone ended enforcement");
    for name in ["enforcer.yaml", "uninstall.yaml"] {
        node.kubectl(&["delete", "--ignore-not-found", "-f", &file(name)])?;
    }
    poll::until("the node to be clean", PATIENCE, || pinned.all_gone(&node))?;
    Ok(())
}
