//! Everything is visible: names and words in the maps, and what the subcommands say.

use anyhow::Result;
use enforcer_common::Mode;
use enforcer_tests::agent::{FRONTEND_PERMISSIVE, MESH_STRICT};
use enforcer_tests::lab::NODE;
use enforcer_tests::{Lab, Scene};
use serde_json::Value;

fn scene() -> Result<Scene> {
    let scene = Scene::new(&[("mesh.yaml", MESH_STRICT), ("frontend.yaml", FRONTEND_PERMISSIVE)])?;
    scene.lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    scene.lab.wait_mode("adservice", Mode::STRICT)?;
    {
        let (_frontend, _) = scene.lab.sidecar("frontend", 8080)?;
        let (_adservice, _) = scene.lab.sidecar("adservice", 9555)?;
        scene.lab.curl("sleep", &["http://frontend.hipstershopv1v2:8080"])?.success()?;
        assert_eq!(scene.lab.curl("sleep", &["http://adservice.hipstershopv1v2:9555"])?.code, 56);
        scene.lab.mesh_curl("loadgenerator", &["https://adservice.hipstershopv1v2:9555"])?.success()?;
    }
    Ok(scene)
}

fn dump(lab: &Lab, map: &str) -> Result<String> {
    let path = lab.map_path(map)?.display().to_string();
    Ok(lab.exec(NODE, ["bpftool", "map", "dump", "pinned", &path])?.success()?.stdout)
}

#[test]
fn bpftool_prints_names_and_words() -> Result<()> {
    let scene = scene()?;
    let endpoints = dump(&scene.lab, "ENDPOINTS")?;
    for word in ["\"workload\":", "\"generation\":", "\"mode\": \"STRICT\"", "\"mode\": \"PERMISSIVE\""] {
        assert!(endpoints.contains(word), "no {word} in {endpoints}");
    }
    let counters = dump(&scene.lab, "COUNTERS")?;
    for word in [
        "\"verdict\": \"RESET\"",
        "\"verdict\": \"ALLOW\"",
        "\"reason\": \"PLAINTEXT\"",
        "\"reason\": \"PLAINTEXT_PERMITTED\"",
        "\"reason\": \"TLS\"",
        "\"direction\": \"TO_POD\"",
        "\"connections\":",
        "\"packets\":",
        "\"bytes\":",
    ] {
        assert!(counters.contains(word), "no {word} in {counters}");
    }
    Ok(())
}

/// Every string and number in a JSON document.
fn leaves(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(entries) => entries.values().for_each(|value| leaves(value, found)),
        Value::Array(entries) => entries.iter().for_each(|value| leaves(value, found)),
        Value::String(text) => found.push(text.clone()),
        other => found.push(other.to_string()),
    }
}

#[test]
fn subcommands_tell_with_and_without_an_agent() -> Result<()> {
    let mut scene = scene()?;
    for alive in [true, false] {
        if !alive {
            scene.agent.kill()?;
        }
        for (command, words) in [
            ("status", &["PLAINTEXT", "TLS"][..]),
            (
                "endpoints",
                &["10.244.0.10", "fd00:10:244::10", "10.244.0.11", "fd00:10:244::11", "STRICT", "PERMISSIVE"],
            ),
        ] {
            // A node without an agent is not as it should be: status says so with its exit code too.
            let code = i32::from(command == "status" && !alive);
            let table = scene.lab.enforcer(&[command])?;
            assert_eq!(table.code, code, "agent alive: {alive}: {table:?}");
            let json = scene.lab.enforcer(&[command, "-o", "json"])?;
            assert_eq!(json.code, code, "agent alive: {alive}: {json:?}");
            let (table, json) = (table.stdout, json.stdout);
            let mut found = Vec::new();
            leaves(&serde_json::from_str(&json)?, &mut found);
            for word in words {
                assert!(table.contains(word), "agent alive: {alive}: no {word} in {table}");
                assert!(
                    found.iter().any(|leaf| leaf.contains(word)),
                    "agent alive: {alive}: no {word} in {json}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn the_log_names_the_policy_behind_a_reset() -> Result<()> {
    let scene = scene()?;
    let log = scene.agent.output();
    let line = log.lines().find(|line| line.contains("PLAINTEXT") && line.contains("istio-system/default"));
    let line = line.unwrap_or_else(|| panic!("no verdict with its policy in the log:\n{log}"));
    assert!(line.contains("10.244.0.20") || line.contains("fd00:10:244::20"), "no client in {line}");
    assert!(line.contains("adservice"), "no pod in {line}");
    Ok(())
}
