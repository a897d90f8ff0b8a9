//! How long the kernel side remembers a connection: judged ones while they live, and no other can push them out.

use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer_common::map::{Flow, flow_flags};
use enforcer_common::{Reason, Verdict};
use enforcer_tests::agent::MESH_STRICT;
use enforcer_tests::client::tls;
use enforcer_tests::lab::NODE;
use enforcer_tests::{Lab, Scene, poll};

const HOST: &str = "frontend.hipstershopv1v2";
const PATIENCE: Duration = Duration::from_secs(10);

/// A TLS connection of a mesh client to the frontend, on which nothing was said yet.
fn open(lab: &Lab, v6: bool) -> Result<tls::Stream> {
    let shape = tls::Shape::default();
    let stream = lab.connect("loadgenerator", lab.address("frontend", 8080, v6))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    tls::start(stream, tls::config(lab, "loadgenerator", shape)?, HOST, shape)
}

/// Entries of connections of clients to the frontend.
fn of_clients(entries: Vec<(enforcer_common::map::FlowKey, Flow)>) -> Vec<Flow> {
    let flows = entries.into_iter().filter(|(key, _)| key.pod_port == 8080).map(|(_, flow)| flow);
    flows.filter(|flow| flow.reason == Reason::TLS).collect()
}

#[test]
fn a_closed_socket_ends_its_flow() -> Result<()> {
    let scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    for v6 in [false, true] {
        let mut stream = open(lab, v6)?;
        assert_eq!(tls::get(&mut stream, HOST)?, "hello from frontend\n");
        let flows = of_clients(lab.flows()?);
        let [flow] = flows[..] else { panic!("one flow: {flows:?}") };
        let wanted = flow_flags::PROTECTED | flow_flags::TAGGED;
        assert_eq!(flow.flags & wanted, wanted, "protected, and its socket is known: {flow:?}");
        drop(stream);
        poll::until("the end of the flow", PATIENCE, || {
            ensure!(of_clients(lab.flows()?).is_empty(), "it is still in FLOWS");
            Ok(())
        })?;
        let ended = of_clients(lab.transient()?);
        assert!(ended.iter().all(|flow| flow.flags & flow_flags::ENDED != 0), "{ended:?}");
    }
    Ok(())
}

#[test]
fn a_full_table_loses_no_tls_connection_and_lets_nothing_through() -> Result<()> {
    let lab = Lab::new()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    lab.describe()?;
    let _agent = lab.agent_with(&["--map-size", "FLOWS=16,TRANSIENT=64"])?;
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    let mut live: Vec<tls::Stream> = Vec::new();
    let mut late = loop {
        let mut stream = open(&lab, live.len() % 2 == 1)?;
        match tls::get(&mut stream, HOST) {
            Ok(_) => live.push(stream),
            Err(_) => break stream,
        }
        ensure!(
            live.len() <= 16,
            "more connections than the table has entries: {:?}, beside them {:?}",
            lab.flows()?,
            lab.transient()?
        );
    };
    assert!(live.len() >= 8, "room for {} only", live.len());
    let waited = lab.count(Verdict::DROP, Reason::UNDECIDED)?;
    assert!(waited.packets > 0, "the answer to the late one waits: {waited:?}");
    // A flood of connections that complete their handshake, speak or say nothing: more than any table has entries.
    for number in 0..300 {
        let stream = lab.connect("sleep", lab.address("frontend", 8080, number % 2 == 1))?;
        if number % 3 == 0 {
            let _ = std::io::Write::write_all(&mut &stream, b"GET / HTTP/1.1\r\n\r\n");
        }
    }
    for stream in &mut live {
        assert_eq!(tls::get(stream, HOST)?, "hello from frontend\n");
    }
    assert!(tls::get(&mut late, HOST).is_err(), "still no room");
    live.clear();
    poll::until("room for new connections", PATIENCE, || tls::get(&mut open(&lab, false)?, HOST).map(drop))
}

