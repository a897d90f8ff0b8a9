//! Pins of another layout, of another version, on no bpffs at all; and removal to the last trace.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer::datapath::load::Pinned;
use enforcer::datapath::maps::Flows;
use enforcer_common::map::{Flow, FlowState, LAYOUT_VERSION, flow_flags};
use enforcer_common::{Reason, Verdict};
use enforcer_tests::agent::MESH_STRICT;
use enforcer_tests::lab::{NODE, Running};
use enforcer_tests::load::{Load, Plaintext, Plan, value};
use enforcer_tests::neighbour::pin_map;
use enforcer_tests::{Lab, Scene, poll};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(20);
const RUNNING: &str = "agent is running";
const PLAIN: &str = "http://frontend.hipstershopv1v2:8080";

const PLAN: Plan<'static> = Plan {
    to: "frontend",
    port: 8080,
    tls_from: "loadgenerator",
    plain_from: "sleep",
    lasting: 16,
    fresh: 1,
    plain: 2,
    expected: Plaintext::Reset,
    pause: Duration::from_millis(15),
};

fn layout(lab: &Lab, version: u32) -> PathBuf {
    lab.bpffs().join(format!("v{version}"))
}

/// Kills the agent and makes its pins those of layout 1, which had one table for flows of every kind, where the oldest
/// went. Connections that are opened until the next agent has taken over are not in it.
fn make_older(lab: &Lab, agent: &mut Running) -> Result<PathBuf> {
    agent.kill()?;
    let (judged, current) = (lab.flows()?, layout(lab, LAYOUT_VERSION).join("maps"));
    let mut one = Flows::new("TRANSIENT", Pinned::open(&lab.bpffs())?.map("TRANSIENT")?)?;
    for (key, flow) in judged {
        one.insert(&key, &Flow { flags: flow.flags & !flow_flags::PROTECTED, ..flow })?;
    }
    fs::remove_file(current.join("FLOWS")).context("no FLOWS")?;
    fs::rename(current.join("TRANSIENT"), current.join("FLOWS")).context("cannot rename TRANSIENT")?;
    let older = layout(lab, 1);
    fs::rename(layout(lab, LAYOUT_VERSION), &older).context("cannot rename the layout")?;
    Ok(older)
}

fn replace_map(path: &std::path::Path, key: u32, value: u32) -> Result<()> {
    fs::remove_file(path).with_context(|| format!("no map at {}", path.display()))?;
    pin_map(path, key, value)
}

fn assert_upgraded(lab: &Lab, agent: &Running, older: &std::path::Path) -> Result<()> {
    assert!(!older.exists(), "the old layout is still there: {}", agent.output());
    assert!(agent.output().contains("taken over from an earlier version"), "{}", agent.output());
    assert_eq!(lab.own_hooks("frontend")?.len(), 2);
    assert!(layout(lab, LAYOUT_VERSION).join("maps/FLOWS").exists());
    Ok(())
}

#[test]
fn an_upgrade_takes_everything_over_under_load() -> Result<()> {
    let mut scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_server, records) = lab.sidecar("frontend", 8080)?;
    let load = Load::start(lab, Plan { fresh: 0, ..PLAN })?;
    for _ in 0..3 {
        let older = make_older(lab, &mut scene.agent)?;
        // These two are new with every layout.
        replace_map(&older.join("maps/SETTINGS"), 4, 8)?;
        replace_map(&older.join("maps/EVENTS"), 4, 8)?;
        scene.agent = lab.start_agent(&[])?;
        scene.agent.wait_for_output(RUNNING)?;
        assert_upgraded(lab, &scene.agent, &older)?;
        assert!(!scene.agent.output().contains("policy changed"), "{}", scene.agent.output());
        load.totals().check()?;
    }
    let totals = load.finish()?;
    // Not one connection was forgotten or counted twice, over four agents and three upgrades.
    assert_eq!(lab.count(Verdict::RESET, Reason::PLAINTEXT)?.connections, value(&totals.plain_sent));
    assert_eq!(lab.count(Verdict::ALLOW, Reason::TLS)?.connections, value(&totals.tls_opened));
    assert!(records.all()?.iter().all(|record| record.class == "tls" || record.read == 0));
    Ok(())
}

