//! One truth: flow records, `endpoints`, `status`, the metrics and the maps as bpftool prints them tell the same numbers.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use enforcer::telemetry::client;
use enforcer::telemetry::record::{Line, Record};
use enforcer_common::Mode;
use enforcer_tests::agent::{FRONTEND_PERMISSIVE, MESH_STRICT};
use enforcer_tests::lab::NODE;
use enforcer_tests::{Lab, Scene, poll};
use serde_json::{Value, json};

/// Connections by verdict and reason.
type Numbers = BTreeMap<(String, String), u64>;

/// How long the last events may take.
const SETTLED: Duration = Duration::from_secs(5);

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The entries of a map as bpftool prints them with the names of their fields.
fn dump(lab: &Lab, map: &str) -> Result<Vec<Value>> {
    let path = lab.map_path(map)?.display().to_string();
    let json = lab.exec(NODE, ["bpftool", "-j", "map", "dump", "pinned", &path])?.success()?.stdout;
    let entries: Vec<Value> = serde_json::from_str(&json).with_context(|| json.clone())?;
    Ok(entries.into_iter().map(|entry| entry["formatted"].clone()).collect())
}

/// What `COUNTERS` or `WORKLOAD_COUNTERS` holds; `workload` 0: of all.
fn of_dump(lab: &Lab, map: &str, workload: u64) -> Result<Numbers> {
    let mut numbers = Numbers::new();
    for entry in dump(lab, map)? {
        let key = &entry["key"];
        if workload != 0 && key["workload"].as_u64() != Some(workload) {
            continue;
        }
        let connections: u64 =
            list(&entry, "values").iter().filter_map(|value| value["value"]["connections"].as_u64()).sum();
        let name = (text(&key["verdict"]).to_lowercase(), text(&key["reason"]));
        *numbers.entry(name).or_default() += connections;
    }
    numbers.retain(|_, connections| *connections > 0);
    Ok(numbers)
}

fn of_flows(lab: &Lab, more: &[&str]) -> Result<Numbers> {
    let words: Vec<&str> = ["flows", "-o", "json", "--last", "10000"].iter().chain(more).copied().collect();
    let output = lab.enforcer(&words)?.success()?.stdout;
    let mut numbers = Numbers::new();
    for line in output.lines() {
        let record: Record = serde_json::from_str(line)?;
        match record.line {
            Line::Verdict(flow) => {
                *numbers.entry((flow.verdict.into_owned(), flow.reason.into_owned())).or_default() += 1;
            }
            Line::End(_) => {}
            Line::Suppressed(gap) => anyhow::bail!("records are missing: {gap:?}"),
        }
    }
    Ok(numbers)
}

/// Samples of a counter of the metrics by verdict and reason; `wanted` must be in the labels.
fn of_metrics(metrics: &str, name: &str, wanted: &str) -> Result<Numbers> {
    let mut numbers = Numbers::new();
    for line in metrics.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(wanted))
    {
        let label = |key: &str| {
            let at = line.find(&format!("{key}=\"")).with_context(|| line.to_owned())? + key.len() + 2;
            let value = line.get(at..).and_then(|rest| rest.split('"').next());
            value.map(str::to_owned).with_context(|| line.to_owned())
        };
        let value: u64 = line.rsplit(' ').next().unwrap_or_default().parse()?;
        *numbers.entry((label("verdict")?, label("reason")?)).or_default() += value;
    }
    numbers.retain(|_, connections| *connections > 0);
    Ok(numbers)
}

fn answer(lab: &Lab, words: &[&str]) -> Result<Value> {
    let output = lab.enforcer(words)?;
    serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
}

fn of_status(lab: &Lab) -> Result<Numbers> {
    let status = answer(lab, &["status", "-o", "json"])?;
    let mut numbers = Numbers::new();
    for row in list(&status, "counters") {
        let connections = row["connections"].as_u64().unwrap_or_default();
        *numbers.entry((text(&row["verdict"]), text(&row["reason"]))).or_default() += connections;
    }
    numbers.retain(|_, connections| *connections > 0);
    Ok(numbers)
}

