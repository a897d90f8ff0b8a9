//! Finding the headers of a packet: Ethernet, VLAN tags, IPv4 with options, IPv6 with extension headers, TCP.

use enforcer_common::map::FlowKey;
use enforcer_common::tcp::Segment;
use enforcer_common::{Address, Direction, Reason};

use crate::place::Side;
use crate::skb::Skb;

const ETHERNET_LEN: u32 = 14;
const VLAN_LEN: u32 = 4;
/// VLAN tags that are stepped over. The kernel unpacks any number of tags with VLAN id 0.
const MAX_VLAN_TAGS: u32 = 4;
const IPV4_MIN_LEN: u32 = 20;
const IPV6_LEN: u32 = 40;
const TCP_MIN_LEN: u32 = 20;
/// IPv6 extension headers that are stepped over.
const MAX_EXTENSION_HEADERS: u32 = 8;

/// Furthest that a TCP header may begin: it must lie whole where [`Skb::read`] reaches.
const MAX_TCP_OFFSET: u32 = 0x7ff - TCP_MIN_LEN;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

const PROTOCOL_TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// More-fragments bit and fragment offset of IPv4.
const IPV4_FRAGMENT: u16 = 0x3fff;

/// The network layer of a packet that may be TCP.
#[derive(Clone, Copy)]
pub struct Network {
    pub source: Address,
    pub destination: Address,
    /// Offset of the IP header.
    pub ip_offset: u32,
    pub is_v6: bool,
}

/// A packet of one connection, filled in as its headers are read.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet {
    /// Both ends; the ports are zero until the TCP header is read.
    pub key: FlowKey,
    pub direction: Direction,
    /// The TCP segment.
    pub segment: Segment,
    /// Offset of the IP header.
    pub ip_offset: u32,
    /// Offset of the TCP header.
    pub tcp_offset: u32,
    /// Offset of the payload.
    pub payload_offset: u32,
    pub is_v6: bool,
    /// It is looked at on the pod's own device.
    pub pod_side: bool,
}

impl Network {
    /// To be filled in.
    #[inline(always)]
    pub fn new() -> Self {
        let nobody = Address { bytes: [0; 16] };
        Self { source: nobody, destination: nobody, ip_offset: 0, is_v6: false }
    }
}

impl Packet {
    /// Begins a packet, to be completed by [`transport`].
    #[inline(always)]
    pub fn begin(&mut self, network: &Network, direction: Direction, side: Side) {
        let (client, pod) = match direction {
            Direction::TO_POD => (network.source, network.destination),
            Direction::FROM_POD => (network.destination, network.source),
        };
        self.key = FlowKey { client, pod, client_port: 0, pod_port: 0 };
        self.direction = direction;
        self.segment = Segment { seq: 0, ack: 0, payload_len: 0, flags: 0 };
        self.ip_offset = network.ip_offset;
        self.is_v6 = network.is_v6;
        self.pod_side = matches!(side, Side::Pod);
    }

    /// Forgets the link of the pod's link-local address, for what is written into packets.
    #[inline(always)]
    pub fn leave_link(&mut self) {
        if self.is_v6 && self.key.pod.link_of().is_some() {
            self.key.pod.set_link(0);
        }
    }

    /// Source and destination address; as they stand in the packet once [`Packet::leave_link`] was called.
    #[inline(always)]
    pub fn addresses(&self) -> (&Address, &Address) {
        match self.direction {
            Direction::TO_POD => (&self.key.client, &self.key.pod),
            Direction::FROM_POD => (&self.key.pod, &self.key.client),
        }
    }

    /// Source and destination port as they stand in the packet.
    #[inline(always)]
    pub fn ports(&self) -> (u16, u16) {
        match self.direction {
            Direction::TO_POD => (self.key.client_port, self.key.pod_port),
            Direction::FROM_POD => (self.key.pod_port, self.key.client_port),
        }
    }
}

/// What the transport layer says.
#[derive(Clone, Copy)]
pub enum Parsed {
    /// TCP: the packet's segment, ports and offsets are filled in.
    Tcp,
    /// Not TCP: none of our business.
    Other,
    /// TCP, or something that may hide TCP, whose ports or bytes cannot be read.
    Unreadable(Reason),
}

/// Whether a packet is one that may be TCP.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// IP that may carry TCP: the network layer is filled in.
    Ip,
    /// None of our business.
    Other,
    /// More VLAN tags than are stepped over, or a header that cannot be read.
    TooDeep,
}