/// Nobody sees the end of a connection: its socket is not watched, and what the pod said last was lost on the way. Its place is
/// freed all the same, and one that lives keeps its own.
#[test]
fn connections_without_a_socket_give_up_their_place() -> Result<()> {
    let scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    let link = lab.bpffs().join("links/cgroup-sockets");
    std::fs::remove_file(&link)?;
    // The agent cannot put it back.
    std::fs::create_dir(&link)?;
    // It is said, and harmless.
    poll::until("the note", PATIENCE, || {
        let status = lab.enforcer(&["status"])?;
        ensure!(status.stdout.contains("ends of connections are told by their packets alone"), "{status:?}");
        ensure!(status.code == 0, "{status:?}");
        Ok(())
    })?;
    let places = || -> Result<Vec<u16>> {
        let flows = lab.flows()?.into_iter().filter(|(key, _)| key.pod_port == 8080);
        Ok(flows.map(|(key, _)| key.client_port).collect())
    };
    let mut dead = open(lab, false)?;
    tls::get(&mut dead, HOST)?;
    let [port] = places()?[..] else { panic!("{:?}", places()?) };
    let mut live = open(lab, false)?;
    tls::get(&mut live, HOST)?;
    let flows = of_clients(lab.flows()?);
    assert_eq!(flows.len(), 2, "{flows:?}");
    assert!(flows.iter().all(|flow| flow.flags & flow_flags::TAGGED == 0), "{flows:?}");
    let hush = format!(
        "add table inet hush; add chain inet hush out {{ type filter hook output priority 0; }}; \
         add rule inet hush out tcp dport {port} drop"
    );
    lab.exec("frontend", ["nft", &hush])?.success()?;
    let client = lab.pod("loadgenerator").v4().to_string();
    let killed =
        lab.exec("frontend", ["ss", "-K", "dst", &client, "dport", "=", &format!(":{port}")])?.success()?;
    assert!(killed.stdout.contains(&port.to_string()), "{killed:?}");
    poll::until("the place of the dead one", Duration::from_secs(90), || {
        let found = places()?;
        ensure!(!found.contains(&port), "{found:?}");
        Ok(())
    })?;
    assert_eq!(places()?.len(), 1, "the living one keeps its place");
    assert!(lab.transient()?.iter().any(|(key, _)| key.client_port == port), "it is still known");
    tls::get(&mut live, HOST)?;
    assert_eq!(lab.count(Verdict::RESET, Reason::MIDSTREAM)?.connections, 0);
    Ok(())
}

/// Somebody takes the program off the hierarchy: it is put back, and the next agent replaces it in place.
#[test]
fn the_program_that_sees_sockets_is_put_back_and_replaced() -> Result<()> {
    let mut scene = Scene::strict()?;
    let link = scene.lab.bpffs().join("links/cgroup-sockets");
    let path = link.display().to_string();
    let show = |lab: &Lab| -> Result<serde_json::Value> {
        let shown = lab.exec(NODE, ["bpftool", "-j", "link", "show", "pinned", &path])?.success()?.stdout;
        Ok(serde_json::from_str(&shown)?)
    };
    let first = show(&scene.lab)?;
    scene.lab.exec(NODE, ["bpftool", "link", "detach", "pinned", &path])?.success()?;
    poll::until("another link", PATIENCE, || {
        let now = show(&scene.lab)?;
        ensure!(now["id"] != first["id"] && now["cgroup_id"] != 0, "{now}");
        Ok(())
    })?;
    let before = show(&scene.lab)?;
    scene.agent.kill()?;
    scene.agent = scene.lab.agent()?;
    let after = show(&scene.lab)?;
    assert_eq!(after["id"], before["id"], "one link for good");
    assert_ne!(after["prog_id"], before["prog_id"], "with the new agent's program");
    let (_server, _) = scene.lab.sidecar("frontend", 8080)?;
    let mut stream = open(&scene.lab, false)?;
    tls::get(&mut stream, HOST)?;
    let flows = of_clients(scene.lab.flows()?);
    assert!(flows.iter().all(|flow| flow.flags & flow_flags::TAGGED != 0) && flows.len() == 1, "{flows:?}");
    Ok(())
}

/// A connection that was taken for a dead one lives: what the pod says next gives it its place back.
#[test]
fn a_living_connection_takes_its_place_again() -> Result<()> {
    let scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_server, _) = lab.sidecar("frontend", 8080)?;
    let mut stream = open(lab, true)?;
    tls::get(&mut stream, HOST)?;
    let [(key, flow)] = lab.flows()?[..] else { panic!("one flow: {:?}", lab.flows()?) };
    let mut moved = flow;
    moved.look_again();
    moved.flags &= !(flow_flags::PROTECTED | flow_flags::SETTLED);
    lab.move_to_transient(&key, &moved)?;
    assert!(lab.flows()?.is_empty());
    tls::get(&mut stream, HOST)?;
    let [(back, flow)] = lab.flows()?[..] else { panic!("it is not back: {:?}", lab.flows()?) };
    assert_eq!(back, key);
    assert_eq!(flow.flags & flow_flags::PROTECTED, flow_flags::PROTECTED);
    assert_eq!(lab.count(Verdict::RESET, Reason::MIDSTREAM)?.connections, 0);
    Ok(())
}
