//! Where pods are: addresses that several pods have, that come late or that are given away, and interfaces that cannot be
//! hooked at once or are not to be hooked any more.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use enforcer_common::Mode;
use enforcer_tests::agent::{MESH_STRICT, policy};
use enforcer_tests::lab::{NODE, Running, Topology};
use enforcer_tests::{Lab, Pod, Scene, poll};
use nix::sys::signal::Signal;
use serde_json::Value;

const NAMESPACE: &str = "hipstershopv1v2";
const PLAIN: &str = "http://frontend.hipstershopv1v2:8080";
const LIMIT: Duration = Duration::from_secs(10);

fn status(lab: &Lab) -> Result<Value> {
    let output = lab.enforcer(&["status", "-o", "json"])?;
    serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
}

fn ip(lab: &Lab, member: &str, words: &str) -> Result<()> {
    lab.exec(member, std::iter::once("ip").chain(words.split(' ')))?.success()?;
    Ok(())
}

fn assert_refused(lab: &Lab, when: &str) -> Result<()> {
    let plain = lab.curl("sleep", &[PLAIN])?;
    assert_eq!((plain.stdout.as_str(), plain.code), ("000\n", 56), "{when}: {plain:?}");
    Ok(())
}

fn stop(agent: &mut Running) -> Result<()> {
    agent.signal(Signal::SIGTERM)?;
    assert_eq!(agent.wait(LIMIT)?, 0, "{}", agent.output());
    Ok(())
}

/// Another pod has the address of one under STRICT, as after a sandbox was left over or when a pod may change its own
/// network. Which of the two interfaces is older makes no difference, nor does a restart.
#[test]
fn an_address_behind_two_interfaces_is_enforced_behind_both() -> Result<()> {
    let pods = vec![
        Pod::meshed(NAMESPACE, "older", 13),
        Pod::meshed(NAMESPACE, "frontend", 10).port(8080),
        Pod::meshed(NAMESPACE, "younger", 14),
        Pod::new("noistio", "sleep", 20),
    ];
    let lab = Lab::with(Topology::Routed, pods)?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let (_server, records) = lab.sidecar("frontend", 8080)?;
    let address = lab.pod("frontend").v4();
    for thief in ["older", "younger"] {
        ip(&lab, thief, &format!("address add {address}/32 dev eth0"))?;
        let mut agent = lab.agent()?;
        assert_refused(&lab, thief)?;
        let problem = || {
            let status = status(&lab)?;
            let problems = status["problems"].as_array().cloned().unwrap_or_default();
            let names = |line: &str| {
                [lab.pod(thief).interface(), lab.pod("frontend").interface(), address.to_string()]
                    .iter()
                    .all(|name| line.contains(name.as_str()))
            };
            ensure!(problems.iter().filter_map(Value::as_str).any(names), "{problems:?}");
            Ok(())
        };
        poll::until("a problem that names both interfaces", LIMIT, problem)?;
        assert_eq!(lab.endpoint(address.into())?.ifindex, 0);
        let socket = lab.socket().display().to_string();
        let words = ["curl", "-sS", "-w", "%{http_code}", "--unix-socket", &socket, "http://agent/readyz"];
        let ready = lab.exec(NODE, words)?;
        assert!(ready.stdout.ends_with("200"), "it is enforced: {ready:?}");
        agent.kill()?;
        let mut agent = lab.agent()?;
        for round in 0..4 {
            assert_refused(&lab, &format!("{thief}, after a restart, {round}"))?;
            std::thread::sleep(Duration::from_millis(300));
        }
        // The other one lets go: the address is where it belongs, and nobody needs to look.
        ip(&lab, thief, &format!("address del {address}/32 dev eth0"))?;
        poll::until("the address to be one pod's", LIMIT, || {
            let found = lab.endpoint(address.into())?.ifindex;
            ensure!(found == lab.ifindex("frontend")?, "it is {found}");
            let problems = status(&lab)?["problems"].clone();
            ensure!(problems == serde_json::json!([]), "{problems}");
            Ok(())
        })?;
        assert_refused(&lab, thief)?;
        stop(&mut agent)?;
    }
    // Taken while the agent looks.
    let _agent = lab.agent()?;
    ip(&lab, "younger", &format!("address add {address}/32 dev eth0"))?;
    poll::until("the address to count everywhere", LIMIT, || {
        ensure!(lab.endpoint(address.into())?.ifindex == 0);
        Ok(())
    })?;
    assert_refused(&lab, "taken later")?;
    assert!(records.all()?.iter().all(|record| record.read <= 6), "plaintext came through");
    Ok(())
}