/// Fills in the network layer of an IP packet. Only what may be TCP gets through, so that no other packet costs a look-up.
#[inline(always)]
pub fn network(skb: &Skb, network: &mut Network) -> Layer {
    let Some(ethertype) = addresses(skb, network) else {
        return Layer::Other;
    };
    if is_vlan(ethertype) { Layer::TooDeep } else { Layer::Ip }
}

#[inline(always)]
fn is_vlan(ethertype: u16) -> bool {
    ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ
}

/// The type of what is behind the VLAN tags, its addresses filled in; a VLAN's type where it cannot be told.
#[inline(always)]
fn addresses(skb: &Skb, network: &mut Network) -> Option<u16> {
    if skb.linear_len() < ETHERNET_LEN + IPV6_LEN && skb.linear_len() < skb.len() {
        skb.pull(if skb.len() < 128 { skb.len() } else { 128 });
    }
    let mut ethertype = u16::from_be(skb.read::<u16>(12)?);
    let mut offset = ETHERNET_LEN;
    if is_vlan(ethertype) {
        let wanted = ETHERNET_LEN + MAX_VLAN_TAGS * VLAN_LEN + IPV6_LEN;
        if skb.linear_len() < wanted && skb.linear_len() < skb.len() {
            skb.pull(if skb.len() < 128 { skb.len() } else { 128 });
        }
        let mut tags = 0;
        while tags < MAX_VLAN_TAGS && is_vlan(ethertype) {
            ethertype = u16::from_be(skb.read::<u16>(offset + 2)?);
            offset += VLAN_LEN;
            tags += 1;
        }
    }
    match ethertype {
        ETHERTYPE_IPV4 => {
            let Some(header) = skb.read::<Ipv4>(offset) else {
                return unread(skb, offset + IPV4_MIN_LEN);
            };
            if header.protocol != PROTOCOL_TCP {
                return None;
            }
            network.source = Address::from_v4(header.source);
            network.destination = Address::from_v4(header.destination);
        }
        ETHERTYPE_IPV6 => {
            let Some(header) = skb.read::<Ipv6>(offset) else {
                return unread(skb, offset + IPV6_LEN);
            };
            network.source = Address::from_v6(header.source);
            network.destination = Address::from_v6(header.destination);
            network.is_v6 = true;
        }
        _ if is_vlan(ethertype) => {}
        _ => return None,
    }
    network.ip_offset = offset;
    Some(ethertype)
}

/// A header that is there and cannot be read (no memory to make it linear) may be anybody's; one that is not there is none.
#[inline(always)]
fn unread(skb: &Skb, end: u32) -> Option<u16> {
    if skb.len() >= end { Some(ETHERTYPE_VLAN) } else { None }
}

/// The TCP part of a packet to or from a listed endpoint.
#[inline(never)]
pub fn transport(skb: &Skb, packet: &mut Packet) -> Parsed {
    // End of the IP packet as its header says; a link may pad frames, and a batch of segments has no such length.
    let (tcp_offset, end) = if packet.is_v6 {
        match ipv6_tcp(skb, packet.ip_offset) {
            Ok(found) => found,
            Err(Some(reason)) => return Parsed::Unreadable(reason),
            Err(None) => return Parsed::Other,
        }
    } else {
        match ipv4_tcp(skb, packet.ip_offset) {
            Ok(found) => found,
            Err(reason) => return Parsed::Unreadable(reason),
        }
    };
    // The kernel reads as far as the header lies; what we would have to look for beyond our reach is refused, not guessed.
    if tcp_offset > MAX_TCP_OFFSET {
        return Parsed::Unreadable(Reason::MALFORMED);
    }
    let tcp_offset = tcp_offset & 0x7ff;
    let end = if skb.is_gso() { skb.len() } else { end };
    if end > skb.len() || end < tcp_offset + TCP_MIN_LEN {
        return Parsed::Unreadable(Reason::MALFORMED);
    }
    if skb.linear_len() < tcp_offset + TCP_MIN_LEN && !skb.pull(tcp_offset + TCP_MIN_LEN) {
        return Parsed::Unreadable(Reason::MALFORMED);
    }
    let Some(tcp) = skb.read::<Tcp>(tcp_offset) else {
        return Parsed::Unreadable(Reason::MALFORMED);
    };
    let header_len = u32::from(tcp.offset >> 4) * 4;
    let payload_offset = tcp_offset + header_len;
    if header_len < TCP_MIN_LEN || payload_offset > end {
        return Parsed::Unreadable(Reason::MALFORMED);
    }
    packet.segment = Segment {
        seq: u32::from_be(tcp.seq),
        ack: u32::from_be(tcp.ack),
        payload_len: end - payload_offset,
        flags: tcp.flags,
    };
    let (source, destination) = (u16::from_be(tcp.source), u16::from_be(tcp.destination));
    (packet.key.client_port, packet.key.pod_port) = match packet.direction {
        Direction::TO_POD => (source, destination),
        Direction::FROM_POD => (destination, source),
    };
    packet.tcp_offset = tcp_offset;
    packet.payload_offset = payload_offset;
    Parsed::Tcp
}

