//! The maps. Names are part of the contract with operators: `bpftool map dump` shows them.

use core::ffi::c_void;

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::{
    Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, SkStorage, lpm_trie::Key,
};
use aya_ebpf::helpers::generated::{bpf_sk_fullsock, bpf_sk_storage_get};
use aya_ebpf::macros::btf_map;
use enforcer_common::datapath::Decision;
use enforcer_common::event::Event;
use enforcer_common::map::{
    Bypassed, Client, ClientBudget, ClientKey, Counter, CounterKey, Endpoint, EventBudget, ExemptKind, Flow,
    FlowKey, HalfOpen, Outbound, Pending, PodLink, PodLinkKey, PortKey, PortMode, ResetBudget, SocketTag,
    WorkloadCounterKey,
};
use enforcer_common::settings::{Action, Enforcement, Settings, UnknownPods};
use enforcer_common::{Address, Mode};

use crate::packet::Packet;
use crate::skb::Skb;

/// An entry that is there stays (`BPF_NOEXIST`).
pub const BPF_NOEXIST: u64 = 1;
/// That one is there.
pub const EEXIST: i64 = -17;
const IPPROTO_TCP: u32 = 6;

/// Pod address -> its policy.
#[btf_map]
pub static ENDPOINTS: HashMap<Address, Endpoint, 4096> = HashMap::new();
/// Interface of a pod (host side: its index; at the pod's own device: the stamp of the pod's network namespace) -> the policy
/// that the pod's link-local addresses are under.
#[btf_map]
pub static LINKS: HashMap<u32, Endpoint, 4096> = HashMap::new();
/// Ports whose mode or treatment differs from the endpoint's.
#[btf_map]
pub static PORT_MODES: HashMap<PortKey, PortMode, 65536> = HashMap::new();
/// Source prefixes that are exempt.
#[btf_map]
pub static EXEMPT: LpmTrie<Address, ExemptKind, 1024> = LpmTrie::new();
/// Connections that the pod has answered and the client has not confirmed.
#[btf_map]
pub static HALF_OPEN: LruHashMap<FlowKey, HalfOpen, 65536> = LruHashMap::new();
/// Judged TLS connections: none is ever pushed out by another.
#[btf_map]
pub static FLOWS: HashMap<FlowKey, Flow, 262144> = HashMap::new();
/// All other inbound connections: just opened, plaintext, refused, ended.
#[btf_map]
pub static TRANSIENT: LruHashMap<FlowKey, Flow, 131072> = LruHashMap::new();
/// With each accepted socket of a pod: which flow it is the end of.
#[btf_map]
pub static SOCKETS: SkStorage<SocketTag> = SkStorage::new();
/// Connections that pods opened themselves.
#[btf_map]
pub static OUTBOUND: LruHashMap<FlowKey, Outbound, 131072> = LruHashMap::new();
/// Those that are over: packets may still be on their way.
#[btf_map]
pub static OUTBOUND_ENDED: LruHashMap<FlowKey, Outbound, 16384> = LruHashMap::new();
/// The node's counters.
#[btf_map]
pub static COUNTERS: PerCpuHashMap<CounterKey, Counter, 512> = PerCpuHashMap::new();
/// The same by workload.
#[btf_map]
pub static WORKLOAD_COUNTERS: PerCpuHashMap<WorkloadCounterKey, Counter, 16384> = PerCpuHashMap::new();
/// Who talks to which port of a workload, and how.
#[btf_map]
pub static CLIENTS: LruHashMap<ClientKey, Client, 65536> = LruHashMap::new();
/// Verdicts, ends of connections, and first bytes of TLS clients.
#[btf_map]
pub static EVENTS: RingBuf<Event, 4194304> = RingBuf::new();
/// What the agent tells the programs.
#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();
/// Clients whose first bytes are not enough to tell what they speak.
#[btf_map]
pub static PENDING: HashMap<FlowKey, Pending, 4096> = HashMap::new();
/// Pods that packets reach past the hook of `to_pod`.
#[btf_map]
pub static BYPASSED: LruHashMap<Address, Bypassed, 4096> = LruHashMap::new();
/// How frames of pods that are enforced at their own device begin.
#[btf_map]
pub static POD_LINKS: LruHashMap<PodLinkKey, PodLink, 16384> = LruHashMap::new();
/// Connections of the agent's own checks, entered before they are made: on a pod's own device no mark tells them.
#[btf_map]
pub static OWN_PROBES: LruHashMap<FlowKey, u64, 1024> = LruHashMap::new();
/// Resets of the current second.
#[btf_map]
pub static RESET_BUDGET: Array<ResetBudget, 1> = Array::new();
/// Resets of the current second by the client that they answer, and when it was told of last.
#[btf_map]
pub static CLIENT_RESETS: LruHashMap<Address, ClientBudget, 16384> = LruHashMap::new();
/// What became of the events.
#[btf_map]
pub static EVENT_BUDGET: PerCpuArray<EventBudget, 1> = PerCpuArray::new();

/// The packet at hand and what is decided about it. They lie in a map because the kernel's verifier does not follow values
/// there: on the stack, each of their many forms would be followed through everything that comes after. Belongs to one load,
/// not pinned.
#[btf_map]
pub static SCRATCH: PerCpuArray<Work, 1> = PerCpuArray::new();

/// The value of `SCRATCH`.
#[repr(C)]
pub struct Work {
    pub packet: Packet,
    pub endpoint: Endpoint,
    pub decision: Decision,
}