/// The second address of a pod comes later than the first, as addresses of IPv6 do.
#[test]
fn an_address_that_comes_late_is_placed() -> Result<()> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let pod = lab.pod("frontend").clone();
    for (family, address, prefix) in [("-6", pod.v6().to_string(), 128), ("-4", pod.v4().to_string(), 32)] {
        ip(&lab, "frontend", &format!("{family} address del {address}/{prefix} dev eth0"))?;
        // A link-local address is none that says whose interface this is.
        ip(&lab, "frontend", "-6 address replace fe80::5/64 dev eth0 nodad")?;
        let mut agent = lab.start_agent(&[])?;
        agent.wait_for_output("agent is running")?;
        std::thread::sleep(Duration::from_secs(1));
        let flag = if family == "-6" { " nodad" } else { "" };
        ip(&lab, "frontend", &format!("{family} address add {address}/{prefix} dev eth0{flag}"))?;
        let expected = lab.ifindex("frontend")?;
        poll::until("the late address to be placed", LIMIT, || {
            for address in pod.addresses() {
                let found = lab.endpoint(address)?.ifindex;
                ensure!(found == expected, "{address} is behind {found}");
            }
            Ok(())
        })?;
        // Longer than two checks of the hooks.
        std::thread::sleep(Duration::from_secs(7));
        let status = status(&lab)?;
        assert_eq!(status["unsupported_interfaces"], serde_json::json!([]), "{status}");
        assert_eq!(status["problems"], serde_json::json!([]), "{status}");
        stop(&mut agent)?;
    }
    Ok(())
}

/// What stands in the way is told, and the pod is enforced as soon as it is gone.
#[test]
fn a_first_attach_that_fails_is_tried_again() -> Result<()> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    let interface = lab.pod("frontend").interface();
    let tc = |verb: &str| lab.exec(NODE, ["tc", "qdisc", verb, "dev", &interface, "ingress"])?.success();
    tc("add")?;
    // As after an upgrade: something of an earlier layout is pinned, which must stay as long as it may be all that enforces.
    let earlier = lab.bpffs().join("v1/maps");
    std::fs::create_dir_all(&earlier)?;
    let mut agent = lab.start_agent(&["--hook", "clsact"])?;
    agent.wait_for_output("agent is running")?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    poll::until("the problem to be told", LIMIT, || {
        let problems = status(&lab)?["problems"].to_string();
        ensure!(problems.contains(&interface) && problems.contains("ingress qdisc"), "{problems}");
        Ok(())
    })?;
    assert!(earlier.is_dir(), "the maps of the earlier layout are gone");
    tc("del")?;
    poll::until("the interface to be hooked", LIMIT, || {
        let plain = lab.curl("sleep", &[PLAIN])?;
        ensure!(plain.code == 56, "{plain:?}");
        let problems = status(&lab)?["problems"].clone();
        ensure!(problems == serde_json::json!([]), "{problems}");
        ensure!(!earlier.is_dir(), "what the earlier layout left is still there");
        Ok(())
    })?;
    let told = agent.output().matches("has an ingress qdisc").count();
    assert_eq!(told, 1, "told once, not with every try:\n{}", agent.output());
    Ok(())
}

#[test]
fn an_interface_that_is_not_selected_any_more_is_let_go() -> Result<()> {
    for hook in ["tcx", "clsact"] {
        let lab = Lab::new()?;
        lab.describe()?;
        lab.apply("mesh.yaml", MESH_STRICT)?;
        let programs = |pod: &str| -> Result<usize> {
            let interface = lab.pod(pod).interface();
            let mut count = lab.own_hooks(pod)?.len();
            for direction in ["ingress", "egress"] {
                let filters = lab.exec(NODE, ["tc", "filter", "show", "dev", &interface, direction])?.stdout;
                count += filters.matches(" bpf ").filter(|_| filters.contains("_pod")).count().min(1);
            }
            Ok(count)
        };
        let mut agent = lab.start_agent(&["--hook", hook])?;
        agent.wait_for_output("agent is running")?;
        assert_eq!((programs("frontend")?, programs("adservice")?), (2, 2), "{hook}");
        stop(&mut agent)?;
        assert_eq!(programs("frontend")?, 2, "{hook}: what was enforced stays so");
        let only = lab.pod("adservice").interface();
        let mut agent = lab.start_agent(&["--hook", hook, "--interface", &only])?;
        agent.wait_for_output("agent is running")?;
        assert_eq!((programs("frontend")?, programs("adservice")?), (0, 2), "{hook}");
    }
    Ok(())
}

