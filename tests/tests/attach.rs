//! At which end of a pod's pair of devices it is enforced, where a data path delivers past the host side as Cilium's host
//! routing does: with `bpf_redirect_peer` on the client's interface, straight into the pod's device.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer::datapath::Pinned;
use enforcer::datapath::maps::{BypassedPods, Outbounds};
use enforcer::telemetry::client as socket;
use enforcer_common::map::endpoint_flags;
use enforcer_common::{Mode, Reason, Verdict};
use enforcer_tests::agent::{FRONTEND_PERMISSIVE, MESH_STRICT};
use enforcer_tests::client::{self, Outcome};
use enforcer_tests::lab::{NODE, Running};
use enforcer_tests::record::{End, Records};
use enforcer_tests::{Lab, Pod, poll};
use nix::net::if_::if_nametoindex;
use serde_json::Value;

const PLAIN: &str = "http://frontend.hipstershopv1v2:8080";
const SECURE: &str = "https://frontend.hipstershopv1v2:8080";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: frontend\r\n\r\n";
const LIMIT: Duration = Duration::from_mins(1);

struct Stage {
    agent: Running,
    _server: Running,
    records: Records,
    lab: Lab,
}

/// The cast under these policies, with an agent.
fn stage(attach: &str, more: &[&str], manifests: &[(&str, &str)]) -> Result<Stage> {
    let lab = Lab::new()?;
    lab.describe()?;
    for (file, text) in manifests {
        lab.apply(file, text)?;
    }
    let (server, records) = lab.sidecar("frontend", 8080)?;
    let words: Vec<&str> = ["--attach", attach].iter().chain(more).copied().collect();
    let agent = lab.agent_with(&words)?;
    Ok(Stage { agent, _server: server, records, lab })
}

fn strict(attach: &str) -> Result<Stage> {
    stage(attach, &[], &[("mesh.yaml", MESH_STRICT)])
}

fn is_inside(lab: &Lab, pod: &str) -> Result<()> {
    let [host, inside] = lab.own_hooks_by_side(pod)?.map(|hooks| hooks.len());
    ensure!(
        (host, inside) == (0, 2),
        "{pod} has {host} programs at the host side, {inside} at its own device"
    );
    for address in lab.pod(pod).addresses() {
        let flags = lab.endpoint(address)?.flags;
        ensure!(flags & endpoint_flags::POD_SIDE != 0, "{address} has flags {flags}");
    }
    Ok(())
}

fn is_outside(lab: &Lab, pod: &str) -> Result<()> {
    let [host, inside] = lab.own_hooks_by_side(pod)?.map(|hooks| hooks.len());
    ensure!(
        (host, inside) == (2, 0),
        "{pod} has {host} programs at the host side, {inside} at its own device"
    );
    for address in lab.pod(pod).addresses() {
        let flags = lab.endpoint(address)?.flags;
        ensure!(flags & endpoint_flags::POD_SIDE == 0, "{address} has flags {flags}");
    }
    Ok(())
}

/// Plaintext is reset at both ends and nothing of it arrives, over both families; the mesh is served.
fn assert_enforced(stage: &Stage, when: &str) -> Result<()> {
    let Stage { lab, records, .. } = stage;
    for family in ["-4", "-6"] {
        let plain = lab.curl("sleep", &["-sS", family, PLAIN])?;
        assert_eq!((plain.stdout.as_str(), plain.code), ("000\n", 56), "{when} {family}: {plain:?}");
        let mesh = lab.mesh_curl("loadgenerator", &[family, SECURE])?;
        assert_eq!((mesh.stdout.as_str(), mesh.code), ("200\n", 0), "{when} {family}: {mesh:?}");
    }
    for v6 in [false, true] {
        let seen = records.all()?.len();
        let stream = lab.connect("sleep", lab.address("frontend", 8080, v6))?;
        let ending = client::exchange(&stream, REQUEST, usize::MAX, LIMIT)?;
        assert_eq!(ending.outcome, Outcome::Reset, "{when} v6 {v6}: {ending:?}");
        assert!(ending.received.is_empty(), "{when} v6 {v6}: {ending:?}");
        let record = records.next_among_others(seen, stream.local_addr()?)?;
        assert_eq!(
            (record.read, record.written, record.end),
            (0, 0, End::Reset),
            "{when} v6 {v6}: {record:?}"
        );
    }
    lab.wait_no_sockets("frontend", 8080)?;
    lab.wait_no_sockets("sleep", 8080)
}

