//! Random conversations, packet by packet through the rules on the host and through the compiled programs: both must decide
//! alike and leave the same tables. `ENFORCER_SEQUENCES` sets how many conversations are tried, `ENFORCER_SEED` repeats a run.

use std::collections::BTreeMap;

use enforcer_common::datapath::FlowTables as _;
use enforcer_common::datapath::{Act, Carried, Decision};
use enforcer_common::event::{Event, HelloHeader};
use enforcer_common::map::{
    Counter, ExemptKind, Flow, FlowKey, FlowState, HalfOpen, PortKey, TrafficClass, endpoint_flags,
    port_flags,
};
use enforcer_common::settings::{Action, Enforcement, OWN_PROBE_MARK, Settings};
use enforcer_common::tcp::{ACK, FIN, RST, SYN, URG};
use enforcer_common::{Direction, Mode, Reason, Verdict};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::frame::{Frame, read};
use super::model::{Model, Packet};
use super::rig::{NEXT, REDIRECT, Rig, SHOT, v4, v6, with_rig};

const HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 9, 9, 9, 9, 9];
const ANSWER: &[u8] = &[0x16, 3, 3, 0, 122, 2, 0, 0, 118, 3, 3, 9, 9, 9, 9, 9];
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n";
/// One wrong byte after bytes that fit.
const BROKEN: &[u8] = &[0x16, 3, 1, 0, 0, 1, 0, 1, 0xfc, 3, 3, 9, 9, 9, 9, 9];

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// A packet; numbers are offsets in the streams.
    Packet { direction: Direction, flags: u8, offset: i32, acked: i32, stream: usize, len: usize },
    /// The three packets of a handshake.
    Handshake,
    /// The pod opens the connection.
    Outbound,
    /// The client's hello, the pod's acknowledgement and its answer, in pieces of so many bytes.
    Tls(usize, usize),
    /// A client that opens in plaintext, with so many bytes.
    Request(usize),
    /// The agent enters the connection as one that it found open; refused where that is asked for.
    Existing(bool),
    /// The endpoint's mode.
    Mode(Mode),
    /// An entry for the port.
    Port(Mode, u8),
    /// The client becomes exempt.
    Exempt(Option<ExemptKind>),
    /// One more or less flag of the endpoint.
    Flag(u8),
    /// Enforcement and action.
    Settings(Enforcement, Action),
    /// The budget of undecided connections is endless or nothing.
    Patience(bool),
    /// The packets carry the agent's mark, or not.
    Probe(bool),
    /// The tuple is used again, with other numbers.
    Renumber(u32, u32),
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![3 => Just(Mode::STRICT), 1 => Just(Mode::PERMISSIVE), 1 => Just(Mode::DISABLE)]
}

fn packet() -> impl Strategy<Value = Step> {
    let direction = prop_oneof![3 => Just(Direction::TO_POD), 2 => Just(Direction::FROM_POD)];
    let flags = prop_oneof![
        30 => Just(ACK), 2 => Just(ACK | FIN), 1 => Just(SYN), 1 => Just(SYN | ACK), 1 => Just(RST),
        1 => Just(ACK | URG), 1 => Just(0), 1 => any::<u8>(),
    ];
    let offset = prop_oneof![8 => 0..8_i32, 2 => -3..16_i32, 1 => Just(1000)];
    let acked = prop_oneof![4 => Just(0), 3 => 0..8_i32, 1 => -2..20_i32];
    (
        direction,
        flags,
        offset,
        acked,
        prop_oneof![6 => Just(0), 1 => 1..4_usize],
        prop_oneof![1 => Just(0), 6 => 1..16_usize],
    )
        .prop_map(|(direction, flags, offset, acked, stream, len)| Step::Packet {
            direction,
            flags,
            offset,
            acked,
            stream,
            len,
        })
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(None), Just(Some(ExemptKind::SOURCE)), Just(Some(ExemptKind::NODE))];
    let settings = prop_oneof![Just(Enforcement::ENFORCE), Just(Enforcement::AUDIT)];
    let action = prop_oneof![Just(Action::RESET), Just(Action::DROP)];
    let number = || prop_oneof![0..4_u32, (u32::MAX - 12)..=u32::MAX, any::<u32>()];
    prop_oneof![
        60 => packet(),
        3 => Just(Step::Handshake),
        1 => Just(Step::Outbound),
        4 => (1..16_usize, 1..16_usize).prop_map(|(client, pod)| Step::Tls(client, pod)),
        2 => (1..16_usize).prop_map(Step::Request),
        1 => any::<bool>().prop_map(Step::Existing),
        3 => mode().prop_map(Step::Mode),
        1 => (mode(), 0..8_u8).prop_map(|(mode, flags)| Step::Port(mode, flags)),
        1 => kind.prop_map(Step::Exempt),
        1 => prop_oneof![Just(endpoint_flags::LEARNING), Just(endpoint_flags::NOT_MESHED)].prop_map(Step::Flag),
        1 => (settings, action).prop_map(|(enforcement, action)| Step::Settings(enforcement, action)),
        1 => any::<bool>().prop_map(Step::Patience),
        1 => any::<bool>().prop_map(Step::Probe),
        1 => (number(), number()).prop_map(|(client, pod)| Step::Renumber(client, pod)),
    ]
}

