//! What is not an inbound TCP connection of a meshed pod: never touched, whatever the policy.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use enforcer_tests::lab::{NODE, NODE_V4, NODE_V6};
use enforcer_tests::record::End;
use enforcer_tests::{Lab, Scene};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, bind, connect, setsockopt, socket,
    sockopt,
};

/// Connects with a source port of choice, shared with whoever listens on it.
fn connect_from(lab: &Lab, from: &str, source: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    lab.inside(from, || {
        let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        setsockopt(&fd, sockopt::ReusePort, &true)?;
        bind(fd.as_raw_fd(), &storage(source)?).with_context(|| format!("cannot bind {source}"))?;
        connect(fd.as_raw_fd(), &storage(to)?)
            .with_context(|| format!("cannot connect from {source} to {to}"))?;
        Ok(TcpStream::from(fd))
    })?
}

fn storage(address: SocketAddr) -> Result<SockaddrStorage> {
    let from = |address: &dyn SockaddrLike| {
        // SAFETY: pointer and length are those of a socket address that lives during the call.
        unsafe { SockaddrStorage::from_raw(address.as_ptr(), Some(address.len())) }
    };
    let storage = match address {
        SocketAddr::V4(v4) => from(&nix::sys::socket::SockaddrIn::from(v4)),
        SocketAddr::V6(v6) => from(&nix::sys::socket::SockaddrIn6::from(v6)),
    };
    storage.context("not a socket address")
}

fn assert_echoes(mut stream: TcpStream, what: &str) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"plain as day").with_context(|| what.to_owned())?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).with_context(|| what.to_owned())?;
    assert_eq!(&answer, b"plain as day", "{what}");
    Ok(())
}

#[test]
fn outbound_plaintext_of_a_strict_pod_from_any_port() -> Result<()> {
    let scene = Scene::strict()?;
    let lab = &scene.lab;
    // The pod serves 8080 itself, and calls from that port too.
    let (_own, _) = lab.raw_server("frontend", 8080, &[])?;
    let (_server, records) = lab.raw_server("sleep", 7000, &["--echo"])?;
    for v6 in [false, true] {
        let to = lab.address("sleep", 7000, v6);
        for port in [0, 8080, 15008, 443, 22, 50_000] {
            let stream = connect_from(lab, "frontend", lab.address("frontend", port, v6), to)?;
            assert_echoes(stream, &format!("from port {port} to {to}"))?;
        }
    }
    assert!(records.at_least(12)?.iter().all(|record| record.end == End::Eof && record.read == 12));
    Ok(())
}

#[test]
fn servers_that_speak_first_outside_can_be_called() -> Result<()> {
    let scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_server, _) = lab.raw_server("sleep", 7000, &["--greet", "220 ready"])?;
    for v6 in [false, true] {
        let mut stream = lab.connect("frontend", lab.address("sleep", 7000, v6))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut greeting = [0; 9];
        stream.read_exact(&mut greeting)?;
        assert_eq!(&greeting, b"220 ready");
    }
    Ok(())
}

#[test]
fn host_network_and_pods_outside_the_mesh() -> Result<()> {
    let scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_host, _) = lab.raw_server(NODE, 7100, &["--echo"])?;
    let (_pod, _) = lab.raw_server("sleep", 7100, &["--echo"])?;
    for v6 in [false, true] {
        let node: IpAddr = if v6 { NODE_V6.into() } else { NODE_V4.into() };
        for from in ["sleep", "frontend"] {
            assert_echoes(lab.connect(from, SocketAddr::new(node, 7100))?, &format!("{from} to the node"))?;
        }
        for from in [NODE, "adservice"] {
            assert_echoes(lab.connect(from, lab.address("sleep", 7100, v6))?, &format!("{from} to sleep"))?;
        }
    }
    Ok(())
}

#[test]
fn udp_in_both_directions() -> Result<()> {
    let scene = Scene::strict()?;
    let lab = &scene.lab;
    for v6 in [false, true] {
        let server_address = lab.address("frontend", 8080, v6);
        let server = lab.inside("frontend", || UdpSocket::bind(server_address))??;
        let client = lab.inside("sleep", || UdpSocket::bind(lab.address("sleep", 0, v6)))??;
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        }
        let mut buffer = vec![0; 9000];
        // The larger one travels in fragments.
        for length in [1, 1000, 8000] {
            let message = vec![b'u'; length];
            client.send_to(&message, server_address)?;
            let (count, peer) =
                server.recv_from(&mut buffer).with_context(|| format!("{length} to the pod"))?;
            assert_eq!(count, length);
            server.send_to(&message, peer)?;
            let (count, _) =
                client.recv_from(&mut buffer).with_context(|| format!("{length} from the pod"))?;
            assert_eq!(count, length);
        }
    }
    Ok(())
}

#[test]
fn echo_requests() -> Result<()> {
    let scene = Scene::strict()?;
    let lab = &scene.lab;
    for v6 in [false, true] {
        for (from, to) in [("sleep", "frontend"), ("frontend", "sleep")] {
            let address = lab.address(to, 0, v6);
            lab.inside(from, || ping(address))?.with_context(|| format!("{from} to {address}"))?;
        }
    }
    Ok(())
}

/// Sends an echo request on a raw socket and waits for the reply.
fn ping(to: SocketAddr) -> Result<()> {
    let (family, protocol, request, reply) = match to {
        SocketAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP, 8, 0),
        SocketAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128, 129),
    };
    // SAFETY: a plain system call; the descriptor is checked and then owned.
    let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    anyhow::ensure!(fd >= 0, "no raw socket: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and ours alone. The type stands for any socket that sends and receives.
    let socket: UdpSocket = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut message = vec![request, 0, 0, 0, 0xab, 0xcd, 0, 1];
    if to.is_ipv4() {
        // One's complement of the sum of the words; the kernel does it for ICMPv6.
        let sum: u32 = [u32::from(request) << 8, 0xabcd, 1].iter().sum();
        let folded = !u16::try_from((sum & 0xffff) + (sum >> 16))?;
        message[2..4].copy_from_slice(&folded.to_be_bytes());
    }
    let to = match to {
        SocketAddr::V4(v4) => SocketAddr::V4(SocketAddrV4::new(*v4.ip(), 0)),
        SocketAddr::V6(v6) => SocketAddr::V6(SocketAddrV6::new(*v6.ip(), 0, 0, 0)),
    };
    socket.send_to(&message, to)?;
    let mut buffer = [0; 256];
    loop {
        let (count, from) = socket.recv_from(&mut buffer).context("no reply")?;
        // A raw socket of IPv4 gives the IP header too.
        let skip = if to.is_ipv4() { 20 } else { 0 };
        if from.ip() == to.ip() && count >= skip + 8 && buffer[skip] == reply && buffer[skip + 4] == 0xab {
            return Ok(());
        }
    }
}
