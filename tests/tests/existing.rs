//! Connections that were open before the first agent attached: entered from the pods' own socket tables.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context, Result};
use enforcer_common::{Mode, map::FlowState};
use enforcer_common::{Reason, Verdict};
use enforcer_tests::Lab;
use enforcer_tests::agent::MESH_STRICT;
use enforcer_tests::client::{self, Outcome, tls};
use enforcer_tests::lab::Running;
use enforcer_tests::record::{End, Records};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

const HOST: &str = "frontend.hipstershopv1v2";
const LIMIT: Duration = Duration::from_secs(10);

/// What is open before the agent starts, in both families each.
struct Open {
    /// Plaintext to the frontend; the server echoes.
    plain: Vec<TcpStream>,
    /// TLS to the adservice.
    secure: Vec<tls::Stream>,
    /// From the frontend to a server outside the mesh.
    outbound: Vec<TcpStream>,
    records: Records,
    _servers: [Running; 3],
}

fn lab() -> Result<Lab> {
    let lab = Lab::new()?;
    lab.describe()?;
    lab.apply("mesh.yaml", MESH_STRICT)?;
    Ok(lab)
}

fn echo(stream: &mut TcpStream, text: &[u8]) -> Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(text).context("cannot write")?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).context("no echo")?;
    assert_eq!(answer, text);
    Ok(())
}

fn open(lab: &Lab) -> Result<Open> {
    let (plain_server, records) = lab.raw_server("frontend", 8080, &["--echo"])?;
    let (tls_server, _) = lab.sidecar("adservice", 9555)?;
    let (outside, _) = lab.raw_server("sleep", 7000, &["--echo"])?;
    let config = tls::config(lab, "loadgenerator", tls::Shape::default())?;
    let (mut plain, mut secure, mut outbound) = (Vec::new(), Vec::new(), Vec::new());
    for v6 in [false, true] {
        // One that has spoken, and one that has not yet.
        let mut spoken = lab.connect("sleep", lab.address("frontend", 8080, v6))?;
        echo(&mut spoken, b"before")?;
        plain.push(spoken);
        plain.push(lab.connect("sleep", lab.address("frontend", 8080, v6))?);
        let stream = lab.connect("loadgenerator", lab.address("adservice", 9555, v6))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut stream =
            tls::start(stream, config.clone(), "adservice.hipstershopv1v2", tls::Shape::default())?;
        tls::get(&mut stream, "adservice.hipstershopv1v2")?;
        secure.push(stream);
        let mut out = lab.connect("frontend", lab.address("sleep", 7000, v6))?;
        echo(&mut out, b"before")?;
        outbound.push(out);
    }
    Ok(Open { plain, secure, outbound, records, _servers: [plain_server, tls_server, outside] })
}

/// Number of flows in a state, in both tables.
fn flows(lab: &Lab, state: FlowState) -> Result<usize> {
    let all = [lab.flows()?, lab.transient()?].concat();
    Ok(all.iter().filter(|(_, flow)| flow.state == state).count())
}

#[test]
fn allowed_ones_live_and_new_ones_are_judged() -> Result<()> {
    let lab = lab()?;
    let mut open = open(&lab)?;
    let _agent = lab.agent_with(&["--existing-flows", "allow"])?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    lab.wait_settled(&["frontend", "adservice"])?;
    assert_eq!(flows(&lab, FlowState::EXISTING)?, open.plain.len() + open.secure.len());

    for round in 0..3 {
        for stream in &mut open.plain {
            echo(stream, b"GET / HTTP/1.1\r\n\r\n").with_context(|| format!("round {round}"))?;
        }
        for stream in &mut open.secure {
            tls::get(stream, "adservice.hipstershopv1v2").with_context(|| format!("round {round}"))?;
        }
        for stream in &mut open.outbound {
            echo(stream, b"outbound").with_context(|| format!("round {round}"))?;
        }
    }
    let existing = lab.count(Verdict::ALLOW, Reason::EXISTING)?.connections;
    assert_eq!(existing, (open.plain.len() + open.secure.len()) as u64);
    // What comes now is judged.
    let fresh = lab.connect("sleep", lab.address("frontend", 8080, false))?;
    let ending = client::exchange(&fresh, b"GET / HTTP/1.1\r\n\r\n", usize::MAX, LIMIT)?;
    assert_eq!(ending.outcome, Outcome::Reset);
    assert_eq!(lab.count(Verdict::RESET, Reason::MIDSTREAM)?.connections, 0);
    Ok(())
}

#[test]
fn reset_ends_the_inbound_ones_at_their_next_packet() -> Result<()> {
    let lab = lab()?;
    let mut open = open(&lab)?;
    let _agent = lab.agent_with(&["--existing-flows", "reset"])?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    lab.wait_settled(&["frontend", "adservice"])?;

    for stream in &open.plain {
        let ending = client::exchange(stream, b"GET / HTTP/1.1\r\n\r\n", usize::MAX, LIMIT)?;
        assert_eq!((ending.outcome, ending.received.len()), (Outcome::Reset, 0));
        assert!(ending.elapsed < Duration::from_secs(1), "the reset took {:?}", ending.elapsed);
        let record = open.records.of_peer(stream.local_addr()?)?;
        assert_eq!(record.end, End::Reset, "{record:?}");
        assert!(matches!(record.read, 0 | 6), "plaintext came through: {record:?}");
    }
    // No byte is guessed from: TLS that was open before ends too.
    for stream in &mut open.secure {
        let error = tls::get(stream, HOST).expect_err("it lives");
        let cause = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
        // The request goes out in several writes: the first one that follows the reset hears of it.
        let ended = matches!(cause, Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe));
        assert!(ended, "{error:#}");
    }
    let midstream = lab.count(Verdict::RESET, Reason::MIDSTREAM)?.connections;
    assert_eq!(midstream, (open.plain.len() + open.secure.len()) as u64);
    for stream in &mut open.outbound {
        echo(stream, b"outbound")?;
    }
    Ok(())
}