/// The walk-through, each step a known number of times.
fn walk(scene: &Scene) -> Result<Numbers> {
    let lab = &scene.lab;
    let (_frontend, _) = lab.sidecar("frontend", 8080)?;
    let (_adservice, _) = lab.sidecar("adservice", 9555)?;
    let curl = |pod: &str, code: i32| {
        let output = lab.curl("sleep", &[pod])?;
        ensure!(output.code == code, "{output:?}");
        Ok(())
    };
    let (frontend, adservice) =
        ("http://frontend.hipstershopv1v2:8080", "http://adservice.hipstershopv1v2:9555");
    for _ in 0..2 {
        curl(frontend, 0)?;
    }
    lab.apply("mesh.yaml", MESH_STRICT)?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    lab.wait_mode("adservice", Mode::STRICT)?;
    for _ in 0..3 {
        curl(frontend, 56)?;
    }
    lab.apply("frontend.yaml", FRONTEND_PERMISSIVE)?;
    lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    for _ in 0..4 {
        curl(frontend, 0)?;
        curl(adservice, 56)?;
    }
    for pod in ["https://frontend.hipstershopv1v2:8080", "https://adservice.hipstershopv1v2:9555"] {
        lab.mesh_curl("loadgenerator", &[pod])?.success()?;
    }
    // As a sidecar does it, with Istio's ALPN.
    for (pod, port, times) in [("frontend", 8080, 5), ("adservice", 9555, 3)] {
        for _ in 0..times {
            lab.mesh_get("loadgenerator", pod, port)?;
        }
    }
    let name = |verdict: &str, reason: &str| (verdict.to_owned(), reason.to_owned());
    Ok([
        (name("allow", "PLAINTEXT_PERMITTED"), 6),
        (name("reset", "PLAINTEXT"), 7),
        (name("allow", "TLS"), 10),
    ]
    .into())
}

#[test]
fn after_the_walk_through_everything_tells_the_same() -> Result<()> {
    let permissive = MESH_STRICT.replace("STRICT", "PERMISSIVE");
    let scene = Scene::new(&[("mesh.yaml", permissive.as_str())])?;
    let lab = &scene.lab;
    lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    let expected = walk(&scene)?;
    poll::until("the last record", SETTLED, || {
        let told = of_flows(lab, &[])?;
        ensure!(told == expected, "{told:?} instead of {expected:?}");
        Ok(())
    })?;
    let metrics = client::get(&lab.socket(), "/metrics")?;
    assert_eq!(of_dump(lab, "COUNTERS", 0)?, expected, "bpftool");
    assert_eq!(of_dump(lab, "WORKLOAD_COUNTERS", 0)?, expected, "bpftool, workloads");
    assert_eq!(of_metrics(&metrics, "enforcer_node_verdicts_total", "")?, expected, "metrics");
    assert_eq!(of_metrics(&metrics, "enforcer_connections_total", "")?, expected, "metrics, workloads");
    assert_eq!(of_status(lab)?, expected, "status");
    each_workload(lab, &metrics)?;
    classes(lab, &metrics)?;
    modes(lab, &metrics)
}

/// Connections by what their client speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Spoken {
    plaintext: u64,
    tls: u64,
    mesh_tls: u64,
}

/// What the records of a pod say of classes.
fn spoken_in_flows(lab: &Lab, pod: &str) -> Result<Spoken> {
    let mut spoken = Spoken::default();
    for (class, number) in
        [("plaintext", &mut spoken.plaintext), ("tls", &mut spoken.tls), ("mesh_tls", &mut spoken.mesh_tls)]
    {
        *number = of_flows(lab, &["--pod", pod, "--class", class])?.values().sum();
    }
    Ok(spoken)
}

/// What the ports of a workload say in `readiness`.
fn spoken_in_readiness(report: &Value, workload: &str) -> Option<Spoken> {
    let found = list(report, "workloads").iter().find(|row| row["workload"] == workload)?;
    let ports = list(found, "ports");
    let sum = |key: &str| ports.iter().filter_map(|port| port[key].as_u64()).sum();
    Some(Spoken { plaintext: sum("plaintext"), tls: sum("tls"), mesh_tls: sum("mesh_tls") })
}

