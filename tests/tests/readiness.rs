//! From PERMISSIVE to STRICT: who would break is named, what is printed as safe to apply is safe.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use enforcer_common::Mode;
use enforcer_tests::agent::MESH_STRICT;
use enforcer_tests::{Lab, Scene, poll};
use serde_json::Value;

const PLAIN_FRONTEND: &str = "http://frontend.hipstershopv1v2:8080";
const PLAIN_ADSERVICE: &str = "http://adservice.hipstershopv1v2:9555";
const MESH_ADSERVICE: &str = "https://adservice.hipstershopv1v2:9555";
/// Looks of the agent are seconds apart.
const PATIENCE: Duration = Duration::from_secs(40);

fn readiness(lab: &Lab, more: &[&str]) -> Result<(i32, Value)> {
    let output = lab.enforcer(&[&["readiness", "-o", "json", "--node-name", "n1"], more].concat())?;
    let report = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok((output.code, report))
}

fn workload<'a>(report: &'a Value, name: &str) -> Result<&'a Value> {
    let workloads = report["workloads"].as_array().context("workloads")?;
    workloads.iter().find(|one| one["workload"] == name).with_context(|| format!("no {name} in {report}"))
}

fn verdict(report: &Value, name: &str) -> Result<String> {
    Ok(workload(report, name)?["verdict"].as_str().unwrap_or_default().to_owned())
}

/// What does not depend on the moment of the question.
fn timeless(mut report: Value) -> Value {
    report["criteria"]["now"] = Value::Null;
    report
}

/// Every word of the answer about two workloads of which one has a plaintext client.
fn wait_for_answers(lab: &Lab) -> Result<Value> {
    let mut found = Value::Null;
    poll::until("both answers", PATIENCE, || {
        let (code, report) = readiness(lab, &["--min-watched", "2s"])?;
        ensure!(code == 1, "exit code {code}");
        ensure!(verdict(&report, "frontend")? == "NOT_READY", "{report}");
        ensure!(verdict(&report, "adservice")? == "READY", "{report}");
        let client = &workload(&report, "frontend")?["ports"][0]["plaintext_clients"][0];
        ensure!(client["name"] == "noistio/sleep", "{client}");
        found = report;
        Ok(())
    })?;
    Ok(found)
}

