//! Programs of somebody else on the same hooks: they keep running, they are reported with their order, and a pod that no
//! hook leads to is reported as well.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer::datapath::attach::Way;
use enforcer_common::{Mode, Reason, Verdict};
use enforcer_tests::agent::MESH_STRICT;
use enforcer_tests::lab::{NODE, Running};
use enforcer_tests::neighbour::{Answer, Neighbour, Place};
use enforcer_tests::{Lab, Pod, poll};
use nix::net::if_::if_nametoindex;
use serde_json::Value;

const PLAIN: &str = "http://frontend.hipstershopv1v2:8080";
const SECURE: &str = "https://frontend.hipstershopv1v2:8080";
const LIMIT: Duration = Duration::from_secs(10);

struct Stage {
    /// Dropped before the lab.
    agent: Running,
    _server: Running,
    lab: Lab,
}

fn lab() -> Result<Lab> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    Ok(lab)
}

fn stage(lab: Lab, hook: &str) -> Result<Stage> {
    let mut agent = lab.start_agent(&["--hook", hook])?;
    agent.wait_for_output("agent is running")?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    let (server, _) = lab.sidecar("frontend", 8080)?;
    Ok(Stage { agent, _server: server, lab })
}

fn index(lab: &Lab, pod: &str) -> Result<u32> {
    let name = lab.pod(pod).interface();
    Ok(lab.inside(NODE, || if_nametoindex(name.as_str()))??)
}

/// Puts a program on both hooks of the frontend's interface. On clsact the first filter of a priority is the newest.
fn join(lab: &Lab, hook: &str, name: &str, answer: Answer, place: Place) -> Result<Neighbour> {
    let mut program = Neighbour::load(name, answer)?;
    let (ifindex, interface) = (index(lab, "frontend")?, lab.pod("frontend").interface());
    if hook == "tcx" {
        lab.inside(NODE, || Way::BOTH.iter().try_for_each(|&way| program.attach(ifindex, way, place)))??;
        return Ok(program);
    }
    let pin = lab.bpffs().join(name);
    program.pin(&pin)?;
    let (pin, priority) = (pin.display().to_string(), if place == Place::First { "1" } else { "2" });
    for side in ["egress", "ingress"] {
        let words = ["tc", "filter", "add", "dev", &interface, side, "prio", priority, "protocol", "all"];
        let words = words.into_iter().chain(["bpf", "da", "object-pinned", pin.as_str()]);
        lab.exec(NODE, words)?.success()?;
    }
    std::fs::remove_file(&pin).context("cannot unpin")?;
    Ok(program)
}

fn assert_enforced(lab: &Lab, when: &str) -> Result<()> {
    let plain = lab.curl("sleep", &[PLAIN])?;
    assert_eq!((plain.stdout.as_str(), plain.code), ("000\n", 56), "{when}: {plain:?}");
    let mesh = lab.mesh_curl("loadgenerator", &[SECURE])?;
    assert_eq!((mesh.stdout.as_str(), mesh.code), ("200\n", 0), "{when}: {mesh:?}");
    Ok(())
}

/// The neighbours of the frontend's interface, and the problems, as `status` tells them.
fn status(lab: &Lab) -> Result<(Vec<String>, Vec<String>)> {
    let status: Value = serde_json::from_str(&lab.enforcer(&["status", "-o", "json"])?.stdout)?;
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let name = lab.pod("frontend").interface();
    let rows = status["interfaces"].as_array().context("no interfaces")?;
    let row = rows.iter().find(|row| row["name"] == name.as_str()).context("not the frontend's")?;
    assert_eq!(row["hooked"], true, "{row}");
    Ok((texts(&row["neighbours"]), texts(&status["problems"])))
}

#[test]
fn they_keep_running_before_and_behind_on_tcx() -> Result<()> {
    keep_running("tcx")
}

