//! Carrying refusals out: two exact RSTs made from the packet at hand, and SYNs without their data.
//!
//! To the pod goes RST|ACK with the pod's own next expected sequence number, to the client a RST with the number that it
//! acknowledged last: both exact, so neither end answers with a challenge ACK (RFC 5961, section 3.2).

use aya_ebpf::helpers::generated::bpf_csum_diff;
use enforcer_common::datapath::ResetNumbers;
use enforcer_common::map::PodLinkKey;
use enforcer_common::tcp::{ACK, RST};
use enforcer_common::{Address, Direction};

use crate::packet::{Packet, Tcp};
use crate::skb::{DROP, NEXT, Skb, bounded};
use crate::tables::POD_LINKS;

const TCP_LEN: u32 = 20;
const TTL: u8 = 64;
/// Where the link of an address stands, in 16-bit words.
const LINK_WORDS: core::ops::Range<usize> = 2..4;

/// One end's RST.
struct Rst {
    source_port: u16,
    destination_port: u16,
    seq: u32,
    ack: u32,
    flags: u8,
}

/// Answers a packet that leaves by the interface: a RST goes on in its place, the packet itself turns round as the other one.
#[inline(never)]
pub fn at_egress(skb: &Skb, packet: &Packet, numbers: &ResetNumbers) -> i32 {
    // The copy that is sent first is looked at as any packet, and takes their place.
    let (mut packet, numbers) = (*packet, &{ *numbers });
    packet.leave_link();
    let packet = &packet;
    let Some(partial) = make_bare(skb, packet) else {
        return DROP;
    };
    if write(skb, packet, &straight(packet, numbers), partial) {
        skb.clone_to_egress();
    }
    let Some(macs) = macs(skb) else {
        return DROP;
    };
    let (source, destination) = packet.addresses();
    if address(skb, packet, &swapped(&macs), destination, source)
        && write(skb, packet, &turned(packet, numbers), partial)
    {
        return skb.redirect_to_ingress();
    }
    DROP
}

/// Answers a packet that came in by the interface: a copy turns round as a RST, the packet itself goes on as the other one.
#[inline(never)]
pub fn at_ingress(skb: &Skb, packet: &Packet, numbers: &ResetNumbers) -> i32 {
    // The copy that is sent first is looked at as any packet, and takes their place.
    let (mut packet, numbers) = (*packet, &{ *numbers });
    let Some(partial) = make_bare(skb, &packet) else {
        return DROP;
    };
    let Some(macs) = macs(skb) else {
        return DROP;
    };
    let back = way_back(&packet, &macs);
    packet.leave_link();
    let packet = &packet;
    let (source, destination) = packet.addresses();
    if !address(skb, packet, &back, destination, source) {
        return DROP;
    }
    if write(skb, packet, &turned(packet, numbers), partial) {
        skb.clone_to_egress();
    }
    let restored = address(skb, packet, &macs, source, destination);
    if restored && write(skb, packet, &straight(packet, numbers), partial) { NEXT } else { DROP }
}

/// The RST in the direction of the packet.
#[inline(always)]
fn straight(packet: &Packet, numbers: &ResetNumbers) -> Rst {
    let (source_port, destination_port) = packet.ports();
    match packet.direction {
        Direction::TO_POD => rst_to_pod(source_port, destination_port, numbers),
        Direction::FROM_POD => rst_to_client(source_port, destination_port, numbers),
    }
}

/// The RST against the direction of the packet.
#[inline(always)]
fn turned(packet: &Packet, numbers: &ResetNumbers) -> Rst {
    let (source_port, destination_port) = packet.ports();
    match packet.direction {
        Direction::TO_POD => rst_to_client(destination_port, source_port, numbers),
        Direction::FROM_POD => rst_to_pod(destination_port, source_port, numbers),
    }
}

#[inline(always)]
fn rst_to_pod(source_port: u16, destination_port: u16, numbers: &ResetNumbers) -> Rst {
    Rst { source_port, destination_port, seq: numbers.pod_seq, ack: numbers.pod_ack, flags: RST | ACK }
}

