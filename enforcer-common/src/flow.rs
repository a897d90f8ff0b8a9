//! The state machine of one flow: what its bytes say, and what the policy makes of that.
//!
//! Knowledge and verdict are kept apart. [`Flow::observe_client`] and [`Flow::observe_pod`] learn from segments
//! whatever the policy is, so that a policy change finds live flows judged already; [`Flow::decide`] holds what is
//! known against the policy of this moment.

use crate::datapath::HelloPart;
use crate::event::HELLO_PARTS;
use crate::map::{Endpoint, Flow, FlowState, HalfOpen, TrafficClass, flow_flags, half_open_flags};
use crate::tcp::{FIN, Segment, URG, is_before, overlap};
use crate::tls::{self, CLIENT_PREFIX, POD_PREFIX};
use crate::{Mode, Reason, Verdict};

mod numbers;
mod window;

pub use self::window::Window;
use self::window::{low_bytes, spread, word};

/// All six bits of [`Flow::client_mask`].
const COMPLETE: u8 = 0b11_1111;
/// The bits of [`Flow::client_mask`] for the record length.
const LENGTH: u8 = 0b01_1000;
/// The mesh's tunnel port: TLS to it is mesh TLS whatever its ALPN.
const TUNNEL_PORT: u16 = 15008;

/// What the policy says for one flow at this moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Mode of the flow's port.
    pub mode: Mode,
    /// Why the flow is exempt; [`Reason::NONE`] when it is not.
    pub exempt: Reason,
    /// The port is blocked after a failed certificate check.
    pub blocked: bool,
    /// Generation of the endpoint's policy.
    pub generation: u16,
}

impl Policy {
    /// Whether anything can be refused under this policy.
    #[inline(always)]
    #[must_use]
    pub fn is_enforced(&self) -> bool {
        self.mode == Mode::STRICT && self.exempt == Reason::NONE
    }
}

/// What was seen of a segment, apart from the state of its flow, which another CPU may write at the same time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// It comes before bytes that are still missing for a judgement.
    pub early: bool,
    /// What is wrong with the segment itself; [`Reason::NONE`] when nothing is.
    pub fault: Reason,
}

impl Seen {
    /// It may pass if the policy lets it.
    const READY: Self = Self { early: false, fault: Reason::NONE };
    const EARLY: Self = Self { early: true, fault: Reason::NONE };
}

/// What the policy makes of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opinion {
    /// Nothing is known yet: its segments pass.
    Undecided,
    /// Leave it alone.
    Allow(Reason),
    /// End it.
    Refuse(Reason),
}

impl Opinion {
    /// The opinion of the packet at hand, from that of its flow: what is at fault itself is refused under an enforced policy, also
    /// when another CPU judged a packet of the flow otherwise meanwhile.
    #[inline(always)]
    #[must_use]
    pub fn of(self, seen: Seen, policy: &Policy) -> Self {
        if seen.fault != Reason::NONE && policy.is_enforced() && !matches!(self, Self::Refuse(_)) {
            return Self::Refuse(seen.fault);
        }
        self
    }
}

impl Flow {
    /// A flow whose handshake just completed.
    #[inline(always)]
    #[must_use]
    pub fn open(half_open: &HalfOpen, workload: u32, generation: u16, now_ns: u64) -> Self {
        let client_start = half_open.client_isn.wrapping_add(1);
        Self {
            opened_ns: now_ns,
            phase_ns: 0,
            bytes_to_pod: 0,
            bytes_from_pod: 0,
            packets_to_pod: 0,
            packets_from_pod: 0,
            client_start,
            pod_start: half_open.pod_isn.wrapping_add(1),
            pod_ack: client_start,
            workload,
            state: FlowState::OPEN,
            fault: Reason::NONE,
            verdict: Verdict::NONE,
            reason: Reason::NONE,
            generation,
            client_prefix: [0; 6],
            client_mask: 0,
            pod_judged: 0,
            flags: if half_open.flags & half_open_flags::COOKIE == 0 { 0 } else { flow_flags::COOKIE },
            hello_sent: 0,
            hello_parts: 0,
            counted_class: 0,
        }
    }

