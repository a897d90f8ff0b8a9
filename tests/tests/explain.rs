//! `enforcer policy explain` on what the running agent knows.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_common::Mode;
use enforcer_tests::agent::{FRONTEND_PERMISSIVE, MESH_STRICT, enforcer_binary};
use enforcer_tests::lab::{NODE, Output};
use enforcer_tests::{Scene, poll};
use serde_json::{Value, json};

const WAIT: Duration = Duration::from_secs(20);

fn explain(scene: &Scene, words: &[&str]) -> Result<Output> {
    let program = enforcer_binary()?.display().to_string();
    scene.lab.exec(NODE, [program.as_str(), "policy", "explain"].iter().chain(words))
}

#[test]
fn the_running_agent_explains_what_it_enforces() -> Result<()> {
    let mut scene = Scene::new(&[("mesh.yaml", MESH_STRICT), ("frontend.yaml", FRONTEND_PERMISSIVE)])?;
    scene.lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    let frontend = ["--pod", "hipstershopv1v2/frontend"];
    let table = explain(&scene, &frontend)?.success()?;
    ensure!(table.stdout.contains("all   PERMISSIVE  workload policy hipstershopv1v2/frontend"), "{table:?}");
    let answer = explain(&scene, &[&frontend[..], &["-o", "json"]].concat())?.success()?;
    let answer: Value = serde_json::from_str(&answer.stdout).context(answer.stdout)?;
    let decided = json!([
        {"level": "mesh", "policy": "istio-system/default", "mode": "STRICT"},
        {"level": "workload", "policy": "hipstershopv1v2/frontend", "mode": "PERMISSIVE"},
    ]);
    ensure!(answer["default"] == "PERMISSIVE" && answer["decided_by"] == decided, "{answer:#}");

    // Of the file that is refused now, the last good version is in force, and the answer says so.
    scene.lab.apply("frontend.yaml", &FRONTEND_PERMISSIVE.replace("PERMISSIVE", "permissive"))?;
    poll::until("the problem to be told", WAIT, || {
        let again = explain(&scene, &frontend)?.success()?;
        ensure!(again.stdout == table.stdout, "{again:?}");
        ensure!(again.stderr.contains("`permissive` is not a mode"), "{again:?}");
        Ok(())
    })?;

    // The agent's own root namespace counts.
    scene.agent.kill()?;
    scene.agent = scene.lab.agent_with(&["--root-namespace", "hipstershopv1v2"])?;
    // What is pinned enforces before the new agent answers.
    let other = poll::until("the new agent to answer", WAIT, || {
        explain(&scene, &["--pod", "hipstershopv1v2/adservice"])?.success()
    })?;
    ensure!(other.stdout.contains("PERMISSIVE  no policy sets a mode"), "{other:?}");
    let asked = ["--pod", "hipstershopv1v2/adservice", "--root-namespace", "istio-system"];
    let asked = explain(&scene, &asked)?.success()?;
    ensure!(asked.stdout.contains("STRICT  mesh policy istio-system/default"), "{asked:?}");

    let unknown = explain(&scene, &["--pod", "hipstershopv1v2/frontent"])?;
    ensure!(unknown.code == 2 && unknown.stderr.contains("did you mean"), "{unknown:?}");
    scene.agent.kill()?;
    let nobody = explain(&scene, &frontend)?;
    ensure!(nobody.code == 2 && nobody.stderr.contains("no agent answers on"), "{nobody:?}");
    Ok(())
}
