//! What the agent tells: flow records over its socket, live and when it is dead, metrics and health.

use std::io::BufRead as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use enforcer::telemetry::client;
use enforcer::telemetry::record::{Flow, Line, Record};
use enforcer_common::Mode;
use enforcer_tests::agent::{FRONTEND_PERMISSIVE, MESH_STRICT, policy};
use enforcer_tests::lab::NODE;
use enforcer_tests::{Lab, Scene, poll};

/// How long a record may take from the packet to the reader.
const SOON: Duration = Duration::from_secs(5);

fn scene() -> Result<Scene> {
    let scene = Scene::new(&[("mesh.yaml", MESH_STRICT), ("frontend.yaml", FRONTEND_PERMISSIVE)])?;
    scene.lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    scene.lab.wait_mode("adservice", Mode::STRICT)?;
    Ok(scene)
}

fn records(text: &str) -> Result<Vec<Record>> {
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// What `flows -o json` with these arguments says.
fn flows(lab: &Lab, more: &[&str]) -> Result<Vec<Record>> {
    let words: Vec<&str> = ["flows", "-o", "json"].iter().chain(more).copied().collect();
    records(&lab.enforcer(&words)?.success()?.stdout)
}

fn verdicts(records: &[Record]) -> Vec<&Flow> {
    let verdict = |record| match record {
        &Record { line: Line::Verdict(ref flow), .. } => Some(flow),
        _ => None,
    };
    records.iter().filter_map(verdict).collect()
}

fn ends(records: &[Record]) -> Vec<&Flow> {
    let end = |record| match record {
        &Record { line: Line::End(ref flow), .. } => Some(flow),
        _ => None,
    };
    records.iter().filter_map(end).collect()
}

/// Waits until `flows` with these arguments has a record that `is` takes.
fn wait_for(lab: &Lab, more: &[&str], is: impl Fn(&Record) -> bool) -> Result<Record> {
    poll::until(&format!("a record of flows {more:?}"), SOON, || {
        let all = flows(lab, more)?;
        all.iter().find(|record| is(record)).cloned().with_context(|| format!("there are {all:#?}"))
    })
}

#[test]
fn a_reset_names_both_pods_the_protocol_and_the_policy() -> Result<()> {
    let scene = scene()?;
    let (_adservice, _) = scene.lab.sidecar("adservice", 9555)?;
    assert_eq!(scene.lab.curl("sleep", &["http://adservice.hipstershopv1v2:9555"])?.code, 56);
    let record = wait_for(&scene.lab, &["--verdict", "reset"], |_| true)?;
    let all = [record];
    let flow = verdicts(&all).pop().context("no verdict")?;
    assert_eq!(flow.client.pod_name().as_deref(), Some("noistio/sleep"));
    assert_eq!(flow.pod.pod_name().as_deref(), Some("hipstershopv1v2/adservice"));
    assert_eq!((flow.pod.port, &*flow.direction), (9555, "to_pod"));
    assert_eq!((&*flow.class, flow.protocol.as_deref()), ("plaintext", Some("http/1")));
    assert_eq!((&*flow.reason, flow.mode.as_deref()), ("PLAINTEXT", Some("STRICT")));
    assert_eq!((flow.policy.as_deref(), flow.level.as_deref()), (Some("istio-system/default"), Some("mesh")));
    assert!(!flow.remedy.is_empty() && flow.bytes_to_pod > 0 && flow.generation > 0, "{flow:?}");
    let age = jiff::Timestamp::now().duration_since(flow.time).as_secs();
    assert!((0..60).contains(&age), "{flow:?} is {age} s old");
    for filter in [
        &["--reason", "PLAINTEXT"][..],
        &["--pod", "noistio/sleep"],
        &["--namespace", "hipstershopv1v2", "--port", "9555"],
        &["--since", "5m"],
    ] {
        assert!(!flows(&scene.lab, filter)?.is_empty(), "{filter:?}");
    }
    for filter in
        [&["--reason", "TLS"][..], &["--pod", "noistio/other"], &["--port", "1"], &["--namespace", "x"]]
    {
        assert!(flows(&scene.lab, filter)?.is_empty(), "{filter:?}");
    }
    let table = scene.lab.enforcer(&["flows"])?.success()?.stdout;
    let line = table.lines().find(|line| line.contains("PLAINTEXT")).context(table.clone())?;
    for word in ["noistio/sleep", "hipstershopv1v2/adservice:9555", "istio-system/default (mesh)", "http/1"] {
        assert!(line.contains(word), "no {word} in {line}");
    }
    Ok(())
}

#[test]
fn a_mesh_client_is_known_by_its_hello() -> Result<()> {
    let scene = scene()?;
    let (_adservice, _) = scene.lab.sidecar("adservice", 9555)?;
    let address = scene.lab.pod("adservice").v4();
    // As a sidecar opens its connections: Istio's protocols, and a server name in its form.
    let own = scene.lab.credentials("loadgenerator");
    let script = format!(
        "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | openssl s_client -quiet -connect {address}:9555 -alpn \
         istio-peer-exchange,istio -servername outbound_.9555_._.adservice.hipstershopv1v2.svc.cluster.local \
         -cert {} -key {} -CAfile {}",
        own.certificate.display(),
        own.key.display(),
        scene.lab.authority().certificate.display()
    );
    scene.lab.exec("loadgenerator", ["sh", "-c", &script])?;
    let mesh = |record: &Record| record.line.flow().is_some_and(|flow| flow.class == "mesh_tls");
    let record = wait_for(&scene.lab, &["--reason", "TLS"], mesh)?;
    let flow = record.line.flow().context("no connection")?;
    assert_eq!(flow.sni.as_deref(), Some("outbound_.9555_._.adservice.hipstershopv1v2.svc.cluster.local"));
    assert_eq!(flow.alpn.iter().map(|name| &**name).collect::<Vec<_>>(), ["istio-peer-exchange", "istio"]);
    assert!(flow.tls_versions.iter().any(|version| version == "1.3"), "{flow:?}");
    assert_eq!((&*flow.verdict, flow.remedy.is_empty()), ("allow", true));
    // Another client of TLS is no mesh client.
    scene.lab.mesh_curl("loadgenerator", &["https://adservice.hipstershopv1v2:9555"])?.success()?;
    let other = wait_for(&scene.lab, &["--reason", "TLS"], |record| {
        record.line.flow().is_some_and(|flow| flow.sni.as_deref() == Some("adservice.hipstershopv1v2"))
    })?;
    assert_eq!(other.line.flow().map(|flow| &*flow.class), Some("tls"));
    Ok(())
}

#[test]
fn the_end_tells_bytes_and_duration() -> Result<()> {
    let scene = scene()?;
    let (_frontend, _) = scene.lab.sidecar("frontend", 8080)?;
    scene.lab.curl("sleep", &["http://frontend.hipstershopv1v2:8080"])?.success()?;
    let record = wait_for(&scene.lab, &["--port", "8080"], |record| matches!(record.line, Line::End(_)))?;
    let all = [record];
    let end = ends(&all).pop().context("no end")?;
    assert_eq!((&*end.verdict, &*end.reason), ("allow", "PLAINTEXT_PERMITTED"));
    assert!(end.bytes_to_pod > 40 && end.bytes_from_pod > 40, "{end:?}");
    assert!(end.duration_seconds.is_some_and(|seconds| seconds > 0.0 && seconds < 60.0), "{end:?}");
    assert_eq!(end.protocol.as_deref(), Some("http/1"), "known from the verdict");
    Ok(())
}

#[test]
fn followers_see_what_happens_and_slow_ones_harm_nobody() -> Result<()> {
    let scene = scene()?;
    let (_frontend, _) = scene.lab.sidecar("frontend", 8080)?;
    let socket = scene.lab.socket();
    // Two that never read, and one that does.
    let _idle = [client::open(&socket, "/v1/flows?follow=1")?, client::open(&socket, "/v1/flows?follow=1")?];
    let mut answer = client::follow(&socket, "/v1/flows?follow=1&port=8080")?;
    for _ in 0..3 {
        scene.lab.curl("sleep", &["http://frontend.hipstershopv1v2:8080"])?.success()?;
    }
    let mut seen = 0;
    while seen < 3 {
        let mut line = String::new();
        answer.get_ref().set_read_timeout(Some(SOON))?;
        answer.read_line(&mut line)?;
        let record = records(&line)?.pop().context("the stream ended")?;
        seen += usize::from(matches!(record.line, Line::Verdict(_)));
    }
    // The agent goes on as if nobody listened.
    scene.lab.apply("frontend.yaml", &policy("hipstershopv1v2", "frontend", None, "STRICT", &[]))?;
    scene.lab.wait_mode("frontend", Mode::STRICT)?;
    Ok(())
}

#[test]
fn what_is_no_verdict_or_reason_is_refused_with_the_list() -> Result<()> {
    let scene = scene()?;
    for (words, wanted) in [
        (["--verdict", "resett"], "none, allow, reset, drop, would_reset"),
        (["--reason", "FOO"], "PLAINTEXT_PERMITTED"),
        (["--verdict", "wait"], "never recorded"),
    ] {
        let output = scene.lab.enforcer(&[&["flows"][..], &words].concat())?;
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{output:?}");
        assert!(output.stderr.contains(wanted), "{output:?}");
    }
    let (status, body) = client::ask(&scene.lab.socket(), "/v1/flows?verdict=resett")?;
    assert!(status == 400 && body.contains("would_reset"), "{status}: {body}");
    Ok(())
}

#[test]
fn followers_are_told_when_the_agent_stops() -> Result<()> {
    let mut scene = scene()?;
    let socket = scene.lab.socket().display().to_string();
    let program = enforcer_tests::agent::enforcer_binary()?.display().to_string();
    let mut followers = Vec::new();
    for form in ["table", "json"] {
        let words = [program.as_str(), "flows", "--follow", "-o", form, "--socket", &socket];
        followers.push((form, scene.lab.spawn(NODE, words)?));
    }
    // They follow when each has told of a connection.
    let (_frontend, _) = scene.lab.sidecar("frontend", 8080)?;
    for (_, follower) in &mut followers {
        poll::until("the follower to follow", SOON, || {
            scene.lab.curl("sleep", &["http://frontend.hipstershopv1v2:8080"])?.success()?;
            ensure!(follower.output().contains("PLAINTEXT_PERMITTED"), "{}", follower.output());
            Ok(())
        })?;
    }
    scene.agent.kill()?;
    for (form, follower) in &mut followers {
        assert_eq!(follower.wait(SOON)?, 2, "{form}");
        assert!(follower.output().contains("the agent stopped"), "{form}: {}", follower.output());
    }
    Ok(())
}

#[test]
fn a_dead_agent_leaves_the_table_of_connections() -> Result<()> {
    let mut scene = scene()?;
    let (_frontend, _) = scene.lab.sidecar("frontend", 8080)?;
    scene.agent.kill()?;
    let stream = scene.lab.connect("sleep", scene.lab.address("frontend", 8080, false))?;
    std::io::Write::write_all(&mut &stream, b"GET / HTTP/1.1\r\nHost: frontend\r\n\r\n")?;
    let output = poll::until("the connection", SOON, || {
        let output = scene.lab.enforcer(&["flows", "-o", "json", "--verdict", "allow"])?.success()?;
        ensure!(!output.stdout.is_empty(), "{output:?}");
        Ok(output)
    })?;
    assert!(output.stderr.contains("the agent is not running"), "{output:?}");
    let all = records(&output.stdout)?;
    let flow = *verdicts(&all).last().context("no record")?;
    assert_eq!(
        (flow.pod.pod_name().as_deref(), &*flow.class),
        (Some("hipstershopv1v2/frontend"), "plaintext")
    );
    assert_eq!(flow.policy.as_deref(), Some("hipstershopv1v2/frontend"));
    // To follow needs an agent, and says so.
    let follow = scene.lab.enforcer(&["flows", "--follow"])?;
    assert_eq!(follow.code, 2);
    assert!(
        follow.stderr.contains("no agent answers") && follow.stderr.contains("enforcer run"),
        "{follow:?}"
    );
    Ok(())
}

#[test]
fn a_successor_takes_the_socket_over() -> Result<()> {
    let mut scene = scene()?;
    scene.agent.kill()?;
    assert!(scene.lab.socket().exists(), "a killed agent leaves its socket");
    scene.agent = scene.lab.agent()?;
    poll::until("the socket", SOON, || Ok(client::get(&scene.lab.socket(), "/healthz")?))?;
    scene.agent.signal(nix::sys::signal::Signal::SIGTERM)?;
    assert_eq!(scene.agent.wait(SOON)?, 0);
    assert!(!scene.lab.socket().exists(), "an agent that stops removes it");
    Ok(())
}

#[test]
fn ready_when_every_endpoint_is_hooked() -> Result<()> {
    let scene = scene()?;
    let lab = &scene.lab;
    poll::until("the agent to be ready", SOON, || Ok(client::get(&lab.socket(), "/readyz")?))?;
    // A pod that is on no interface of this node.
    let pod = enforcer_tests::Pod::meshed("hipstershopv1v2", "ghost", 77);
    lab.apply("ghost.yaml", &pod.manifest())?;
    let body = poll::until("the agent to be not ready", SOON, || {
        let (status, body) = client::ask(&lab.socket(), "/readyz")?;
        ensure!(status == 503, "{status}: {body}");
        Ok(body)
    })?;
    assert!(body.contains("hipstershopv1v2/ghost (10.244.0.77)"), "{body}");
    Ok(())
}

#[test]
fn the_address_for_scrapes_has_metrics_and_health_only() -> Result<()> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let _agent = lab.agent_with(&["--metrics-address", "127.0.0.1:9464"])?;
    let get = |path: &str| {
        lab.exec(NODE, ["curl", "-sS", "-w", "%{http_code}", &format!("http://127.0.0.1:9464{path}")])
    };
    poll::until("the listener", SOON, || get("/healthz")?.success())?;
    let metrics = poll::until("the first policy", SOON, || {
        let metrics = get("/metrics")?.success()?.stdout;
        ensure!(metrics.contains("enforcer_ready 1"), "{metrics}");
        Ok(metrics)
    })?;
    for name in
        ["enforcer_build_info{", "enforcer_endpoints{mode=\"STRICT\"} 6", "enforcer_attached_interfaces 4"]
    {
        assert!(metrics.contains(name), "no {name} in {metrics}");
    }
    assert!(metrics.contains("enforcer_scrape_errors 0"), "{metrics}");
    assert!(get("/v1/flows")?.success()?.stdout.ends_with("404"));
    assert!(get("/v1/objects")?.success()?.stdout.ends_with("404"));
    Ok(())
}
