//! The kernel side of enforcer: two TC programs on the host-side interface of each pod, or two on the pod's own device where
//! packets reach it past that interface, and one that sees sockets close.
//!
//! The programs are thin: [`packet`] finds the headers, `enforcer_common::datapath` decides over the maps of
//! [`tables`], [`reset`] carries a refusal out and [`report`] counts and reports it.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "an atomic addition without a result has no other form here")]

mod env;
mod hello;
mod multipath;
mod packet;
mod place;
mod report;
mod reset;
mod skb;
mod socket;
mod tables;

use aya_ebpf::macros::{classifier, sock_ops};
use aya_ebpf::programs::{SockOpsContext, TcContext};
use enforcer_common::datapath::{self, Act, Decision};
use enforcer_common::map::{Endpoint, endpoint_flags};
use enforcer_common::settings::{Enforcement, UnknownPods};
use enforcer_common::tcp::SYN;
use enforcer_common::{Direction, Reason, Verdict};

use crate::env::SkbEnv;
use crate::packet::{Layer, Network, Parsed};
use crate::place::Side;
use crate::skb::{DROP, NEXT, Skb};
use crate::tables::Work;

/// Towards the pod: egress of its host-side interface.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    run(&Skb::new(&ctx), Direction::TO_POD, Side::Host)
}

/// From the pod: ingress of its host-side interface.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    run(&Skb::new(&ctx), Direction::FROM_POD, Side::Host)
}

/// Towards the pod: ingress of its own device.
#[classifier]
pub fn to_pod_in(ctx: TcContext) -> i32 {
    run(&Skb::new(&ctx), Direction::TO_POD, Side::Pod)
}

/// From the pod: egress of its own device.
#[classifier]
pub fn from_pod_in(ctx: TcContext) -> i32 {
    run(&Skb::new(&ctx), Direction::FROM_POD, Side::Pod)
}

/// Lives of accepted sockets, on the root of the cgroup hierarchy. Named like no section: the linker takes those for its own.
#[sock_ops]
pub fn socket_events(ctx: SockOpsContext) -> u32 {
    socket::event(ctx.ops);
    0
}

#[inline(always)]
fn run(skb: &Skb, direction: Direction, side: Side) -> i32 {
    let mut network = Network::new();
    match packet::network(skb, &mut network) {
        Layer::Ip => {}
        Layer::Other => return NEXT,
        Layer::TooDeep => return too_deep(skb, direction, side),
    }
    let pod = match direction {
        Direction::TO_POD => &network.destination,
        Direction::FROM_POD => &network.source,
    };
    let link = if network.is_v6 && pod.is_link_local() { place::link(skb, side) } else { 0 };
    let endpoint = if link == 0 { tables::endpoint(pod) } else { tables::endpoint_on_link(link) };
    let endpoint = match endpoint {
        Some(endpoint) if place::is_here(skb, &endpoint, side) => endpoint,
        Some(endpoint) if place::is_of_other_side(&endpoint, side) => return NEXT,
        // One that lives behind another interface is unknown on this one.
        _ if direction == Direction::TO_POD && tables::settings().unknown_pods() == UnknownPods::STRICT => {
            Endpoint::UNKNOWN
        }
        _ => return NEXT,
    };
    let Some(work) = tables::work() else {
        return DROP;
    };
    work.packet.begin(&network, direction, side);
    if link != 0 {
        work.packet.key.pod.set_link(link);
    }
    work.endpoint = endpoint;
    let decided = match packet::transport(skb, &mut work.packet) {
        Parsed::Tcp => match direction {
            Direction::TO_POD => {
                if multipath::may_ask(&work.packet.segment, &work.packet) && rewrites(&work.endpoint) {
                    multipath::hide(skb, &work.packet);
                }
                decide_to_pod(skb, work)
            }
            Direction::FROM_POD => {
                if side == Side::Pod && work.packet.segment.has(SYN) {
                    report::link(skb, &work.packet);
                }
                decide_from_pod(skb, work)
            }
        },
        Parsed::Unreadable(reason) => decide_unreadable(skb, work, reason),
        Parsed::Other => false,
    };
    if decided { act(skb, work, direction, side) } else { NEXT }
}

