//! Multipath TCP towards a pod is made plain TCP: the option of a SYN is renamed to one that no stack knows, and both ends
//! fall back within the same handshake (RFC 8684, section 3.7).
//!
//! In a multipath connection the place of a byte in the TCP stream says nothing about its place in what the application
//! reads, so that the first bytes seen here need not be the first ones there.

use enforcer_common::tcp::{ACK, SYN, Segment};

use crate::packet::Packet;
use crate::skb::{Skb, bounded};

const END: u8 = 0;
const NOP: u8 = 1;
const MULTIPATH: u8 = 30;
/// An unassigned number: skipped by its length (RFC 9293, section 3.1).
const UNKNOWN: u8 = 78;
const TCP_LEN: u32 = 20;
const MAX_TCP_LEN: u32 = 60;

/// Whether a segment may ask for multipath TCP. The answers to the pod's own SYNs are its own affair.
#[inline(always)]
pub fn may_ask(segment: &Segment, packet: &Packet) -> bool {
    segment.has(SYN) && !segment.has(ACK) && packet.payload_offset - packet.tcp_offset > TCP_LEN
}

/// Renames the option in a SYN.
#[inline(never)]
pub fn hide(skb: &Skb, packet: &Packet) {
    let end = packet.payload_offset - packet.tcp_offset;
    let mut at = TCP_LEN;
    let mut options = 0;
    while options < MAX_TCP_LEN - TCP_LEN {
        options += 1;
        let at_bounded = bounded::<0x3f>(at);
        if at_bounded + 2 > end || at_bounded + 2 > MAX_TCP_LEN {
            return;
        }
        let mut head = [0_u8; 2];
        if !skb.load(packet.tcp_offset + at_bounded, head.as_mut_ptr(), 2) {
            return;
        }
        let [kind, length] = head;
        match kind {
            END => return,
            NOP => at = at_bounded + 1,
            _ if length < 2 => return,
            _ => {
                if kind == MULTIPATH {
                    rename(skb, packet, at_bounded);
                }
                at = at_bounded + u32::from(length);
                if at > MAX_TCP_LEN {
                    return;
                }
            }
        }
    }
}

/// Overwrites the option's number and keeps the checksum right, whose words begin at even offsets.
#[inline(always)]
fn rename(skb: &Skb, packet: &Packet, at: u32) {
    let difference = if at & 1 == 0 {
        u16::from_be_bytes([UNKNOWN, 0]).wrapping_sub(u16::from_be_bytes([MULTIPATH, 0]))
    } else {
        u16::from_be_bytes([0, UNKNOWN]).wrapping_sub(u16::from_be_bytes([0, MULTIPATH]))
    };
    if skb.replace_l4_csum(packet.tcp_offset + 16, difference.to_be()) {
        skb.store(packet.tcp_offset + at, &UNKNOWN);
    }
}