#[inline(always)]
fn rst_to_client(source_port: u16, destination_port: u16, numbers: &ResetNumbers) -> Rst {
    // A client in SYN-SENT takes a RST only for what it acknowledges (RFC 9293, section 3.10.7.3).
    if numbers.client_ack != 0 {
        return Rst { source_port, destination_port, seq: 0, ack: numbers.client_ack, flags: RST | ACK };
    }
    Rst { source_port, destination_port, seq: numbers.client_seq, ack: 0, flags: RST }
}

/// Cuts the data off a SYN; its options stay.
#[inline(never)]
pub fn trim_syn(skb: &Skb, packet: &Packet) -> i32 {
    let header_len = bounded::<0x3c>(packet.payload_offset - packet.tcp_offset);
    if !(TCP_LEN..=60).contains(&header_len) {
        return DROP;
    }
    if !skb.truncate(packet.tcp_offset + header_len) || !set_length(skb, packet, header_len) {
        return DROP;
    }
    let Some(partial) = is_partial(skb, packet) else {
        return DROP;
    };
    let pseudo = pseudo_header_sum(packet, header_len);
    let mut header = [0_u32; 15];
    if !skb.load(packet.tcp_offset, header.as_mut_ptr().cast::<u8>(), header_len) {
        return DROP;
    }
    // The checksum is the first half of the fifth word.
    header[4] &= 0xffff_0000_u32.to_le();
    let checksum = if partial {
        fold(pseudo)
    } else {
        // SAFETY: the buffer holds `header_len` (a multiple of four) initialised bytes.
        let sum = unsafe {
            bpf_csum_diff(core::ptr::null_mut(), 0, header.as_mut_ptr().cast(), header_len, pseudo)
        };
        !fold(sum as u32)
    };
    if skb.store(packet.tcp_offset + 16, &checksum) { NEXT } else { DROP }
}

/// Cuts the packet down to its headers and freshens the IP header. Tells whether the checksum field holds only the
/// pseudo-header's sum, to be completed by the device.
#[inline(always)]
fn make_bare(skb: &Skb, packet: &Packet) -> Option<bool> {
    if !skb.truncate(packet.tcp_offset + TCP_LEN) || !set_length(skb, packet, TCP_LEN) {
        return None;
    }
    if packet.is_v6 {
        skb.store(packet.ip_offset + 7, &TTL);
    } else {
        let old = skb.read::<u16>(packet.ip_offset + 8)?;
        // Time to live is the first of the two bytes, the protocol the second.
        let new = u16::from_be_bytes([TTL, (u16::from_be(old) & 0xff) as u8]).to_be();
        skb.replace_l3_csum(packet.ip_offset + 10, old, new);
        skb.store(packet.ip_offset + 8, &new);
    }
    is_partial(skb, packet)
}

/// Writes the length of an IP packet that ends with `tcp_len` bytes of TCP.
#[inline(always)]
fn set_length(skb: &Skb, packet: &Packet, tcp_len: u32) -> bool {
    let from_ip = packet.tcp_offset - packet.ip_offset + tcp_len;
    if packet.is_v6 {
        return skb.store(packet.ip_offset + 4, &((from_ip - 40) as u16).to_be());
    }
    let new = (from_ip as u16).to_be();
    let Some(old) = skb.read::<u16>(packet.ip_offset + 2) else {
        return false;
    };
    skb.replace_l3_csum(packet.ip_offset + 10, old, new) && skb.store(packet.ip_offset + 2, &new)
}

/// `bpf_l4_csum_replace` leaves the field alone when it holds only the pseudo-header's sum (`CHECKSUM_PARTIAL`): a program
/// has no other way to tell.
#[inline(always)]
fn is_partial(skb: &Skb, packet: &Packet) -> Option<bool> {
    let mut before = 0_u16;
    let mut after = 0_u16;
    let at = packet.tcp_offset + 16;
    if !skb.load(at, (&raw mut before).cast(), 2)
        || !skb.replace_l4_csum(at, 0x0101)
        || !skb.load(at, (&raw mut after).cast(), 2)
    {
        return None;
    }
    Some(before == after)
}

