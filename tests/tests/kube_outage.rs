//! The API server goes, is slow, refuses, forgets: what was in force stays in force, is said once, and what changed
//! meanwhile is in force as soon as it is back.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use enforcer_common::Mode;
use enforcer_tests::agent::policy;
use enforcer_tests::cluster::{Cluster, KubeScene};
use enforcer_tests::{Lab, poll};
use nix::sys::signal::Signal;
use serde_json::json;

fn mesh(mode: &str) -> String {
    policy("istio-system", "default", None, mode, &[])
}

/// From the moment that policies are followed again: the time until a mode is in force.
fn in_force_after_reconnect(scene: &KubeScene, mode: Mode) -> Result<Duration> {
    scene.wait_followed("peerauthentications", true)?;
    let start = Instant::now();
    scene.lab.wait_mode("frontend", mode)?;
    Ok(start.elapsed())
}

#[test]
fn killed_and_restarted() -> Result<()> {
    let mut scene = KubeScene::new(&["v1"])?;
    let (_server, _) = scene.lab.sidecar("frontend", 8080)?;
    scene.cluster.apply_yaml(&mesh("STRICT"))?;
    scene.lab.wait_mode("frontend", Mode::STRICT)?;
    scene.cluster.kill("kube-apiserver")?;
    scene.wait_followed("peerauthentications", false)?;
    assert_eq!(scene.curl()?, ("000".to_owned(), 56));
    scene.cluster.up()?;
    scene.wait_followed("peerauthentications", true)?;
    // An API server without its store goes on serving watches: the agent cannot tell, and need not.
    scene.cluster.kill("etcd")?;
    assert_eq!(scene.curl()?, ("000".to_owned(), 56));
    scene.cluster.up()?;
    scene.cluster.apply_yaml(&mesh("PERMISSIVE"))?;
    scene.lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    scene.cluster.apply_yaml(&mesh("STRICT"))?;
    scene.lab.wait_mode("frontend", Mode::STRICT)?;
    assert!(scene.said("cannot be reached") <= 6, "{}", scene.agent.output());

    // The policy changes while the agent cannot hear it.
    scene.cluster.kill("kube-apiserver")?;
    scene.wait_followed("pods", false)?;
    scene.agent.signal(Signal::SIGSTOP)?;
    scene.cluster.up()?;
    scene.cluster.apply_yaml(&mesh("PERMISSIVE"))?;
    scene.agent.signal(Signal::SIGCONT)?;
    let took = in_force_after_reconnect(&scene, Mode::PERMISSIVE)?;
    assert!(took < Duration::from_secs(2), "it took {took:?}");

    // An agent that starts without an API server enforces what its predecessor knew: the pins, and the policy.
    scene.cluster.apply_yaml(&mesh("STRICT"))?;
    scene.lab.wait_mode("frontend", Mode::STRICT)?;
    scene.agent.kill()?;
    scene.cluster.kill("kube-apiserver")?;
    scene.agent = scene.cluster.agent(&scene.lab, &[])?;
    scene.wait_said("pods were not listed since the agent started")?;
    assert_eq!(scene.curl()?, ("000".to_owned(), 56));
    scene.cluster.up()?;
    scene.cluster.apply_yaml(&mesh("PERMISSIVE"))?;
    let took = in_force_after_reconnect(&scene, Mode::PERMISSIVE)?;
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    Ok(())
}

/// Long gone: the agent's own intervals have grown to their longest, and yet it is there as soon as the server is.
#[test]
fn back_after_a_while() -> Result<()> {
    let scene = KubeScene::new(&["v1"])?;
    for mode in [("STRICT", Mode::STRICT), ("PERMISSIVE", Mode::PERMISSIVE)] {
        scene.cluster.kill("kube-apiserver")?;
        scene.wait_followed("peerauthentications", false)?;
        std::thread::sleep(Duration::from_secs(25));
        scene.cluster.up()?;
        let back = Instant::now();
        scene.cluster.apply_yaml(&mesh(mode.0))?;
        scene.lab.wait_mode("frontend", mode.1)?;
        let took = back.elapsed();
        println!("from the return of the API server to the policy in force: {took:?}");
        assert!(took < Duration::from_secs(2), "it took {took:?}");
    }
    Ok(())
}

/// A server that takes connections and answers nothing looks like one where nothing happens.
#[test]
fn hung() -> Result<()> {
    let scene = KubeScene::new(&["v1"])?;
    let (_server, _) = scene.lab.sidecar("frontend", 8080)?;
    scene.cluster.apply_yaml(&mesh("STRICT"))?;
    scene.lab.wait_mode("frontend", Mode::STRICT)?;
    scene.cluster.signal("kube-apiserver", Signal::SIGSTOP)?;
    let start = Instant::now();
    for kind in ["peerauthentications", "namespaces", "pods", "services"] {
        // One question every 15 s, which waits for 10 s.
        scene.wait_followed_within(kind, false, Duration::from_secs(40))?;
    }
    println!("a hung API server was noticed after {:?}", start.elapsed());
    scene.wait_said("it does not answer in time")?;
    assert_eq!(scene.curl()?, ("000".to_owned(), 56));
    std::thread::sleep(Duration::from_secs(15));
    assert!(scene.said("cannot be reached") <= 3, "{}", scene.agent.output());
    scene.cluster.signal("kube-apiserver", Signal::SIGCONT)?;
    let back = Instant::now();
    scene.cluster.apply_yaml(&mesh("PERMISSIVE"))?;
    scene.lab.wait_mode("frontend", Mode::PERMISSIVE)?;
    let took = back.elapsed();
    println!("from the end of the hang to the policy in force: {took:?}");
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    for kind in ["peerauthentications", "namespaces", "pods", "services"] {
        scene.wait_followed(kind, true)?;
    }
    Ok(())
}

