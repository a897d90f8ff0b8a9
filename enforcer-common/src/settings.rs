//! What the agent tells the kernel side: the one value of the map `SETTINGS`.

use crate::event::HELLO_LIMIT;
use crate::map::map_type;

/// Socket mark (`SO_MARK`) of the agent's own certificate checks, so that they are counted as `PROBE`, never as a client.
pub const OWN_PROBE_MARK: u32 = 0x0000_10e5;

/// The bits of a packet's mark that say so. They are none of those that others on a node set or clear on every packet: the
/// upper half (Calico, Cilium's identities), 0xc000 (kube-proxy), 0x2000 (the port mapping plug-in), 0x0f00 (Cilium).
pub const OWN_PROBE_MASK: u32 = 0x0000_10ff;

/// Whether verdicts are carried out.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "user", derive(bytemuck::CheckedBitPattern, bytemuck::NoUninit))]
pub enum Enforcement {
    /// Verdicts are carried out.
    ENFORCE = 0,
    /// Verdicts are counted and reported as `WOULD_RESET`; no packet is touched.
    AUDIT = 1,
}

/// What is done with a refused connection.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "user", derive(bytemuck::CheckedBitPattern, bytemuck::NoUninit))]
pub enum Action {
    /// Both ends get a RST.
    RESET = 0,
    /// The packets are dropped without an answer.
    DROP = 1,
}

/// What happens to pods that the agent does not know yet.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "user", derive(bytemuck::CheckedBitPattern, bytemuck::NoUninit))]
pub enum UnknownPods {
    /// Their connections pass.
    ALLOW = 0,
    /// New inbound connections are refused until the policy is known.
    STRICT = 1,
}

map_type! {
    /// The value of `SETTINGS` (one entry, key 0).
    pub struct Settings {
        /// Last sign of life of the agent, `CLOCK_MONOTONIC` ns; 0 after a clean stop.
        pub heartbeat_ns: u64,
        /// How long a client may take from its first byte to its sixth, ns.
        pub undecided_ns: u64,
        /// The agent's process id in its own pid namespace; 0 after a clean stop.
        pub agent_pid: u32,
        /// Whether verdicts are carried out.
        pub enforcement: Enforcement,
        /// What is done with a refused connection.
        pub action: Action,
        /// What happens to pods that are not known yet.
        pub unknown_pods: UnknownPods,
        /// Resets sent per second on this node; beyond that refused packets are dropped (`RESET_LIMIT`).
        pub resets_per_second: u32,
        /// Events per second and CPU; beyond that they are counted as suppressed.
        pub events_per_second: u32,
        /// Resets sent per second to one client's address; beyond that its refused packets are dropped (`RESET_LIMIT`).
        pub resets_per_second_per_client: u32,
        /// How many bytes of the stream of a TLS client go to user space, at most [`crate::event::HELLO_LIMIT`]; 0: none.
        pub hello_bytes: u32,
        /// Id of the cgroup (v2) whose sockets may probe: the kubelet's. 0: those of every process of the node.
        pub probe_cgroup: u64,
    }
}

impl Settings {
    /// What the kernel side assumes before the agent has written anything: enforcing, resetting, unknown pods pass.
    pub const DEFAULT: Self = Self {
        heartbeat_ns: 0,
        undecided_ns: 10_000_000_000,
        agent_pid: 0,
        enforcement: Enforcement::ENFORCE,
        action: Action::RESET,
        unknown_pods: UnknownPods::ALLOW,
        resets_per_second: 10_000,
        events_per_second: 10_000,
        resets_per_second_per_client: 1_000,
        hello_bytes: HELLO_LIMIT,
        probe_cgroup: 0,
    };
}
