//! Verdicts and the one table of reasons: the enum that `bpftool` prints, metric labels, CLI text and the
//! reference page all come from it.

use core::fmt;

/// What was done with a connection or packet.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "user", derive(bytemuck::CheckedBitPattern, bytemuck::NoUninit))]
#[expect(non_camel_case_types, reason = "bpftool prints the variants")]
pub enum Verdict {
    /// No verdict yet.
    NONE = 0,
    /// Left alone.
    ALLOW = 1,
    /// Reset at both ends.
    RESET = 2,
    /// Dropped without an answer.
    DROP = 3,
    /// Audit mode: would have been reset or dropped, and was let through.
    WOULD_RESET = 4,
    /// Dropped so that the sender sends it again later.
    WAIT = 5,
}

impl Verdict {
    /// Every verdict, in the order of its number.
    pub const ALL: [Self; 6] =
        [Self::NONE, Self::ALLOW, Self::RESET, Self::DROP, Self::WOULD_RESET, Self::WAIT];

    /// The verdict's word in metrics, json and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NONE => "none",
            Self::ALLOW => "allow",
            Self::RESET => "reset",
            Self::DROP => "drop",
            Self::WOULD_RESET => "would_reset",
            Self::WAIT => "wait",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The direction of a packet, seen from the pod.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "user", derive(bytemuck::CheckedBitPattern, bytemuck::NoUninit))]
#[expect(non_camel_case_types, reason = "bpftool prints the variants")]
pub enum Direction {
    /// Towards the pod.
    TO_POD = 0,
    /// From the pod.
    FROM_POD = 1,
}

impl Direction {
    /// The direction's word in metrics, json and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TO_POD => "to_pod",
            Self::FROM_POD => "from_pod",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

macro_rules! reasons {
    ($($name:ident = $number:tt, $summary:literal, $remedy:literal;)*) => {
        /// Why a verdict fell.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[cfg_attr(feature = "user", derive(bytemuck::CheckedBitPattern, bytemuck::NoUninit))]
        #[expect(non_camel_case_types, reason = "bpftool prints the variants")]
        pub enum Reason {
            $(#[doc = $summary] $name = $number,)*
        }

        impl Reason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The reason's word in maps, metrics, json and tables.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// What happened, one sentence.
            #[must_use]
            pub const fn summary(self) -> &'static str {
                match self { $(Self::$name => $summary,)* }
            }

            /// What an operator can do about it, or that nothing is to be done; empty for [`Self::NONE`].
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)* }
            }
        }
    };
}

reasons! {
    NONE = 0, "No reason yet.", "";
    TLS = 1, "The connection opened as TLS. Whether its client is of the mesh, its class says: only user space reads the ALPN of its hello.",
        "Nothing to do here; enforcer certs says whether the server asks its clients for certificates.";
    MESH_TLS = 2, "The connection opened as TLS to the mesh's tunnel port, 15008. Other connections of the mesh have the reason TLS; their class tells them from others.",
        "Nothing to do: this is how the mesh's own proxies talk.";
    PLAINTEXT_PERMITTED = 3, "The connection is plaintext, and the policy is PERMISSIVE.",
        "Give this client a sidecar or move it to TLS before turning STRICT on.";
    DISABLED = 4, "The policy is DISABLE: nothing is asked of this connection.",
        "Turn the policy PERMISSIVE to see what the clients speak, then STRICT.";
    EXEMPT_PORT = 5, "The port is exempt: a port of the mesh itself, or one that the pod's annotations exclude.",
        "Nothing to do for the mesh's own ports; take other ports out of the pod's excludeInboundPorts to have them held to policy.";
    EXEMPT_SOURCE = 6, "The source address is exempt: the mesh's own probe address.",
        "Nothing to do: probes of ambient workloads come from this address.";
    PROBE = 7, "A probe of the kubelet to a port that the pod names for probes, or a check of the agent's own.",
        "Nothing to do; a port that no probe needs is closed to plaintext by taking it out of the pod's probes.";
    EXISTING = 8, "The connection was open before the pod was enforced, and existing connections are allowed.",
        "Restart the client, or run the agent with --existing-flows reset.";
    PLAINTEXT = 32, "The connection opened as plaintext under STRICT.",
        "Give the client a mesh certificate, or make this port PERMISSIVE with portLevelMtls.";
    SERVER_FIRST = 33, "The server spoke before the client under STRICT: a server-first plaintext protocol.",
        "Serve this protocol behind TLS, or make this port PERMISSIVE with portLevelMtls.";
    SERVER_NOT_TLS = 34, "The server answered a TLS hello with something that is not TLS.",
        "Check that the server behind this port terminates TLS.";
    CERTIFICATE = 35, "The port is blocked: its server did not pass the certificate check.",
        "Run enforcer certs to see what is wrong with the server's certificate or client verification.";
    POLICY_CHANGED = 36, "The connection is plaintext and was permitted before the policy turned STRICT.",
        "Give the client a mesh certificate, or make this port PERMISSIVE with portLevelMtls.";
    MIDSTREAM = 37, "Data of a connection whose handshake was never seen, under STRICT.",
        "Open the connection again; if this repeats, check for asymmetric routing around the node.";
    UNDECIDED = 38, "The client sent too few bytes to be judged, and then stopped or took too long; or the table of flows is full.",
        "Check the client: a TLS hello was started and never finished.";
    FRAGMENT = 39, "An IP fragment to a STRICT workload: its ports and bytes cannot be judged.",
        "Let the client find the path MTU, or lower its MTU.";
    MALFORMED = 40, "Headers that cannot be parsed, changed copies of judged bytes, or urgent data in the first bytes.",
        "Look at the client and the path: this is a broken stack or an attempt at evasion.";
    UNKNOWN_POD = 41, "A new connection to a pod whose policy is not known yet.",
        "Wait for the agent to learn the pod, or run it with --unknown-pods allow.";
    RESET_LIMIT = 42, "Dropped without a reset: the limit of resets per second was reached.",
        "Find the client that floods, or raise --resets-per-second.";
    OUT_OF_ORDER = 64, "Data ahead of bytes that are still missing for a judgement: dropped, to be sent again.",
        "Nothing to do: the sender repeats it; if it goes on, look for loss on the path to the node.";
    SYN_DATA_TRIMMED = 65, "Data in a SYN was cut off (TCP fast open): the client sends it again after the handshake.",
        "Nothing to do: it costs the client one round trip; without TCP fast open it is spared.";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