#[test]
fn they_keep_running_before_and_behind_on_clsact() -> Result<()> {
    keep_running("clsact")
}

fn keep_running(hook: &str) -> Result<()> {
    let lab = lab()?;
    let older =
        if hook == "tcx" { Some(join(&lab, hook, "older", Answer::Next, Place::First)?) } else { None };
    let mut stage = stage(lab, hook)?;
    let lab = &stage.lab;
    let first = join(lab, hook, "first", Answer::Next, Place::First)?;
    let last = join(lab, hook, "last", Answer::Next, Place::Last)?;
    for when in ["beside the agent", "beside its successor"] {
        let before = (first.packets()?, last.packets()?);
        assert_enforced(lab, &format!("{hook}, {when}"))?;
        let seen = (first.packets()? - before.0, last.packets()? - before.1);
        assert!(seen.0 > seen.1 && seen.1 > 10, "{hook}, {when}: {seen:?}: refused packets end at ours");
        let (neighbours, problems) = status(lab)?;
        for way in ["to_pod", "from_pod"] {
            for (name, place) in [("first", "before"), ("last", "behind")] {
                let found =
                    neighbours.iter().any(|n| n.starts_with(name) && n.ends_with(&format!("{place} {way}")));
                assert!(found, "{hook}, {when}: no {name} {place} {way} in {neighbours:?}");
            }
            let warned =
                problems.iter().any(|p| p.starts_with("first") && p.contains(&format!("before {way}")));
            assert!(warned, "{hook}, {when}: {problems:?}");
        }
        assert!(!problems.iter().any(|p| p.starts_with("last")), "{problems:?}");
        stage.agent.kill()?;
        stage.agent = lab.start_agent(&["--hook", hook])?;
        stage.agent.wait_for_output("agent is running")?;
    }
    // Ours went before what was there.
    if let Some(older) = older {
        assert!(
            older.packets()? > 0
                && status(lab)?.0.iter().any(|n| n.starts_with("older") && n.contains("behind"))
        );
    }
    stage.agent.kill()?;
    lab.enforcer(&["detach"])?.success()?;
    let before = (first.packets()?, last.packets()?);
    lab.curl("sleep", &[PLAIN])?.success()?;
    assert!(first.packets()? > before.0 && last.packets()? > before.1, "{hook}: detach took them along");
    Ok(())
}

#[test]
fn what_they_answer_counts_on_tcx() -> Result<()> {
    answers("tcx")
}

#[test]
fn what_they_answer_counts_on_clsact() -> Result<()> {
    answers("clsact")
}

/// What a neighbour does with packets is its own business; what that means for the policy is said.
fn answers(hook: &str) -> Result<()> {
    let stage = stage(lab()?, hook)?;
    let lab = &stage.lab;
    let away = Answer::Redirect(index(lab, "adservice")?);
    let connects = || {
        let to = lab.address("frontend", 8080, false);
        lab.inside("sleep", || TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_ok())
    };
    for answer in [Answer::Pass, Answer::Drop, away] {
        let what = format!("{hook}, {answer:?}");
        let packets = |reason| Ok::<_, anyhow::Error>(lab.count(Verdict::RESET, reason)?.packets);
        {
            let behind = join(lab, hook, "other", answer, Place::Last)?;
            if answer == Answer::Pass {
                assert_enforced(lab, &what)?;
            } else {
                assert!(!connects()?, "{what} behind");
            }
            assert!(behind.packets()? > 0, "{what} behind");
            let (neighbours, problems) = status(lab)?;
            assert!(neighbours.iter().any(|n| n.starts_with("other")), "{what}: {neighbours:?}");
            assert_eq!(problems, [""; 0], "{what} behind");
            leave(lab, hook, Place::Last)?;
        }
        assert_enforced(lab, &format!("{what}, gone"))?;
        let refused = packets(Reason::PLAINTEXT)?;
        let before = join(lab, hook, "other", answer, Place::First)?;
        // Ours is not asked any more: that is what the warning is for.
        assert_eq!(connects()?, answer == Answer::Pass, "{what} before");
        if answer == Answer::Pass {
            assert_eq!(lab.curl("sleep", &[PLAIN])?.code, 0, "{what} before");
        }
        assert!(before.packets()? > 0, "{what} before");
        assert_eq!(packets(Reason::PLAINTEXT)?, refused, "{what} before");
        let (_, problems) = status(lab)?;
        let redirects = problems.iter().filter(|p| p.contains("it redirects, and")).count();
        assert_eq!(
            (problems.len(), redirects),
            (2, if answer == away { 2 } else { 0 }),
            "{what}: {problems:?}"
        );
        if answer == away {
            poll::until("the agent to warn", LIMIT, || {
                ensure!(stage.agent.output().contains("it redirects, and"), "{}", stage.agent.output());
                Ok(())
            })?;
        }
        drop(before);
        leave(lab, hook, Place::First)?;
        assert_enforced(lab, &format!("{what}, gone again"))?;
    }
    Ok(())
}