/// A pod's manifest with a deletion time.
fn leaving(pod: &Pod) -> String {
    pod.manifest()
        .replace("metadata:\n", "metadata:\n  uid: old\n  deletionTimestamp: 2026-01-01T00:00:00Z\n")
}

/// The network of a new pod stands before the API tells its address, and the object of the pod that had the address before is
/// still there. The policy of the old one, which lets plaintext in, is not the new one's.
#[test]
fn a_pod_that_is_being_deleted_does_not_move_to_the_next_pods_interface() -> Result<()> {
    let mut lab = Lab::with(
        Topology::Routed,
        vec![Pod::meshed(NAMESPACE, "frontend", 10).port(8080), Pod::new("noistio", "sleep", 20)],
    )?;
    lab.describe()?;
    lab.apply("mesh.yaml", &policy("istio-system", "default", None, "PERMISSIVE", &[]))?;
    let _agent = lab.agent_with(&["--unknown-pods", "strict"])?;
    lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    let (_old_server, _) = lab.sidecar("frontend", 8080)?;
    let old = lab.pod("frontend").clone();
    let cluster = |pod: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n---\n{pod}---\n{}",
            lab.pod("sleep").manifest()
        )
    };
    let text = cluster(&leaving(&old));
    let present = cluster(&old.manifest());
    lab.apply("cluster.yaml", &present)?;
    lab.apply("cluster.yaml", &text)?;
    std::thread::sleep(Duration::from_secs(1));
    // It still serves while it goes.
    assert_eq!(lab.curl("sleep", &[PLAIN])?.code, 0);
    lab.remove_pod("frontend")?;
    let mut new = old.clone();
    "next".clone_into(&mut new.name);
    lab.add_pod(new)?;
    let (_server, records) = lab.sidecar("next", 8080)?;
    let plain = format!("http://{}:8080", old.v4());
    for round in 0..10 {
        let answer = lab.curl("sleep", &[&plain])?;
        // A pod whose policy is not known is not connected to.
        assert_eq!(answer.code, 7, "round {round}: {answer:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(records.all()?.is_empty(), "{:?}", records.all()?);
    // Its own object: its own policy.
    lab.apply("cluster.yaml", &(text + "---\n" + &lab.pod("next").manifest()))?;
    poll::until("the new pod to have its policy", LIMIT, || {
        let answer = lab.curl("sleep", &[&plain])?;
        ensure!(answer.code == 0, "{answer:?}");
        Ok(())
    })?;
    Ok(())
}

/// A pod that has finished is enforced until its interface goes: what runs in it may still serve.
#[test]
fn a_finished_pod_is_enforced_as_long_as_it_is_there() -> Result<()> {
    let mut scene = Scene::strict()?;
    let (_server, _) = scene.lab.sidecar("frontend", 8080)?;
    assert_refused(&scene.lab, "running")?;
    let pod = scene.lab.pod("frontend").clone();
    let text = std::fs::read_to_string(scene.lab.manifests().join("cluster.yaml"))?;
    let finished = pod.manifest().replace("phase: Running", "phase: Failed");
    scene.lab.apply("cluster.yaml", &text.replace(&pod.manifest(), &finished))?;
    for round in 0..10 {
        assert_refused(&scene.lab, &format!("finished, {round}"))?;
        std::thread::sleep(Duration::from_millis(200));
    }
    // A new agent knows of it too.
    scene.agent.kill()?;
    scene.agent = scene.lab.start_agent(&[])?;
    scene.agent.wait_for_output("agent is running")?;
    for round in 0..5 {
        assert_refused(&scene.lab, &format!("finished, after a restart, {round}"))?;
        std::thread::sleep(Duration::from_millis(200));
    }
    scene.lab.remove_pod("frontend")?;
    poll::until("the finished pod to be forgotten", LIMIT, || {
        ensure!(scene.lab.endpoint(pod.v4().into()).is_err(), "it is still listed");
        Ok(())
    })?;
    Ok(())
}
