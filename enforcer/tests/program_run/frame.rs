//! Ethernet frames that carry TCP: made for the programs, and read back with every length and checksum checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use enforcer_common::Direction;
use enforcer_common::map::FlowKey;

/// Address of the client's side of the link.
pub(crate) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Address of the pod.
pub(crate) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// An IPv6 extension header: its own type, and its bytes without the first, which names what follows.
pub(crate) type Extension = (u8, Vec<u8>);

/// A TCP packet to be made.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// The connection; the family of its addresses is the packet's.
    pub key: FlowKey,
    /// Direction of the packet.
    pub direction: Direction,
    /// TCP flags.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Payload.
    pub payload: Vec<u8>,
    /// TCP options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// VLAN tags: type and identifier.
    pub tags: Vec<(u16, u16)>,
    /// IPv4 options, a multiple of four bytes.
    pub ip_options: Vec<u8>,
    /// Flags and offset of an IPv4 fragment.
    pub fragment: u16,
    /// IPv6 extension headers.
    pub extensions: Vec<Extension>,
    /// Protocol of the payload, where it is not TCP.
    pub protocol: u8,
    /// Bytes behind the IP packet.
    pub padding: usize,
}

impl Frame {
    /// A plain segment.
    pub(crate) fn new(
        key: FlowKey,
        direction: Direction,
        flags: u8,
        seq: u32,
        ack: u32,
        payload: &[u8],
    ) -> Self {
        Self {
            key,
            direction,
            flags,
            seq,
            ack,
            payload: payload.to_vec(),
            options: Vec::new(),
            tags: Vec::new(),
            ip_options: Vec::new(),
            fragment: 0,
            extensions: Vec::new(),
            protocol: 6,
            padding: 0,
        }
    }

    /// The frame as it is on the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let FlowKey { client, pod, client_port, pod_port } = self.key;
        let (source, destination, ports, macs) = match self.direction {
            Direction::TO_POD => (client, pod, [client_port, pod_port], [POD_MAC, CLIENT_MAC]),
            Direction::FROM_POD => (pod, client, [pod_port, client_port], [CLIENT_MAC, POD_MAC]),
        };
        let mut tcp = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        let offset = u8::try_from((20 + self.options.len()) / 4).expect("TCP options fit") << 4;
        tcp.extend([offset, self.flags, 0xfa, 0xf0, 0, 0, 0, 0]);
        tcp.extend(&self.options);
        tcp.extend(&self.payload);
        let (source, destination) = (IpAddr::from(source), IpAddr::from(destination));
        let sum = checksum(&[pseudo_header(source, destination, tcp.len()), tcp.clone()].concat());
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());

        let mut frame = macs.concat();
        for (kind, id) in &self.tags {
            frame.extend(kind.to_be_bytes());
            frame.extend(id.to_be_bytes());
        }
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.ipv4(&mut frame, source, destination, &tcp),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.ipv6(&mut frame, source, destination, &tcp),
            _ => panic!("one family"),
        }
        frame.resize(frame.len() + self.padding, 0xee);
        frame
    }

    fn ipv4(&self, frame: &mut Vec<u8>, source: Ipv4Addr, destination: Ipv4Addr, tcp: &[u8]) {
        let header_len = 20 + self.ip_options.len();
        let total = u16::try_from(header_len + tcp.len()).expect("a packet's length");
        let mut header = vec![0x40 | u8::try_from(header_len / 4).expect("IP options fit"), 0];
        header.extend(total.to_be_bytes());
        header.extend([0x12, 0x34]);
        header.extend(self.fragment.to_be_bytes());
        header.extend([17, self.protocol, 0, 0]);
        header.extend(source.octets());
        header.extend(destination.octets());
        header.extend(&self.ip_options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend([0x08, 0x00]);
        frame.extend(header);
        frame.extend(tcp);
    }

    fn ipv6(&self, frame: &mut Vec<u8>, source: Ipv6Addr, destination: Ipv6Addr, tcp: &[u8]) {
        let mut rest = Vec::new();
        for (index, (_, body)) in self.extensions.iter().enumerate() {
            rest.push(self.extensions.get(index + 1).map_or(self.protocol, |(kind, _)| *kind));
            rest.extend(body);
        }
        rest.extend(tcp);
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(u16::try_from(rest.len()).expect("a packet's length").to_be_bytes());
        frame.extend([self.extensions.first().map_or(self.protocol, |(kind, _)| *kind), 17]);
        frame.extend(source.octets());
        frame.extend(destination.octets());
        frame.extend(rest);
    }
}