struct Told {
    code: i32,
    table: String,
    json: Value,
    problems: Vec<String>,
}

/// What `status` tells.
fn status(lab: &Lab) -> Result<Told> {
    let table = lab.enforcer(&["status"])?;
    let json: Value = serde_json::from_str(&lab.enforcer(&["status", "-o", "json"])?.stdout)?;
    let problems = json["problems"].as_array().context("problems")?.iter();
    let problems = problems.filter_map(Value::as_str).map(str::to_owned).collect();
    Ok(Told { code: table.code, table: table.stdout, problems, json })
}

/// The line of the table for the frontend's interface.
fn line<'a>(told: &'a Told, lab: &Lab) -> Result<&'a str> {
    let name = lab.pod("frontend").interface();
    told.table.lines().find(|line| line.contains(&name)).context("no line for the frontend")
}

fn row<'a>(told: &'a Told, lab: &Lab) -> Result<&'a Value> {
    let name = lab.pod("frontend").interface();
    let rows = told.json["interfaces"].as_array().context("interfaces")?;
    rows.iter().find(|row| row["name"] == name.as_str()).context("no row for the frontend")
}

/// What `/readyz` answers.
fn ready(lab: &Lab) -> Result<(u16, String)> {
    Ok(socket::ask(&lab.socket(), "/readyz")?)
}

/// Under STRICT nothing is answered, and everybody is told that the pod is not enforced.
#[test]
fn a_bypassed_host_side_is_told_and_answers_nobody() -> Result<()> {
    let mut stage = strict("host")?;
    let lab = &stage.lab;
    assert_eq!(ready(lab)?.0, 200, "{:?}", ready(lab)?);
    let program = lab.shortcut("sleep", "frontend")?;
    for v6 in [false, true] {
        let seen = stage.records.all()?.len();
        let stream = lab.connect("sleep", lab.address("frontend", 8080, v6))?;
        let ending = client::exchange(&stream, REQUEST, usize::MAX, LIMIT)?;
        assert!(ending.received.is_empty(), "v6 {v6}: it was answered: {ending:?}");
        assert_eq!(ending.outcome, Outcome::Reset, "v6 {v6}: {ending:?}");
        // What the pod reads, the host side cannot prevent: that is why it must not look enforced.
        let record = stage.records.next(seen, stream.local_addr()?)?;
        assert!(record.read > 0, "the shortcut does not work: {record:?}");
    }
    assert!(program.packets()? >= 6);
    assert!(lab.count(Verdict::RESET, Reason::MIDSTREAM)?.connections >= 2);
    let pods = BypassedPods::new("BYPASSED", Pinned::open(&lab.bpffs())?.map("BYPASSED")?)?;
    assert_eq!(pods.entries()?.len(), 2, "one for each address");
    poll::until("readiness to know", LIMIT, || {
        let (status, why) = ready(lab)?;
        ensure!(status == 503 && why.contains("past the hook"), "{status} {why}");
        Ok(())
    })?;
    let metrics = socket::get(&lab.socket(), "/metrics")?;
    assert!(metrics.contains("enforcer_bypassed_pods 1.0\n"), "one pod with two addresses");
    for when in ["with the agent", "when it is dead"] {
        let told = status(lab)?;
        assert_eq!(told.code, 1, "{when}: {}", told.table);
        assert!(line(&told, lab)?.contains("BYPASSED"), "{when}: {}", told.table);
        let sentence = format!(
            "packets reach pod hipstershopv1v2/frontend past the hook on {}",
            lab.pod("frontend").interface()
        );
        let found = told.problems.iter().find(|problem| problem.starts_with(&sentence));
        let found = found.with_context(|| format!("{when}: {:?}", told.problems))?;
        assert!(found.contains("run with --attach auto or pod"), "{found}");
        assert_eq!(row(&told, lab)?["bypassed"], true, "{when}");
        assert_eq!(
            told.json["bypassed"].as_array().map(Vec::len),
            Some(2),
            "{when}: {}",
            told.json["bypassed"]
        );
        let endpoints = lab.enforcer(&["endpoints"])?.stdout;
        assert!(endpoints.contains("STRICT BYPASSED"), "{when}: {endpoints}");
        stage.agent.kill()?;
    }
    is_outside(lab, "frontend")
}