/// The kernel asks TCX programs before any filter, wherever they stand among themselves: what they answer counts, and all are told to
/// be before ours.
#[test]
fn tcx_programs_of_others_run_before_our_filters() -> Result<()> {
    let stage = stage(lab()?, "clsact")?;
    let lab = &stage.lab;
    assert!(lab.own_hooks("frontend")?.is_empty(), "ours are on TCX: this tests nothing");
    assert_enforced(lab, "alone")?;
    let refused = || Ok::<_, anyhow::Error>(lab.count(Verdict::RESET, Reason::PLAINTEXT)?.connections);
    let away = Answer::Redirect(index(lab, "adservice")?);
    let places = [(Answer::Next, Place::First), (Answer::Next, Place::Last)];
    for (answer, place) in
        places.into_iter().chain([Answer::Pass, Answer::Drop, away].map(|a| (a, Place::Last)))
    {
        let what = format!("{answer:?} {place:?}");
        let before = refused()?;
        let other = join(lab, "tcx", "other", answer, place)?;
        match answer {
            Answer::Next => assert_enforced(lab, &what)?,
            // Ours is not asked.
            Answer::Pass => assert_eq!(lab.curl("sleep", &[PLAIN])?.code, 0, "{what}"),
            _ => {
                let to = lab.address("frontend", 8080, false);
                let connect = || TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_ok();
                assert!(!lab.inside("sleep", connect)?, "{what}");
            }
        }
        assert!(other.packets()? > 0, "{what}");
        assert_eq!(refused()? - before, u64::from(answer == Answer::Next), "{what}");
        let (neighbours, problems) = status(lab)?;
        for way in ["to_pod", "from_pod"] {
            let told = |line: &&String| line.starts_with("other (program ") && line.contains(", tcx) ");
            let listed =
                neighbours.iter().filter(told).filter(|n| n.contains(&format!("before {way}"))).count();
            assert_eq!(listed, 1, "{what}: {neighbours:?}");
            let warned: Vec<_> = problems
                .iter()
                .filter(told)
                .filter(|p| p.contains(&format!("runs before {way} on")))
                .collect();
            let redirects = warned.iter().any(|p| p.contains("it redirects, and"));
            assert_eq!((warned.len(), redirects), (1, answer == away), "{what}: {problems:?}");
        }
        assert_eq!(problems.len(), 2, "{what}: {problems:?}");
        drop(other);
        assert_enforced(lab, &format!("{what}, gone"))?;
        assert_eq!(status(lab)?, (Vec::new(), Vec::new()), "{what}, gone");
    }
    Ok(())
}