/// The work on the packet at hand. No other packet is looked at on this CPU before this one is done with, but for the copies
/// that a reset sends.
#[inline(always)]
pub fn work<'a>() -> Option<&'a mut Work> {
    // SAFETY: the pointer comes from a per-CPU map whose value is all plain numbers: zeroes at first, then what was written here.
    SCRATCH.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

/// Looks an endpoint up. Its policy is read in one load: a packet sees all of a change or none of it.
#[inline(always)]
pub fn endpoint(address: &Address) -> Option<Endpoint> {
    ENDPOINTS.get_ptr(address).map(read)
}

/// The same for the link-local addresses of the pod on this link.
#[inline(always)]
pub fn endpoint_on_link(link: u32) -> Option<Endpoint> {
    LINKS.get_ptr(link).map(read)
}

#[inline(always)]
fn read(entry: *const Endpoint) -> Endpoint {
    // SAFETY: the entry is 16 bytes, aligned to 8 as every map value is; a concurrent update replaces it as a whole.
    let (word, place) =
        unsafe { (entry.cast::<u64>().read_volatile(), entry.cast::<u64>().add(1).read_volatile()) };
    Endpoint {
        workload: word as u32,
        generation: (word >> 32) as u16,
        mode: match (word >> 48) as u8 {
            1 => Mode::DISABLE,
            2 => Mode::PERMISSIVE,
            _ => Mode::STRICT,
        },
        flags: (word >> 56) as u8,
        ifindex: place as u32,
        netns_id: (place >> 32) as u32,
    }
}

/// Looks a flow up, protected or not.
#[inline(always)]
pub fn flow(key: &FlowKey) -> Option<*mut Flow> {
    FLOWS.get_ptr_mut(key).or_else(|| TRANSIENT.get_ptr_mut(key))
}

/// The map of socket tags, as the helpers want it.
#[inline(always)]
fn sockets() -> *mut c_void {
    (&raw const SOCKETS).cast_mut().cast()
}

/// Says on the socket that sent a packet which flow it is the end of; false where `sockops` does not see its close.
#[inline(always)]
pub fn tag_socket(skb: &Skb, tag: &SocketTag) -> bool {
    let socket = skb.socket();
    if socket.is_null() {
        return false;
    }
    // SAFETY: the verifier holds the pointers against null; only sockets that are more than a request have a tag.
    unsafe {
        let full = bpf_sk_fullsock(socket);
        if full.is_null() {
            return false;
        }
        let kept = bpf_sk_storage_get(sockets(), full.cast(), core::ptr::null_mut(), 0).cast::<SocketTag>();
        if kept.is_null() {
            return false;
        }
        kept.write(*tag);
    }
    true
}

/// Whether the packet still carries the TCP socket that sent it from this local port. A packet that is only forwarded carries
/// none, and a socket that writes its own headers has no such port.
#[inline(always)]
pub fn is_sent_from(skb: &Skb, port: u16) -> bool {
    let socket = skb.socket();
    if socket.is_null() {
        return false;
    }
    // SAFETY: the verifier holds the pointers against null.
    unsafe {
        let full = bpf_sk_fullsock(socket);
        !full.is_null() && (*full).protocol == IPPROTO_TCP && (*full).src_port == u32::from(port)
    }
}

/// Makes an empty tag on a socket.
#[inline(always)]
pub fn make_tag(socket: *mut bpf_sock) {
    // SAFETY: the caller has held the socket against null.
    unsafe {
        bpf_sk_storage_get(
            sockets(),
            socket.cast(),
            core::ptr::null_mut(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        );
    }
}

/// The tag of a socket.
#[inline(always)]
pub fn tag(socket: *mut bpf_sock) -> Option<SocketTag> {
    // SAFETY: as above; the tag is copied at once.
    unsafe {
        let kept = bpf_sk_storage_get(sockets(), socket.cast(), core::ptr::null_mut(), 0).cast::<SocketTag>();
        if kept.is_null() { None } else { Some(*kept) }
    }
}

/// Looks an exempt source up.
#[inline(always)]
pub fn exempt(source: &Address) -> Option<ExemptKind> {
    EXEMPT.get(&Key::new(128, *source)).copied()
}

/// The settings as they are now; every field by itself, so that only what is asked for is read.
pub struct SettingsRef(Option<*const Settings>);

/// The settings.
#[inline(always)]
pub fn settings() -> SettingsRef {
    SettingsRef(SETTINGS.get_ptr(0))
}

macro_rules! setting {
    ($(#[$doc:meta])* $name:ident: $ty:ty) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(&self) -> $ty {
            match self.0 {
                // SAFETY: the pointer comes from the map, whose value outlives the program's run.
                Some(settings) => unsafe { (&raw const (*settings).$name).read_volatile() },
                None => Settings::DEFAULT.$name,
            }
        }
    };
}

impl SettingsRef {
    setting!(
        /// Whether verdicts are carried out.
        enforcement: Enforcement
    );
    setting!(
        /// What is done with a refused connection.
        action: Action
    );
    setting!(
        /// What happens to pods that are not known yet.
        unknown_pods: UnknownPods
    );
    setting!(
        /// How long a client may take from its first byte to its sixth, ns.
        undecided_ns: u64
    );
    setting!(
        /// Resets per second on this node.
        resets_per_second: u32
    );
    setting!(
        /// Resets per second in answer to one client.
        resets_per_second_per_client: u32
    );
    setting!(
        /// Events per second and CPU.
        events_per_second: u32
    );
    setting!(
        /// How many bytes of the stream of a TLS client go to user space.
        hello_bytes: u32
    );
    setting!(
        /// Id of the cgroup whose sockets may probe; 0: any.
        probe_cgroup: u64
    );
}