/// What clients speak, in every view: only the hello tells mesh TLS from other TLS, so the map holds both as `TLS`.
fn classes(lab: &Lab, metrics: &str) -> Result<()> {
    let rows = answer(lab, &["endpoints", "-o", "json"])?;
    let rows = rows.as_array().cloned().unwrap_or_default();
    let clients = dump(lab, "CLIENTS")?;
    for (pod, expected) in [
        ("frontend", Spoken { plaintext: 9, tls: 1, mesh_tls: 5 }),
        ("adservice", Spoken { plaintext: 4, tls: 1, mesh_tls: 3 }),
    ] {
        let name = format!("hipstershopv1v2/{pod}");
        assert_eq!(spoken_in_flows(lab, &name)?, expected, "{pod}: flows");
        let row = rows.iter().find(|row| row["pod"] == name.as_str()).context("no such endpoint")?;
        let mesh = poll::until("the hellos in the file of the watch", Duration::from_secs(30), || {
            let rows = answer(lab, &["endpoints", "-o", "json"])?;
            let row = list(&json!({ "rows": rows }), "rows")
                .iter()
                .find(|row| row["pod"] == name.as_str())
                .cloned();
            let mesh = row.and_then(|row| row["mesh_tls_connections"].as_u64());
            ensure!(mesh == Some(expected.mesh_tls), "{mesh:?}");
            Ok(expected.mesh_tls)
        })?;
        assert_eq!(row["tls_connections"].as_u64(), Some(expected.tls + mesh), "{pod}: endpoints");
        let of_class = |class: &str| -> u64 {
            let of = |entry: &&Value| {
                entry["key"]["workload"] == row["workload"] && entry["key"]["class"] == class
            };
            clients.iter().filter(of).filter_map(|entry| entry["value"]["connections"].as_u64()).sum()
        };
        assert_eq!(of_class("PLAINTEXT"), expected.plaintext, "{pod}: CLIENTS");
        assert_eq!(of_class("TLS"), expected.tls + expected.mesh_tls, "{pod}: CLIENTS");
        assert_eq!(of_class("MESH_TLS"), 0, "{pod}: nothing came through the tunnel");
        for (class, number) in [("mesh_tls", expected.mesh_tls), ("tls", expected.tls)] {
            let line = format!(
                "enforcer_tls_hellos_total{{class=\"{class}\",namespace=\"hipstershopv1v2\",workload=\"{pod}\"}} {number}"
            );
            assert!(metrics.contains(&line), "no {line} in {metrics}");
        }
        // adservice is STRICT: no question any more.
        let report = answer(lab, &["readiness", "-o", "json"])?;
        let told = spoken_in_readiness(&report, pod);
        assert_eq!(told, (pod == "frontend").then_some(expected), "{pod}: readiness: {report}");
    }
    Ok(())
}

/// The same for each pod alone, and what `endpoints` counts.
fn each_workload(lab: &Lab, metrics: &str) -> Result<()> {
    let rows = answer(lab, &["endpoints", "-o", "json"])?;
    let rows = rows.as_array().cloned().unwrap_or_default();
    for pod in ["frontend", "adservice"] {
        let name = format!("hipstershopv1v2/{pod}");
        let row = rows.iter().find(|row| row["pod"] == name.as_str()).context("no such endpoint")?;
        let workload = row["workload"].as_u64().context("an endpoint without workload")?;
        let counted = of_dump(lab, "WORKLOAD_COUNTERS", workload)?;
        assert_eq!(of_flows(lab, &["--pod", &name])?, counted, "{pod}: flows");
        let label = format!("workload=\"{pod}\"");
        assert_eq!(of_metrics(metrics, "enforcer_connections_total", &label)?, counted, "{pod}: metrics");
        let sum = |verdict: &str, reasons: &[&str]| -> u64 {
            let of = |key: &(String, String)| {
                key.0 == verdict && (reasons.is_empty() || reasons.contains(&key.1.as_str()))
            };
            counted.iter().filter(|(key, _)| of(key)).map(|(_, connections)| connections).sum()
        };
        assert_eq!(row["tls_connections"].as_u64(), Some(sum("allow", &["TLS", "MESH_TLS"])), "{row}");
        assert_eq!(
            row["plaintext_connections"].as_u64(),
            Some(sum("allow", &["PLAINTEXT_PERMITTED"])),
            "{row}"
        );
        assert_eq!(row["refused_connections"].as_u64(), Some(sum("reset", &[])), "{row}");
    }
    Ok(())
}

/// Modes by address.
fn modes(lab: &Lab, metrics: &str) -> Result<()> {
    let mut dumped = BTreeMap::<String, u64>::new();
    for entry in dump(lab, "ENDPOINTS")? {
        *dumped.entry(text(&entry["value"]["mode"])).or_default() += 1;
    }
    let status = answer(lab, &["status", "-o", "json"])?;
    for (mode, count) in dumped {
        assert_eq!(status["endpoints"][&mode].as_u64(), Some(count), "{mode}: {status}");
        let line = format!("enforcer_endpoints{{mode=\"{mode}\"}} {count}");
        assert!(metrics.contains(&line), "no {line} in {metrics}");
    }
    Ok(())
}
