//! What the agent costs on a node of a large cluster, measured against a real API server with objects that no kubelet
//! runs: `cargo xtask kube scale`.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use enforcer_common::Mode;
use enforcer_tests::cluster::{Cluster, NODE_NAME, apply, report};
use enforcer_tests::lab::Running;
use enforcer_tests::{Lab, Pod, Topology, poll};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kube::Client;
use serde_json::{Value, json};

/// Requests under way at once while the cluster is filled.
const WIDTH: usize = 16;

/// Measure the agent in a cluster of many objects.
#[derive(Parser)]
struct Arguments {
    /// Pods on this node
    #[arg(long, default_value_t = 250)]
    node_pods: usize,
    /// Pods in the cluster
    #[arg(long, default_value_t = 5000)]
    pods: usize,
    /// Policies in the cluster
    #[arg(long, default_value_t = 2000)]
    policies: usize,
    /// Namespaces in the cluster
    #[arg(long, default_value_t = 100)]
    namespaces: usize,
    /// Seconds to watch the agent at rest
    #[arg(long, default_value_t = 120)]
    rest: u64,
    /// Policy changes to measure
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// Clients with interfaces of their own, as pods of another node, that connect to a pod of this one
    #[arg(long, default_value_t = 20)]
    clients: u8,
    /// Seconds of their traffic
    #[arg(long, default_value_t = 60)]
    traffic: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // One pod with an interface, whose policy is changed; all others are objects.
    let target = Pod::meshed("team-0", "target", 10);
    let mut lab = Lab::with(Topology::default(), vec![target])?;
    let cluster = Cluster::start(&lab)?;
    cluster.install(&["v1"])?;
    let start = Instant::now();
    cluster.with(async |client| fill(&client, &arguments).await)?;
    cluster.describe(&lab)?;
    println!("{:<42}{:>10.1} s", "time to fill the cluster", start.elapsed().as_secs_f64());

    let before = requests(&cluster)?;
    let watch = Duration::from_secs(arguments.rest);
    std::thread::sleep(watch / 4);
    let idle = per_minute(requests(&cluster)? - before, watch / 4);

    let start = Instant::now();
    let agent = cluster.agent(&lab, &[])?;
    poll::until("all pods of the node", Duration::from_mins(1), || {
        let state =
            enforcer::agent::state::State::read(&enforcer::agent::state::path(&lab.state(), &lab.bpffs()))?;
        let known = state.endpoints.len();
        ensure!(known >= arguments.node_pods, "{known} endpoints");
        Ok(())
    })?;
    println!("{:<42}{:>10.2} s", "start to all policies in the maps", start.elapsed().as_secs_f64());
    println!("{:<42}{:>10.1} MiB", "resident memory", memory(agent.pid(), "VmRSS")?);
    println!("{:<42}{:>10.1} MiB", "peak while reading the lists", memory(agent.pid(), "VmHWM")?);

    let (cpu, count, start) = (ticks(agent.pid())?, requests(&cluster)?, Instant::now());
    std::thread::sleep(watch);
    let used = (ticks(agent.pid())? - cpu) / start.elapsed().as_secs_f64();
    println!("{:<42}{:>10.3} % of a core", "processor time at rest", used * 100.0);
    let asked = per_minute(requests(&cluster)? - count, start.elapsed()) - idle;
    println!("{:<42}{:>10.1} per minute", "requests to the API server at rest", asked.max(0.0));

    let mut times = cluster.with(async |client| changes(&client, &lab, arguments.changes).await)?;
    times.sort();
    let at = |part: f64| {
        // A position in a short list.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "small"
        )]
        let index = ((times.len() as f64 * part) as usize).min(times.len() - 1);
        times.get(index).map_or(0.0, Duration::as_secs_f64) * 1000.0
    };
    println!("{:<42}{:>10.0} ms", "policy change to the map, median", at(0.5));
    println!("{:<42}{:>10.0} ms", "policy change to the map, 99th percentile", at(0.99));
    traffic(&mut lab, &cluster, &agent, &arguments, idle)?;
    println!("{:<42}{:>10.1} MiB", "resident memory at the end", memory(agent.pid(), "VmRSS")?);
    Ok(())
}

/// Plaintext connections from pods of another node, whose names the agent asks for. `idle`: requests a minute without it.
fn traffic(
    lab: &mut Lab,
    cluster: &Cluster,
    agent: &Running,
    arguments: &Arguments,
    idle: f64,
) -> Result<()> {
    let (server, _records) = lab.sidecar("target", 8080)?;
    let url = format!("http://{}:8080", lab.pod("target").v4());
    let mut clients = Vec::new();
    for number in 0..arguments.clients {
        let pod = Pod::new("team-1", &format!("client-{number}"), 100 + number);
        lab.add_pod(pod.clone())?;
        cluster.add_pod(&pod, "node-b", &pod.addresses())?;
        let script =
            format!("while :; do curl -s -o /dev/null -m 5 -w '%{{http_code}}\\n' {url}; sleep 0.5; done");
        clients.push(lab.spawn(&pod.name, ["sh", "-c", &script])?);
    }
    let connections = || clients.iter().map(|client| client.output().lines().count()).sum::<usize>();
    let (count, asked) = (connections(), requests(cluster)?);
    let (cpu, start) = (ticks(agent.pid())?, Instant::now());
    std::thread::sleep(Duration::from_secs(arguments.traffic));
    let time = start.elapsed();
    let used = (ticks(agent.pid())? - cpu) / time.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let rate = (connections() - count) as f64 / time.as_secs_f64();
    println!("{:<42}{rate:>10.1} per second", "connections to a pod of the node");
    println!("{:<42}{:>10.3} % of a core", "processor time meanwhile", used * 100.0);
    let asked = per_minute(requests(cluster)? - asked, time) - idle;
    println!("{:<42}{:>10.1} per minute", "requests to the API server meanwhile", asked.max(0.0));
    let names = cluster.asked(|uri| uri.contains("status.podIP"))?.len();
    println!("{:<42}{names:>10}", "of them for the names of clients, in all");
    ensure!(names >= arguments.clients.into(), "{names} names were asked for");
    drop(server);
    Ok(())
}