#[test]
fn the_road_from_permissive_to_strict() -> Result<()> {
    let mut scene = Scene::new(&[])?;
    let (_frontend, _) = scene.lab.sidecar("frontend", 8080)?;
    let (_adservice, _) = scene.lab.sidecar("adservice", 9555)?;
    scene.lab.curl("sleep", &[PLAIN_FRONTEND])?.success()?;
    scene.lab.curl("sleep", &[PLAIN_FRONTEND])?.success()?;
    scene.lab.mesh_get("loadgenerator", "adservice", 9555)?;

    // Who breaks?
    let report = wait_for_answers(&scene.lab)?;
    let port = &workload(&report, "frontend")?["ports"][0];
    assert_eq!((&port["port"], &port["plaintext"], &port["tls"]), (&8080.into(), &2.into(), &0.into()));
    let client = &port["plaintext_clients"][0];
    let address = client["address"].as_str().context("an address")?;
    assert!(["10.244.0.20", "fd00:10:244::20"].contains(&address), "{client}");
    assert_eq!(client["connections"], 2);
    let port = &workload(&report, "adservice")?["ports"][0];
    assert_eq!(port["plaintext"], 0);
    assert_eq!((&port["tls"], &port["mesh_tls"]), (&0.into(), &1.into()), "{port}");
    // A minute's silence is no proof, and no connection at all is none either.
    let (code, short) = readiness(&scene.lab, &[])?;
    assert_eq!((code, verdict(&short, "adservice")?.as_str()), (1, "NOT_ENOUGH_DATA"), "{short}");
    assert_eq!(verdict(&short, "loadgenerator")?, "NOT_ENOUGH_DATA", "{short}");
    let table = scene.lab.enforcer(&["readiness", "--min-watched", "2s"])?;
    assert_eq!(table.code, 1);
    for word in ["hipstershopv1v2/frontend", "NOT READY", "READY", "noistio/sleep", "NOT ENOUGH DATA"] {
        assert!(table.stdout.contains(word), "no {word} in {}", table.stdout);
    }

    // What is safe now is printed, passes the lint, and is safe.
    let yaml = scene.lab.enforcer(&["readiness", "--min-watched", "2s", "-o", "yaml"])?.stdout;
    assert_eq!(yaml.matches("kind: PeerAuthentication").count(), 1, "{yaml}");
    assert!(yaml.contains("# hipstershopv1v2/frontend: NOT READY"), "{yaml}");
    scene.lab.apply("ready.yaml", &yaml)?;
    let program = enforcer_tests::agent::enforcer_binary()?.display().to_string();
    let folder = scene.lab.manifests().display().to_string();
    let lint = [program.as_str(), "policy", "lint", "--strict", "--manifests", &folder];
    scene.lab.exec(enforcer_tests::lab::NODE, lint)?.success()?;
    scene.lab.wait_mode("adservice", Mode::STRICT)?;
    scene.lab.mesh_curl("loadgenerator", &[MESH_ADSERVICE])?.success()?;
    assert_eq!(scene.lab.curl("sleep", &[PLAIN_ADSERVICE])?.code, 56);
    scene.lab.curl("sleep", &[PLAIN_FRONTEND])?.success()?;

    // The agent dies: the answer stays, and so does what it follows from when the next one comes.
    scene.agent.kill()?;
    let dead = scene.lab.enforcer(&["readiness", "--min-watched", "2s"])?;
    assert!(dead.stdout.contains("noistio/sleep") && dead.stderr.contains("not running"), "{dead:?}");
    assert!(dead.stdout.contains("nobody has watched it for"), "{dead:?}");
    scene.agent = scene.lab.agent()?;
    poll::until("the next agent to watch", PATIENCE, || {
        let (_, report) = readiness(&scene.lab, &["--min-watched", "2s"])?;
        let frontend = workload(&report, "frontend")?;
        ensure!(frontend["ports"][0]["plaintext_clients"][0]["connections"] == 3, "{frontend}");
        ensure!(frontend["gaps"].as_u64().is_some_and(|gaps| gaps >= 1), "{frontend}");
        // What turned STRICT is no question any more.
        ensure!(workload(&report, "adservice").is_err(), "{report}");
        Ok(())
    })
}

#[test]
fn a_port_exception_keeps_its_client_alive() -> Result<()> {
    let scene = Scene::new(&[])?;
    let (_adservice, _) = scene.lab.sidecar("adservice", 9555)?;
    let (_raw, _) = scene.lab.sidecar("adservice", 9556)?;
    let plain_other = "http://adservice.hipstershopv1v2:9556";
    scene.lab.curl("sleep", &[plain_other])?.success()?;
    scene.lab.mesh_get("loadgenerator", "adservice", 9555)?;
    let mut yaml = String::new();
    poll::until("the exception", PATIENCE, || {
        yaml = scene.lab.enforcer(&["readiness", "--min-watched", "1s", "-o", "yaml"])?.stdout;
        ensure!(yaml.contains("    9556:\n      mode: PERMISSIVE\n"), "{yaml}");
        ensure!(yaml.contains("mode: STRICT"), "{yaml}");
        Ok(())
    })?;
    scene.lab.apply("ready.yaml", &yaml)?;
    scene.lab.wait_mode("adservice", Mode::STRICT)?;
    scene.lab.curl("sleep", &[plain_other])?.success()?;
    assert_eq!(scene.lab.curl("sleep", &[PLAIN_ADSERVICE])?.code, 56);
    scene.lab.mesh_curl("loadgenerator", &[MESH_ADSERVICE])?.success()?;
    Ok(())
}

