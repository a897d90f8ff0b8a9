//! A platform team's road on a real node: install in audit, enforce, update under load, remove. Each test has a node of
//! its own, with a real kubelet, real pods and the chart or the manifests as they are shipped.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_tests::agent::enforcer_binary;
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
    everything_is_followed(&node)?;
    commands_from_a_laptop(&node)?;
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
    // And probes find one that listens on loopback alone: the upgrade waits until it is ready.
    let fewer = json!({"agent": {"mode": "enforce"}, "podNamespaces": {"enabled": false},
                       "metrics": {"address": "127.0.0.1"}});
    node.helm("upgrade", &fewer).context("without SYS_ADMIN, metrics on loopback")?;
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

/// The shipped role is enough for every kind.
fn everything_is_followed(node: &Node) -> Result<()> {
    let status = node.exec(&node.agent()?, &["enforcer", "status", "-o", "json"])?;
    let status: Value = serde_json::from_str(&status.stdout)?;
    let kinds = status["policy"]["kinds"].as_array().cloned().unwrap_or_default();
    ensure!(kinds.len() == 6, "{kinds:?}");
    for kind in kinds {
        ensure!(kind["error"].is_null() && !kind["synced"].is_null(), "{kind}");
    }
    Ok(())
}

/// The commands about other nodes, by the program's own name and as a plugin of kubectl. `frontend` is PERMISSIVE and was
/// asked in plaintext.
fn commands_from_a_laptop(node: &Node) -> Result<()> {
    let folder = tempfile::tempdir()?;
    for name in ["enforcer", "kubectl-enforcer"] {
        std::os::unix::fs::symlink(enforcer_binary()?, folder.path().join(name))?;
    }
    let run = |words: &[&str], code: i32| -> Result<String> {
        let output = node.beside(folder.path(), words)?;
        ensure!(
            output.code == code,
            "{words:?} ended with {}: {} {}",
            output.code,
            output.stdout,
            output.stderr
        );
        Ok(output.stdout + &output.stderr)
    };
    for words in [&["enforcer", "readiness", "--kube"][..], &["kubectl", "enforcer", "readiness", "--kube"]] {
        // The agent looks at its clients every few seconds.
        poll::until("frontend not to be ready", PATIENCE, || {
            let said = run(words, 1)?;
            ensure!(said.contains("hipstershopv1v2/frontend") && said.contains("noistio/sleep"), "{said}");
            Ok(())
        })?;
    }
    // As a plugin all are asked without saying so.
    let answer: Value = serde_json::from_str(&run(&["kubectl", "enforcer", "endpoints", "-o", "json"], 0)?)?;
    ensure!(answer["nodes"]["node-a"].to_string().contains("frontend"), "{answer}");
    let status = run(&["enforcer", "status", "--node", "node-a"], 0)?;
    ensure!(status.contains("running"), "{status}");
    let wrong = run(&["enforcer", "status", "--node", "node-b"], 2)?;
    ensure!(wrong.contains("there are agents on node-a"), "{wrong}");

    // A node that the daemon set is for, and no agent fits on.
    let other = json!({"apiVersion": "v1", "kind": "Node",
                       "metadata": {"name": "node-b", "labels": {"kubernetes.io/os": "linux"}}});
    node.apply(&other.to_string())?;
    let alone = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "hipstershopv1v2", "name": "alone"},
                       "spec": {"nodeName": "node-b", "terminationGracePeriodSeconds": 0,
                                "containers": [{"name": "app", "image": "app"}]}});
    node.apply(&alone.to_string())?;
    poll::until("the node without an agent to be named", PATIENCE, || {
        let said = run(&["enforcer", "readiness", "--kube"], 1)?;
        ensure!(said.contains("node-b: no agent runs there"), "{said}");
        let said = run(&["enforcer", "status", "--kube"], 2)?;
        ensure!(said.contains("node node-a:") && said.contains("no agent runs on node-b"), "{said}");
        Ok(())
    })?;
    node.kubectl(&["-n", "hipstershopv1v2", "delete", "pod", "alone", "--force"])?;
    node.kubectl(&["delete", "node", "node-b"])?;
    // Nobody else does before the daemon set changes.
    node.kubectl(&["-n", NAMESPACE, "delete", "pods", "--field-selector", "status.phase=Pending"])?;
    node.agent()?;
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

/// What the agent's container is charged for is within what the chart requests.
fn memory(node: &Node) -> Result<()> {
    let agent = node.agent()?;
    let (namespace, name) = agent.split_once('/').context("a pod is NAMESPACE/NAME")?;
    let pod = node.get(&["-n", namespace, "pod", name])?;
    let request = pod["spec"]["containers"][0]["resources"]["requests"]["memory"].as_str();
    let request = request.and_then(|text| text.strip_suffix("Mi")).context("a request in Mi")?;
    let pid = node.on_node(&["pgrep", "--exact", "enforcer"])?.success()?;
    let cgroup = node.on_node(&["cat", &format!("/proc/{}/cgroup", pid.stdout.trim())])?.success()?.stdout;
    let folder = cgroup.lines().find_map(|line| line.split_once(":memory:")).context("no memory cgroup")?.1;
    let usage = format!("/sys/fs/cgroup/memory{folder}/memory.usage_in_bytes");
    let usage = node.on_node(&["cat", &usage])?.success()?.stdout.trim().parse::<u64>()? >> 20;
    println!("the agent is charged for {usage} MiB, requested are {request} MiB");
    ensure!(usage <= request.parse()?, "the agent is charged for {usage} MiB, requested are {request} MiB");
    Ok(())
}

fn recreate_adservice(node: &Node) -> Result<()> {
    let servers = fs::read_to_string(demo_dir().join("kubernetes/servers.yaml"))?;
    node.apply(&servers)
}

/// On a routed network, as Calico and the plug-ins of AWS and Google make it: no bridge, each pod has a pair of its own.
#[test]
fn the_plain_manifests_install_and_remove_without_helm() -> Result<()> {
    let node = Node::up_on("ptp")?;
    node.populate()?;
    policy(&node, "policies/mesh-strict.yaml")?;
    let folder = demo_dir().join("../deploy/manifests");
    let file = |name: &str| folder.join(name).display().to_string();

    let enforce = fs::read_to_string(file("enforcer.yaml"))?.replace("--mode=audit", "--mode=enforce");
    node.apply(&enforce)?;
    node.agent()?;
    until_plaintext(&node, FRONTEND, "000 56")?;
    ensure!(
        node.on_node(&["ip", "-o", "link", "show", "type", "bridge"])?.stdout.lines().count() == 1,
        "a bridge"
    );
    let mut words = Vec::new();
    walk::play(&node, &mut words).with_context(|| String::from_utf8_lossy(&words).into_owned())?;
    kubelet_probes_pass(&node)?;
    memory(&node)?;
    node.kubectl(&["-n", "hipstershopv1v2", "delete", "peerauthentication", "frontend"])?;
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
