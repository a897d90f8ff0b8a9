//! The agent may die: enforcement, judged flows and counters stay; one program per hook and direction at every moment.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use enforcer::datapath::attach::Way;
use enforcer_common::{Mode, Reason, Verdict};
use enforcer_tests::agent::MESH_STRICT;
use enforcer_tests::client::tls;
use enforcer_tests::lab::Running;
use enforcer_tests::{Lab, Pod, Scene, poll};
use nix::sys::signal::Signal;

const HOST: &str = "frontend.hipstershopv1v2";
const PLAIN: &str = "http://frontend.hipstershopv1v2:8080";
const SECURE: &str = "https://frontend.hipstershopv1v2:8080";
const LIMIT: Duration = Duration::from_secs(10);

fn assert_enforced(lab: &Lab, when: &str) -> Result<()> {
    let plain = lab.curl("sleep", &[PLAIN])?;
    assert_eq!((plain.stdout.as_str(), plain.code), ("000\n", 56), "{when}: {plain:?}");
    let mesh = lab.mesh_curl("loadgenerator", &[SECURE])?;
    assert_eq!((mesh.stdout.as_str(), mesh.code), ("200\n", 0), "{when}: {mesh:?}");
    Ok(())
}

fn assert_not_enforced(lab: &Lab) -> Result<()> {
    let plain = lab.curl("sleep", &[PLAIN])?;
    assert_eq!((plain.stdout.as_str(), plain.code), ("200\n", 0), "{plain:?}");
    for pod in lab.pods() {
        let hooks = lab.own_hooks(&pod.name)?;
        assert!(hooks.is_empty(), "left on {}: {hooks:?}", pod.interface());
    }
    let left: Vec<_> = files(&lab.bpffs())?;
    assert!(left.is_empty(), "left: {left:?}");
    Ok(())
}

/// Every file below a folder, without the two that the kernel puts into every bpffs.
fn files(dir: &std::path::Path) -> Result<Vec<std::path::PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        if ["maps.debug", "progs.debug"].iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if entry.file_type()?.is_dir() { all.extend(files(&entry.path())?) } else { all.push(entry.path()) }
    }
    Ok(all)
}

fn stop(agent: &mut Running) -> Result<()> {
    agent.signal(Signal::SIGTERM)?;
    let code = agent.wait(LIMIT)?;
    assert_eq!(code, 0, "{}", agent.output());
    Ok(())
}

/// Says that it is done when dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn killed_and_started_again() -> Result<()> {
    let mut scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_server, records) = lab.sidecar("frontend", 8080)?;
    let stream = lab.connect("loadgenerator", lab.address("frontend", 8080, false))?;
    stream.set_read_timeout(Some(LIMIT))?;
    let config = tls::config(lab, "loadgenerator", tls::Shape::default())?;
    let mut open = tls::start(stream, config, HOST, tls::Shape::default())?;
    tls::get(&mut open, HOST)?;

    let (done, samples) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| -> Result<()> {
        // The hooks are looked at without a pause while agents come and go.
        let watch = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                let hooks = lab.own_hooks("frontend")?;
                let count = |way| hooks.iter().filter(|hook| hook.way == way).count();
                assert_eq!((count(Way::ToPod), count(Way::FromPod)), (1, 1), "{hooks:?}");
                samples.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        // Also when an assertion below fails: the watch must end.
        let end = End(&done);
        let outcome = (|| -> Result<()> {
            let mut last = 0;
            for round in 0..3 {
                assert_enforced(lab, &format!("round {round}, agent alive"))?;
                scene.agent.kill()?;
                assert_enforced(lab, &format!("round {round}, agent dead"))?;
                tls::get(&mut open, HOST)?;
                let status = lab.enforcer(&["status"])?;
                assert!(status.stdout.contains("PLAINTEXT"), "status without an agent: {status:?}");
                scene.agent = lab.agent()?;
                tls::get(&mut open, HOST)?;
                let now = lab.count(Verdict::RESET, Reason::PLAINTEXT)?.connections;
                assert_eq!(now, last + 2, "round {round}: the counter went from {last} to {now}");
                last = now;
            }
            Ok(())
        })();
        drop(end);
        watch.join().expect("the watch over the hooks failed")?;
        outcome
    })?;
    assert!(samples.load(Ordering::Relaxed) > 100, "the hooks were hardly looked at");
    let records = records.all()?;
    assert!(
        records.iter().filter(|record| record.class != "tls").all(|record| record.read == 0),
        "{records:?}"
    );
    Ok(())
}

#[test]
fn a_clean_stop_leaves_enforcement_and_detach_ends_it() -> Result<()> {
    let mut scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    assert_enforced(lab, "before")?;
    stop(&mut scene.agent)?;
    assert_enforced(lab, "after the stop")?;
    let detached = lab.enforcer(&["detach"])?.success()?;
    assert!(detached.stdout.contains("removed"), "{detached:?}");
    assert_not_enforced(lab)?;
    let left = files(&lab.state())?;
    assert!(left.is_empty(), "left: {left:?}");
    // Once more is no error.
    lab.enforcer(&["detach"])?.success()?;
    Ok(())
}

#[test]
fn detach_on_exit() -> Result<()> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let mut agent = lab.agent_with(&["--detach-on-exit"])?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    assert_enforced(&lab, "before")?;
    stop(&mut agent)?;
    assert_not_enforced(&lab)
}

#[test]
fn a_second_agent_is_refused_and_the_first_goes_on() -> Result<()> {
    let scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    let mut second = lab.start_agent(&[])?;
    let code = second.wait(LIMIT)?;
    assert_eq!(code, 2, "{}", second.output());
    let pid = scene.agent.pid().to_string();
    assert!(second.output().contains(&pid), "the first one's pid is not named: {}", second.output());
    assert_enforced(lab, "after the second")
}

#[test]
fn pods_that_come_later_are_enforced_too() -> Result<()> {
    let mut scene = Scene::strict()?;
    scene.lab.add_pod(Pod::meshed("hipstershopv1v2", "late", 30).port(8080))?;
    scene.lab.describe()?;
    scene.lab.wait_mode("late", Mode::STRICT)?;
    let lab = &scene.lab;
    poll::until("hooks of the new pod", LIMIT, || {
        let hooks = lab.own_hooks("late")?;
        anyhow::ensure!(hooks.len() == 2, "{hooks:?}");
        Ok(())
    })?;
    let (server, _) = lab.sidecar("late", 8080)?;
    let plain = lab.curl("sleep", &["http://late.hipstershopv1v2:8080"])?;
    assert_eq!((plain.stdout.as_str(), plain.code), ("000\n", 56), "{plain:?}");
    let mesh = lab.mesh_curl("loadgenerator", &["https://late.hipstershopv1v2:8080"])?;
    assert_eq!((mesh.stdout.as_str(), mesh.code), ("200\n", 0), "{mesh:?}");

    // And the address is free again when the pod is gone.
    drop(server);
    let address = scene.lab.pod("late").v4().into();
    scene.lab.remove_pod("late")?;
    scene.lab.describe()?;
    poll::until("the endpoint to be gone", LIMIT, || {
        anyhow::ensure!(scene.lab.endpoint(address).is_err(), "it is there");
        Ok(())
    })
}
