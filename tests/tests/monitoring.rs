//! Alerts and dashboard of `deploy/monitoring`, held against promtool and against a real Prometheus that scrapes a lab's agent.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use enforcer::telemetry::client;
use enforcer_common::{Reason, Verdict};
use enforcer_tests::agent::{FRONTEND_PERMISSIVE, MESH_STRICT};
use enforcer_tests::lab::{NODE, Running, run};
use enforcer_tests::{Lab, poll};
use serde_json::Value;

/// Where Prometheus listens in the lab's node.
const PROMETHEUS: &str = "127.0.0.1:9090";
/// How long Prometheus may take to start, and to have scraped often enough for a rate.
const SCRAPED: Duration = Duration::from_secs(30);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/monitoring")
}

fn yaml(file: &str) -> Result<Value> {
    let text = fs::read_to_string(folder().join(file))?;
    serde_saphyr::from_str(&text).with_context(|| file.to_owned())
}

fn dashboard() -> Result<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(folder().join("dashboard.json"))?)?)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Every query of the dashboard with the title of its panel, the variables filled in.
fn queries() -> Result<Vec<(String, String)>> {
    let dashboard = dashboard()?;
    let mut queries = Vec::new();
    for panel in list(&dashboard, "panels") {
        let title = panel["title"].as_str().context("a panel without title")?;
        for target in list(panel, "targets") {
            let query = target["expr"].as_str().context("a target without query")?;
            let filled = query
                .replace("$__rate_interval", "10s")
                .replace("$instance", ".*")
                .replace("$namespace", ".*");
            ensure!(!filled.contains('$'), "{title}: {filled} has a variable that is not filled in");
            queries.push((title.to_owned(), filled));
        }
    }
    Ok(queries)
}

/// Every query of the alerts.
fn alert_queries() -> Result<Vec<(String, String)>> {
    let rules = yaml("rules.yaml")?;
    let rules = list(&rules, "groups").iter().flat_map(|group| list(group, "rules"));
    rules
        .map(|rule| {
            let text = |key: &str| rule[key].as_str().map(str::to_owned).context(rule.to_string());
            Ok((text("alert")?, text("expr")?))
        })
        .collect()
}

fn metric_names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("enforcer_")).map(str::to_owned).collect()
}

/// A lab with an agent that serves metrics, and some connections with each outcome.
fn lab() -> Result<(Lab, Running)> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    lab.apply("frontend.yaml", FRONTEND_PERMISSIVE)?;
    let agent = lab.agent_with(&["--metrics-address", "127.0.0.1:9464"])?;
    Ok((lab, agent))
}

fn traffic(lab: &Lab) -> Result<()> {
    lab.curl("sleep", &["http://frontend.hipstershopv1v2:8080"])?.success()?;
    assert_eq!(lab.curl("sleep", &["http://adservice.hipstershopv1v2:9555"])?.code, 56);
    lab.mesh_curl("loadgenerator", &["https://adservice.hipstershopv1v2:9555"])?.success()?;
    Ok(())
}

#[test]
fn promtool_accepts_the_alerts_and_each_fires_when_it_must() -> Result<()> {
    let path = |file: &str| folder().join(file).display().to_string();
    run("promtool", ["check", "rules", &path("rules.yaml")])?.success()?;
    run("promtool", ["test", "rules", &path("rules_test.yaml")])?.success()?;
    let tested = fs::read_to_string(folder().join("rules_test.yaml"))?;
    for (alert, _) in alert_queries()? {
        for case in ["fires", "is quiet"] {
            assert!(
                tested.contains(&format!("name: {alert} {case}\n")),
                "{alert} has no test that it {case}"
            );
        }
    }
    Ok(())
}

#[test]
fn every_alert_says_what_to_do() -> Result<()> {
    let rules = yaml("rules.yaml")?;
    for rule in list(&rules, "groups").iter().flat_map(|group| list(group, "rules")) {
        for key in ["summary", "description", "runbook"] {
            assert!(
                rule["annotations"][key].as_str().is_some_and(|text| text.len() > 20),
                "{rule}: no {key}"
            );
        }
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        assert!(["info", "warning", "critical"].contains(&severity), "{rule}");
    }
    let operator = yaml("prometheusrule.yaml")?;
    assert_eq!(operator["kind"], "PrometheusRule");
    assert_eq!(operator["spec"]["groups"], rules["groups"], "prometheusrule.yaml and rules.yaml differ");
    Ok(())
}

#[test]
fn the_dashboard_is_laid_out_and_complete() -> Result<()> {
    let dashboard = dashboard()?;
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in list(&dashboard, "panels") {
        assert!(ids.insert(panel["id"].as_u64().context("a panel without id")?), "{}", panel["title"]);
        let place = |key: &str| panel["gridPos"][key].as_u64().context("a panel without place");
        let (x, y, w, h) = (place("x")?, place("y")?, place("w")?, place("h")?);
        assert!(x + w <= 24, "{} is too wide", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{} lies over another panel", panel["title"]);
        }
        if panel["type"] != "row" {
            assert!(!list(panel, "targets").is_empty(), "{} has no query", panel["title"]);
            assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()), "{}", panel["title"]);
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
    let variables: BTreeSet<_> = list(&dashboard["templating"], "list")
        .iter()
        .filter_map(|variable| variable["name"].as_str())
        .collect();
    assert_eq!(variables, ["datasource", "instance", "namespace"].into());
    Ok(())
}