#[test]
fn audit_mode_asks_about_strict_and_nodes_merge() -> Result<()> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let agent = lab.agent_with(&["--mode", "audit"])?;
    let scene = Scene { agent, lab };
    let (_frontend, _) = scene.lab.sidecar("frontend", 8080)?;
    let (_adservice, _) = scene.lab.sidecar("adservice", 9555)?;
    scene.lab.curl("sleep", &[PLAIN_FRONTEND])?.success()?;
    scene.lab.mesh_get("loadgenerator", "adservice", 9555)?;
    let report = wait_for_answers(&scene.lab)?;
    assert_eq!(workload(&report, "frontend")?["ports"][0]["mode"], "STRICT");

    // Another node, where the same workload has a plaintext client.
    let mut other = report.clone();
    other["nodes"][0]["node"] = "n2".into();
    let pods = other["nodes"][0]["pods"].as_array_mut().context("pods")?;
    let mut clients = Vec::new();
    for pod in pods.iter() {
        if pod["workload"] == "frontend" {
            clients = pod["clients"].as_array().context("clients")?.clone();
        }
    }
    for client in &mut clients {
        client["port"] = 9555.into();
    }
    for pod in pods.iter_mut().filter(|pod| pod["workload"] == "adservice") {
        pod["clients"] = clients.clone().into();
    }
    let files = ["n1.json", "n2.json"].map(|name| scene.lab.dir().join(name));
    fs::write(&files[0], report.to_string())?;
    fs::write(&files[1], other.to_string())?;
    let [first, second] = files.map(|file| file.display().to_string());
    let (code, merged) = readiness(&scene.lab, &["--min-watched", "2s", "--merge", &first, &second])?;
    assert_eq!((code, verdict(&merged, "adservice")?.as_str()), (1, "NOT_READY"), "{merged}");
    assert_eq!(workload(&merged, "adservice")?["nodes"], serde_json::json!(["n1", "n2"]));
    let (_, turned) = readiness(&scene.lab, &["--min-watched", "2s", "--merge", &second, &first])?;
    assert_eq!(timeless(merged), timeless(turned));
    let (_, again) = readiness(&scene.lab, &["--min-watched", "2s", "--merge", &first, &first])?;
    assert_eq!(again["workloads"], report["workloads"]);
    // A file of yesterday says nothing of today.
    for field in ["time", "looked"] {
        other["nodes"][0][field] = "2020-01-01T00:00:00Z".into();
    }
    fs::write(&second, other.to_string())?;
    let (_, stale) = readiness(&scene.lab, &["--merge", &first, &second])?;
    assert!(
        stale["incomplete"][0].as_str().is_some_and(|why| why.contains("node n2: it was asked")),
        "{stale}"
    );
    let broken = scene.lab.enforcer(&["readiness", "--merge", "/dev/null"])?;
    assert_eq!(broken.code, 2);
    assert!(broken.stderr.contains("/dev/null is no output of enforcer readiness"), "{broken:?}");
    Ok(())
}

/// The answer is no, and says why in these words.
fn not_enough(lab: &Lab, more: &[&str], words: &str) -> Result<()> {
    let (code, report) =
        readiness(lab, &[&["--min-watched", "1s", "--min-connections", "0"], more].concat())?;
    ensure!((code, &report["verdict"]) == (1, &"NOT_ENOUGH_DATA".into()), "exit code {code}: {report}");
    ensure!(report["incomplete"].to_string().contains(words), "no {words:?} in {report}");
    Ok(())
}

#[test]
fn who_knows_nothing_does_not_say_ready() -> Result<()> {
    let mut scene = Scene::strict()?;
    let lab = &scene.lab;
    // Nothing is open, and the pods prove it.
    poll::until("the first look", PATIENCE, || {
        let (code, report) = readiness(lab, &[])?;
        ensure!((code, &report["verdict"]) == (0, &"READY".into()), "exit code {code}: {report}");
        Ok(())
    })?;
    not_enough(lab, &["--namespace", "hipstershop"], "no meshed pod of namespace hipstershop was seen")?;
    let program = enforcer_tests::agent::enforcer_binary()?.display().to_string();
    let [_, bpffs, _, _] = lab.places();
    let elsewhere = lab.new_file("nothing").display().to_string();
    let words = [&program, "readiness", "--bpffs", &bpffs, "--state-dir", &elsewhere];
    let lost = lab.exec(enforcer_tests::lab::NODE, words)?;
    assert!(lost.code == 1 && lost.stdout.contains("NOT ENOUGH DATA"), "{lost:?}");
    assert!(lost.stdout.contains("nothing was watched yet"), "{lost:?}");
    scene.agent.kill()?;
    not_enough(&scene.lab, &[], "nobody has watched it for")?;
    // What lies there is of another boot.
    let name = bpffs.trim_matches('/').replace('/', "-");
    let path = scene.lab.state().join(format!("{name}.readiness.json"));
    let mut history: Value = serde_json::from_slice(&fs::read(&path).context(path.display().to_string())?)?;
    history["boot"] = "another".into();
    fs::write(&path, history.to_string())?;
    not_enough(&scene.lab, &[], "nothing was watched yet")
}

