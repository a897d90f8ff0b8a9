//! The kernel side of enforcer: two TC programs on the host-side interface of each pod.
//!
//! The programs are thin: [`packet`] finds the headers, `enforcer_common::datapath` decides over the maps of
//! [`tables`], [`reset`] carries a refusal out and [`report`] counts and reports it.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod env;
mod multipath;
mod packet;
mod report;
mod reset;
mod skb;
mod tables;

use aya_ebpf::{macros::classifier, programs::TcContext};
use enforcer_common::datapath::{self, Act, Decision};
use enforcer_common::map::{Endpoint, endpoint_flags};
use enforcer_common::settings::{Enforcement, UnknownPods};
use enforcer_common::{Direction, Reason, Verdict};

use crate::env::SkbEnv;
use crate::packet::{Network, Packet, Parsed};
use crate::skb::{DROP, NEXT, Skb};

/// Towards the pod: egress of its host-side interface.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    run(&Skb::new(&ctx), Direction::TO_POD)
}

/// From the pod: ingress of its host-side interface.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    run(&Skb::new(&ctx), Direction::FROM_POD)
}

#[inline(always)]
fn run(skb: &Skb, direction: Direction) -> i32 {
    let mut packet = Packet::new(direction);
    match packet::network(skb, &mut packet) {
        Network::Ip => {}
        Network::Other => return NEXT,
        Network::TooDeep => return too_deep(skb, &packet),
    }
    match tables::endpoint(&packet.key.pod) {
        Some(endpoint) if endpoint.ifindex == 0 || endpoint.ifindex == skb.ifindex() => {
            judge(skb, &mut packet, &endpoint)
        }
        None if direction == Direction::TO_POD
            && tables::settings().unknown_pods() == UnknownPods::STRICT =>
        {
            unknown_pod(skb, &mut packet)
        }
        _ => NEXT,
    }
}

/// Judges a TCP packet of a listed endpoint.
#[inline(always)]
fn judge(skb: &Skb, packet: &mut Packet, endpoint: &Endpoint) -> i32 {
    let mut decision = Decision::PASS;
    match packet::transport(skb, packet) {
        Parsed::Tcp => match packet.direction {
            Direction::TO_POD => {
                if multipath::may_ask(&packet.segment, packet) && rewrites(endpoint) {
                    multipath::hide(skb, packet);
                }
                decide_to_pod(skb, packet, endpoint, &mut decision);
            }
            Direction::FROM_POD => decide_from_pod(skb, packet, endpoint, &mut decision),
        },
        Parsed::Unreadable(reason) => decide_unreadable(skb, packet, endpoint, reason, &mut decision),
        Parsed::Other => return NEXT,
    }
    act(skb, packet, endpoint, &mut decision)
}

/// Whether packets to this endpoint may be changed: not in audit mode, and not those of a pod outside the mesh.
#[inline(always)]
fn rewrites(endpoint: &Endpoint) -> bool {
    endpoint.flags & endpoint_flags::NOT_MESHED == 0
        && tables::settings().enforcement() == Enforcement::ENFORCE
}

/// A frame behind more VLAN tags than are stepped over. The kernel of the pod unpacks any number of empty ones, so whatever it
/// carries is held to STRICT, like all that cannot be read.
#[inline(never)]
fn too_deep(skb: &Skb, packet: &Packet) -> i32 {
    if packet.direction != Direction::TO_POD {
        return NEXT;
    }
    let endpoint = Endpoint { flags: endpoint_flags::ANY_STRICT, ..Endpoint::UNKNOWN };
    let mut decision = Decision::PASS;
    decide_unreadable(skb, packet, &endpoint, Reason::MALFORMED, &mut decision);
    act(skb, packet, &endpoint, &mut decision)
}

// The decision and what follows from it are functions of their own, so that their stack frames share one place: the kernel
// allows 512 bytes for the whole chain of calls.

#[inline(never)]
fn decide_to_pod(skb: &Skb, packet: &Packet, endpoint: &Endpoint, decision: &mut Decision) {
    let env = SkbEnv::new(skb, packet.payload_offset);
    *decision = datapath::to_pod(&env, endpoint, &packet.key, &packet.segment);
}

#[inline(never)]
fn decide_from_pod(skb: &Skb, packet: &Packet, endpoint: &Endpoint, decision: &mut Decision) {
    let env = SkbEnv::new(skb, packet.payload_offset);
    *decision = datapath::from_pod(&env, endpoint, &packet.key, &packet.segment);
}

#[inline(never)]
fn decide_unreadable(
    skb: &Skb,
    packet: &Packet,
    endpoint: &Endpoint,
    reason: Reason,
    decision: &mut Decision,
) {
    *decision = datapath::unreadable(&SkbEnv::new(skb, 0), endpoint, &packet.key.client, reason);
}

/// A new connection to a pod that the agent has not told us of yet, while unknown pods are held to STRICT.
#[inline(never)]
fn unknown_pod(skb: &Skb, packet: &mut Packet) -> i32 {
    let Parsed::Tcp = packet::transport(skb, packet) else {
        return NEXT;
    };
    let mut decision = datapath::unknown_pod(&SkbEnv::new(skb, packet.payload_offset), &packet.segment);
    act(skb, packet, &Endpoint::UNKNOWN, &mut decision)
}

/// Counts and reports a decision and carries it out, in this order: carrying a reset out cuts the packet short.
#[inline(always)]
fn act(skb: &Skb, packet: &Packet, endpoint: &Endpoint, decision: &mut Decision) -> i32 {
    if decision.act == Act::Pass && decision.verdict == Verdict::NONE {
        return NEXT;
    }
    report::debug_line(skb, packet, decision);
    report::limit_resets(decision);
    report::count(packet, endpoint.workload, decision);
    if decision.report {
        report::event(skb, packet, endpoint, decision);
    }
    match decision.act {
        Act::Pass => NEXT,
        Act::Drop => DROP,
        Act::TrimSyn => reset::trim_syn(skb, packet),
        Act::Reset => match packet.direction {
            Direction::TO_POD => reset::from_client_packet(skb, packet, decision),
            Direction::FROM_POD => reset::from_pod_packet(skb, packet, decision),
        },
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
