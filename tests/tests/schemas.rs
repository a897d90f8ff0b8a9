//! What is printed as json beside a running agent, and a dead one, agrees with `docs/schemas/`.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use enforcer_common::Mode;
use enforcer_tests::agent::{FRONTEND_PERMISSIVE, MESH_STRICT};
use enforcer_tests::{Lab, Scene};
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

#[test]
fn what_a_node_prints_agrees_with_the_schemas() -> Result<()> {
    let mut scene = Scene::new(&[("mesh.yaml", MESH_STRICT), ("frontend.yaml", FRONTEND_PERMISSIVE)])?;
    scene.lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    let (_frontend, _) = scene.lab.sidecar("frontend", 8080)?;
    let (_adservice, _) = scene.lab.sidecar("adservice", 9555)?;
    scene.lab.curl("sleep", &["http://frontend.hipstershopv1v2:8080"])?.success()?;
    assert_eq!(scene.lab.curl("sleep", &["http://adservice.hipstershopv1v2:9555"])?.code, 56);
    scene.lab.mesh_curl("loadgenerator", &["https://adservice.hipstershopv1v2:9555"])?.success()?;
    for alive in [true, false] {
        if !alive {
            scene.agent.kill()?;
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