/// The evidence is the same where nothing is refused, and for a server that speaks TLS to a bypassing client.
#[test]
fn a_permissive_pod_is_told_to_be_bypassed_too() -> Result<()> {
    let manifests = [("mesh.yaml", MESH_STRICT), ("frontend.yaml", FRONTEND_PERMISSIVE)];
    let stage = stage("host", &[], &manifests)?;
    let lab = &stage.lab;
    lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    let _program = lab.shortcut("loadgenerator", "frontend")?;
    let mesh = lab.mesh_curl("loadgenerator", &[SECURE])?;
    assert_eq!((mesh.stdout.as_str(), mesh.code), ("200\n", 0), "{mesh:?}");
    let told = status(lab)?;
    assert!(told.code == 1 && line(&told, lab)?.contains("BYPASSED"), "{}", told.table);
    Ok(())
}

#[test]
fn a_pods_own_device_cannot_be_bypassed() -> Result<()> {
    let mut stage = strict("pod")?;
    is_inside(&stage.lab, "frontend")?;
    assert_enforced(&stage, "without a shortcut")?;
    let _program = stage.lab.shortcut("sleep", "frontend")?;
    assert_enforced(&stage, "past the host side")?;
    let told = status(&stage.lab)?;
    assert_eq!(told.code, 0, "{:?}", told.problems);
    assert!(line(&told, &stage.lab)?.contains("yes (pod)"), "{}", told.table);
    let row = row(&told, &stage.lab)?;
    assert_eq!(
        (&row["side"], &row["hooked"], &row["bypassed"]),
        (&"pod".into(), &true.into(), &false.into())
    );
    assert_eq!(row["programs"].as_array().map(Vec::len), Some(2), "{row}");
    let counted = stage.lab.count(Verdict::RESET, Reason::PLAINTEXT)?;
    assert_eq!(counted.connections, 8, "each connection was counted once: {counted:?}");

    let before = stage.lab.own_hooks("frontend")?;
    stage.agent.kill()?;
    assert_enforced(&stage, "with a dead agent")?;
    assert_eq!(status(&stage.lab)?.json["interfaces"].as_array().map(Vec::len), Some(4));
    stage.agent = stage.lab.agent_with(&["--attach", "pod"])?;
    is_inside(&stage.lab, "frontend")?;
    assert_ne!(stage.lab.own_hooks("frontend")?, before, "the programs were replaced");
    assert_enforced(&stage, "after a restart")?;

    stage.agent.kill()?;
    let lab = &stage.lab;
    lab.enforcer(&["detach"])?.success()?;
    for pod in lab.pods() {
        let left = lab.own_hooks(&pod.name)?;
        assert!(left.is_empty(), "left on {}: {left:?}", pod.name);
    }
    let plain = lab.curl("sleep", &[PLAIN])?;
    assert_eq!(plain.stdout, "200\n", "{plain:?}");
    Ok(())
}