/// From another build to this one, killed and ended in order: `ENFORCER_OLD_BIN` is the path of its `enforcer`. Without it this
/// build stands in for it, and nothing changes but the agent.
#[test]
fn an_upgrade_from_another_build_under_load() -> Result<()> {
    let old = std::env::var("ENFORCER_OLD_BIN");
    for end in [Signal::SIGKILL, Signal::SIGTERM] {
        let lab = Lab::new()?;
        lab.describe()?;
        lab.apply("mesh.yaml", MESH_STRICT)?;
        let (_server, records) = lab.sidecar("frontend", 8080)?;
        let mut words = lab.run_words(&[])?;
        if let Ok(old) = &old {
            words[0].clone_from(old);
        }
        let mut agent = lab.spawn(NODE, words)?;
        agent.wait_for_output(RUNNING)?;
        poll::until("the policy to be in force", LIMIT, || {
            let plain = lab.curl("sleep", &[PLAIN])?;
            ensure!(plain.code == 56, "{plain:?}");
            Ok(())
        })?;
        let read = records.all()?.len();
        let layouts = || -> Result<BTreeSet<String>> {
            let names =
                fs::read_dir(lab.bpffs())?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
            Ok(names.filter(|name| name.starts_with('v')).collect())
        };
        let before = layouts()?;
        let load = Load::start(&lab, PLAN)?;
        let goes_on = |when: &str| {
            let (answers, sent) = (value(&load.totals().tls_answers), value(&load.totals().plain_sent));
            poll::until(&format!("answers and attempts {when}"), LIMIT, || {
                load.totals().check()?;
                let answers = value(&load.totals().tls_answers) - answers;
                ensure!(answers > 4 * PLAN.lasting as u64, "{answers} answers");
                ensure!(value(&load.totals().plain_sent) > sent + 20, "few attempts");
                Ok(())
            })
        };
        goes_on("before")?;
        agent.signal(end)?;
        agent.wait(LIMIT)?;
        goes_on("without an agent")?;
        let agent = lab.agent()?;
        goes_on("behind").map_err(|error| error.context(agent.output()))?;
        let taken_over = agent.output().contains("taken over from an earlier version");
        println!("{end}: {before:?}, then {:?}; taken over {taken_over}; {:?}", layouts()?, load.totals());
        assert_eq!(layouts()?, BTreeSet::from([format!("v{LAYOUT_VERSION}")]), "{}", agent.output());
        assert_eq!(taken_over, before != layouts()?, "{}", agent.output());
        let totals = load.finish()?;
        assert_eq!(value(&totals.plain_sent), value(&totals.plain_reset));
        for record in records.all()?.iter().skip(read) {
            assert!(record.class == "tls" || record.read == 0, "plaintext came through: {record:?}");
        }
    }
    Ok(())
}

/// The flows of the old layout are no flows of the new one: the pods' socket tables stand in, and the policy is there
/// before the new programs are.
#[test]
fn an_upgrade_that_cannot_read_the_old_flows_loses_no_connection() -> Result<()> {
    let mut scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    let load = Load::start(lab, Plan { fresh: 0, plain: 0, ..PLAN })?;
    let older = make_older(lab, &mut scene.agent)?;
    replace_map(&older.join("maps/FLOWS"), 36, 72)?;
    scene.agent = lab.start_agent(&[])?;
    scene.agent.wait_for_output(RUNNING)?;
    assert_upgraded(lab, &scene.agent, &older)?;
    let log = scene.agent.output();
    assert!(
        log.contains("v1/maps/FLOWS has not the shape") && log.contains("found again as existing ones"),
        "{log}"
    );
    let all = [lab.flows()?, lab.transient()?].concat();
    let existing = all.iter().filter(|(_, flow)| flow.state == FlowState::EXISTING).count();
    assert_eq!(existing, PLAN.lasting);
    let answers = value(&load.totals().tls_answers);
    poll::until("answers on every connection", LIMIT, || {
        load.totals().check()?;
        ensure!(value(&load.totals().tls_answers) > answers + 2 * PLAN.lasting as u64, "not yet");
        Ok(())
    })?;
    assert_eq!(lab.curl("sleep", &[PLAIN])?.code, 56);
    load.finish()?;
    Ok(())
}

#[test]
fn foreign_pins_in_the_own_layout_are_refused_with_a_sentence_and_enforcement_goes_on() -> Result<()> {
    let mut scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    scene.agent.kill()?;
    let map = layout(lab, LAYOUT_VERSION).join("maps/HALF_OPEN");
    replace_map(&map, 36, 72)?;
    let mut next = lab.start_agent(&[])?;
    assert_eq!(next.wait(LIMIT)?, 2, "{}", next.output());
    let said = next.output();
    for word in [map.display().to_string().as_str(), "value size 72", "still enforces", "enforcer detach"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    assert_eq!(lab.curl("sleep", &[PLAIN])?.code, 56);
    assert_eq!(lab.own_hooks("frontend")?.len(), 2);
    lab.enforcer(&["detach"])?.success()?;
    scene.agent = lab.agent()?;
    assert_eq!(lab.curl("sleep", &[PLAIN])?.code, 56);
    Ok(())
}

/// Unmounts when dropped: the agent works in the mount namespace of the machine.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        // Not mounted is what is wanted.
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_folder_on_no_bpffs_becomes_one() -> Result<()> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let mount = Mount(lab.dir().join("other"));
    let dir = mount.0.display().to_string();
    // Who only reads mounts nothing, and says what is missing.
    let program = enforcer_tests::agent::enforcer_binary()?.display().to_string();
    let status = lab.exec(NODE, [program.as_str(), "status", "--bpffs", &dir])?;
    assert_eq!(status.code, 2, "{status:?}");
    assert!(status.stderr.contains("no agent has run here") && !mount.0.exists(), "{status:?}");

    let manifests = lab.manifests().display().to_string();
    let words = [program.as_str(), "run", "--manifests", &manifests, "--bpffs", &dir];
    let mut agent = lab.spawn(NODE, words)?;
    agent.wait_for_output(RUNNING)?;
    assert!(mount.0.join(format!("v{LAYOUT_VERSION}/maps/FLOWS")).exists());
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    assert_eq!(lab.curl("sleep", &[PLAIN])?.code, 56);
    agent.kill()?;
    lab.exec(NODE, [program.as_str(), "detach", "--bpffs", &dir])?.success()?;
    assert_eq!(lab.curl("sleep", &[PLAIN])?.code, 0);
    Ok(())
}