#[test]
fn promtool_accepts_the_metrics_and_every_query_names_real_ones() -> Result<()> {
    let (lab, _agent) = lab()?;
    let (_frontend, _) = lab.sidecar("frontend", 8080)?;
    let (_adservice, _) = lab.sidecar("adservice", 9555)?;
    traffic(&lab)?;
    let metrics = client::get(&lab.socket(), "/metrics")?;
    let file = lab.new_file("metrics");
    fs::write(&file, &metrics)?;
    // It prints what it does not like and says so with its exit code.
    let checked = run("sh", ["-c", &format!("promtool check metrics < {}", file.display())])?.success()?;
    assert_eq!((checked.stdout.as_str(), checked.stderr.as_str()), ("", ""));
    // A histogram's samples have names of their own.
    let served = metric_names(&metrics);
    for (title, query) in queries()?.into_iter().chain(alert_queries()?) {
        for name in metric_names(&query) {
            assert!(served.contains(&name), "{title}: the agent has no metric {name}");
        }
    }
    Ok(())
}

/// Asks Prometheus.
fn ask(lab: &Lab, path: &str, query: &str) -> Result<Value> {
    let url = format!("http://{PROMETHEUS}/api/v1/{path}");
    let query = format!("query={query}");
    let answer = lab.exec(NODE, ["curl", "-sS", "-G", &url, "--data-urlencode", &query])?.success()?.stdout;
    let answer: Value = serde_json::from_str(&answer).with_context(|| answer.clone())?;
    ensure!(answer["status"] == "success", "{query}: {answer}");
    Ok(answer["data"].clone())
}

#[test]
fn a_real_prometheus_answers_every_query_of_the_dashboard() -> Result<()> {
    let (lab, _agent) = lab()?;
    let (_frontend, _) = lab.sidecar("frontend", 8080)?;
    let (_adservice, _) = lab.sidecar("adservice", 9555)?;
    let (_greeter, _) = lab.raw_server("adservice", 9556, &["--greet", "220 ready\r\n"])?;
    let config = lab.new_file("prometheus.yaml");
    let rules = folder().join("rules.yaml").canonicalize()?;
    fs::write(
        &config,
        format!(
            "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files:\n  - {}\nscrape_configs:\n  \
             - job_name: enforcer\n    static_configs:\n      - targets: ['127.0.0.1:9464']\n",
            rules.display()
        ),
    )?;
    let words = [
        "prometheus".to_owned(),
        format!("--config.file={}", config.display()),
        format!("--storage.tsdb.path={}", lab.new_file("tsdb").display()),
        format!("--web.listen-address={PROMETHEUS}"),
    ];
    let prometheus = lab.spawn(NODE, words)?;
    // Some queries need a connection between two scrapes, so there are always some.
    let empty_ones = ["Certificate checks", "Certificates end in", "New pods without policy"];
    let queries = queries()?;
    let answered = poll::until("data for every panel", SCRAPED, || {
        traffic(&lab)?;
        // The server speaks first, and both ends are reset, perhaps before this one is open.
        let greeted = lab.address("adservice", 9556, false);
        let _ = lab.inside("sleep", || TcpStream::connect_timeout(&greeted, Duration::from_secs(1)))?;
        let mut empty = Vec::new();
        for (title, query) in &queries {
            if list(&ask(&lab, "query", query)?, "result").is_empty() && !empty_ones.contains(&title.as_str())
            {
                empty.push(format!("{title}: {query}"));
            }
        }
        ensure!(empty.is_empty(), "no data for {empty:#?}");
        Ok(())
    });
    answered.with_context(|| prometheus.output())?;
    let resets =
        r#"sum(enforcer_connections_total{verdict="reset",reason="PLAINTEXT",workload="adservice"})"#;
    let value = ask(&lab, "query", resets)?["result"][0]["value"][1].as_str().map(str::to_owned);
    let value: f64 = value.context("no resets")?.parse()?;
    assert!(value >= 1.0);
    // What is refused already breaks nobody any more.
    let (_, broken) = queries
        .iter()
        .find(|(title, _)| title.starts_with("Connections that STRICT would break"))
        .context("no such panel")?;
    let broken = ask(&lab, "query", broken)?;
    let workloads: Vec<_> =
        list(&broken, "result").iter().map(|row| row["metric"]["workload"].clone()).collect();
    assert_eq!(workloads, ["frontend"], "{broken}");
    assert!(lab.count(Verdict::RESET, Reason::SERVER_FIRST)?.connections > 0);
    let groups = ask(&lab, "rules", "")?;
    let rules: Vec<_> = list(&groups, "groups").iter().flat_map(|group| list(group, "rules")).collect();
    assert_eq!(rules.len(), alert_queries()?.len());
    for rule in rules {
        assert_ne!(rule["health"], "err", "{rule}");
        assert_eq!(rule["state"], "inactive", "in a lab where all is well: {rule}");
    }
    Ok(())
}