#[test]
fn auto_changes_over_upon_evidence_and_stays_so() -> Result<()> {
    let mut stage = strict("auto")?;
    assert_enforced(&stage, "at the host side")?;
    is_outside(&stage.lab, "frontend")?;
    let program = stage.lab.shortcut("sleep", "frontend")?;
    let lab = &stage.lab;
    let stream = lab.connect("sleep", lab.address("frontend", 8080, false))?;
    let ending = client::exchange(&stream, REQUEST, usize::MAX, LIMIT)?;
    assert!(ending.received.is_empty(), "it was answered: {ending:?}");
    poll::until("the frontend to change over", LIMIT, || is_inside(lab, "frontend"))?;
    is_outside(lab, "adservice")?;
    assert_enforced(&stage, "changed over")?;
    let told = status(lab)?;
    assert_eq!(told.code, 0, "{:?}", told.problems);
    assert!(line(&told, lab)?.contains("yes (pod)"), "{}", told.table);
    assert_eq!(ready(lab)?.0, 200, "{:?}", ready(lab)?);

    stage.agent.kill()?;
    stage.agent = stage.lab.agent_with(&["--attach", "auto"])?;
    is_inside(&stage.lab, "frontend")?;
    assert_enforced(&stage, "after a restart")?;
    // And back, where that is said.
    drop(program);
    stage.agent.kill()?;
    stage.agent = stage.lab.agent_with(&["--attach", "host"])?;
    poll::until("the frontend to be enforced outside", LIMIT, || is_outside(&stage.lab, "frontend"))?;
    assert_enforced(&stage, "at the host side again")?;
    let told = status(&stage.lab)?;
    assert_eq!(told.code, 0, "{:?}", told.problems);
    Ok(())
}

#[test]
fn auto_without_a_shortcut_stays_at_the_host_side() -> Result<()> {
    let stage = strict("auto")?;
    for _ in 0..3 {
        assert_enforced(&stage, "at the host side")?;
    }
    // Longer than the agent takes from one look at the evidence to the next.
    std::thread::sleep(Duration::from_secs(2));
    is_outside(&stage.lab, "frontend")?;
    let told = status(&stage.lab)?;
    assert!(told.code == 0 && line(&told, &stage.lab)?.contains("yes "), "{}", told.table);
    assert_eq!(told.json["bypassed"].as_array().map(Vec::len), Some(0));
    Ok(())
}

#[test]
fn programs_that_somebody_takes_off_are_put_back() -> Result<()> {
    let stage = strict("pod")?;
    let lab = &stage.lab;
    let links = lab.bpffs().join("links");
    let pin = std::fs::read_dir(&links)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with("-in-to_pod"))
        .collect::<Vec<_>>();
    assert_eq!(pin.len(), 4, "a link for each pod: {pin:?}");
    for path in &pin {
        lab.exec(NODE, ["bpftool", "link", "detach", "pinned", &path.display().to_string()])?.success()?;
    }
    let told = status(lab)?;
    assert!(told.code == 1 && line(&told, lab)?.contains("NO"), "{}", told.table);
    poll::until("the programs to be back", LIMIT, || is_inside(lab, "frontend"))?;
    assert_enforced(&stage, "put back")
}

/// A new pod, and one that goes: nothing of it stays pinned.
#[test]
fn a_pod_comes_and_goes() -> Result<()> {
    let mut stage = strict("pod")?;
    let pod = Pod::meshed("hipstershopv1v2", "cart", 30).port(7070);
    stage.lab.add_pod(pod)?;
    stage.lab.describe()?;
    stage.lab.wait_mode("cart", Mode::STRICT)?;
    poll::until("the pod to be enforced at its own device", LIMIT, || is_inside(&stage.lab, "cart"))?;
    let (server, _) = stage.lab.sidecar("cart", 7070)?;
    let plain = stage.lab.curl("sleep", &["http://cart.hipstershopv1v2:7070"])?;
    assert_eq!((plain.stdout.as_str(), plain.code), ("000\n", 56), "{plain:?}");
    let links = |lab: &Lab| -> Result<usize> {
        Ok(std::fs::read_dir(lab.bpffs().join("links"))?.filter_map(Result::ok).count())
    };
    let before = links(&stage.lab)?;
    drop(server);
    stage.lab.remove_pod("cart")?;
    poll::until("its pins to go", LIMIT, || {
        let now = links(&stage.lab)?;
        ensure!(now == before - 2, "{now} of {before}");
        Ok(())
    })
}