/// A TCX link goes with its owner, a filter has to be removed: the one that is not called as ours.
fn leave(lab: &Lab, hook: &str, place: Place) -> Result<()> {
    if hook == "tcx" {
        return Ok(());
    }
    let interface = lab.pod("frontend").interface();
    let priority = if place == Place::First { "1" } else { "2" };
    for side in ["egress", "ingress"] {
        let shown = lab.exec(NODE, ["tc", "filter", "show", "dev", &interface, side])?.success()?.stdout;
        let line = shown.lines().find(|line| line.contains("handle") && !line.contains("enforcer_"));
        let words: Vec<&str> =
            line.with_context(|| format!("no other filter in {shown}"))?.split(' ').collect();
        let at = words.iter().position(|word| *word == "handle").context("no handle")?;
        let handle = words.get(at + 1).context("no handle")?;
        let remove = ["tc", "filter", "del", "dev", &interface, side, "prio", priority, "protocol", "all"];
        lab.exec(NODE, remove.into_iter().chain(["handle", handle, "bpf"]))?.success()?;
    }
    Ok(())
}

#[test]
fn programs_that_somebody_took_off_are_put_back_on_tcx() -> Result<()> {
    put_back("tcx")
}

#[test]
fn programs_that_somebody_took_off_are_put_back_on_clsact() -> Result<()> {
    put_back("clsact")
}

fn put_back(hook: &str) -> Result<()> {
    let stage = stage(lab()?, hook)?;
    let lab = &stage.lab;
    let interface = lab.pod("frontend").interface();
    assert_enforced(lab, "before")?;
    if hook == "tcx" {
        let prefix = format!("-{}-to_pod", index(lab, "frontend")?);
        let pins = lab.pins()?;
        let link = pins.iter().find(|pin| pin.display().to_string().ends_with(&prefix)).context("no link")?;
        let link = link.display().to_string();
        lab.exec(NODE, ["bpftool", "link", "detach", "pinned", &link])?.success()?;
    } else {
        lab.exec(NODE, ["tc", "qdisc", "del", "dev", &interface, "clsact"])?.success()?;
    }
    poll::until("both programs on their hooks", LIMIT, || {
        let row = lab.enforcer(&["status", "-o", "json"])?.stdout;
        ensure!(!row.contains("\"hooked\": false") && row.contains("\"hooked\": true"), "{row}");
        Ok(())
    })?;
    assert!(stage.agent.output().contains("put back"), "{}", stage.agent.output());
    assert_enforced(lab, "after")?;
    Ok(())
}

/// A pod on a macvlan has no interface on the node that a packet to it would pass.
#[test]
fn a_pod_that_no_hook_leads_to_is_reported() -> Result<()> {
    let mut lab = lab()?;
    lab.add_pod(Pod::meshed("hipstershopv1v2", "elsewhere", 40).port(8080))?;
    let host = lab.pod("elsewhere").interface();
    let address = lab.pod("elsewhere").v4().to_string();
    let namespace = lab.namespace("elsewhere");
    for words in [
        ["ip", "link", "delete", host.as_str()].as_slice(),
        &["ip", "link", "add", "uplink0", "type", "bridge"],
        &["ip", "link", "set", "uplink0", "up"],
        &["ip", "link", "add", "link", "uplink0", "name", "mv0", "type", "macvlan", "mode", "bridge"],
        &["ip", "link", "set", "mv0", "netns", &namespace],
    ] {
        lab.exec(NODE, words)?.success()?;
    }
    lab.exec("elsewhere", ["ip", "address", "add", &address, "dev", "mv0"])?.success()?;
    lab.describe()?;
    let mut agent = lab.start_agent(&[])?;
    agent.wait_for_output("agent is running")?;
    let told = "mv0 (macvlan) of pod hipstershopv1v2/elsewhere";
    poll::until("the report", LIMIT * 2, || {
        let output = lab.enforcer(&["status"])?;
        ensure!(output.code == 1 && output.stdout.contains(told), "{output:?}\n{}", agent.output());
        Ok(())
    })?;
    assert!(agent.output().contains(told), "{}", agent.output());
    Ok(())
}