fn pseudo_header(source: IpAddr, destination: IpAddr, tcp_len: usize) -> Vec<u8> {
    let len = u16::try_from(tcp_len).expect("a segment's length").to_be_bytes();
    let mut bytes = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend([0, 6]);
    bytes.extend(len);
    bytes
}

/// RFC 1071, by folding.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// The same rule in another way: everything, checksum included, as one big number is a multiple of 2^16 - 1.
fn sums_up(bytes: &[u8]) -> bool {
    let even = bytes.iter().step_by(2).fold(0_u64, |sum, byte| sum + u64::from(*byte));
    let odd = bytes.iter().skip(1).step_by(2).fold(0_u64, |sum, byte| sum + u64::from(*byte));
    (even * 256 + odd) % 0xffff == 0 && even + odd > 0
}

/// A TCP packet that was read back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    /// Destination and source of the frame.
    pub macs: [[u8; 6]; 2],
    /// VLAN tags.
    pub tags: Vec<(u16, u16)>,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Options of IPv4 or extension headers of IPv6, as they are.
    pub between: Vec<u8>,
    /// Source and destination port.
    pub ports: [u16; 2],
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// TCP flags.
    pub flags: u8,
    /// TCP options.
    pub options: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
}

/// Reads a frame that carries TCP and checks every length and checksum. `None`: not TCP.
pub(crate) fn read(frame: &[u8]) -> Option<Seen> {
    let macs = [frame[0..6].try_into().expect("six bytes"), frame[6..12].try_into().expect("six bytes")];
    let mut at = 12;
    let mut tags = Vec::new();
    while matches!(be16(frame, at), 0x8100 | 0x88a8) {
        tags.push((be16(frame, at), be16(frame, at + 2)));
        at += 4;
    }
    let ip = &frame[at + 2..];
    let (source, destination, ttl, between, tcp): (IpAddr, IpAddr, _, _, _) = match be16(frame, at) {
        0x0800 if ip[9] == 6 => {
            let header_len = usize::from(ip[0] & 0xf) * 4;
            assert_eq!(ip[0] >> 4, 4, "version");
            assert_eq!(usize::from(be16(ip, 2)), ip.len(), "total length");
            assert!(sums_up(&ip[..header_len]), "IPv4 header checksum of {frame:02x?}");
            let address =
                |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).expect("four bytes"));
            (address(12).into(), address(16).into(), ip[8], ip[20..header_len].to_vec(), &ip[header_len..])
        }
        0x86dd => {
            assert_eq!(usize::from(be16(ip, 4)) + 40, ip.len(), "payload length");
            let (mut next, mut end) = (ip[6], 40);
            while matches!(next, 0 | 43 | 60) {
                next = ip[end];
                end += (usize::from(ip[end + 1]) + 1) * 8;
            }
            if next != 6 {
                return None;
            }
            let address =
                |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).expect("sixteen bytes"));
            (address(8).into(), address(24).into(), ip[7], ip[40..end].to_vec(), &ip[end..])
        }
        _ => return None,
    };
    let pseudo = pseudo_header(source, destination, tcp.len());
    assert!(sums_up(&[&pseudo, tcp].concat()), "TCP checksum of {frame:02x?}");
    let header_len = usize::from(tcp[12] >> 4) * 4;
    Some(Seen {
        macs,
        tags,
        source,
        destination,
        ttl,
        between,
        ports: [be16(tcp, 0), be16(tcp, 2)],
        seq: be32(tcp, 4),
        ack: be32(tcp, 8),
        flags: tcp[13],
        options: tcp[20..header_len].to_vec(),
        payload: tcp[header_len..].to_vec(),
    })
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}
