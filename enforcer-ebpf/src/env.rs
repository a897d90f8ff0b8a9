//! `enforcer_common::datapath` over the maps and the packet at hand.

use core::ops::{Deref, DerefMut};

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use enforcer_common::Address;
use enforcer_common::datapath::{Env, FlowTables};
use enforcer_common::event::HELLO_LIMIT;
use enforcer_common::flow::Window;
use enforcer_common::map::{ExemptKind, Flow, FlowKey, HalfOpen, Outbound, PortKey, PortMode, SocketTag};
use enforcer_common::settings::{Action, Enforcement, OWN_PROBE_MARK, OWN_PROBE_MASK};
use enforcer_common::tcp::{Segment, overlap};

use crate::report;
use crate::skb::{Skb, bounded};
use crate::tables::{
    self, BPF_NOEXIST, FLOWS, HALF_OPEN, OUTBOUND, OUTBOUND_ENDED, OWN_PROBES, PORT_MODES, SettingsRef,
    TRANSIENT,
};

/// The maps and one packet.
pub struct SkbEnv<'a> {
    skb: &'a Skb,
    payload_offset: u32,
    settings: SettingsRef,
    pod_side: bool,
}

impl<'a> SkbEnv<'a> {
    #[inline(always)]
    pub fn new(skb: &'a Skb, payload_offset: u32, pod_side: bool) -> Self {
        Self { skb, payload_offset, settings: tables::settings(), pod_side }
    }
}

/// A flow in the map.
pub struct FlowRef(*mut Flow);

impl Deref for FlowRef {
    type Target = Flow;

    #[inline(always)]
    fn deref(&self) -> &Flow {
        // SAFETY: the pointer comes from the map and is valid for the program's run. Other CPUs may write the entry; every
        // field is a plain number, and no rule relies on two fields being written together.
        unsafe { &*self.0 }
    }
}

impl DerefMut for FlowRef {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Flow {
        // SAFETY: as above.
        unsafe { &mut *self.0 }
    }
}

/// The tables of flows alone.
pub struct TableEnv;

macro_rules! flow_tables {
    ($env:ty) => {
        impl FlowTables for $env {
            type FlowRef<'b>
                = FlowRef
            where
                Self: 'b;

            #[inline(always)]
            fn flow(&self, key: &FlowKey) -> Option<FlowRef> {
                tables::flow(key).map(FlowRef)
            }

            #[inline(always)]
            fn open_flow(&self, key: &FlowKey, flow: &Flow) -> Option<FlowRef> {
                // Refused when there is one, or when the table takes no more: the look-up tells which.
                let _ = TRANSIENT.insert(key, flow, BPF_NOEXIST);
                TRANSIENT.get_ptr_mut(key).map(FlowRef)
            }

            #[inline(always)]
            fn insert_flow(&self, key: &FlowKey, flow: &Flow) {
                let _ = TRANSIENT.insert(key, flow, 0);
            }

            #[inline(always)]
            fn protect(&self, key: &FlowKey, flow: &Flow) -> bool {
                let fits = FLOWS.insert(key, flow, 0).is_ok();
                if fits {
                    let _ = TRANSIENT.remove(key);
                }
                fits
            }

            #[inline(always)]
            fn unprotect(&self, key: &FlowKey) {
                let _ = FLOWS.remove(key);
            }

            #[inline(always)]
            fn remove_flow(&self, key: &FlowKey) {
                let _ = TRANSIENT.remove(key);
                let _ = FLOWS.remove(key);
            }
        }
    };
}