/// Writes a bare TCP header with its checksum.
#[inline(always)]
fn write(skb: &Skb, packet: &Packet, rst: &Rst, partial: bool) -> bool {
    let mut header = Tcp {
        source: rst.source_port.to_be(),
        destination: rst.destination_port.to_be(),
        seq: rst.seq.to_be(),
        ack: rst.ack.to_be(),
        offset: 5 << 4,
        flags: rst.flags,
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    let pseudo = pseudo_header_sum(packet, TCP_LEN);
    header.checksum = if partial {
        fold(pseudo)
    } else {
        let sum = pseudo
            + u32::from(header.source)
            + u32::from(header.destination)
            + words(header.seq)
            + words(header.ack)
            + u32::from(u16::from_ne_bytes([header.offset, header.flags]));
        !fold(sum)
    };
    skb.store(packet.tcp_offset, &header)
}

/// Destination and source MAC.
#[inline(always)]
fn macs(skb: &Skb) -> Option<[u8; 12]> {
    let mut macs = [0; 12];
    skb.load(0, macs.as_mut_ptr(), 12).then_some(macs)
}

#[inline(always)]
fn swapped(macs: &[u8; 12]) -> [u8; 12] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *macs;
    [g, h, i, j, k, l, a, b, c, d, e, f]
}

/// The MACs of a frame against the direction of the one at hand: what the pod itself sends to its client, where that is known,
/// since a frame that came past the host side need not have been addressed to the pod.
#[inline(always)]
fn way_back(packet: &Packet, macs: &[u8; 12]) -> [u8; 12] {
    if packet.pod_side {
        let key = PodLinkKey { pod: packet.key.pod, client: packet.key.client };
        if let Some(link) = POD_LINKS.get_ptr(key) {
            // SAFETY: the pointer comes from the map; the entry is copied at once.
            return unsafe { (*link).macs };
        }
    }
    swapped(macs)
}

/// Writes MAC and IP addresses.
#[inline(always)]
fn address(skb: &Skb, packet: &Packet, macs: &[u8; 12], source: &Address, destination: &Address) -> bool {
    skb.store(0, macs) && store_addresses(skb, packet, source, destination)
}

/// Swapping addresses leaves the IPv4 header checksum as it is.
#[inline(always)]
fn store_addresses(skb: &Skb, packet: &Packet, source: &Address, destination: &Address) -> bool {
    if packet.is_v6 {
        return skb.store(packet.ip_offset + 8, &source.bytes)
            && skb.store(packet.ip_offset + 24, &destination.bytes);
    }
    let [.., a, b, c, d] = source.bytes;
    let [.., e, f, g, h] = destination.bytes;
    skb.store(packet.ip_offset + 12, &[a, b, c, d, e, f, g, h])
}

/// Sum of the pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1), not folded. The words that mark an IPv4 address
/// are all ones, which is zero in this arithmetic. The link of a link-local address is not in the packet.
#[inline(always)]
fn pseudo_header_sum(packet: &Packet, tcp_len: u32) -> u32 {
    let link = if packet.is_v6 { packet.key.pod.link_of() } else { None };
    let mut sum = u32::from(6_u16.to_be()) + u32::from((tcp_len as u16).to_be());
    let mut index = 0;
    while index < 8 {
        sum += address_word(&packet.key.client, index);
        if link.is_none() || !LINK_WORDS.contains(&index) {
            sum += address_word(&packet.key.pod, index);
        }
        index += 1;
    }
    sum
}

#[inline(always)]
fn address_word(address: &Address, index: usize) -> u32 {
    let (Some(first), Some(second)) = (address.bytes.get(index * 2), address.bytes.get(index * 2 + 1)) else {
        return 0;
    };
    u32::from(u16::from_ne_bytes([*first, *second]))
}

#[inline(always)]
fn words(value: u32) -> u32 {
    (value & 0xffff) + (value >> 16)
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}
