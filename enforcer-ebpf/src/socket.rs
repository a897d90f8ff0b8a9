//! Closing the books of a flow when the pod's socket closes.
//!
//! A pod's accepted socket gets an empty tag; `from_pod` writes into it which flow the socket is the end of, as it sees it on
//! the wire. So a close is tied to its flow without comparing addresses, which may repeat in other network namespaces of the
//! machine, and ports, which the pod may redirect to a proxy of its own.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE,
    bpf_sock_ops,
};
use aya_ebpf::helpers::generated::bpf_sock_ops_cb_flags_set;
use enforcer_common::map::Endpoint;
use enforcer_common::{Address, Direction, datapath};

use crate::env::TableEnv;
use crate::report;
use crate::tables;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Reads one word of the context. The kernel admits a load at a fixed offset from the context and nothing else, which the
/// compiler does not know.
macro_rules! word {
    ($ops:ident, $field:ident $(+ $more:literal)?) => {{
        const OFFSET: usize = offset_of!(bpf_sock_ops, $field) $(+ $more)?;
        let value: u64;
        // SAFETY: one load; the context is valid for the program's run.
        unsafe {
            asm!(
                "{value} = *(u32 *)({ops} + {offset})",
                value = out(reg) value,
                ops = in(reg) $ops,
                offset = const OFFSET,
                options(readonly, nostack)
            );
        }
        value as u32
    }};
}

/// Handles one event of one socket of the machine.
#[inline(always)]
pub fn event(ops: *mut bpf_sock_ops) {
    match word!(ops, op) {
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(ops),
        // The arguments are the old and the new state.
        BPF_SOCK_OPS_STATE_CB if word!(ops, __bindgen_anon_1 + 4) == BPF_TCP_CLOSE => closed(ops),
        _ => {}
    }
}

/// A socket was accepted: where it is a pod's, its close is to be told.
#[inline(always)]
fn accepted(ops: *mut bpf_sock_ops) {
    let Some(address) = local_address(ops) else {
        return;
    };
    // Whose link-local address it is, only its packets tell: a tag that none of them fills means nothing.
    if !address.is_link_local() && tables::endpoint(&address).is_none() {
        return;
    }
    // SAFETY: as in the macro.
    let socket = unsafe { (*ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return;
    }
    tables::make_tag(socket);
    // Others on the hook may have asked for events of their own.
    let flags = word!(ops, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG;
    // SAFETY: the helper checks its arguments.
    unsafe { bpf_sock_ops_cb_flags_set(ops, flags as i32) };
}

/// A socket was closed.
#[inline(always)]
fn closed(ops: *mut bpf_sock_ops) {
    // SAFETY: as in the macro.
    let socket = unsafe { (*ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return;
    }
    let Some(tag) = tables::tag(socket) else {
        return;
    };
    if tag.key.pod_port == 0 {
        return;
    }
    let decision = datapath::end_of_socket(&TableEnv, &tag);
    if decision.end {
        let endpoint = match tag.key.pod.link_of() {
            Some(link) => tables::endpoint_on_link(link),
            None => tables::endpoint(&tag.key.pod),
        };
        let endpoint = endpoint.unwrap_or(Endpoint::UNKNOWN);
        report::end(&tag.key, Direction::FROM_POD, &endpoint, &decision);
    }
}

/// The socket's own address; it stands in network byte order.
#[inline(always)]
fn local_address(ops: *mut bpf_sock_ops) -> Option<Address> {
    match word!(ops, family) {
        AF_INET => Some(Address::from_v4(word!(ops, local_ip4).to_ne_bytes())),
        AF_INET6 => {
            let [a, b, c, d] = [
                word!(ops, local_ip6),
                word!(ops, local_ip6 + 4),
                word!(ops, local_ip6 + 8),
                word!(ops, local_ip6 + 12),
            ];
            let mut bytes = [0_u8; 16];
            bytes[..4].copy_from_slice(&a.to_ne_bytes());
            bytes[4..8].copy_from_slice(&b.to_ne_bytes());
            bytes[8..12].copy_from_slice(&c.to_ne_bytes());
            bytes[12..].copy_from_slice(&d.to_ne_bytes());
            Some(Address::from_v6(bytes))
        }
        _ => None,
    }
}