/// Offset of the TCP header and end of the packet, of an IPv4 packet that carries TCP.
#[inline(always)]
fn ipv4_tcp(skb: &Skb, offset: u32) -> Result<(u32, u32), Reason> {
    let Some(header) = skb.read::<Ipv4>(offset) else {
        return Err(Reason::MALFORMED);
    };
    let header_len = u32::from(header.version_ihl & 0xf) * 4;
    if header.version_ihl >> 4 != 4 || header_len < IPV4_MIN_LEN {
        return Err(Reason::MALFORMED);
    }
    if u16::from_be(header.fragment) & IPV4_FRAGMENT != 0 {
        return Err(Reason::FRAGMENT);
    }
    Ok((offset + header_len, offset + u32::from(u16::from_be(header.total_len))))
}

/// The same for IPv6, behind its extension headers (RFC 8200, section 4). `Err(None)`: not TCP.
#[inline(always)]
fn ipv6_tcp(skb: &Skb, offset: u32) -> Result<(u32, u32), Option<Reason>> {
    let Some(header) = skb.read::<Ipv6>(offset) else {
        return Err(Some(Reason::MALFORMED));
    };
    let end = offset + IPV6_LEN + u32::from(u16::from_be(header.payload_len));
    if header.next == PROTOCOL_TCP {
        return Ok((offset + IPV6_LEN, end));
    }
    let at = extension_headers(skb, offset + IPV6_LEN, header.next)?;
    Ok((at, end))
}

/// Steps over extension headers to the TCP header.
#[inline(never)]
fn extension_headers(skb: &Skb, offset: u32, first: u8) -> Result<u32, Option<Reason>> {
    let mut at = offset;
    let mut next = first;
    let mut count = 0;
    while count < MAX_EXTENSION_HEADERS {
        let mut bytes = [0_u8; 4];
        match next {
            PROTOCOL_TCP => return Ok(at),
            HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING => {
                if !skb.load(at, bytes.as_mut_ptr(), 4) {
                    return Err(Some(Reason::MALFORMED));
                }
                let [following, length, _, segments_left] = bytes;
                // With segments left this address is only a stop on the way: where it goes then is not for us to guess.
                if next == ROUTING && segments_left != 0 {
                    return Err(Some(Reason::MALFORMED));
                }
                at += (u32::from(length) + 1) * 8;
                next = following;
            }
            FRAGMENT => {
                if !skb.load(at, bytes.as_mut_ptr(), 4) {
                    return Err(Some(Reason::MALFORMED));
                }
                let [following, ..] = bytes;
                return Err(match following {
                    PROTOCOL_TCP | HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING | FRAGMENT | AUTHENTICATION => {
                        Some(Reason::FRAGMENT)
                    }
                    _ => None,
                });
            }
            AUTHENTICATION => return Err(Some(Reason::MALFORMED)),
            _ => return Err(None),
        }
        count += 1;
    }
    Err(Some(Reason::MALFORMED))
}

/// RFC 791, section 3.1; big endian.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv4 {
    version_ihl: u8,
    tos: u8,
    total_len: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: [u8; 4],
    destination: [u8; 4],
}

/// RFC 8200, section 3; big endian.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv6 {
    version_class_label: u32,
    payload_len: u16,
    next: u8,
    hop_limit: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

/// RFC 9293, section 3.1; big endian.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tcp {
    pub source: u16,
    pub destination: u16,
    pub seq: u32,
    pub ack: u32,
    pub offset: u8,
    pub flags: u8,
    pub window: u16,
    pub checksum: u16,
    pub urgent: u16,
}
