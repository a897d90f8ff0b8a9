//! What is printed as json beside a running agent, and a dead one, agrees with `docs/schemas/`.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use enforcer_common::Mode;
use enforcer_tests::agent::{FRONTEND_PERMISSIVE, MESH_STRICT};
use enforcer_tests::{Lab, Scene, poll};
use serde_json::Value;

fn check(name: &str, answer: &Value) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/schemas/{name}.json"));
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let validator = jsonschema::validator_for(&schema).context("a schema")?;
    let problems: Vec<_> = validator.iter_errors(answer).map(|error| error.to_string()).collect();
    ensure!(problems.is_empty(), "{name}: {problems:#?} in {answer:#}");
    ensure!(!validator.is_valid(&Value::Null), "the schema of {name} takes anything");
    Ok(())
}

fn json(lab: &Lab, words: &[&str]) -> Result<Value> {
    let output = lab.enforcer(&[words, &["-o", "json"]].concat())?;
    serde_json::from_str(&output.stdout).with_context(|| format!("{words:?}: {output:?}"))
}

/// Every line of `flows` agrees; gives the kinds of records.
fn check_flows(lab: &Lab) -> Result<BTreeSet<String>> {
    let output = lab.enforcer(&["flows", "-o", "json", "--socket", &lab.socket().display().to_string()])?;
    let mut kinds = BTreeSet::new();
    for line in output.success()?.stdout.lines() {
        let record: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        check("flows", &record)?;
        kinds.insert(record["event"].as_str().unwrap_or_default().to_owned());
    }
    Ok(kinds)
}

/// The results of certificate checks agree, before and after the first checks.
fn check_certs(lab: &Lab) -> Result<()> {
    poll::until("a checked server", Duration::from_mins(1), || {
        let report = json(lab, &["certs"])?;
        check("certs", &report)?;
        let entries = report["entries"].as_array().context("entries")?;
        let checked = entries.iter().filter(|entry| !entry["probe"].is_null()).count();
        ensure!(checked > 0, "{report}");
        Ok(())
    })
}

/// The cluster's answer has the form of a node's: what `readiness --kube` prints is merged like this.
fn check_merged(lab: &Lab) -> Result<()> {
    let file = lab.new_file("node.json");
    std::fs::write(&file, json(lab, &["readiness"])?.to_string())?;
    let absent = r#"{"node":"n2","why":"no agent runs there","workloads":["shop/cart"]}"#;
    let merged = json(lab, &["readiness", "--absent", absent, "--merge", &file.display().to_string()])?;
    check("readiness", &merged)?;
    ensure!(merged["absent"][0]["node"] == "n2", "{merged}");
    ensure!(merged["incomplete"].to_string().contains("node n2: no agent runs there"), "{merged}");
    Ok(())
}

#[test]
fn what_a_node_prints_agrees_with_the_schemas() -> Result<()> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    lab.apply("frontend.yaml", FRONTEND_PERMISSIVE)?;
    let bundle = lab.authority().certificate.display().to_string();
    let agent = lab.agent_with(&["--trust-bundle", &bundle])?;
    let mut scene = Scene { agent, lab };
    scene.lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    let (_frontend, _) = scene.lab.sidecar("frontend", 8080)?;
    let (_adservice, _) = scene.lab.sidecar("adservice", 9555)?;
    scene.lab.curl("sleep", &["http://frontend.hipstershopv1v2:8080"])?.success()?;
    assert_eq!(scene.lab.curl("sleep", &["http://adservice.hipstershopv1v2:9555"])?.code, 56);
    scene.lab.mesh_curl("loadgenerator", &["https://adservice.hipstershopv1v2:9555"])?.success()?;
    scene.lab.mesh_get("loadgenerator", "adservice", 9555)?;
    poll::until("records", Duration::from_secs(10), || {
        let kinds = check_flows(&scene.lab)?;
        ensure!(kinds == ["end".to_owned(), "verdict".to_owned()].into(), "{kinds:?}");
        Ok(())
    })?;
    check_certs(&scene.lab)?;
    check_merged(&scene.lab)?;
    for alive in [true, false] {
        if !alive {
            scene.agent.kill()?;
            // From the kernel's table of connections.
            check_flows(&scene.lab)?;
            check_certs(&scene.lab)?;
        }
        for name in ["status", "endpoints", "readiness"] {
            let answer = json(&scene.lab, &[name])?;
            check(name, &answer).with_context(|| format!("agent alive: {alive}"))?;
        }
    }
    let endpoints = json(&scene.lab, &["endpoints"])?;
    assert_eq!(endpoints.as_array().map(Vec::len), Some(6), "{endpoints}");
    Ok(())
}
