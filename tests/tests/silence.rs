//! Clients that begin what could be a TLS hello and then say nothing more: their time is limited, and both ends hear of it.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use enforcer_common::{Mode, Reason, Verdict};
use enforcer_tests::agent::MESH_STRICT;
use enforcer_tests::lab::{NODE, Topology};
use enforcer_tests::record::End;
use enforcer_tests::{Lab, Pod};

const LIMIT: Duration = Duration::from_secs(15);

fn silent_clients_are_reset(
    topology: Topology,
    sizes: &[usize],
    more: &[&str],
    by_shortcut: bool,
) -> Result<()> {
    let lab = Lab::with(topology, Pod::cast())?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let _agent = lab.agent_with(&[&["--undecided-timeout", "1"], more].concat())?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    let (_server, records) = lab.raw_server("frontend", 8080, &[])?;
    let _shortcut = by_shortcut.then(|| lab.shortcut("sleep", "frontend")).transpose()?;
    let mut connections = 0;
    for v6 in [false, true] {
        for &said in sizes {
            let seen = records.all()?.len();
            let mut stream = lab.connect("sleep", lab.address("frontend", 8080, v6))?;
            let start = Instant::now();
            stream.write_all(&[0x16, 3, 1, 2, 0, 1][..said])?;
            stream.set_read_timeout(Some(LIMIT))?;
            let end = stream.read(&mut [0; 16]).expect_err("nothing is ever answered");
            assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset, "{said} bytes, IPv6 {v6}: {end}");
            assert!(
                start.elapsed() >= Duration::from_secs(1),
                "reset before its time: {:?}",
                start.elapsed()
            );
            let record = records.next(seen, stream.local_addr()?)?;
            assert_eq!((record.read, record.written, record.end), (said as u64, 0, End::Reset), "{record:?}");
            connections += 1;
        }
    }
    let counted = lab.count(Verdict::RESET, Reason::UNDECIDED).context("counters")?;
    assert_eq!(counted.connections, connections, "{counted:?}");
    lab.wait_no_sockets("frontend", 8080)?;
    Ok(())
}

#[test]
fn silence_on_a_routed_pod_is_reset() -> Result<()> {
    silent_clients_are_reset(Topology::Routed, &[1, 2, 3, 4, 5], &[], false)
}

#[test]
fn silence_on_a_bridged_pod_is_reset() -> Result<()> {
    silent_clients_are_reset(Topology::Bridge, &[1, 5], &[], false)
}

/// The agent is outside, the program inside: it is the pod's own device that the client's segment comes to.
#[test]
fn silence_at_a_pods_own_device_is_reset() -> Result<()> {
    silent_clients_are_reset(Topology::Routed, &[1, 5], &["--attach", "pod"], false)
}

/// The client's packets never come through the interface that the agent sends by.
#[test]
fn silence_of_who_comes_past_the_host_side_is_reset() -> Result<()> {
    silent_clients_are_reset(Topology::Routed, &[1, 5], &["--attach", "pod"], true)
}

/// The way to the pod is closed at the moment when the silent client should be judged: it is judged afterwards.
#[test]
fn a_silent_client_is_judged_once_that_is_possible() -> Result<()> {
    let lab = Lab::with(Topology::Bridge, Pod::cast())?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let _agent = lab.agent_with(&["--undecided-timeout", "1"])?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    let (_server, _) = lab.raw_server("frontend", 8080, &[])?;
    let mut stream = lab.connect("sleep", lab.address("frontend", 8080, false))?;
    stream.write_all(&[0x16])?;
    stream.set_read_timeout(Some(LIMIT))?;
    let interface = lab.pod("frontend").interface();
    let link = |state: &str| lab.exec(NODE, ["ip", "link", "set", &interface, state])?.success();
    link("down")?;
    std::thread::sleep(Duration::from_secs(3));
    link("up")?;
    let end = stream.read(&mut [0; 16]).expect_err("nothing is ever answered");
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset, "{end}");
    Ok(())
}
