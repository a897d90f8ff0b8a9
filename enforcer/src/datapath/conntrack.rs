//! Connections that a network namespace translates, by `ctnetlink` (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`).
//!
//! A sidecar that redirects has the sockets of inbound connections on a port of its own; on the wire they have the port that
//! the client asked for. Only the namespace's connection tracking knows both.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::libc;

use super::netlink::{Attributes, Message, Netlink};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`.
const CT_GET: u16 = 0x101;
/// `struct nfgenmsg`.
const NFGEN: usize = 4;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// Both ends of a connection.
pub type Ends = (SocketAddr, SocketAddr);

/// Who opened a connection, and what it is on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The other end. The ends are the namespace's own on the wire, then the other's.
    Remote(Ends),
    /// The namespace itself. The ends are the same.
    Local(Ends),
}

/// The tracked TCP connections of one network namespace, by the ends that a socket of it has: its own, then the other's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tracked(BTreeMap<Ends, Origin>);

impl Tracked {
    /// What is known of the connection of a socket with these ends; `None` when it is not tracked.
    #[must_use]
    pub fn origin(&self, local: SocketAddr, remote: SocketAddr) -> Option<Origin> {
        self.0.get(&(local, remote)).copied()
    }

    /// Adds those of another namespace.
    pub fn add(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// `original` and `reply` are source and destination of the first packet and of its answer.
    fn enter(&mut self, original: Ends, reply: Ends) {
        // The socket that answers has the answer's source; the client of an inbound connection is on the wire as the first
        // packet's source.
        self.0.insert(reply, Origin::Remote((original.1, original.0)));
        // The socket that opened has the first packet's source and destination; on the wire it is whom the answer is for.
        self.0.entry(original).or_insert(Origin::Local((reply.1, reply.0)));
    }
}

/// The tracked TCP connections of the calling thread's network namespace.
///
/// # Errors
/// When the kernel has no connection tracking by netlink, or refuses.
pub fn tracked() -> io::Result<Tracked> {
    let mut netlink = Netlink::netfilter()?;
    let mut tracked = Tracked::default();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).map_err(io::Error::other)?;
        // struct nfgenmsg: family, version 0, resource id 0.
        for message in netlink.dump(&Message::new(CT_GET, &[family, 0, 0, 0]))? {
            if let Some((original, reply)) = read(&message) {
                tracked.enter(original, reply);
            }
        }
    }
    Ok(tracked)
}

fn read(message: &Message) -> Option<(Ends, Ends)> {
    let attributes = message.attributes(NFGEN);
    let tuple = |kind| attributes.get(kind).and_then(|tuple| read_tuple(&Attributes::of(tuple)));
    Some((tuple(CTA_TUPLE_ORIG)?, tuple(CTA_TUPLE_REPLY)?))
}

/// Source and destination; `None` for anything but TCP.
fn read_tuple(tuple: &Attributes<'_>) -> Option<Ends> {
    let (ip, proto) = (Attributes::of(tuple.get(CTA_TUPLE_IP)?), Attributes::of(tuple.get(CTA_TUPLE_PROTO)?));
    if i32::from(*proto.get(CTA_PROTO_NUM)?.first()?) != libc::IPPROTO_TCP {
        return None;
    }
    let address = |v4, v6| -> Option<IpAddr> {
        match (ip.get(v4), ip.get(v6)) {
            (Some(bytes), _) => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
            (_, Some(bytes)) => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
            _ => None,
        }
    };
    let port = |kind| Some(u16::from_be_bytes(*proto.get(kind)?.first_chunk()?));
    Some((
        SocketAddr::new(address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?, port(CTA_PROTO_SRC_PORT)?),
        SocketAddr::new(address(CTA_IP_V4_DST, CTA_IP_V6_DST)?, port(CTA_PROTO_DST_PORT)?),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_redirected_connection_is_what_it_is_on_the_wire() {
        let mut tracked = Tracked::default();
        let (client, asked, own) = (end("10.0.0.9:40000"), end("10.0.0.5:8080"), end("10.0.0.5:15006"));
        tracked.enter((client, asked), (own, client));
        assert_eq!(tracked.origin(own, client), Some(Origin::Remote((asked, client))));
        // One that is not translated, from each of its ends.
        let plain = end("10.0.0.5:9090");
        tracked.enter((client, plain), (plain, client));
        assert_eq!(tracked.origin(plain, client), Some(Origin::Remote((plain, client))));
        let (from, to) = (end("10.0.0.5:50000"), end("10.0.0.7:80"));
        tracked.enter((from, to), (to, from));
        assert_eq!(tracked.origin(from, to), Some(Origin::Local((from, to))));
        assert_eq!(tracked.origin(from, client), None);
    }

    #[test]
    fn what_is_no_tcp_and_what_is_cut_is_left_out() {
        let ip = Message::new(0, &[]).with(CTA_IP_V4_SRC, &[10, 0, 0, 1]).with(CTA_IP_V4_DST, &[10, 0, 0, 2]);
        let proto = |number: u8| {
            let ports = Message::new(0, &[]).with(CTA_PROTO_NUM, &[number]);
            ports.with(CTA_PROTO_SRC_PORT, &[0, 80]).with(CTA_PROTO_DST_PORT, &[1, 0])
        };
        let tuple = |number| {
            Message::new(0, &[]).with(CTA_TUPLE_IP, &ip.payload).with(CTA_TUPLE_PROTO, &proto(number).payload)
        };
        let read = |tuple: &Message| read_tuple(&Attributes::of(&tuple.payload));
        assert_eq!(read(&tuple(6)), Some((end("10.0.0.1:80"), end("10.0.0.2:256"))));
        assert_eq!(read(&tuple(17)), None);
        for cut in 0..tuple(6).payload.len() {
            let part = Message { kind: 0, payload: tuple(6).payload[..cut].to_vec() };
            let _ = read(&part);
        }
    }
}