async fn fill(client: &Client, arguments: &Arguments) -> Result<()> {
    let team = |number: usize| format!("team-{}", number % arguments.namespaces);
    let namespaces = (0..arguments.namespaces)
        .map(|number| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": team(number)}}));
    create(client, namespaces).await?;
    let policies = (0..arguments.policies).map(|number| {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"namespace": team(number), "name": format!("policy-{number}")},
            "spec": {"selector": {"matchLabels": {"app": format!("app-{number}")}}, "mtls": {"mode": "STRICT"},
                     "portLevelMtls": {"8080": {"mode": "PERMISSIVE"}}},
        })
    });
    create(client, policies).await?;
    let services = (0..arguments.pods / 10).map(|number| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": team(number), "name": format!("app-{number}")},
            "spec": {"selector": {"app": format!("app-{number}")}, "ports": [{"port": 80, "targetPort": 8080}]},
        })
    });
    create(client, services).await?;
    let node = |number: usize| if number < arguments.node_pods { NODE_NAME } else { "node-b" };
    let name = |number: usize| format!("app-{number}-6b7d9c5f4d-{number:05}");
    let pods = (0..arguments.pods).map(|number| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": team(number), "name": name(number),
                         "labels": {"app": format!("app-{number}"), "security.istio.io/tlsMode": "istio"},
                         "annotations": {"sidecar.istio.io/status": "{}", "filler": "x".repeat(500)}},
            "spec": {"nodeName": node(number), "containers": [
                {"name": "app", "image": "app", "ports": [{"containerPort": 8080}, {"containerPort": 9090}],
                 "readinessProbe": {"httpGet": {"port": 8080}}},
                {"name": "proxy", "image": "proxy", "ports": [{"containerPort": 15090}]}]},
        })
    });
    create(client, pods).await?;
    stream::iter(0..arguments.node_pods)
        .map(|number| async move {
            let [high, low] = u16::try_from(number)?.to_be_bytes();
            let addresses = [[10, 245, high, low].into()];
            report(client, &team(number), &name(number), &addresses).await
        })
        .buffer_unordered(WIDTH)
        .try_collect()
        .await
}

async fn create(client: &Client, objects: impl Iterator<Item = Value>) -> Result<()> {
    stream::iter(objects)
        .map(|object| async move { apply(client, &object).await.map(drop) })
        .buffer_unordered(WIDTH)
        .try_collect()
        .await
}

/// From the API server's answer to a policy's change until the map has it.
async fn changes(client: &Client, lab: &Lab, count: usize) -> Result<Vec<Duration>> {
    let address = lab.pod("target").v4().into();
    let mut times = Vec::new();
    for number in 0..count {
        let (name, mode) =
            if number % 2 == 0 { ("STRICT", Mode::STRICT) } else { ("PERMISSIVE", Mode::PERMISSIVE) };
        let policy = json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"namespace": "team-0", "name": "target"},
            "spec": {"selector": {"matchLabels": {"app": "target.team-0.svc.cluster.local"}}, "mtls": {"mode": name}},
        });
        apply(client, &policy).await?;
        let start = Instant::now();
        poll::until(name, Duration::from_secs(10), || {
            ensure!(lab.endpoint(address)?.mode == mode);
            Ok(())
        })?;
        times.push(start.elapsed());
        // People do not change policies faster; what is measured is one change, not a storm.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(times)
}

/// Requests that the API server has answered, watches included when they end.
fn requests(cluster: &Cluster) -> Result<f64> {
    let text = cluster.with(async |client| {
        let request = kube::core::Request::new("/metrics").list(&kube::api::ListParams::default())?;
        Ok(client.request_text(request).await?)
    })?;
    let counts = text.lines().filter(|line| line.starts_with("apiserver_request_total{"));
    counts.map(|line| Ok(line.rsplit_once(' ').context("a metric has a value")?.1.parse::<f64>()?)).sum()
}

fn per_minute(count: f64, time: Duration) -> f64 {
    count / time.as_secs_f64() * 60.0
}

/// A field of `/proc/PID/status` in MiB.
fn memory(pid: u32, field: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).context("the kernel tells it")?;
    let kib: f64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// Seconds of processor time that a process has used.
fn ticks(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = text.rsplit_once(')').context("the name is in parentheses")?.1;
    let ticks: f64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    // USER_HZ is 100 on every architecture that the agent runs on.
    Ok(ticks / 100.0)
}