    /// A connection of which nothing was seen before the packet at hand.
    #[inline(always)]
    #[must_use]
    pub fn unseen(endpoint: &Endpoint, now_ns: u64) -> Self {
        Self {
            client_start: 0,
            pod_start: 0,
            pod_ack: 0,
            state: FlowState::EXISTING,
            fault: Reason::MIDSTREAM,
            ..Self::open(
                &HalfOpen { client_isn: 0, pod_isn: 0, flags: 0 },
                endpoint.workload,
                endpoint.generation,
                now_ns,
            )
        }
    }

    /// Whether the client has said something, and not enough to tell what it speaks.
    #[inline(always)]
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        matches!(self.state, FlowState::OPEN) && self.client_mask != 0
    }

    /// Learns from a segment of the client. `hold`: segments may be kept waiting, so what is not in order yet is not
    /// recorded either. `budget_ns`: how long the client may take from its first byte to its sixth.
    #[inline(always)]
    pub fn observe_client(
        &mut self,
        segment: &Segment,
        window: &Window,
        hold: bool,
        now_ns: u64,
        budget_ns: u64,
    ) -> Seen {
        if self.flags & flow_flags::PREFIX_ACKED != 0
            || !matches!(self.state, FlowState::OPEN | FlowState::HELLO | FlowState::TLS)
        {
            return Seen::READY;
        }
        if self.flags & flow_flags::LOOK_AGAIN != 0 && segment.ack != self.pod_start {
            // A socket that the pod has just made of an old handshake has sent nothing that could be acknowledged, so it discards
            // this; the one that is known takes it as ever.
            return Seen::READY;
        }
        if segment.has(URG) && self.reaches_prefix(segment) {
            return self.condemn(Reason::MALFORMED);
        }
        let open = matches!(self.state, FlowState::OPEN);
        let mut seen = Seen::READY;
        if window.count > 0 {
            if hold && open && window.offset > self.client_mask.trailing_ones() {
                seen = Seen::EARLY;
            } else {
                seen = self.record_client(window, now_ns);
            }
        } else if open && segment.payload_len > 0 && !is_before(segment.seq, self.client_start) {
            seen = Seen::EARLY;
        }
        if matches!(self.state, FlowState::OPEN) && self.client_mask != 0 {
            let end = segment.seq.wrapping_add(segment.payload_len).wrapping_sub(self.client_start);
            let ended = segment.has(FIN) && end == self.client_mask.trailing_ones();
            if ended || now_ns.wrapping_sub(self.phase_ns) > budget_ns {
                return self.condemn(Reason::UNDECIDED);
            }
        }
        seen
    }

    /// Whether a segment's urgent pointer can point into the judged bytes: it counts from the segment's start, and the pod's
    /// stack takes it from every segment that touches what it expects.
    #[inline(always)]
    const fn reaches_prefix(&self, segment: &Segment) -> bool {
        let end = segment.seq.wrapping_add(segment.payload_len);
        !is_before(end, self.client_start)
            && is_before(segment.seq, self.client_start.wrapping_add(CLIENT_PREFIX))
    }

    /// Holds the bytes of a window against the rule of each offset and against earlier copies.
    #[inline(always)]
    fn record_client(&mut self, window: &Window, now_ns: u64) -> Seen {
        // The pod's stack discards what it has acknowledged, so a changed copy of that does no harm: old keepalive probes
        // carry a garbage byte there.
        let acked = if self.flags & flow_flags::LOOK_AGAIN != 0 || is_before(self.pod_ack, self.client_start)
        {
            0
        } else {
            self.pod_ack.wrapping_sub(self.client_start)
        };
        let acked = low_bytes(if acked < CLIENT_PREFIX { acked } else { CLIENT_PREFIX });
        let recorded = spread(self.client_mask);
        let live = window.mask() & !(recorded & acked);
        let known = word(self.client_prefix);
        if !tls::client_word_fits(window.word, live) {
            return self.condemn(Reason::PLAINTEXT);
        }
        if (window.word ^ known) & recorded & live != 0 {
            return self.condemn(Reason::MALFORMED);
        }
        let new = live & !recorded;
        if new == 0 {
            return Seen::READY;
        }
        let [content, major, minor, high, low, kind, ..] =
            ((known & !new) | (window.word & new)).to_le_bytes();
        self.client_prefix = [content, major, minor, high, low, kind];
        if self.client_mask == 0 {
            self.phase_ns = now_ns;
        }
        let mask =
            self.client_mask | ((((1_u32 << (window.count & 7)) - 1) << (window.offset & 7)) & 0x3f) as u8;
        self.client_mask = mask;
        if mask & LENGTH == LENGTH && !tls::client_length_fits(high, low) {
            return self.condemn(Reason::PLAINTEXT);
        }
        if mask == COMPLETE && matches!(self.state, FlowState::OPEN) {
            self.state = FlowState::HELLO;
        }
        Seen::READY
    }

    /// Learns from a segment of the pod. `hold` as in [`Self::observe_client`].
    #[inline(always)]
    pub fn observe_pod(&mut self, segment: &Segment, window: &Window, hold: bool) -> Seen {
        self.note_pod_ack(segment);
        match self.state {
            FlowState::OPEN if segment.payload_len > 0 => {
                // Copies of bytes below the stream's start are keepalive probes of the pod, not an answer.
                if window.count > 0 || !is_before(segment.seq, self.pod_start) {
                    return self.condemn(Reason::SERVER_FIRST);
                }
                Seen::READY
            }
            FlowState::HELLO if segment.payload_len > 0 => {
                let judged = u32::from(self.pod_judged);
                if window.count == 0 {
                    return if hold && !is_before(segment.seq, self.pod_start) {
                        Seen::EARLY
                    } else {
                        Seen::READY
                    };
                }
                if window.offset > judged {
                    // Permitted flows go on unjudged; the pod sends in order, so this is a lost packet on its way here.
                    return if hold { Seen::EARLY } else { Seen::READY };
                }
                self.record_pod(window)
            }
            _ => Seen::READY,
        }
    }

    #[inline(always)]
    fn record_pod(&mut self, window: &Window) -> Seen {
        if !tls::pod_word_fits(window.word, window.mask()) {
            return self.condemn(Reason::SERVER_NOT_TLS);
        }
        let end = window.offset + window.count;
        if end > u32::from(self.pod_judged) {
            self.pod_judged = (end & 0xff) as u8;
        }
        if u32::from(self.pod_judged) >= POD_PREFIX {
            self.state = FlowState::TLS;
        }
        Seen::READY
    }

    /// What is wrong with the flow once it is known not to be TLS; the first fault stays.
    #[inline(always)]
    fn condemn(&mut self, fault: Reason) -> Seen {
        self.state = FlowState::PLAINTEXT;
        self.fault = fault;
        Seen { early: false, fault }
    }

    /// What the policy of this moment makes of the flow; `payload`: the segment at hand carries data.
    #[inline(always)]
    #[must_use]
    pub fn decide(&self, policy: &Policy, pod_port: u16, payload: bool) -> Opinion {
        let tls = matches!(self.state, FlowState::HELLO | FlowState::TLS);
        let tls_reason = if pod_port == TUNNEL_PORT { Reason::MESH_TLS } else { Reason::TLS };
        let open = matches!(self.state, FlowState::OPEN);
        if policy.is_enforced() && policy.blocked {
            // A hello that fits in one segment makes the flow TLS before it comes here: new is what has no verdict yet.
            let new = matches!(self.verdict, Verdict::NONE) || matches!(self.reason, Reason::CERTIFICATE);
            if (open && payload) || (tls && new) {
                return Opinion::Refuse(Reason::CERTIFICATE);
            }
        }
        if open {
            return Opinion::Undecided;
        }
        if policy.exempt != Reason::NONE {
            return Opinion::Allow(if tls && pod_port == TUNNEL_PORT { tls_reason } else { policy.exempt });
        }
        if policy.mode == Mode::DISABLE {
            return Opinion::Allow(Reason::DISABLED);
        }
        if tls {
            return Opinion::Allow(tls_reason);
        }
        let existing = matches!(self.state, FlowState::EXISTING);
        if existing && self.fault == Reason::NONE {
            return Opinion::Allow(Reason::EXISTING);
        }
        if policy.mode == Mode::PERMISSIVE {
            return Opinion::Allow(if existing { Reason::EXISTING } else { Reason::PLAINTEXT_PERMITTED });
        }
        Opinion::Refuse(match self.verdict {
            // Refused before: the reason stays, so that one connection is counted once.
            Verdict::RESET | Verdict::DROP | Verdict::WOULD_RESET => self.reason,
            Verdict::ALLOW if !existing && !matches!(self.reason, Reason::TLS | Reason::MESH_TLS) => {
                Reason::POLICY_CHANGED
            }
            _ => self.fault,
        })
    }

    /// Enters a verdict. True when it differs from the last one: then it is counted as a connection and reported.
    #[inline(always)]
    pub fn enter(&mut self, verdict: Verdict, reason: Reason, generation: u16, now_ns: u64) -> bool {
        let new = self.verdict != verdict || self.reason != reason;
        if new {
            self.verdict = verdict;
            self.reason = reason;
            self.phase_ns = now_ns;
        }
        self.generation = generation;
        new
    }

    /// What the client speaks.
    #[inline(always)]
    #[must_use]
    pub fn class(&self, pod_port: u16) -> TrafficClass {
        match self.state {
            FlowState::OPEN => TrafficClass::UNKNOWN,
            FlowState::EXISTING => TrafficClass::EXISTING,
            // The client's hello was complete: it was the server that did not answer in kind.
            FlowState::PLAINTEXT if self.fault != Reason::SERVER_NOT_TLS => TrafficClass::PLAINTEXT,
            _ if pod_port == TUNNEL_PORT => TrafficClass::MESH_TLS,
            _ => TrafficClass::TLS,
        }
    }

    /// Notes that the connection is counted under this class; false when it was already.
    #[inline(always)]
    pub fn count_client(&mut self, class: TrafficClass) -> bool {
        let class = class as u8;
        let new = self.counted_class != class;
        self.counted_class = class;
        new
    }

    /// The part of a segment that goes to user space, while the client's hello is not answered; at most `limit` bytes of
    /// the stream do, from at most [`HELLO_PARTS`] packets. Notes it as sent.
    #[inline(always)]
    pub fn hello_part(&mut self, segment: &Segment, limit: u32) -> HelloPart {
        let sent = u32::from(self.hello_sent);
        let own = self.flags & flow_flags::OWN_PROBE != 0;
        if !matches!(self.state, FlowState::HELLO) || own || sent >= limit || self.hello_parts >= HELLO_PARTS
        {
            return HelloPart::NONE;
        }
        let Some(part) = overlap(self.client_start, segment.seq, segment.payload_len, limit) else {
            return HelloPart::NONE;
        };
        let end = part.offset + part.count;
        let first = sent == 0;
        // All six judged bytes are known here, so the bytes that went before this segment need not be sent by themselves.
        let have = if first { CLIENT_PREFIX } else { sent };
        if part.offset > have || end <= sent {
            return HelloPart::NONE;
        }
        self.hello_sent = (end & 0xffff) as u16;
        self.hello_parts += 1;
        let skip = if first { 0 } else { sent - part.offset };
        HelloPart {
            offset: part.offset + skip,
            index: part.index + skip,
            count: part.count - skip,
            first,
            prefix: word(self.client_prefix),
        }
    }

    /// What is exempt passes without an entry, too.
    #[inline(always)]
    #[must_use]
    pub fn passes_without_place(&self) -> bool {
        matches!(self.reason, Reason::PROBE | Reason::EXEMPT_SOURCE | Reason::EXEMPT_PORT)
    }

    /// Marks a flow that needs no further look while its generation stays: allowed, and its judged bytes cannot change.
    #[inline(always)]
    pub fn settle(&mut self) {
        let final_state = match self.state {
            // One that waits for a place must not get past its wait.
            FlowState::TLS => {
                self.flags & flow_flags::PREFIX_ACKED != 0
                    && (self.passes_without_place() || self.flags & flow_flags::PROTECTED != 0)
            }
            FlowState::PLAINTEXT | FlowState::EXISTING => true,
            FlowState::OPEN | FlowState::HELLO => false,
        };
        if final_state && self.verdict == Verdict::ALLOW {
            self.flags |= flow_flags::SETTLED;
        } else {
            self.flags &= !flow_flags::SETTLED;
        }
    }
}

#[cfg(test)]
mod tests;