/// One conversation on both sides.
struct Both<'a> {
    rig: &'a mut Rig,
    model: Model,
    key: FlowKey,
    client_isn: u32,
    pod_isn: u32,
    counts: BTreeMap<(Verdict, Reason, Direction), Counter>,
    clients: BTreeMap<TrafficClass, (u64, Verdict, Reason)>,
    ends: usize,
    /// Somebody said a part of a hello: the agent would look at it again.
    pending: bool,
}

impl Both<'_> {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Packet { direction, flags, offset, acked, stream, len } => {
                let stream =
                    [if direction == Direction::TO_POD { HELLO } else { ANSWER }, REQUEST, BROKEN, ANSWER]
                        [stream];
                let start = usize::try_from(offset).unwrap_or(0).min(stream.len() - 1);
                let payload = &stream[start..(start + len).min(stream.len())];
                let (own, other) = self.numbers(direction);
                let one = |isn: u32, offset: i32| isn.wrapping_add(1).wrapping_add_signed(offset);
                self.packet(direction, flags, one(own, offset), one(other, acked), payload);
            }
            Step::Handshake => {
                let (client, pod) = (self.client_isn, self.pod_isn);
                self.packet(Direction::TO_POD, SYN, client, 0, &[]);
                self.packet(Direction::FROM_POD, SYN | ACK, pod, client.wrapping_add(1), &[]);
                self.packet(Direction::TO_POD, ACK, client.wrapping_add(1), pod.wrapping_add(1), &[]);
            }
            Step::Tls(client, pod) => self.tls(client, pod),
            Step::Request(size) => {
                let (client, pod) = (self.client_isn.wrapping_add(1), self.pod_isn.wrapping_add(1));
                self.packet(Direction::TO_POD, ACK, client, pod, &REQUEST[..size.min(REQUEST.len())]);
            }
            Step::Outbound => self.packet(Direction::FROM_POD, SYN, self.pod_isn, 0, &[]),
            Step::Existing(refused) => {
                let half_open = HalfOpen { client_isn: self.client_isn, pod_isn: self.pod_isn, flags: 0 };
                let open =
                    Flow::open(&half_open, self.model.endpoint.workload, self.model.endpoint.generation, 0);
                let fault = if refused { Reason::MIDSTREAM } else { Reason::NONE };
                let flow = Flow { state: FlowState::EXISTING, fault, ..open };
                self.model.insert_flow(&self.key, &flow);
                self.rig.transient.insert(&self.key, &flow).expect("TRANSIENT");
            }
            Step::Mode(mode) => self.model.set_mode(mode),
            Step::Port(mode, flags) => self.model.set_port(self.key.pod_port, mode, flags & all_port_flags()),
            Step::Exempt(kind) => {
                self.model.exempt.clear();
                self.model.exempt.extend(kind.map(|kind| (self.key.client, kind)));
            }
            Step::Flag(flag) => self.model.endpoint.flags ^= flag,
            Step::Settings(enforcement, action) => {
                (self.model.settings.enforcement, self.model.settings.action) = (enforcement, action);
            }
            Step::Patience(endless) => self.model.settings.undecided_ns = if endless { u64::MAX } else { 0 },
            Step::Probe(probe) => self.model.own_probe = probe,
            Step::Renumber(client, pod) => (self.client_isn, self.pod_isn) = (client, pod),
        }
        if !matches!(
            step,
            Step::Packet { .. } | Step::Handshake | Step::Outbound | Step::Tls(..) | Step::Request(_)
        ) {
            self.write();
        }
    }

    /// What two ends that mean well send.
    fn tls(&mut self, client_size: usize, pod_size: usize) {
        let (mut client, mut pod) = (self.client_isn.wrapping_add(1), self.pod_isn.wrapping_add(1));
        for piece in HELLO.chunks(client_size) {
            self.packet(Direction::TO_POD, ACK, client, pod, piece);
            client = client.wrapping_add(u32::try_from(piece.len()).expect("short"));
            self.packet(Direction::FROM_POD, ACK, pod, client, &[]);
        }
        for piece in ANSWER.chunks(pod_size) {
            self.packet(Direction::FROM_POD, ACK, pod, client, piece);
            pod = pod.wrapping_add(u32::try_from(piece.len()).expect("short"));
        }
    }

    fn numbers(&self, direction: Direction) -> (u32, u32) {
        match direction {
            Direction::TO_POD => (self.client_isn, self.pod_isn),
            Direction::FROM_POD => (self.pod_isn, self.client_isn),
        }
    }

    /// Tells the programs what the model knows.
    fn write(&mut self) {
        for ((generation, port), value) in &self.model.ports {
            let key =
                PortKey { workload: self.model.endpoint.workload, generation: *generation, port: *port };
            self.rig.ports.insert(&key, value).expect("PORT_MODES");
        }
        let _ = self.rig.exempt.remove(self.key.client);
        for (source, kind) in &self.model.exempt {
            self.rig.exempt.insert(*source, *kind).expect("EXEMPT");
        }
        self.rig.set(self.model.settings);
        self.rig.mark = if self.model.own_probe { OWN_PROBE_MARK } else { 0 };
        self.rig.endpoints.insert(&self.key.pod, &self.model.endpoint).expect("ENDPOINTS");
    }

    /// One packet through both.
    fn packet(&mut self, direction: Direction, flags: u8, seq: u32, ack: u32, payload: &[u8]) {
        let decision =
            self.model.run(&self.key, &Packet { direction, flags, seq, ack, payload: payload.into() });
        // A stray is told of once a second: here each of them.
        let told = Decision { report: decision.report || decision.stray, ..decision };
        let decision = told;
        self.rig.client_resets.remove(&self.key.client).expect("CLIENT_RESETS");
        let frame = Frame::new(self.key, direction, flags, seq, ack, payload);
        let outcome = self.rig.run(&frame);
        let code = match (decision.act, direction) {
            (Act::Drop, _) => SHOT,
            (Act::Reset, Direction::TO_POD) => REDIRECT,
            _ => NEXT,
        };
        assert_eq!(outcome.code, code, "{decision:?}");
        match decision.act {
            Act::Pass => assert_eq!(outcome.frame, frame.bytes()),
            Act::TrimSyn => {
                assert_eq!(outcome.frame, Frame { payload: Vec::new(), ..frame }.bytes());
            }
            Act::Drop => {}
            Act::Reset => {
                let seen = read(&outcome.frame).expect("TCP");
                assert_eq!(
                    (seen.seq, seen.ack, seen.payload.len()),
                    (decision.numbers.client_seq, decision.numbers.client_ack, 0)
                );
                let to_pod: Vec<_> = self.rig.sent().iter().map(|seen| (seen.seq, seen.ack)).collect();
                assert_eq!(to_pod, [(decision.numbers.pod_seq, decision.numbers.pod_ack)]);
            }
        }
        self.check_counters(&decision, direction, payload);
        self.check_event(&decision, direction, payload);
        self.check_client(&decision);
        let key = &self.key;
        let found = self.rig.flow(key).map(|(flow, protected)| (timeless(flow), protected));
        let protected = self.model.protected_entry(key).is_some();
        let expected = self.model.flow_entry(key).map(|flow| (timeless(flow), protected));
        assert_eq!(found, expected, "FLOWS and TRANSIENT after {decision:?}");
        assert_eq!(
            self.rig.half_open.get(key).expect("HALF_OPEN"),
            self.model.half_open_entry(key),
            "HALF_OPEN"
        );
        assert_eq!(self.rig.outbound.get(key).expect("OUTBOUND"), self.model.outbound_entry(key), "OUTBOUND");
        assert_eq!(
            self.rig.outbound_ended.get(key).expect("OUTBOUND_ENDED"),
            self.model.outbound_ended_entry(key),
            "OUTBOUND_ENDED"
        );
        self.pending |= decision.pending;
        let noted = self.rig.pending.get(key).expect("PENDING").is_some();
        assert_eq!(noted, self.pending, "PENDING after {decision:?}");
    }

    fn check_counters(&mut self, decision: &Decision, direction: Direction, payload: &[u8]) {
        if decision.verdict != Verdict::NONE {
            let none = Counter { connections: 0, packets: 0, bytes: 0 };
            let counter = self.counts.entry((decision.verdict, decision.reason, direction)).or_insert(none);
            counter.connections += u64::from(decision.report);
            counter.packets += 1;
            counter.bytes += u64::try_from(payload.len()).expect("a length");
        }
        assert_eq!(self.rig.counts(), self.counts, "counters after {decision:?}");
    }

    fn check_event(&mut self, decision: &Decision, direction: Direction, payload: &[u8]) {
        let records = self.rig.records();
        let seen: Vec<_> = records
            .verdicts
            .iter()
            .map(|event| {
                let carried = Carried {
                    opened_ns: 0,
                    bytes_to_pod: event.bytes_to_pod,
                    bytes_from_pod: event.bytes_from_pod,
                    packets_to_pod: event.packets_to_pod,
                    packets_from_pod: event.packets_from_pod,
                };
                let decided = (event.verdict, event.reason, event.direction, event.state, event.class);
                (decided, event.generation, event.key, event.head().to_vec(), carried)
            })
            .collect();
        let generation = self.model.endpoint.generation;
        let Decision { verdict, reason, state, class, .. } = *decision;
        let decided = (verdict, reason, direction, state, class);
        let carried = Carried { opened_ns: 0, ..decision.carried };
        let expected = (decided, generation, self.key, payload.to_vec(), carried);
        self.check_hello(decision, payload, &records.hellos);
        self.check_end(decision, direction, &records.ends);
        let reported = decision.report && verdict != Verdict::NONE;
        assert_eq!(
            seen,
            reported.then_some(expected).into_iter().collect::<Vec<_>>(),
            "events after {decision:?}"
        );
    }
}