#[test]
fn a_pod_behind_no_hook_is_named() -> Result<()> {
    let lab = Lab::new()?;
    lab.describe()?;
    let interface = lab.pod("frontend").interface();
    let agent = lab.start_agent(&["--interface", &interface])?;
    let scene = Scene { agent, lab };
    poll::until("the pod without a hook", PATIENCE, || {
        let (code, report) = readiness(&scene.lab, &["--min-watched", "1s", "--min-connections", "0"])?;
        let adservice = workload(&report, "adservice")?;
        ensure!((code, &adservice["verdict"]) == (1, &"NOT_ENOUGH_DATA".into()), "{adservice}");
        let why = adservice["why"].as_str().unwrap_or_default();
        ensure!(why.contains("pod adservice: its address") && why.contains("no interface"), "{why}");
        ensure!(verdict(&report, "frontend")? == "READY", "{report}");
        Ok(())
    })
}

#[test]
fn tls_of_a_stranger_is_named_and_the_tunnel_counts() -> Result<()> {
    let scene = Scene::new(&[])?;
    let lab = &scene.lab;
    let (_adservice, _) = lab.sidecar("adservice", 9555)?;
    let (_tunnel, _) = lab.sidecar("frontend", 15008)?;
    // The mesh's own client and another one, from one address.
    for _ in 0..2 {
        lab.mesh_get("loadgenerator", "adservice", 9555)?;
    }
    lab.mesh_curl("loadgenerator", &["-4", MESH_ADSERVICE])?.success()?;
    lab.mesh_get("loadgenerator", "frontend", 15008)?;
    poll::until("what the hellos said", PATIENCE, || {
        let (code, report) = readiness(lab, &["--min-watched", "1s", "--mesh-tls-only"])?;
        let adservice = workload(&report, "adservice")?;
        let port = &adservice["ports"][0];
        ensure!(
            (&port["tls"], &port["tls_unread"], &port["mesh_tls"]) == (&1.into(), &0.into(), &2.into()),
            "{port}"
        );
        ensure!((code, &port["verdict"]) == (1, &"NOT_ENOUGH_DATA".into()), "{port}");
        ensure!(
            port["why"].as_str().is_some_and(|why| why.contains("TLS without the mesh's ALPN")),
            "{port}"
        );
        ensure!(port["tls_clients"][0]["name"] == "hipstershopv1v2/loadgenerator", "{port}");
        ensure!(port["tls_clients"][0]["connections"] == 1, "{port}");
        // Everything came through the tunnel: no port of its own saw a client.
        let frontend = workload(&report, "frontend")?;
        ensure!((&frontend["verdict"], &frontend["tunnel"]) == (&"READY".into(), &1.into()), "{frontend}");
        Ok(())
    })?;
    let (_, enough) = readiness(lab, &["--min-watched", "1s"])?;
    assert_eq!(verdict(&enough, "adservice")?, "READY");
    let yaml = lab.enforcer(&["readiness", "--min-watched", "1s", "-o", "yaml"])?.stdout;
    assert!(yaml.contains("but 1 client speaks TLS without the mesh's ALPN"), "{yaml}");
    Ok(())
}

