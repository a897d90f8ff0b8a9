//! Keys and values of the BPF maps. All are `repr(C)` without padding, so that what one side writes the other
//! reads; a test pins size and offsets of each.

use crate::{Address, Direction, Mode, Reason, Verdict};

/// Version of the layout of all maps, part of the pin folder's name: raised with every change of a type here.
pub const LAYOUT_VERSION: u32 = 3;

/// The word of a packet's control buffer (`__sk_buff.cb`) in which the entry program of a pod's own device hands over the
/// low half of the cookie of the pod's network namespace.
pub const POD_STAMP_WORD: usize = 4;

/// Makes a `repr(C)` map type with the derives that both sides need.
macro_rules! map_type {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[cfg_attr(feature = "user", derive(bytemuck::CheckedBitPattern, bytemuck::NoUninit))]
        pub struct $name { $($(#[$field_meta])* pub $field: $ty,)* }
    };
}
pub(crate) use map_type;

map_type! {
    /// Value of `ENDPOINTS` (key: the pod's [`Address`]). Sixteen bytes; the first eight are one word that the
    /// kernel side reads in one load, so a packet sees all of a policy or none of it.
    pub struct Endpoint {
        /// The workload's id, key of `PORT_MODES` and `WORKLOAD_COUNTERS`.
        pub workload: u32,
        /// Generation of this endpoint's policy; wraps.
        pub generation: u16,
        /// Mode of every port without an entry in `PORT_MODES`.
        pub mode: Mode,
        /// Bits of [`endpoint_flags`].
        pub flags: u8,
        /// Index of the pod's host-side interface in the agent's network namespace; 0: any. With
        /// [`endpoint_flags::POD_SIDE`]: of the pod's own device, in the pod's namespace.
        pub ifindex: u32,
        /// Id of the pod's network namespace as the agent's namespace numbers it, plus one; 0: not known. With
        /// [`endpoint_flags::POD_SIDE`]: the low half of that namespace's cookie.
        pub netns_id: u32,
    }
}

impl Endpoint {
    /// Stands in for an endpoint where a pod is not known.
    pub const UNKNOWN: Self =
        Self { workload: 0, generation: 0, mode: Mode::STRICT, flags: 0, ifindex: 0, netns_id: 0 };
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flags {
    /// `PORT_MODES` has entries for this workload and generation.
    pub const HAS_PORTS: u8 = 1;
    /// At least one port or the default is STRICT: what has no readable port is held to STRICT.
    pub const ANY_STRICT: u8 = 2;
    /// The endpoint is new and its open connections are still being collected: unknown flows pass.
    pub const LEARNING: u8 = 4;
    /// The pod is known and outside the mesh: it is listed only so that it is not taken for an unknown pod.
    pub const NOT_MESHED: u8 = 8;
    /// The pod is enforced at its own device: the programs at the host side leave its packets alone.
    pub const POD_SIDE: u8 = 16;
}

map_type! {
    /// Key of `PORT_MODES`.
    pub struct PortKey {
        /// The workload's id.
        pub workload: u32,
        /// The generation that this entry belongs to.
        pub generation: u16,
        /// Port of the pod, host byte order.
        pub port: u16,
    }
}

map_type! {
    /// Value of `PORT_MODES`.
    pub struct PortMode {
        /// Mode of this port.
        pub mode: Mode,
        /// Bits of [`port_flags`].
        pub flags: u8,
        /// Zero.
        pub reserved: u16,
    }
}

/// Bits of [`PortMode::flags`].
pub mod port_flags {
    /// Never judged: a port of the mesh itself or one excluded by annotation.
    pub const EXEMPT: u8 = 1;
    /// A port that the pod names for probes: exempt for sources of kind [`super::ExemptKind::NODE`].
    pub const PROBE: u8 = 2;
    /// Blocked after a failed certificate check: new flows are refused under STRICT.
    pub const BLOCKED: u8 = 4;
}

/// What an entry of `EXEMPT` exempts.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "user", derive(bytemuck::CheckedBitPattern, bytemuck::NoUninit))]
pub enum ExemptKind {
    /// The mesh's probe address: every port.
    SOURCE = 1,
    /// An address of this node: only the ports that a pod names for probes.
    NODE = 2,
}

map_type! {
    /// Key of `HALF_OPEN`, `FLOWS` and `OUTBOUND`: the connection as seen from the pod.
    pub struct FlowKey {
        /// The remote end.
        pub client: Address,
        /// The pod's end.
        pub pod: Address,
        /// Port of the remote end, host byte order.
        pub client_port: u16,
        /// Port of the pod, host byte order.
        pub pod_port: u16,
    }
}

map_type! {
    /// Value of `HALF_OPEN`: both initial sequence numbers, host byte order, from the pod's SYN-ACK.
    pub struct HalfOpen {
        /// The client's initial sequence number.
        pub client_isn: u32,
        /// The pod's initial sequence number.
        pub pod_isn: u32,
        /// Bits of [`half_open_flags`].
        pub flags: u32,
    }
}

/// Bits of [`HalfOpen::flags`].
pub mod half_open_flags {
    /// The SYN-ACK carried no socket: the pod's stack keeps nothing of the handshake, its number is a SYN cookie (`tcp_make_synack`
    /// ties any other to its request). The same is said where packets of the pod carry no sockets at all, and of later handshakes
    /// of the tuple while this is known.
    pub const COOKIE: u32 = 1;
}

map_type! {
    /// Value of `OUTBOUND`: a connection that the pod opened itself. Never judged.
    pub struct Outbound {
        /// The pod's initial sequence number, host byte order; 0 when the connection was found open.
        pub pod_isn: u32,
        /// Of [`flow_flags`], those FINs that went by.
        pub fins: u32,
    }
}

/// What is known of a flow, whatever the policy makes of it.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "user", derive(bytemuck::CheckedBitPattern, bytemuck::NoUninit))]
pub enum FlowState {
    /// The handshake is done, the client's first six bytes are not complete.
    OPEN = 1,
    /// The client opened as TLS, the pod's answer is not complete.
    HELLO = 2,
    /// Both ends speak TLS.
    TLS = 3,
    /// Not TLS; `fault` says how that was seen.
    PLAINTEXT = 4,
    /// Open before the pod was enforced: its first bytes were never seen.
    EXISTING = 5,
}

/// What the client of a connection speaks, as far as its bytes and its port say.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "user", derive(bytemuck::CheckedBitPattern, bytemuck::NoUninit))]
#[expect(non_camel_case_types, reason = "bpftool prints the variants")]
pub enum TrafficClass {
    /// Its first bytes are not known yet.
    UNKNOWN = 0,
    /// Anything but TLS.
    PLAINTEXT = 1,
    /// TLS; whether it is the mesh's, only the hello's ALPN says.
    TLS = 2,
    /// TLS to the mesh's tunnel port, 15008.
    MESH_TLS = 3,
    /// Open before the pod was enforced: its first bytes were never seen.
    EXISTING = 4,
}

map_type! {
    /// Value of `FLOWS` and `TRANSIENT`. Times are `bpf_ktime_get_ns` (`CLOCK_MONOTONIC`), sequence numbers host byte order.
    pub struct Flow {
        /// When the handshake completed, ns.
        pub opened_ns: u64,
        /// When the first byte of the client came, ns; from the verdict on: when that fell.
        pub phase_ns: u64,
        /// Payload bytes towards the pod that were let through.
        pub bytes_to_pod: u64,
        /// Payload bytes from the pod that were let through.
        pub bytes_from_pod: u64,
        /// Packets towards the pod, refused ones included.
        pub packets_to_pod: u64,
        /// Packets from the pod, refused ones included.
        pub packets_from_pod: u64,
        /// Sequence number of the client's first byte.
        pub client_start: u32,
        /// Sequence number of the pod's first byte.
        pub pod_start: u32,
        /// Highest acknowledgement seen from the pod: its next expected sequence number.
        pub pod_ack: u32,
        /// The workload's id.
        pub workload: u32,
        /// What is known of the flow.
        pub state: FlowState,
        /// What is wrong with the flow under STRICT; `NONE` when nothing is.
        pub fault: Reason,
        /// The last verdict.
        pub verdict: Verdict,
        /// Why it fell.
        pub reason: Reason,
        /// Generation of the policy that the verdict fell under.
        pub generation: u16,
        /// The client's first bytes, as far as `client_mask` says.
        pub client_prefix: [u8; 6],
        /// Which of the six bytes of `client_prefix` are there, a bit each.
        pub client_mask: u8,
        /// How many of the pod's first bytes were judged, 0 to 5.
        pub pod_judged: u8,
        /// Bits of [`flow_flags`].
        pub flags: u16,
        /// How many bytes of the client's stream were sent to user space in chunks.
        pub hello_sent: u16,
        /// How many packets they were taken from.
        pub hello_parts: u8,
        /// The [`TrafficClass`] under which the connection was counted in `CLIENTS` last; 0: not yet.
        pub counted_class: u8,
    }
}

/// Bits of [`Flow::flags`].
pub mod flow_flags {
    /// Of earlier layouts: the pod sent a SYN-ACK with new numbers for this tuple.
    pub const REOPENING: u16 = 1;
    /// The pod acknowledged all six judged bytes: later copies of them are discarded by its stack.
    pub const PREFIX_ACKED: u16 = 2;
    /// Allowed, and nothing but a new generation can change that: no byte is looked at any more.
    pub const SETTLED: u16 = 4;
    /// A check of the agent's own, known by the mark of its packets, which the pod's answers do not carry.
    pub const OWN_PROBE: u16 = 8;
    /// The entry stands in `FLOWS`, where no other connection can push it out.
    pub const PROTECTED: u16 = 16;
    /// A FIN of the client went by.
    pub const CLIENT_FIN: u16 = 32;
    /// A FIN of the pod went by.
    pub const POD_FIN: u16 = 64;
    /// The connection has ended, and that was reported.
    pub const ENDED: u16 = 128;
    /// The pod's socket carries a [`super::SocketTag`]: its close is seen by `sockops`.
    pub const TAGGED: u16 = 256;
    /// The pod's socket is closed: whatever the client still says is for no one.
    pub const GONE: u16 = 512;
    /// A packet of it came from a socket that may probe: the kubelet's, or where that is not known any of the node's.
    pub const NODE_PROBE: u16 = 1024;
    /// The pod's socket may be another one, made of an old handshake: what it takes for its first bytes is held against the known
    /// ones again, until the pod acknowledges something.
    pub const LOOK_AGAIN: u16 = 2048;
    /// Of [`super::half_open_flags::COOKIE`].
    pub const COOKIE: u16 = 4096;
}

map_type! {
    /// Value of `SOCKETS`, kept with a pod's accepted socket: which flow it is the end of. The socket's own ports may differ
    /// from it where the pod redirects to a proxy of its own.
    pub struct SocketTag {
        /// The flow; all zero until the pod has sent a packet.
        pub key: FlowKey,
        /// Its [`Flow::pod_start`]: a tuple may be used again.
        pub pod_start: u32,
    }
}

map_type! {
    /// Key of `COUNTERS`.
    pub struct CounterKey {
        /// What was done.
        pub verdict: Verdict,
        /// Why.
        pub reason: Reason,
        /// Direction of the packets counted.
        pub direction: Direction,
    }
}

map_type! {
    /// Key of `WORKLOAD_COUNTERS`.
    pub struct WorkloadCounterKey {
        /// The workload's id.
        pub workload: u32,
        /// What was done.
        pub verdict: Verdict,
        /// Why.
        pub reason: Reason,
        /// Direction of the packets counted.
        pub direction: Direction,
    }
}

map_type! {
    /// Value of `COUNTERS` and `WORKLOAD_COUNTERS`, one per CPU: the sum over the CPUs is the number.
    pub struct Counter {
        /// Connections that got this verdict for this reason.
        pub connections: u64,
        /// Packets it was applied to.
        pub packets: u64,
        /// Their payload bytes.
        pub bytes: u64,
    }
}

map_type! {
    /// Key of `CLIENTS`: who talks to a port of a workload, and how. Connections of the agent's own checks, of exempt sources
    /// and to exempt ports are not counted there.
    pub struct ClientKey {
        /// The workload's id.
        pub workload: u32,
        /// What the client speaks.
        pub class: TrafficClass,
        /// The client's address.
        pub client: Address,
        /// Port of the pod, host byte order.
        pub port: u16,
        /// Zero.
        pub reserved: u16,
    }
}

map_type! {
    /// Value of `CLIENTS`. Written once for each verdict of a connection, never per packet.
    pub struct Client {
        /// Connections whose client spoke like this.
        pub connections: u64,
        /// When the first of them got its verdict, `CLOCK_MONOTONIC` ns.
        pub first_ns: u64,
        /// When the last verdict fell, `CLOCK_MONOTONIC` ns.
        pub last_ns: u64,
        /// The last verdict.
        pub verdict: Verdict,
        /// Why it fell.
        pub reason: Reason,
    }
}

map_type! {
    /// Value of `PENDING`: a client whose first bytes could become a TLS hello and are not enough to tell. Should it fall silent,
    /// the agent makes the kernel side look at the flow again when its time is up.
    pub struct Pending {
        /// When the first of its bytes was seen, `CLOCK_MONOTONIC` ns.
        pub since_ns: u64,
        /// The host side of the pod's interface.
        pub ifindex: u32,
        /// Destination and source MAC and type of the frame that brought it, network byte order.
        pub frame: [u8; 14],
        /// Zero.
        pub reserved: [u8; 6],
    }
}

map_type! {
    /// Key of `POD_LINKS`.
    pub struct PodLinkKey {
        /// The pod.
        pub pod: Address,
        /// The remote end.
        pub client: Address,
    }
}

map_type! {
    /// Value of `POD_LINKS`: how frames of a pod that is enforced at its own device begin on their way to a client. Frames that
    /// come to it past the host side need not have been sent to its address, nor by the one that it sends to.
    pub struct PodLink {
        /// Destination and source MAC, network byte order.
        pub macs: [u8; 12],
    }
}

map_type! {
    /// Value of `BYPASSED` (key: the pod's [`Address`]): the pod acknowledged bytes of a client that `to_pod` never saw, so
    /// packets reach it past that hook.
    pub struct Bypassed {
        /// When that was seen first, `CLOCK_MONOTONIC` ns.
        pub first_ns: u64,
        /// When it was seen last, `CLOCK_MONOTONIC` ns.
        pub last_ns: u64,
        /// Packets of the pod that show it.
        pub packets: u64,
        /// The client of the last one.
        pub client: Address,
        /// The interface that the pod's packets came by.
        pub ifindex: u32,
        /// Port of the pod, host byte order.
        pub port: u16,
        /// Zero.
        pub reserved: u16,
    }
}

map_type! {
    /// Value of `RESET_BUDGET` (one entry) and part of that of `CLIENT_RESETS`: how many resets were asked for in the current
    /// second.
    pub struct ResetBudget {
        /// When the current second began, ns.
        pub window_ns: u64,
        /// Resets asked for since.
        pub sent: u64,
    }
}

map_type! {
    /// Value of `CLIENT_RESETS`, one for each client.
    pub struct ClientBudget {
        /// Its resets.
        pub resets: ResetBudget,
        /// When a packet of it that belongs to no connection was told of last, ns.
        pub told_ns: u64,
    }
}

map_type! {
    /// Value of `EVENT_BUDGET` (one entry per CPU): what became of the events.
    pub struct EventBudget {
        /// When the current second began, ns.
        pub window_ns: u64,
        /// Verdicts and ends of connections sent since.
        pub sent: u64,
        /// Pieces of hellos sent since.
        pub hellos_sent: u64,
        /// Verdicts and ends that were not sent because of the rate limit, in all.
        pub suppressed: u64,
        /// Pieces of hellos that were not sent because of it, in all.
        pub hellos_suppressed: u64,
        /// Records of either kind that found the ring buffer full, in all.
        pub lost: u64,
    }
}

#[cfg(test)]
mod tests;
