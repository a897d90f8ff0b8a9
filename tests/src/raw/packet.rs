//! IP and TCP packets, byte by byte: what is sent may be wrong on purpose, what is received is only read.

use std::net::IpAddr;

use enforcer_common::tcp::{ACK, SYN};

const TCP: u8 = 6;
const FRAGMENT: u8 = 44;
const DONT_FRAGMENT: u16 = 0x4000;

/// The option kinds of TCP that the tests need (RFC 9293, 7323, 2385, 8684).
pub mod option {
    /// No operation.
    pub const NOP: u8 = 1;
    /// Maximum segment size.
    pub const MSS: u8 = 2;
    /// Time stamps.
    pub const TIMESTAMPS: u8 = 8;
    /// MD5 signature.
    pub const MD5: u8 = 19;
    /// Multipath TCP.
    pub const MPTCP: u8 = 30;
    /// Fast open cookie.
    pub const FAST_OPEN: u8 = 34;

    /// The option of time stamps, with two no-operations in front.
    #[must_use]
    pub fn timestamps(value: u32, echo: u32) -> Vec<u8> {
        let mut bytes = vec![NOP, NOP, TIMESTAMPS, 10];
        bytes.extend(value.to_be_bytes());
        bytes.extend(echo.to_be_bytes());
        bytes
    }
}

/// A TCP segment. Everything but the ports, which its client knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tcp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags.
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options, a multiple of four bytes, at most 40.
    pub options: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
    /// Flips a bit of the right checksum.
    pub damaged: bool,
}

impl Tcp {
    /// With these flags besides.
    #[must_use]
    pub fn with(mut self, flags: u8) -> Self {
        self.flags |= flags;
        self
    }

    /// With a wrong checksum: the pod discards it.
    #[must_use]
    pub fn damaged(mut self) -> Self {
        self.damaged = true;
        self
    }

    /// With these options.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// Whether any of these flags is set.
    #[must_use]
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// The pod's answer to a SYN.
    #[must_use]
    pub fn is_syn_ack(&self) -> bool {
        self.flags & (SYN | ACK) == SYN | ACK
    }

    /// The bytes, with a checksum over the pseudo header of these addresses.
    ///
    /// # Panics
    /// When the options are no multiple of four bytes or more than 40: the test is wrong.
    #[must_use]
    pub fn encode(&self, from: IpAddr, to: IpAddr) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        let words = u8::try_from(5 + self.options.len() / 4).expect("options fit");
        assert!(
            words < 16 && self.options.len().is_multiple_of(4),
            "options of {} bytes",
            self.options.len()
        );
        bytes.extend([words << 4, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(self.urgent.to_be_bytes());
        bytes.extend(&self.options);
        bytes.extend(&self.payload);
        let mut sum = pseudo_header(from, to, bytes.len());
        sum += words_of(&bytes);
        let checksum = !fold(sum) ^ u16::from(self.damaged);
        bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// Reads an IP packet that carries TCP, behind extension headers or not; `None` for any other and for fragments.
    #[must_use]
    pub fn decode(packet: &[u8]) -> Option<(IpAddr, IpAddr, Self)> {
        let (from, to, bytes) = match packet.first()? >> 4 {
            4 if *packet.get(9)? == TCP => {
                let header = usize::from(packet.first()? & 15) * 4;
                let end = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
                let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
                let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
                (from.into(), to.into(), packet.get(header..end)?)
            }
            6 => {
                let (mut next, mut at) = (*packet.get(6)?, 40);
                while matches!(next, 0 | 43 | 60) {
                    next = *packet.get(at)?;
                    at += (usize::from(*packet.get(at + 1)?) + 1) * 8;
                }
                if next != TCP {
                    return None;
                }
                let end = 40 + usize::from(u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?));
                let from: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
                let to: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
                (from.into(), to.into(), packet.get(at..end)?)
            }
            _ => return None,
        };
        let short = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let long = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let header = usize::from(bytes.get(12)? >> 4) * 4;
        let tcp = Self {
            source: short(0)?,
            destination: short(2)?,
            seq: long(4)?,
            ack: long(8)?,
            flags: *bytes.get(13)?,
            window: short(14)?,
            urgent: short(18)?,
            options: bytes.get(20..header)?.to_vec(),
            payload: bytes.get(header..)?.to_vec(),
            damaged: false,
        };
        Some((from, to, tcp))
    }

    /// The body of the first option of this kind.
    #[must_use]
    pub fn find_option(&self, kind: u8) -> Option<&[u8]> {
        let mut rest = self.options.as_slice();
        loop {
            match *rest {
                [1, ref next @ ..] => rest = next,
                [found, length, ..] => {
                    let length = usize::from(length);
                    if found == kind {
                        return rest.get(2..length);
                    }
                    rest = rest.get(length.max(2)..)?;
                }
                _ => return None,
            }
        }
    }
}

/// An IPv6 extension header: everything but its first byte, which says what follows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Extension {
    /// Its number.
    pub kind: u8,
    /// The length in units of eight bytes less one, and the body.
    pub rest: Vec<u8>,
}

