//! `enforcer status` and `enforcer doctor` beside a running agent: is it working, and what needs a person?

use std::time::Duration;

use anyhow::{Context as _, Result};
use enforcer_common::Mode;
use enforcer_tests::agent::{FRONTEND_PERMISSIVE, MESH_STRICT, Scene};
use enforcer_tests::lab::{NODE, Output};
use enforcer_tests::{Lab, poll};
use serde_json::Value;

fn json(output: &Output) -> Result<Value> {
    serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
}

fn status(lab: &Lab, more: &[&str]) -> Result<(i32, Value)> {
    let output = lab.enforcer(&[&["status", "-o", "json"], more].concat())?;
    Ok((output.code, json(&output)?))
}

#[test]
fn status_says_what_a_packet_costs_and_how_full_maps_are() -> Result<()> {
    let scene = Scene::strict()?;
    let (_server, _) = scene.lab.sidecar("frontend", 8080)?;
    let mut packets = scene.lab.command(
        "sleep",
        [
            "sh",
            "-c",
            "for i in 1 2 3 4 5 6 7 8; do curl -sm1 http://frontend.hipstershopv1v2:8080; sleep 0.2; done",
        ],
    );
    let mut packets = packets.spawn()?;
    let (code, report) = status(&scene.lab, &["--measure", "2"])?;
    packets.wait()?;
    assert_eq!(code, 0, "{report}");
    for name in ["to_pod", "from_pod"] {
        let programs = report["programs"].as_array().context("programs")?;
        let program = programs.iter().find(|program| program["name"] == name).context("a program")?;
        assert!(program["runs"].as_u64().is_some_and(|runs| runs > 0), "{program}");
        let cost = program["nanoseconds_per_run"].as_f64().context("a cost")?;
        assert!(cost > 0.0 && cost < 1e6, "{program}");
    }
    let maps = report["maps"].as_array().context("maps")?;
    let endpoints = maps.iter().find(|map| map["name"] == "ENDPOINTS").context("ENDPOINTS")?;
    // Both addresses of the three meshed pods.
    assert_eq!(endpoints["entries"], 6, "{endpoints}");
    assert!(endpoints["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{endpoints}");
    assert_eq!(report["endpoints"]["STRICT"], 6, "{report}");
    let refused = &report["refused"][0];
    assert_eq!((&refused["verdict"], &refused["reason"]), (&"reset".into(), &"PLAINTEXT".into()));
    assert!(refused["remedy"].as_str().is_some_and(|remedy| remedy.contains("certificate")), "{refused}");
    let table = scene.lab.enforcer(&["status"])?.success()?.stdout;
    assert!(table.contains("nothing needs attention") && table.contains("FULL"), "{table}");
    Ok(())
}

#[test]
fn a_pod_without_a_data_plane_and_a_refused_document_need_a_person() -> Result<()> {
    let lab = Lab::new()?;
    lab.apply(
        "unprotected.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: meshed\n  labels:\n    istio-injection: enabled\n---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: forgotten\n  namespace: meshed\nstatus:\n  podIP: 10.244.0.99\n",
    )?;
    let scene = Scene::in_lab(lab, &[("mesh.yaml", MESH_STRICT)])?;
    scene.lab.apply("broken.yaml", "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: x\n  namespace: y\nspec:\n  mtls:\n    mode: SRTICT\n")?;
    poll::until("status to tell both", Duration::from_secs(10), || {
        let (code, report) = status(&scene.lab, &[])?;
        let problems = report["problems"].to_string();
        anyhow::ensure!(code == 1, "exit code {code}");
        anyhow::ensure!(problems.contains("meshed/forgotten"), "{problems}");
        anyhow::ensure!(problems.contains("broken.yaml") && problems.contains("SRTICT"), "{problems}");
        Ok(())
    })
}

#[test]
fn doctor_sees_the_running_agent_and_its_neighbours() -> Result<()> {
    let scene = Scene::new(&[("mesh.yaml", MESH_STRICT), ("frontend.yaml", FRONTEND_PERMISSIVE)])?;
    scene.lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    let doctor = |lab: &Lab| -> Result<Value> {
        let program = enforcer_tests::agent::enforcer_binary()?.display().to_string();
        let places = lab.places();
        let words = [program.as_str(), "doctor", "-o", "json"].into_iter();
        json(&lab.exec(NODE, words.chain(places.iter().map(String::as_str)))?)
    };
    let check = |report: &Value, name: &str| -> Result<Value> {
        let checks = report["checks"].as_array().context("checks")?;
        checks.iter().find(|check| check["name"] == name).cloned().with_context(|| format!("no {name}"))
    };
    let report = doctor(&scene.lab)?;
    assert_eq!(check(&report, "pins")?["found"], "an agent of this layout runs", "{report}");
    let interfaces = check(&report, "interfaces")?;
    let pods = scene.lab.pods().len();
    assert_eq!(interfaces["outcome"], "ok", "{interfaces}");
    assert!(
        interfaces["found"].as_str().is_some_and(|found| found.starts_with(&pods.to_string())),
        "{interfaces}"
    );
    assert_eq!(check(&report, "other programs")?["outcome"], "ok", "{report}");
    Ok(())
}

/// What the maps cost is told at the start, and it is what the kernel counts for all that is pinned.
#[test]
fn the_memory_of_all_maps_is_told_at_the_start() -> Result<()> {
    let scene = Scene::strict()?;
    let output = scene.agent.output();
    let line = output.lines().find(|line| line.contains("memory of the maps:")).context(output.clone())?;
    let words: Vec<&str> = line.split_once("memory of the maps: ").context("a line")?.1.split(' ').collect();
    let (told, count): (f64, usize) = (words[0].parse()?, words[3].parse()?);
    let mut bytes = 0;
    let mut pinned = 0;
    for entry in std::fs::read_dir(scene.lab.map_path("FLOWS")?.parent().context("a folder")?)? {
        let path = entry?.path().display().to_string();
        let shown =
            scene.lab.exec(NODE, ["bpftool", "-j", "map", "show", "pinned", &path])?.success()?.stdout;
        let shown: Value = serde_json::from_str(&shown)?;
        bytes += shown["bytes_memlock"].as_u64().context("its memory")?;
        pinned += 1;
    }
    assert_eq!(count, pinned, "{line}");
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    assert!((told - mebibytes).abs() < 0.2, "{line}, but the kernel counts {mebibytes:.1} MiB");
    assert!(line.contains("FLOWS"), "{line}");
    Ok(())
}