/// A server that answers late: nothing is called failed, and changes come late.
#[test]
fn slow() -> Result<()> {
    let scene = KubeScene::new(&["v1"])?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let slowed = scope.spawn(|| -> Result<()> {
            // A tenth of the time it runs.
            while !done.load(Ordering::Relaxed) {
                scene.cluster.signal("kube-apiserver", Signal::SIGSTOP)?;
                std::thread::sleep(Duration::from_millis(450));
                scene.cluster.signal("kube-apiserver", Signal::SIGCONT)?;
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        });
        let checked = || -> Result<()> {
            // Longer than two questions whether it is there.
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(35) {
                for (word, mode) in [("STRICT", Mode::STRICT), ("PERMISSIVE", Mode::PERMISSIVE)] {
                    scene.cluster.apply_yaml(&mesh(word))?;
                    scene.lab.wait_mode("frontend", mode)?;
                }
            }
            Ok(())
        };
        let checked = checked();
        done.store(true, Ordering::Relaxed);
        slowed.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
        checked
    })?;
    assert_eq!(scene.said("cannot be reached"), 0, "{}", scene.agent.output());
    Ok(())
}

/// etcd comes back from a backup: resource versions run backwards.
#[test]
fn restored_from_a_backup() -> Result<()> {
    let scene = KubeScene::new(&["v1"])?;
    let cluster = &scene.cluster;
    cluster.apply_yaml(&mesh("STRICT"))?;
    scene.lab.wait_mode("frontend", Mode::STRICT)?;
    let stop = || -> Result<()> {
        cluster.kill("kube-apiserver")?;
        cluster.kill("etcd")
    };
    let (data, backup) = (cluster.dir().join("etcd"), cluster.dir().join("etcd.backup"));
    let copy = |from: &std::path::Path, to: &std::path::Path| -> Result<()> {
        let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
        ensure!(status.success(), "cp ended with {status}");
        Ok(())
    };
    stop()?;
    copy(&data, &backup)?;
    cluster.up()?;
    for number in 0..20 {
        let text = policy("hipstershopv1v2", &format!("other-{number}"), Some("nobody"), "DISABLE", &[]);
        cluster.apply_yaml(&text)?;
    }
    cluster.apply_yaml(&mesh("PERMISSIVE"))?;
    scene.wait_followed("peerauthentications", true)?;
    scene.lab.wait_mode("frontend", Mode::PERMISSIVE)?;

    stop()?;
    scene.wait_followed("peerauthentications", false)?;
    fs::remove_dir_all(&data)?;
    fs::rename(&backup, &data)?;
    cluster.up()?;
    let took = in_force_after_reconnect(&scene, Mode::STRICT)?;
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    assert_eq!(scene.kind("peerauthentications")?.objects, 1);
    // And what comes next is heard, though its resource version was seen before.
    cluster.apply_yaml(&mesh("PERMISSIVE"))?;
    scene.lab.wait_mode("frontend", Mode::PERMISSIVE)
}

/// A role that lacks one kind: the others work, what is missing is named once, and nothing is opened.
#[test]
fn denied() -> Result<()> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    cluster.install(&["v1"])?;
    cluster.describe(&lab)?;
    cluster.apply_yaml(&mesh("STRICT"))?;
    let role = |resources: &[(&str, &str)]| {
        let rules = resources.iter().map(|(group, name)| {
            json!({"apiGroups": [group], "resources": [name], "verbs": ["get", "list", "watch"]})
        });
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "agent"},
               "rules": rules.collect::<Vec<_>>()})
    };
    let all = [
        ("security.istio.io", "peerauthentications"),
        ("", "namespaces"),
        ("", "pods"),
        ("", "configmaps"),
        ("", "services"),
    ];
    cluster.apply(&role(&all[1..4]))?;
    cluster.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "agent"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "agent"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "agent"}]}))?;
    let agent = cluster.start_agent(&lab, &cluster.kubeconfig_of("agent")?, &[])?;
    let mut scene = KubeScene { agent, cluster, lab };
    scene.wait_said("may not list and watch peerauthentications")?;
    scene.wait_said("may not list and watch services")?;
    // Without policies there is no knowing which pods are STRICT: nothing is put in force.
    scene.wait_said("peerauthentications were not listed since the agent started: nothing is changed")?;
    assert!(scene.lab.endpoint(scene.lab.pod("frontend").v4().into()).is_err());

    scene.cluster.apply(&role(&all[..4]))?;
    scene.lab.wait_enforcing(&mut scene.agent)?;
    scene.lab.wait_mode("frontend", Mode::STRICT)?;
    assert_eq!(scene.said("may not list and watch services"), 1, "{}", scene.agent.output());

    // Taken away again while the agent runs, and the watches end.
    scene.cluster.apply(&role(&all[1..]))?;
    scene.cluster.kill("kube-apiserver")?;
    scene.cluster.up()?;
    scene.wait_followed("services", true)?;
    scene.wait_followed("peerauthentications", false)?;
    poll::until("policies to be denied", Duration::from_secs(20), || {
        let kind = scene.kind("peerauthentications")?;
        ensure!(kind.error.as_ref().is_some_and(|error| error.contains("may not list")), "{kind:?}");
        ensure!(kind.synced.is_some() && kind.objects == 1, "{kind:?}");
        Ok(())
    })?;
    scene.lab.wait_mode("frontend", Mode::STRICT)
}