#[test]
fn connections_before_the_window_are_left_out() -> Result<()> {
    let scene = Scene::new(&[])?;
    let lab = &scene.lab;
    let (_frontend, _) = lab.sidecar("frontend", 8080)?;
    let count = |window: &str| -> Result<u64> {
        let (_, report) = readiness(lab, &["--window", window])?;
        let port = &workload(&report, "frontend")?["ports"][0];
        port["plaintext"].as_u64().with_context(|| report.to_string())
    };
    for _ in 0..3 {
        lab.curl("sleep", &["-4", PLAIN_FRONTEND])?.success()?;
    }
    poll::until("the first number", PATIENCE, || {
        ensure!(count("7d")? == 3, "{}", count("7d")?);
        Ok(())
    })?;
    // Connections go on until the first ones lie before a window.
    poll::until("a window without the first ones", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(300));
        lab.curl("sleep", &["-4", PLAIN_FRONTEND])?.success()?;
        let (counted, all) = (count("3s")?, count("7d")?);
        ensure!(counted >= 1 && counted <= all - 3, "{counted} of {all}");
        Ok(())
    })?;
    let (_, report) = readiness(lab, &["--window", "3s"])?;
    let client = &workload(&report, "frontend")?["ports"][0]["plaintext_clients"][0];
    assert!(client["counted_from"].as_str() > client["first"].as_str(), "{client}");
    Ok(())
}

fn page() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/readiness.md")
}

/// The same but for times, lengths of time and the width of columns.
fn without_times(text: &str) -> String {
    let is_time = |word: &str| {
        let digits = word.trim_end_matches([';', ',', ':']).trim_end_matches(['s', 'm', 'h', 'd']);
        word.contains('T') && word.ends_with('Z')
            || digits.len() < word.len() && digits.parse::<u64>().is_ok()
    };
    let line = |line: &str| {
        let words = line.split_whitespace().map(|word| if is_time(word) { "TIME" } else { word });
        let mut words: Vec<_> = words.collect();
        words.dedup_by(|a, b| a == b && *a == "TIME");
        words.join(" ")
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_page_shows_what_is_printed() -> Result<()> {
    let scene = Scene::new(&[])?;
    let lab = &scene.lab;
    let (_frontend, _) = lab.sidecar("frontend", 8080)?;
    let (_adservice, _) = lab.sidecar("adservice", 9555)?;
    for _ in 0..9 {
        lab.mesh_get("loadgenerator", "adservice", 9555)?;
    }
    for _ in 0..6 {
        lab.mesh_get("loadgenerator", "frontend", 8080)?;
    }
    lab.mesh_curl("loadgenerator", &["-4", "https://frontend.hipstershopv1v2:8080"])?.success()?;
    for _ in 0..4 {
        lab.curl("sleep", &["-4", PLAIN_FRONTEND])?.success()?;
    }
    let mut report = Value::Null;
    poll::until("the answer", PATIENCE, || {
        let (_, found) = readiness(lab, &["--min-watched", "10s"])?;
        ensure!(verdict(&found, "adservice")? == "READY", "{found}");
        ensure!(workload(&found, "frontend")?["ports"][0]["mesh_tls"] == 6, "{found}");
        report = found;
        Ok(())
    })?;
    fs::write(lab.dir().join("n1.json"), report.to_string())?;
    report["nodes"][0]["node"] = "n2".into();
    for field in ["time", "looked"] {
        let yesterday = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24);
        report["nodes"][0][field] = yesterday.to_string().into();
    }
    fs::write(lab.dir().join("n2.json"), report.to_string())?;

    let program = enforcer_tests::agent::enforcer_binary()?.display().to_string();
    let before = fs::read_to_string(page())?;
    let mut after = String::new();
    for (number, part) in before.split("```console\n").enumerate() {
        if number == 0 {
            after.push_str(part);
            continue;
        }
        let (shown, rest) = part.split_once("```").context("an open block")?;
        let (prompt, shown) = shown.split_once('\n').context("no command")?;
        let command = prompt.strip_prefix("# enforcer").with_context(|| prompt.to_owned())?;
        let script = format!("cd {}; {program}{command} {}", lab.dir().display(), lab.places().join(" "));
        let printed = lab.exec(enforcer_tests::lab::NODE, ["sh", "-c", &script])?;
        if std::env::var_os("UPDATE_DOCS").is_none() {
            assert_eq!(
                without_times(shown),
                without_times(&printed.stdout),
                "{command}: run UPDATE_DOCS=1 with this test; {}",
                printed.stderr
            );
        }
        let _ = write!(after, "```console\n{prompt}\n{}```{rest}", printed.stdout);
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(page(), after)?;
    }
    assert_eq!(before.matches("```console").count(), 3);
    Ok(())
}
