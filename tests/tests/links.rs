//! Ways to a pod that its status does not name: link-local addresses on the pods' bridge, and a second interface that takes
//! packets for the address of the first.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddrV6, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use enforcer_common::{Mode, Reason, Verdict};
use enforcer_tests::agent::{MESH_STRICT, policy};
use enforcer_tests::lab::{NODE, Topology};
use enforcer_tests::{Lab, Pod, poll};
use nix::net::if_::if_nametoindex;
use serde_json::Value;

const NAMESPACE: &str = "hipstershopv1v2";
const HOST: &str = "frontend.hipstershopv1v2";
const LIMIT: Duration = Duration::from_secs(10);

fn ip(lab: &Lab, member: &str, words: &str) -> Result<()> {
    lab.exec(member, std::iter::once("ip").chain(words.split(' ')))?.success()?;
    Ok(())
}

/// The link-local address that a pod has on the bridge.
fn link_local(lab: &Lab, pod: &str) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa, lab.pod(pod).number.into())
}

/// `curl` to the frontend's link-local address.
fn curl(lab: &Lab, from: &str, scheme: &str) -> Result<(String, i32)> {
    let resolve = format!("{HOST}:8080:[{}]", link_local(lab, "frontend"));
    let url = format!("{scheme}://{HOST}:8080");
    let words = ["--interface", "eth0", "--resolve", &resolve, &url];
    let output = if scheme == "https" { lab.mesh_curl(from, &words)? } else { lab.curl(from, &words)? };
    Ok((output.stdout.trim().to_owned(), output.code))
}

/// A connection to it from a neighbour.
fn connect(lab: &Lab) -> Result<TcpStream> {
    let address = link_local(lab, "frontend");
    let stream = lab.inside("sleep", || {
        let scope = if_nametoindex("eth0").map_err(std::io::Error::from)?;
        TcpStream::connect(SocketAddrV6::new(address, 8080, 0, scope))
    })??;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn bridged() -> Result<Lab> {
    let lab = Lab::with(Topology::Bridge, Pod::cast())?;
    lab.describe()?;
    for pod in ["frontend", "sleep", "loadgenerator"] {
        ip(&lab, pod, &format!("address add {}/64 dev eth0 nodad", link_local(&lab, pod)))?;
    }
    Ok(lab)
}

fn refused() -> (String, i32) {
    ("000".to_owned(), 56)
}

fn served() -> (String, i32) {
    ("200".to_owned(), 0)
}

/// A neighbour on the bridge reaches the pod by an address that no status names. It is held to the same policy.
#[test]
fn link_local_addresses_are_under_the_policy_of_their_pod() -> Result<()> {
    for attach in ["host", "pod"] {
        let lab = bridged()?;
        let (_server, records) = lab.sidecar("frontend", 8080)?;
        let mut agent = lab.agent_with(&["--attach", attach, "--undecided-timeout", "1"])?;
        agent.wait_for_output("agent is running")?;
        assert_eq!(curl(&lab, "sleep", "http")?, served(), "{attach}: PERMISSIVE");
        lab.apply("mesh.yaml", MESH_STRICT)?;
        lab.wait_mode("frontend", Mode::STRICT)?;
        poll::until("the policy on the link", LIMIT, || {
            let plain = curl(&lab, "sleep", "http")?;
            ensure!(plain == refused(), "{attach}: {plain:?}");
            Ok(())
        })?;
        assert_eq!(curl(&lab, "loadgenerator", "https")?, served(), "{attach}");
        let before = records.all()?.len();
        assert_eq!(curl(&lab, "sleep", "http")?, refused(), "{attach}");
        let leaked: Vec<_> =
            records.all()?.into_iter().skip(before).filter(|record| record.read > 0).collect();
        assert!(leaked.is_empty(), "{attach}: {leaked:?}");
        assert!(lab.count(Verdict::RESET, Reason::PLAINTEXT)?.connections > 0);

        // Who begins what could be a hello and falls silent is judged there, too.
        let mut silent = connect(&lab)?;
        silent.write_all(&[0x16, 3])?;
        let end = silent.read(&mut [0; 16]).expect_err("nothing is ever answered");
        assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset, "{attach}: {end}");

        // A port of its own counts there, too, and an exception for the workload.
        lab.apply(
            "open.yaml",
            &policy(NAMESPACE, "open", Some(&format!("{HOST}.svc.cluster.local")), "PERMISSIVE", &[]),
        )?;
        lab.wait_mode("frontend", Mode::PERMISSIVE)?;
        assert_eq!(curl(&lab, "sleep", "http")?, served(), "{attach}: an exception");

        // Records name the pod and the policy; people see the pod's own addresses only.
        let words = ["flows", "--pod", &format!("{NAMESPACE}/frontend"), "-o", "json"];
        let flows = lab.enforcer(&words)?.success()?.stdout;
        let of_link = |line: &&str| line.contains("\"fe80::") && line.contains("\"PLAINTEXT\"");
        let line = flows.lines().find(of_link).with_context(|| format!("no such record: {flows}"))?;
        assert!(line.contains("istio-system/default"), "{line}");
        let endpoints = lab.enforcer(&["endpoints"])?.success()?.stdout;
        assert!(!endpoints.contains("fe80"), "{endpoints}");
    }
    Ok(())
}