/// A second agent finds flows that were judged: they are no existing ones for it, whatever it is told about those.
#[test]
fn a_restart_takes_no_judged_flow_for_an_existing_one() -> Result<()> {
    let lab = lab()?;
    let mut agent = lab.agent_with(&["--existing-flows", "reset"])?;
    lab.wait_mode("adservice", Mode::STRICT)?;
    lab.wait_settled(&["frontend", "adservice"])?;
    let mut open = open_secure(&lab)?;
    agent.kill()?;
    let mut agent = lab.start_agent(&["--existing-flows", "reset"])?;
    agent.wait_for_output("agent is running")?;
    tls::get(&mut open.1, HOST)?;
    assert_eq!(flows(&lab, FlowState::EXISTING)?, 0);
    assert_eq!(lab.count(Verdict::RESET, Reason::MIDSTREAM)?.connections, 0);
    Ok(())
}

fn open_secure(lab: &Lab) -> Result<(Running, tls::Stream)> {
    let (server, _) = lab.sidecar("frontend", 8080)?;
    let config = tls::config(lab, "loadgenerator", tls::Shape::default())?;
    let stream = lab.connect("loadgenerator", lab.address("frontend", 8080, false))?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut stream = tls::start(stream, config, HOST, tls::Shape::default())?;
    tls::get(&mut stream, HOST)?;
    Ok((server, stream))
}

/// A sidecar that redirects has its sockets on another port than the one on the wire: they are found all the same.
#[test]
fn redirected_ones_are_known_by_their_port_on_the_wire() -> Result<()> {
    let lab = lab()?;
    let rules = "add table inet mesh; \
                 add chain inet mesh in { type nat hook prerouting priority dstnat; }; \
                 add rule inet mesh in tcp dport 8080 redirect to :15006";
    lab.exec("frontend", ["nft", rules])?.success()?;
    let (_server, records) = lab.raw_server("frontend", 15006, &["--echo"])?;
    // The port that is asked for has a listener too, as the application behind a sidecar.
    let (_app, app) = lab.raw_server("frontend", 8080, &["--echo"])?;
    let (_outside, _) = lab.raw_server("sleep", 7000, &["--echo"])?;
    let (mut open, mut outbound) = (Vec::new(), Vec::new());
    for v6 in [false, true] {
        let mut stream = lab.connect("sleep", lab.address("frontend", 8080, v6))?;
        echo(&mut stream, b"before")?;
        open.push(stream);
        let mut stream = lab.connect("frontend", lab.address("sleep", 7000, v6))?;
        echo(&mut stream, b"before")?;
        outbound.push(stream);
    }
    assert_eq!((records.all()?.len(), app.all()?.len()), (0, 0), "still open");
    let _agent = lab.agent_with(&["--existing-flows", "allow"])?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    lab.wait_settled(&["frontend", "adservice"])?;
    assert_eq!(
        flows(&lab, FlowState::EXISTING)?,
        open.len(),
        "one entry for each, none for a port that is not theirs"
    );
    for round in 0..3 {
        for stream in open.iter_mut().chain(&mut outbound) {
            echo(stream, b"GET / HTTP/1.1\r\n\r\n").with_context(|| format!("round {round}"))?;
        }
    }
    assert_eq!(lab.count(Verdict::RESET, Reason::MIDSTREAM)?.connections, 0);
    assert_eq!(lab.count(Verdict::ALLOW, Reason::EXISTING)?.connections, open.len() as u64);
    // What comes now is judged.
    let fresh = lab.connect("sleep", lab.address("frontend", 8080, false))?;
    let ending = client::exchange(&fresh, b"GET / HTTP/1.1\r\n\r\n", usize::MAX, LIMIT)?;
    assert_eq!(ending.outcome, Outcome::Reset);
    Ok(())
}

/// Who opened a connection whose own port has a listener by now cannot be seen: it goes on where existing ones do.
#[test]
fn an_outbound_one_from_the_servers_own_port_lives() -> Result<()> {
    let lab = lab()?;
    let (_outside, _) = lab.raw_server("sleep", 7000, &["--echo"])?;
    let (from, to) = (lab.address("frontend", 8080, false), lab.address("sleep", 7000, false));
    let mut outbound = lab.inside("frontend", || -> Result<TcpStream> {
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        setsockopt(&fd, sockopt::ReusePort, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
        Ok(TcpStream::from(fd))
    })??;
    echo(&mut outbound, b"before")?;
    let (_server, _) = lab.raw_server("frontend", 8080, &["--echo"])?;
    let _agent = lab.agent_with(&["--existing-flows", "allow"])?;
    lab.wait_mode("frontend", Mode::STRICT)?;
    lab.wait_settled(&["frontend"])?;
    for _ in 0..3 {
        echo(&mut outbound, b"HTTP/1.1 200 OK\r\n\r\n")?;
    }
    assert_eq!(lab.count(Verdict::RESET, Reason::MIDSTREAM)?.connections, 0);
    Ok(())
}