impl Extension {
    /// Hop-by-hop options, destination options: padding only.
    #[must_use]
    pub fn padding(kind: u8) -> Self {
        Self { kind, rest: vec![0, 1, 4, 0, 0, 0, 0] }
    }

    /// A routing header of eight bytes and type 0.
    #[must_use]
    pub fn routing(segments_left: u8) -> Self {
        Self { kind: 43, rest: vec![0, 0, segments_left, 0, 0, 0, 0] }
    }
}

/// The IP header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ip {
    /// Source.
    pub from: IpAddr,
    /// Destination.
    pub to: IpAddr,
    /// IPv4 options, a multiple of four bytes, at most 40.
    pub options: Vec<u8>,
    /// IPv6 extension headers.
    pub extensions: Vec<Extension>,
}

impl Ip {
    /// A bare header between two addresses of one family.
    #[must_use]
    pub const fn new(from: IpAddr, to: IpAddr) -> Self {
        Self { from, to, options: Vec::new(), extensions: Vec::new() }
    }

    /// The packet that carries these bytes of TCP.
    #[must_use]
    pub fn encode(&self, tcp: &[u8]) -> Vec<u8> {
        if self.from.is_ipv4() {
            return self.v4(tcp, DONT_FRAGMENT);
        }
        let (first, mut body) = self.chain(TCP);
        body.extend(tcp);
        self.v6(first, &body)
    }

    fn v4(&self, body: &[u8], fragment: u16) -> Vec<u8> {
        let words = u8::try_from(5 + self.options.len() / 4).expect("options fit");
        let total = u16::try_from(usize::from(words) * 4 + body.len()).expect("a packet");
        let mut bytes = vec![0x40 | words, 0];
        bytes.extend(total.to_be_bytes());
        bytes.extend([0x4d, 0x77]);
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([64, TCP, 0, 0]);
        for address in [self.from, self.to] {
            bytes.extend(octets(address));
        }
        bytes.extend(&self.options);
        let checksum = !fold(words_of(&bytes));
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn v6(&self, next: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(u16::try_from(body.len()).expect("a packet").to_be_bytes());
        bytes.extend([next, 64]);
        for address in [self.from, self.to] {
            bytes.extend(octets(address));
        }
        bytes.extend(body);
        bytes
    }

    /// The extension headers, the last of which is followed by `last`, and what the first of all is.
    fn chain(&self, last: u8) -> (u8, Vec<u8>) {
        let kinds = self.extensions.iter().map(|header| header.kind).chain([last]);
        let following: Vec<u8> = kinds.collect();
        let mut bytes = Vec::new();
        for (header, next) in self.extensions.iter().zip(following.iter().skip(1)) {
            bytes.push(*next);
            bytes.extend(&header.rest);
        }
        (following[0], bytes)
    }
}

/// The fragments of a packet that carries these bytes of TCP, cut at multiples of eight. Without cuts: one atomic fragment
/// in IPv6 (RFC 6946), a whole packet in IPv4.
///
/// # Panics
/// When a cut is no multiple of eight or behind the end: the test is wrong.
#[must_use]
pub fn fragments(ip: &Ip, tcp: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let ends: Vec<usize> = cuts.iter().copied().chain([tcp.len()]).collect();
    let mut start = 0_usize;
    let mut packets = Vec::new();
    for end in ends {
        assert!(start.is_multiple_of(8), "fragments begin at multiples of eight");
        let more = u16::from(end < tcp.len());
        let part = &tcp[start..end];
        if ip.from.is_ipv4() {
            let units = u16::try_from(start / 8).expect("an offset");
            packets.push(ip.v4(part, units | (more << 13)));
        } else {
            let units = u16::try_from(start).expect("an offset");
            let (first, mut body) = ip.chain(FRAGMENT);
            body.extend([TCP, 0]);
            body.extend((units | more).to_be_bytes());
            body.extend([0, 0, 0x4d, 0x77]);
            body.extend(part);
            packets.push(ip.v6(first, &body));
        }
        start = end;
    }
    packets
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn pseudo_header(from: IpAddr, to: IpAddr, length: usize) -> u32 {
    let length = u32::try_from(length).expect("a segment");
    words_of(&octets(from)) + words_of(&octets(to)) + u32::from(TCP) + length
}

fn words_of(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
    bytes.chunks(2).map(word).sum()
}

fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from(sum).expect("folded")
}