/// One of an older agent's time goes on where that is wanted, and a restart of the agent changes nothing.
#[test]
fn open_connections_to_link_local_addresses_are_entered() -> Result<()> {
    let lab = bridged()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let (_server, _) = lab.raw_server("frontend", 8080, &["--echo"])?;
    let echo = |stream: &mut TcpStream| -> std::io::Result<()> {
        stream.write_all(b"hello")?;
        stream.read_exact(&mut [0; 5])
    };
    let mut open = connect(&lab)?;
    echo(&mut open)?;
    for _ in 0..2 {
        let mut agent = lab.agent()?;
        agent.wait_for_output("agent is running")?;
        lab.wait_mode_here("frontend", Mode::STRICT)?;
        poll::until("new ones to be refused", LIMIT, || {
            let refused = echo(&mut connect(&lab)?);
            ensure!(refused.is_err(), "served");
            Ok(())
        })?;
        echo(&mut open).context("it was open before")?;
        agent.kill()?;
        echo(&mut open).context("without an agent")?;
    }
    Ok(())
}

/// A pod with a second interface, as of a secondary network: what arrives there for the first one's address is judged, and so is
/// what goes one way by the one and back by the other.
#[test]
fn a_second_interface_is_no_way_around() -> Result<()> {
    let lab = Lab::with(Topology::Routed, Pod::cast())?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    let (_server, records) = lab.sidecar("frontend", 8080)?;
    let mut agent = lab.agent()?;
    agent.wait_for_output("agent is running")?;
    lab.wait_mode_here("frontend", Mode::STRICT)?;

    let pod = lab.namespace("frontend");
    let address = lab.pod("frontend").v4();
    ip(&lab, NODE, &format!("link add second0 type veth peer name net1 netns {pod}"))?;
    ip(&lab, NODE, "link set second0 up")?;
    ip(&lab, "frontend", "address add 192.0.2.7/24 dev net1")?;
    ip(&lab, "frontend", "link set net1 up")?;
    for setting in ["net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.net1.rp_filter=0"] {
        lab.exec("frontend", ["sysctl", "-qw", setting])?.success()?;
    }
    for setting in [
        "net.ipv4.conf.all.rp_filter=0",
        &format!("net.ipv4.conf.{}.rp_filter=0", lab.pod("frontend").interface()),
    ] {
        lab.exec(NODE, ["sysctl", "-qw", setting])?.success()?;
    }
    ip(&lab, NODE, "address add 192.0.2.1/24 dev second0")?;
    ip(&lab, NODE, &format!("route replace {address}/32 via 192.0.2.7 dev second0"))?;

    let plain = || lab.curl("sleep", &["-4", &format!("http://{HOST}:8080")]);
    poll::until("the second interface to be known", LIMIT, || {
        let output = plain()?;
        ensure!((output.stdout.as_str(), output.code) == ("000\n", 56), "{output:?}");
        Ok(())
    })?;
    let before = records.all()?.len();
    for _ in 0..5 {
        let output = plain()?;
        assert_eq!((output.stdout.as_str(), output.code), ("000\n", 56), "{output:?}");
    }
    let leaked: Vec<_> = records.all()?.into_iter().skip(before).filter(|record| record.read > 0).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
    let url = format!("https://{HOST}:8080");
    for _ in 0..5 {
        let mesh = lab.mesh_curl("loadgenerator", &["-4", &url])?;
        assert_eq!(mesh.code, 0, "{mesh:?}");
    }
    assert_eq!(lab.endpoint(address.into())?.ifindex, 0, "behind every interface");

    // That is how the pod is, and no problem.
    let status: Value = serde_json::from_str(&lab.enforcer(&["status", "-o", "json"])?.stdout)?;
    let problems = status["problems"].to_string();
    assert!(!problems.contains("several interfaces"), "{problems}");
    let socket = lab.socket().display().to_string();
    let words = ["curl", "-sS", "-w", "%{http_code}", "--unix-socket", &socket, "http://agent/readyz"];
    let ready = lab.exec(NODE, words)?;
    assert!(ready.stdout.ends_with("200"), "{ready:?}");
    Ok(())
}