/// Whether packets to this endpoint may be changed: not in audit mode, and not those of a pod outside the mesh.
#[inline(always)]
fn rewrites(endpoint: &Endpoint) -> bool {
    endpoint.flags & endpoint_flags::NOT_MESHED == 0
        && tables::settings().enforcement() == Enforcement::ENFORCE
}

/// A frame behind more VLAN tags than are stepped over. The kernel of the pod unpacks any number of empty ones, so whatever it
/// carries is held to STRICT, like all that cannot be read.
#[inline(always)]
fn too_deep(skb: &Skb, direction: Direction, side: Side) -> i32 {
    if direction != Direction::TO_POD {
        return NEXT;
    }
    let Some(work) = tables::work() else {
        return DROP;
    };
    work.packet.begin(&Network::new(), direction, side);
    work.endpoint = Endpoint { flags: endpoint_flags::ANY_STRICT, ..Endpoint::UNKNOWN };
    if decide_unreadable(skb, work, Reason::MALFORMED) { act(skb, work, direction, side) } else { NEXT }
}

// The decision and what follows from it are functions of their own, so that their stack frames share one place: the kernel
// allows 512 bytes for the whole chain of calls. Each tells whether there is anything to do.

#[inline(never)]
fn decide_to_pod(skb: &Skb, work: &mut Work) -> bool {
    let Work { packet, endpoint, decision } = work;
    let env = SkbEnv::new(skb, packet.payload_offset, packet.pod_side);
    let decided = if endpoint.workload == 0 {
        datapath::unknown_pod(&env, &packet.segment)
    } else {
        datapath::to_pod(&env, endpoint, &packet.key, &packet.segment)
    };
    keep(decision, decided)
}

#[inline(never)]
fn decide_from_pod(skb: &Skb, work: &mut Work) -> bool {
    let Work { packet, endpoint, decision } = work;
    let env = SkbEnv::new(skb, packet.payload_offset, packet.pod_side);
    keep(decision, datapath::from_pod(&env, endpoint, &packet.key, &packet.segment))
}

#[inline(never)]
fn decide_unreadable(skb: &Skb, work: &mut Work, reason: Reason) -> bool {
    let Work { packet, endpoint, decision } = work;
    keep(
        decision,
        datapath::unreadable(&SkbEnv::new(skb, 0, packet.pod_side), endpoint, &packet.key.client, reason),
    )
}

/// Keeps a decision; false when there is nothing to do.
#[inline(always)]
fn keep(kept: &mut Decision, decision: Decision) -> bool {
    if decision.is_nothing() {
        return false;
    }
    *kept = decision;
    true
}

/// Counts and reports a decision and carries it out, in this order: carrying a reset out cuts the packet short.
#[inline(always)]
fn act(skb: &Skb, work: &mut Work, direction: Direction, side: Side) -> i32 {
    let Work { packet, endpoint, decision } = work;
    if decision.pending && !report::pending(skb, packet) {
        // Nobody would look again, should the client fall silent: it has to say this once more when there is room.
        *decision = Decision {
            act: Act::Drop,
            verdict: Verdict::DROP,
            reason: Reason::UNDECIDED,
            stray: true,
            ..Decision::PASS
        };
    }
    if decision.stray {
        decision.report = report::is_told(packet);
    }
    if decision.verdict != Verdict::NONE {
        report::debug_line(skb, packet, decision);
        report::limit_resets(packet, decision);
        report::count(packet, endpoint.workload, decision);
    }
    if decision.report {
        report::client(packet, endpoint.workload, decision);
        report::event(skb, packet, endpoint, decision);
    }
    if decision.end {
        report::end(&packet.key, direction, endpoint, decision);
    }
    if decision.hello.count > 0 {
        hello::send(skb, packet, endpoint, decision);
    }
    match decision.act {
        Act::Pass => NEXT,
        Act::Drop => DROP,
        Act::TrimSyn => reset::trim_syn(skb, packet),
        Act::Reset => match (side, direction) {
            (Side::Host, Direction::TO_POD) | (Side::Pod, Direction::FROM_POD) => {
                reset::at_egress(skb, packet, &decision.numbers)
            }
            _ => reset::at_ingress(skb, packet, &decision.numbers),
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