#[test]
fn detach_leaves_no_trace_of_tcx() -> Result<()> {
    detach_leaves_no_trace("tcx")
}

#[test]
fn detach_leaves_no_trace_of_clsact() -> Result<()> {
    detach_leaves_no_trace("clsact")
}

/// Ids of the maps and programs that are pinned in the lab, by `bpftool`.
fn pinned(lab: &Lab, kind: &str, folder: &str) -> Result<BTreeSet<u64>> {
    let mut ids = BTreeSet::new();
    let folder = layout(lab, LAYOUT_VERSION).join(folder);
    for pin in lab.pins()?.into_iter().filter(|pin| pin.starts_with(&folder)) {
        let path = pin.display().to_string();
        let shown = lab.exec(NODE, ["bpftool", "-j", kind, "show", "pinned", &path])?.success()?.stdout;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        ids.insert(shown["id"].as_u64().with_context(|| format!("no id in {shown}"))?);
    }
    Ok(ids)
}

fn loaded(lab: &Lab, kind: &str) -> Result<BTreeSet<u64>> {
    let shown = lab.exec(NODE, ["bpftool", "-j", kind, "show"])?.success()?.stdout;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    Ok(shown.as_array().into_iter().flatten().filter_map(|entry| entry["id"].as_u64()).collect())
}

fn detach_leaves_no_trace(hook: &str) -> Result<()> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let mut agent = lab.start_agent(&["--hook", hook])?;
    agent.wait_for_output(RUNNING)?;
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    assert_eq!(lab.curl("sleep", &[PLAIN])?.code, 56);
    let (maps, mut programs) = (pinned(&lab, "map", "maps")?, pinned(&lab, "prog", "programs")?);
    assert!(maps.len() >= 12 && programs.len() >= 2, "{maps:?} {programs:?}");
    // The program that sees sockets is pinned by its link alone.
    let link = lab.bpffs().join("links/cgroup-sockets").display().to_string();
    let shown = lab.exec(NODE, ["bpftool", "-j", "link", "show", "pinned", &link])?.success()?.stdout;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    programs.insert(shown["prog_id"].as_u64().with_context(|| format!("no program in {shown}"))?);
    agent.signal(Signal::SIGTERM)?;
    agent.wait(LIMIT)?;
    assert!(maps.is_subset(&loaded(&lab, "map")?) && programs.is_subset(&loaded(&lab, "prog")?));

    let said = lab.enforcer(&["detach"])?.success()?.stdout;
    for word in ["to_pod", "from_pod", "removed maps:", "FLOWS", "removed programs:"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    let word = if hook == "tcx" { "removed link: to_pod on interface" } else { "removed the clsact qdisc" };
    assert!(said.contains(word), "no {word:?} in {said}");
    assert!(lab.pins()?.is_empty(), "{:?}", lab.pins()?);
    let folders = fs::read_dir(lab.bpffs())?.flatten().filter(|entry| entry.path().is_dir()).count();
    assert_eq!(folders, 0, "folders are left");
    for pod in lab.pods() {
        assert_eq!(lab.hooks(&pod.name)?, []);
        let shown = lab.exec(NODE, ["tc", "qdisc", "show", "dev", &pod.interface()])?.success()?.stdout;
        assert!(!shown.contains("clsact"), "{shown}");
    }
    poll::until("maps and programs to be gone", LIMIT, || {
        let (maps_left, programs_left) = (loaded(&lab, "map")?, loaded(&lab, "prog")?);
        ensure!(maps.is_disjoint(&maps_left), "maps {:?}", maps.intersection(&maps_left));
        ensure!(programs.is_disjoint(&programs_left), "programs {:?}", programs.intersection(&programs_left));
        Ok(())
    })?;
    assert_eq!(lab.curl("sleep", &[PLAIN])?.code, 0);
    Ok(())
}