impl Both<'_> {
    /// What user space gets of the client's stream is what the decision says, and goes on where it ended before.
    fn check_hello(&self, decision: &Decision, payload: &[u8], hellos: &[(HelloHeader, Vec<u8>)]) {
        let part = decision.hello;
        let Some((header, bytes)) = hellos.first() else {
            assert_eq!(part.count, 0, "a hello is missing after {decision:?}");
            return;
        };
        assert_eq!(hellos.len(), 1);
        let from = usize::try_from(part.index).expect("an index");
        let count = usize::try_from(part.count).expect("a length");
        let known = usize::try_from(if part.first { part.offset } else { 0 }).expect("a length");
        let mut expected = part.prefix.to_le_bytes()[..known].to_vec();
        expected.extend(&payload[from..from + count]);
        assert_eq!(
            (header.key, header.offset, bytes),
            (self.key, if part.first { 0 } else { part.offset }, &expected)
        );
    }

    /// The end of a connection is reported once, with its last verdict.
    fn check_end(&mut self, decision: &Decision, direction: Direction, records: &[Event]) {
        let ends: Vec<_> = records
            .iter()
            .map(|event| {
                let carried =
                    [event.bytes_to_pod, event.bytes_from_pod, event.packets_to_pod, event.packets_from_pod];
                ((event.verdict, event.reason, event.state, event.class), event.direction, event.key, carried)
            })
            .collect();
        let Carried { bytes_to_pod, bytes_from_pod, packets_to_pod, packets_from_pod, .. } = decision.carried;
        let last = (decision.last_verdict, decision.last_reason, decision.state, decision.class);
        let carried = [bytes_to_pod, bytes_from_pod, packets_to_pod, packets_from_pod];
        let expected = (last, direction, self.key, carried);
        assert_eq!(
            ends,
            decision.end.then_some(expected).into_iter().collect::<Vec<_>>(),
            "after {decision:?}"
        );
        self.ends += ends.len();
    }

    /// The connection is entered under what its client speaks, once for each class.
    fn check_client(&mut self, decision: &Decision) {
        if decision.names_client() {
            let entry = self.clients.entry(decision.class).or_insert((0, Verdict::NONE, Reason::NONE));
            entry.0 += u64::from(decision.new_client);
            (entry.1, entry.2) = (decision.verdict, decision.reason);
        }
        let seen: BTreeMap<_, _> = self
            .rig
            .client_entries()
            .iter()
            .map(|(key, client)| {
                assert_eq!((key.client, key.port), (self.key.client, self.key.pod_port));
                assert!(client.first_ns <= client.last_ns);
                (key.class, (client.connections, client.verdict, client.reason))
            })
            .collect();
        assert_eq!(seen, self.clients, "CLIENTS after {decision:?}");
    }
}

