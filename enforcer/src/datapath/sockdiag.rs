//! The TCP sockets of a network namespace, by `sock_diag` (`include/uapi/linux/inet_diag.h`).

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::libc;

use super::conntrack::{self, Ends, Origin, Tracked};
use super::netlink::{Message, Netlink};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `TCP_ESTABLISHED`.
pub const ESTABLISHED: u8 = 1;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
/// `TCP_LISTEN`.
pub const LISTEN: u8 = 10;
const NEW_SYN_RECV: u8 = 12;

/// A TCP socket. IPv4 on an IPv6 socket is told as IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Socket {
    /// The namespace's own end.
    pub local: SocketAddr,
    /// The other end; unspecified for a listener.
    pub remote: SocketAddr,
    /// The kernel's number of the state (`tcp_states.h`).
    pub state: u8,
    /// Inode of the socket; 0 when no process holds it any more.
    pub inode: u32,
}

/// The TCP sockets of one network namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PodSockets {
    /// Every connection except those in `TIME_WAIT`: half-closed ones still carry data.
    pub established: Vec<Socket>,
    /// Connections in `TIME_WAIT`.
    pub time_wait: Vec<Socket>,
    /// Ports that somebody listens on.
    pub listening_ports: BTreeSet<u16>,
    /// What connection tracking knows; `None` where it cannot be read.
    pub tracked: Option<Tracked>,
}

/// What a socket's connection may be on the wire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OnWire {
    /// Opened from outside; each of these may be it: the pod's end, then the client's.
    Inbound(Vec<Ends>),
    /// Opened by the pod: its end, then the server's.
    Outbound(Ends),
}

impl PodSockets {
    /// What the connection is on the wire, and who opened it. Where connection tracking does not know, it was opened from outside
    /// when somebody listens on its local port, and where it cannot be read, a redirected one may have been for any port
    /// that somebody listens on.
    #[must_use]
    pub fn on_wire(&self, socket: &Socket) -> OnWire {
        let ends = (socket.local, socket.remote);
        match self.tracked.as_ref().and_then(|tracked| tracked.origin(socket.local, socket.remote)) {
            Some(Origin::Remote(ends)) => return OnWire::Inbound(vec![ends]),
            Some(Origin::Local(ends)) => return OnWire::Outbound(ends),
            None => {}
        }
        if !self.listening_ports.contains(&socket.local.port()) {
            return OnWire::Outbound(ends);
        }
        let mut all = vec![ends];
        if self.tracked.is_none() {
            let others = self.listening_ports.iter().filter(|port| **port != socket.local.port());
            all.extend(others.map(|port| (SocketAddr::new(socket.local.ip(), *port), socket.remote)));
        }
        OnWire::Inbound(all)
    }

    /// Adds the sockets of another namespace.
    pub fn add(&mut self, other: &Self) {
        match (&mut self.tracked, &other.tracked) {
            (Some(tracked), Some(more)) => tracked.add(more),
            _ if self.established.is_empty() => self.tracked.clone_from(&other.tracked),
            (tracked, _) => *tracked = None,
        }
        self.established.extend(&other.established);
        self.time_wait.extend(&other.time_wait);
        self.listening_ports.extend(&other.listening_ports);
    }

    fn sort(sockets: Vec<Socket>) -> Self {
        let mut sorted = Self::default();
        for socket in sockets {
            match socket.state {
                LISTEN => {
                    sorted.listening_ports.insert(socket.local.port());
                }
                TIME_WAIT => sorted.time_wait.push(socket),
                CLOSE => {}
                _ => sorted.established.push(socket),
            }
        }
        sorted
    }
}

/// The TCP sockets of the calling thread's network namespace.
///
/// # Errors
/// When netlink fails, or the kernel has no `inet_diag`.
pub fn sockets() -> io::Result<PodSockets> {
    let mut netlink = Netlink::sock_diag()?;
    let mut all = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).map_err(io::Error::other)?;
        let states = (1_u32 << (NEW_SYN_RECV + 1)) - 1;
        // struct inet_diag_req_v2: family, protocol, extensions, padding, states, id (48 bytes).
        let mut request = [0; 56];
        request[0] = family;
        request[1] = u8::try_from(libc::IPPROTO_TCP).map_err(io::Error::other)?;
        request[4..8].copy_from_slice(&states.to_ne_bytes());
        match netlink.dump(&Message::new(SOCK_DIAG_BY_FAMILY, &request)) {
            Ok(messages) => all.extend(messages.iter().filter_map(read)),
            // A kernel without IPv6 has no such sockets.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) && family != 2 => {}
            Err(e) => return Err(e),
        }
    }
    Ok(PodSockets { tracked: conntrack::tracked().ok(), ..PodSockets::sort(all) })
}

/// `struct inet_diag_msg`: family, state, timer, retransmissions, then the id (ports and addresses in network byte
/// order), four numbers, the inode.
fn read(message: &Message) -> Option<Socket> {
    let bytes = &message.payload;
    let family = i32::from(*bytes.first()?);
    let port = |at: usize| Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    let address = |at: usize| -> Option<IpAddr> {
        let bytes = bytes.get(at..)?;
        Some(if family == libc::AF_INET {
            Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()
        } else {
            IpAddr::from(Ipv6Addr::from(*bytes.first_chunk::<16>()?)).to_canonical()
        })
    };
    Some(Socket {
        local: SocketAddr::new(address(8)?, port(4)?),
        remote: SocketAddr::new(address(24)?, port(6)?),
        state: *bytes.get(1)?,
        inode: message.u32_at(68)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_is_seen_from_both_ends_and_told_apart() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(bind).expect("a listener");
            let port = listener.local_addr().expect("its address");
            let client = TcpStream::connect(port).expect("a connection");
            let (_server, _) = listener.accept().expect("accepted");
            let own = client.local_addr().expect("an address");
            let found = sockets().expect("the table");
            let end = |local, remote| {
                found
                    .established
                    .iter()
                    .find(|s| s.local == local && s.remote == remote && s.state == ESTABLISHED)
            };
            // Without connection tracking here: by who listens.
            let found_alone = PodSockets { tracked: None, ..found.clone() };
            for found in [&found, &found_alone] {
                let server = found.on_wire(end(port, own).expect("the server's end"));
                let OnWire::Inbound(all) = server else { panic!("{server:?}") };
                assert_eq!(all.first(), Some(&(port, own)));
                let client = found.on_wire(end(own, port).expect("the client's end"));
                assert_eq!(client, OnWire::Outbound((own, port)));
            }
            assert_ne!(end(own, port).map(|s| s.inode), Some(0));
        }
    }

    #[test]
    fn where_tracking_cannot_be_read_every_port_may_be_meant() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let (local, remote) = (at("10.0.0.5:15006"), at("10.0.0.9:40000"));
        let socket = Socket { local, remote, state: ESTABLISHED, inode: 1 };
        let mut sockets = PodSockets { listening_ports: [8080, 15006].into(), ..PodSockets::default() };
        let both = OnWire::Inbound(vec![(local, remote), (at("10.0.0.5:8080"), remote)]);
        assert_eq!(sockets.on_wire(&socket), both);
        sockets.tracked = Some(Tracked::default());
        assert_eq!(
            sockets.on_wire(&socket),
            OnWire::Inbound(vec![(local, remote)]),
            "not tracked: not translated"
        );
    }
}