flow_tables!(TableEnv);
flow_tables!(SkbEnv<'_>);

impl Env for SkbEnv<'_> {
    #[inline(always)]
    fn has_socket(&self) -> bool {
        !self.skb.socket().is_null()
    }

    #[inline(always)]
    fn tag_socket(&self, key: &FlowKey, pod_start: u32) -> bool {
        tables::tag_socket(self.skb, &SocketTag { key: *key, pod_start })
    }

    #[inline(always)]
    fn half_open(&self, key: &FlowKey) -> Option<HalfOpen> {
        // SAFETY: the pointer comes from the map; the entry is copied at once.
        HALF_OPEN.get_ptr(key).map(|entry| unsafe { *entry })
    }

    #[inline(always)]
    fn insert_half_open(&self, key: &FlowKey, half_open: &HalfOpen) {
        let _ = HALF_OPEN.insert(key, half_open, 0);
    }

    #[inline(always)]
    fn remove_half_open(&self, key: &FlowKey) {
        let _ = HALF_OPEN.remove(key);
    }

    #[inline(always)]
    fn outbound(&self, key: &FlowKey) -> Option<Outbound> {
        // SAFETY: the pointer comes from the map; the entry is copied at once.
        OUTBOUND.get_ptr(key).map(|entry| unsafe { *entry })
    }

    #[inline(always)]
    fn outbound_ended(&self, key: &FlowKey) -> Option<Outbound> {
        // SAFETY: the pointer comes from the map; the entry is copied at once.
        OUTBOUND_ENDED.get_ptr(key).map(|entry| unsafe { *entry })
    }

    #[inline(always)]
    fn insert_outbound(&self, key: &FlowKey, outbound: &Outbound) {
        let _ = OUTBOUND.insert(key, outbound, 0);
    }

    #[inline(always)]
    fn end_outbound(&self, key: &FlowKey, outbound: &Outbound) {
        let _ = OUTBOUND_ENDED.insert(key, outbound, 0);
        let _ = OUTBOUND.remove(key);
    }

    #[inline(always)]
    fn remove_outbound(&self, key: &FlowKey) {
        let _ = OUTBOUND.remove(key);
        let _ = OUTBOUND_ENDED.remove(key);
    }

    #[inline(always)]
    fn port_mode(&self, key: &PortKey) -> Option<PortMode> {
        // SAFETY: the pointer comes from the map; the entry is copied at once.
        PORT_MODES.get_ptr(key).map(|entry| unsafe { *entry })
    }

    #[inline(always)]
    fn exempt(&self, source: &Address) -> Option<ExemptKind> {
        tables::exempt(source)
    }

    #[inline(always)]
    fn enforcement(&self) -> Enforcement {
        self.settings.enforcement()
    }

    #[inline(always)]
    fn action(&self) -> Action {
        self.settings.action()
    }

    #[inline(always)]
    fn undecided_ns(&self) -> u64 {
        self.settings.undecided_ns()
    }

    #[inline(always)]
    fn hello_bytes(&self) -> u32 {
        let bytes = self.settings.hello_bytes();
        if bytes < HELLO_LIMIT { bytes } else { HELLO_LIMIT }
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: the helper has no arguments.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn note_bypass(&self, key: &FlowKey) {
        // Nothing reaches the pod past its own device.
        if !self.pod_side {
            report::bypassed(self.skb, key);
        }
    }

    #[inline(always)]
    fn is_own_probe(&self, key: &FlowKey) -> bool {
        if self.pod_side {
            return OWN_PROBES.get_ptr(key).is_some();
        }
        // A mark does not cross network namespaces, so only a socket of the node itself can carry this one. Others on the node
        // write marks of theirs beside it.
        self.skb.mark() & OWN_PROBE_MASK == OWN_PROBE_MARK
    }

    #[inline(always)]
    fn is_node_probe(&self, key: &FlowKey) -> bool {
        if !tables::is_sent_from(self.skb, key.client_port) {
            return false;
        }
        let wanted = self.settings.probe_cgroup();
        wanted == 0 || self.skb.cgroup() == wanted
    }

    #[inline(always)]
    fn window(&self, segment: &Segment, start: u32, limit: u32) -> Window {
        let mut bytes = [0_u8; 8];
        if let Some(part) = overlap(start, segment.seq, segment.payload_len, limit) {
            let count = bounded::<7>(part.count);
            if count != 0 && self.skb.load(self.payload_offset + part.index, bytes.as_mut_ptr(), count) {
                return Window::new(part.offset, count, bytes);
            }
        }
        Window::default()
    }
}