fn all_port_flags() -> u8 {
    port_flags::EXEMPT | port_flags::PROBE | port_flags::BLOCKED
}

/// A flow without the times, which the two sides read from different clocks.
fn timeless(flow: Flow) -> Flow {
    Flow { opened_ns: 0, phase_ns: 0, ..flow }
}

#[test]
fn the_programs_do_what_the_rules_say() {
    let cases = std::env::var("ENFORCER_SEQUENCES")
        .map_or(2000, |text| text.parse().expect("ENFORCER_SEQUENCES must be a number of conversations"));
    let seed = std::env::var("ENFORCER_SEED").map_or_else(
        |_| std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs() ^ u64::from(time.subsec_nanos())),
        |text| text.parse().expect("ENFORCER_SEED must be a number"),
    );
    println!("ENFORCER_SEED={seed} repeats this run");
    with_rig(move |rig| {
        let mut number = 0_u16;
        let reached = std::cell::RefCell::new(BTreeMap::new());
        let ends = std::cell::Cell::new(0);
        let config = Config { cases, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
        let opening = proptest::option::weighted(0.3, (1..16_usize, 1..16_usize));
        let conversation = (mode(), any::<bool>(), opening, vec(step(), 1..40));
        let rig = std::cell::RefCell::new(rig);
        let number = std::cell::RefCell::new(&mut number);
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let result =
            TestRunner::new_with_rng(config, random).run(&conversation, |(mode, is_v6, opening, steps)| {
                let mut rig = rig.borrow_mut();
                let mut number = number.borrow_mut();
                **number = number.wrapping_add(1).max(1);
                let key = if is_v6 { v6(**number) } else { v4(**number) };
                rig.flows.remove(&key).expect("FLOWS");
                rig.transient.remove(&key).expect("TRANSIENT");
                rig.half_open.remove(&key).expect("HALF_OPEN");
                rig.outbound.remove(&key).expect("OUTBOUND");
                rig.outbound_ended.remove(&key).expect("OUTBOUND_ENDED");
                rig.pending.remove(&key).expect("PENDING");
                rig.events();
                rig.sent();
                let counts = rig.counts();
                let before = counts.clone();
                let mut model = Model::new(mode);
                model.settings = Settings {
                    undecided_ns: u64::MAX,
                    resets_per_second: u32::MAX,
                    resets_per_second_per_client: u32::MAX,
                    events_per_second: u32::MAX,
                    ..Settings::DEFAULT
                };
                for (client, _) in rig.client_entries() {
                    rig.clients.remove(&client).expect("CLIENTS");
                }
                let mut both = Both {
                    rig: &mut rig,
                    model,
                    key,
                    client_isn: 5000,
                    pod_isn: u32::MAX - 4,
                    counts,
                    clients: BTreeMap::new(),
                    ends: 0,
                    pending: false,
                };
                both.write();
                both.step(&Step::Handshake);
                if let Some((client, pod)) = opening {
                    both.step(&Step::Tls(client, pod));
                }
                for step in &steps {
                    both.step(step);
                }
                ends.set(ends.get() + both.ends);
                // Full tables have verdicts of their own, and these two push nothing out.
                both.rig.pending.remove(&key).expect("PENDING");
                both.rig.flows.remove(&key).expect("FLOWS");
                for (key, counter) in &both.counts {
                    let packets = counter.packets - before.get(key).map_or(0, |counter| counter.packets);
                    *reached.borrow_mut().entry((key.0, key.1)).or_insert(0) += packets;
                }
                Ok(())
            });
        if let Err(failure) = result {
            panic!("{failure}\nENFORCER_SEED={seed} repeats this run");
        }
        let reached = reached.into_inner();
        println!("packets by verdict: {reached:?}");
        // A run that never gets anywhere proves nothing.
        if cases >= 300 {
            assert!(ends.get() > 0, "no conversation ended");
            for verdict in
                [Verdict::ALLOW, Verdict::RESET, Verdict::DROP, Verdict::WOULD_RESET, Verdict::WAIT]
            {
                assert!(
                    reached.keys().any(|(seen, _)| *seen == verdict),
                    "no conversation reached {verdict}"
                );
            }
            for reason in [
                Reason::TLS,
                Reason::PLAINTEXT,
                Reason::SERVER_FIRST,
                Reason::POLICY_CHANGED,
                Reason::MIDSTREAM,
            ] {
                assert!(reached.keys().any(|(_, seen)| *seen == reason), "no conversation reached {reason}");
            }
        }
    });
}
