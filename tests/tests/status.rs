//! `enforcer status` and `enforcer doctor` beside a running agent: is it working, and what needs a person?

use std::time::Duration;

use anyhow::{Context as _, Result};
use enforcer::telemetry::client;
use enforcer_common::Mode;
use enforcer_tests::agent::{FRONTEND_PERMISSIVE, MESH_STRICT, Scene};
use enforcer_tests::lab::{NODE, Output};
use enforcer_tests::neighbour::{Answer, Neighbour};
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

/// A metric without labels.
fn metric(lab: &Lab, name: &str) -> Result<f64> {
    let text = client::get(&lab.socket(), "/metrics")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.with_context(|| format!("no {name} in {text}"))?.parse().context("no number")
}

#[test]
fn status_readyz_and_the_metric_agree_on_what_is_missing() -> Result<()> {
    let mut scene = Scene::strict()?;
    let ready = |lab: &Lab| -> Result<u16> { Ok(client::ask(&lab.socket(), "/readyz")?.0) };
    poll::until("the agent to be ready", Duration::from_secs(5), || {
        anyhow::ensure!(ready(&scene.lab)? == 200 && status(&scene.lab, &[])?.0 == 0);
        Ok(())
    })?;
    assert!(metric(&scene.lab, "enforcer_problems")?.abs() < 0.5);
    // A meshed pod that is on no interface of this node, or on one that nobody hooks.
    let pod = enforcer_tests::Pod::meshed("hipstershopv1v2", "ghost", 77);
    scene.lab.apply("ghost.yaml", &pod.manifest())?;
    let problems = poll::until("status to tell", Duration::from_secs(5), || {
        let (code, report) = status(&scene.lab, &[])?;
        anyhow::ensure!(ready(&scene.lab)? == 503 && code == 1, "{code}: {report}");
        report["problems"].as_array().cloned().context("problems")
    })?;
    let text = format!("{problems:?}");
    assert!(text.contains("hipstershopv1v2/ghost (10.244.0.77)") && text.contains("not enforced"), "{text}");
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let number = problems.len() as f64;
    assert!((metric(&scene.lab, "enforcer_problems")? - number).abs() < 0.5, "{text}");
    // When the agent is dead, too.
    scene.agent.kill()?;
    let (code, report) = status(&scene.lab, &[])?;
    assert_eq!(code, 1);
    assert!(report["problems"].to_string().contains("hipstershopv1v2/ghost"), "{report}");
    Ok(())
}

#[test]
fn an_agent_that_never_had_policy_needs_a_person() -> Result<()> {
    let lab = Lab::new()?;
    // Nothing listens there: the API server is away from the start.
    lab.apply("kubeconfig", "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster: {server: 'http://127.0.0.1:9'}\nusers:\n- name: u\n  user: {}\ncontexts:\n- name: x\n  context: {cluster: c, user: u}\ncurrent-context: x\n")?;
    let words = lab.run_words(&[])?;
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    let manifests = words.iter().position(|word| *word == "--manifests").context("--manifests")?;
    words.drain(manifests..manifests + 2);
    let kubeconfig = lab.manifests().join("kubeconfig").display().to_string();
    words.extend(["--kube", "--kubeconfig", &kubeconfig, "--node-name", "node"]);
    let _agent = lab.spawn(NODE, &words)?;
    poll::until("status to say that there is no policy", Duration::from_secs(20), || {
        let (code, report) = status(&lab, &[])?;
        anyhow::ensure!(code == 1 && report["agent"]["running"] == true, "{code}: {report}");
        anyhow::ensure!(report["problems"].to_string().contains("no policy has been loaded yet"), "{report}");
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
    assert_eq!(check(&report, "capabilities")?["found"], "all that the agent can use", "{report}");
    // What others put on clsact counts too.
    let interface = scene.lab.pod("frontend").interface();
    scene.lab.exec(NODE, ["tc", "qdisc", "add", "dev", &interface, "clsact"])?.success()?;
    let program = Neighbour::load("police", Answer::Next)?;
    let pin = scene.lab.bpffs().join("police");
    program.pin(&pin)?;
    let pin = pin.display().to_string();
    let words = ["tc", "filter", "add", "dev", &interface, "egress", "bpf", "da", "object-pinned", &pin];
    scene.lab.exec(NODE, words)?.success()?;
    let others = check(&doctor(&scene.lab)?, "other programs")?;
    assert_eq!(others["outcome"], "warn", "{others}");
    let found = others["found"].as_str().context("found")?;
    assert!(
        found.starts_with("police") && found.ends_with(&format!("clsact) on {interface}, towards the pod")),
        "{others}"
    );
    Ok(())
}

/// What the maps cost is told at the start, and it is what the kernel counts for all that is pinned.
#[test]
fn the_memory_of_all_maps_is_told_at_the_start() -> Result<()> {
    let scene = Scene::strict()?;
    let output = scene.agent.output();
    let line = output.lines().find(|line| line.contains("memory of the maps:")).context(output.clone())?;
    let words: Vec<&str> = line.split_once("memory of the maps: ").context("a line")?.1.split(' ').collect();
    let (told, count): (u64, usize) = (words[0].replace('.', "").parse()?, words[3].parse()?);
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
    // In tenths of a MiB.
    let counted = (bytes * 10) >> 20;
    assert!(told.abs_diff(counted) <= 2, "{line}, but the kernel counts {bytes} bytes");
    assert!(line.contains("FLOWS"), "{line}");
    Ok(())
}