/// The agent's own checks are known without a mark, and so the server is proven as at the host side.
#[test]
fn certificates_are_checked_at_a_pods_own_device() -> Result<()> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let bundle = lab.authority().certificate.display().to_string();
    let _server =
        lab.openssl("frontend", 8080, &lab.tls("frontend"), &["-Verify", "2", "-verify_return_error"])?;
    let _agent = lab.agent_with(&["--attach", "pod", "--trust-bundle", &bundle])?;
    poll::until("the server to be proven", Duration::from_mins(1), || {
        let output = lab.enforcer(&["certs", "-o", "json"])?;
        let report: Value = serde_json::from_str(&output.stdout).with_context(|| output.stderr.clone())?;
        let entries = report["entries"].as_array().context("entries")?.iter();
        let states: Vec<_> =
            entries.filter(|e| e["pod"] == "frontend" && e["port"] == 8080).map(|e| &e["state"]).collect();
        ensure!(states.len() == 2 && states.iter().all(|state| **state == "verified"), "{states:?}");
        Ok(())
    })?;
    assert!(lab.count(Verdict::ALLOW, Reason::PROBE)?.connections >= 2, "checks count as checks");
    assert_eq!(lab.count(Verdict::ALLOW, Reason::TLS)?.connections, 0, "and as nothing else");
    Ok(())
}

/// The kubelet's probes come through at a pod's own device as they do at the host side; the node's other ports do not.
#[test]
fn the_node_probes_a_pod_at_its_own_device() -> Result<()> {
    let stage = strict("pod")?;
    let lab = &stage.lab;
    let probed = lab.pod("frontend").manifest().replace(
        "image: app\n",
        "image: app\n      readinessProbe:\n        httpGet:\n          port: 8080\n",
    );
    lab.apply("probed.yaml", &probed)?;
    let others: Vec<Pod> = lab.pods().iter().filter(|pod| pod.name != "frontend").cloned().collect();
    let others: Vec<String> = others.iter().map(Pod::manifest).collect();
    lab.apply("cluster.yaml", &others.join("---\n"))?;
    let fetch = |family: &str, url: &str| {
        lab.exec(NODE, ["curl", "-sS", "-m", "5", family, "-o", "/dev/null", "-w", "%{http_code}", url])
    };
    let urls = lab.pod("frontend").addresses().map(|address| {
        let family = if address.is_ipv4() { "-4" } else { "-6" };
        (family, format!("http://{}", std::net::SocketAddr::new(address, 8080)))
    });
    poll::until("the probed port to be known", LIMIT, || {
        let got = fetch("-4", &urls[0].1)?;
        ensure!(got.stdout == "200", "{got:?}");
        Ok(())
    })?;
    for (family, url) in urls {
        let got = fetch(family, &url)?;
        assert_eq!(got.stdout, "200", "{got:?}");
    }
    assert!(lab.count(Verdict::ALLOW, Reason::PROBE)?.connections >= 3);
    assert_enforced(&stage, "for everybody else")
}

/// One pod cannot speak in the name of another, whose device has the same index: a SYN with the frontend's address that
/// leaves another pod does not make the frontend's next connection its own.
#[test]
fn a_pod_does_not_speak_for_another() -> Result<()> {
    let stage = strict("pod")?;
    let lab = &stage.lab;
    let device = |pod: &str| lab.inside(pod, || if_nametoindex("eth0"));
    assert_eq!(
        device("adservice")??,
        device("frontend")??,
        "an index tells them apart, and this test nothing"
    );
    // As an address of the other pod's own, so that its stack sends in the frontend's name.
    let frontend = lab.pod("frontend").v4().to_string();
    lab.exec("adservice", ["ip", "address", "add", &frontend, "dev", "lo"])?.success()?;
    let url = format!("http://{}:40000", lab.pod("sleep").v4());
    let words = ["curl", "-m", "1", "--interface", &frontend, "--local-port", "8080", &url];
    let output = lab.exec("adservice", words)?;
    assert_eq!(output.code, 28, "its packets do not come back: {output:?}");
    let table = Pinned::open(&lab.bpffs())?.map("OUTBOUND")?;
    let outbound = Outbounds::new("OUTBOUND", table)?.entries()?;
    let forged = outbound.iter().filter(|(key, _)| (key.pod_port, key.client_port) == (8080, 40000));
    assert_eq!(forged.count(), 0, "the frontend is said to have opened a connection that it did not open");
    Ok(())
}
