//! A client without manners, the rules, and a pod with a TCP stack of its own, all driven by arbitrary bytes.
//!
//! The oracle knows nothing of flows: it looks at what the pod's application could read and at what left the pod. It is what
//! the fuzz target `flow` and its short form, the test `flow_oracle`, have in common.

use std::collections::BTreeMap;

use enforcer_common::datapath::{Act, end_of_socket};
use enforcer_common::map::{FlowKey, SocketTag};
use enforcer_common::tcp::{ACK, FIN, RST, SYN, URG};
use enforcer_common::tls::{Class, classify, pod_byte_fits};
use enforcer_common::{Address, Direction, Mode};

use super::model::{Model, Packet};

const HELLO: &[u8] = b"\x16\x03\x01\x00\xf0\x01\x00\x00\xec\x03\x03\x16\x03\x01\x00\x05\x01";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
const SERVER_HELLO: &[u8] = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03";
const BASE: u32 = 0xffff_fff0;
/// What separates the numbers of a pod from those of its client; cookies of one minute do so too.
const POD_ABOVE: u32 = 0x5000_0000;
/// Where a connection that is made of a cookie may begin, seen from where it was meant to: a cookie is valid for several
/// sequence numbers.
const COOKIE_PLACES: [u32; 9] = [0, 1, 2, 3, u32::MAX, u32::MAX - 1, u32::MAX - 2, 1000, 0x7fff_fff0];

/// Bytes to decide with; zeros when they are used up.
struct Feed<'a>(&'a [u8]);

impl Feed<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn once_in(&mut self, times: u8) -> bool {
        self.byte().is_multiple_of(times)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }
}

/// A connected socket of the pod.
struct Socket {
    client_isn: u32,
    pod_isn: u32,
    /// Bytes by their offset, whether there is a gap before them or not.
    stream: BTreeMap<u32, u8>,
    /// Offsets that the application reads as urgent data, not in line.
    urgent: Vec<u32>,
    received: u32,
    sent: u32,
    /// What the pod says.
    script: &'static [u8],
}

impl Socket {
    /// What the application has read, or could.
    fn readable(&self) -> Vec<u8> {
        let in_line = (0..self.received).filter(|offset| !self.urgent.contains(offset));
        in_line.filter_map(|offset| self.stream.get(&offset).copied()).collect()
    }
}

/// The world.
struct World {
    model: Model,
    key: FlowKey,
    cookies: bool,
    /// Handshakes that the pod has answered, as (client's number, pod's number).
    answered: Vec<(u32, u32)>,
    socket: Option<Socket>,
    /// Pod bytes that left, by the pod's initial number and their offset.
    left: BTreeMap<(u32, u32), u8>,
}

/// Plays a whole conversation.
///
/// # Panics
/// When a byte arrived or left that must not.
pub(crate) fn play(bytes: &[u8]) {
    let mut feed = Feed(bytes);
    let address = |last| Address::from_v4([10, 244, 0, last]);
    let key = FlowKey { client: address(20), pod: address(10), client_port: 40000, pod_port: 8080 };
    let cookies = feed.byte() & 1 == 1;
    let mut model = Model::new(Mode::STRICT);
    model.cookies = cookies;
    let mut world = World { model, key, cookies, answered: Vec::new(), socket: None, left: BTreeMap::new() };
    while !feed.0.is_empty() {
        match feed.byte() % 8 {
            0 => world.syn(&mut feed),
            1..=4 => world.client_segment(&mut feed),
            5 | 6 => world.pod_segment(&mut feed),
            _ => world.model.now_ns.set(world.model.now_ns.get() + u64::from(feed.byte()) * 100_000_000),
        }
        world.check();
    }
}

impl World {
    fn run(&self, direction: Direction, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> (bool, u32) {
        let packet = Packet { direction, flags, seq, ack, payload: payload.to_vec() };
        let decision = self.model.run(&self.key, &packet);
        let reset = if decision.act == Act::Reset { decision.numbers.pod_seq } else { 0 };
        (decision.act == Act::Pass || decision.act == Act::TrimSyn, reset)
    }

    /// A SYN, maybe with data; the pod answers as its state has it.
    fn syn(&mut self, feed: &mut Feed) {
        let isn = BASE.wrapping_add(feed.pick(&[0, 1, 2, 3, 6, 7, 20, 0x8000_0000, u32::MAX - 5]));
        let payload = if feed.once_in(4) { REQUEST } else { b"" };
        self.run(Direction::TO_POD, SYN, isn, 0, payload);
        if feed.once_in(8) {
            // Discarded by the pod.
            return;
        }
        if let Some((pod_isn, sent, client_isn, received)) = self
            .socket
            .as_ref()
            .map(|socket| (socket.pod_isn, socket.sent, socket.client_isn, socket.received))
        {
            // A challenge (RFC 5961, section 4).
            let (seq, ack) = (pod_isn.wrapping_add(1 + sent), client_isn.wrapping_add(1 + received));
            self.run(Direction::FROM_POD, ACK, seq, ack, &[]);
            return;
        }
        if !self.cookies && self.answered.last().is_some_and(|(known, _)| *known != isn) {
            if feed.byte() & 1 == 0 {
                return;
            }
            // The old request has timed out.
            self.answered.clear();
        }
        let pod_isn = isn.wrapping_add(POD_ABOVE);
        if !self.answered.contains(&(isn, pod_isn)) {
            self.answered.push((isn, pod_isn));
        }
        self.run(Direction::FROM_POD, SYN | ACK, pod_isn, isn.wrapping_add(1), &[]);
    }

    /// Any segment of the client, discarded by the pod or not.
    fn client_segment(&mut self, feed: &mut Feed) {
        let handshake = usize::from(feed.byte());
        let Some((isn, pod_isn)) = self.answered.get(handshake % self.answered.len().max(1)).copied() else {
            return;
        };
        let offset =
            feed.pick(&[0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 9, 16, 1000, u32::MAX, u32::MAX - 5, 0x7fff_fff0]);
        let script = feed.pick(&[HELLO, HELLO, REQUEST, SERVER_HELLO]);
        let length = usize::from(feed.byte() % 19).min(script.len());
        let from = if feed.byte() & 1 == 0 { offset as usize % script.len() } else { 0 };
        let mut payload = script[from..(from + length).min(script.len())].to_vec();
        if feed.once_in(8)
            && let Some(last) = payload.last_mut()
        {
            *last = feed.byte();
        }
        let flags = feed.pick(&[ACK, ACK, ACK, ACK, ACK, ACK | FIN, ACK | URG, RST, RST | ACK, 0, SYN | ACK]);
        let seq = isn.wrapping_add(1).wrapping_add(offset);
        let ack = pod_isn.wrapping_add(1).wrapping_add(feed.pick(&[0, 0, 0, 0, 1, 5, 11, u32::MAX]));
        let (passed, reset) = self.run(Direction::TO_POD, flags, seq, ack, &payload);
        if reset != 0 {
            let exact =
                |socket: &Socket| socket.client_isn.wrapping_add(1).wrapping_add(socket.received) == reset;
            if self.socket.as_ref().is_some_and(exact) {
                self.close();
            }
        }
        if passed && feed.byte() & 3 != 0 {
            self.deliver(flags, seq, ack, &payload, feed.byte() & 1 == 1);
        }
    }

    /// A segment reaches the pod's stack. `late_wins`: bytes that are there already are overwritten.
    fn deliver(&mut self, flags: u8, seq: u32, ack: u32, payload: &[u8], late_wins: bool) {
        if flags & RST != 0 {
            let exact =
                |socket: &Socket| socket.client_isn.wrapping_add(1).wrapping_add(socket.received) == seq;
            if self.socket.as_ref().is_some_and(exact) {
                self.close();
            }
            return;
        }
        if flags & ACK == 0 || flags & SYN != 0 {
            return;
        }
        if self.socket.is_none() {
            let wanted = |(isn, pod_isn): &&(u32, u32)| {
                let place = seq.wrapping_sub(isn.wrapping_add(1));
                ack == pod_isn.wrapping_add(1) && (!self.cookies || COOKIE_PLACES.contains(&place))
            };
            let Some((isn, pod_isn)) = self.answered.iter().find(wanted).copied() else { return };
            // A cookie says nothing of the client's number but what makes it valid.
            let client_isn = if self.cookies { seq.wrapping_sub(1) } else { isn };
            let script = if pod_isn & 2 == 0 { SERVER_HELLO } else { REQUEST };
            let (stream, urgent) = (BTreeMap::new(), Vec::new());
            self.socket = Some(Socket { client_isn, pod_isn, stream, urgent, received: 0, sent: 0, script });
        }
        let Some(socket) = &mut self.socket else { return };
        if ack.wrapping_sub(socket.pod_isn.wrapping_add(1)) > socket.sent {
            return;
        }
        let start = seq.wrapping_sub(socket.client_isn.wrapping_add(1));
        for (index, byte) in (0_u32..).zip(payload) {
            let offset = start.wrapping_add(index);
            if offset < socket.received || offset > socket.received + 0xffff {
                continue;
            }
            if flags & URG != 0 && index == 0 {
                socket.urgent.push(offset);
            }
            if late_wins {
                socket.stream.insert(offset, *byte);
            } else {
                socket.stream.entry(offset).or_insert(*byte);
            }
        }
        while socket.stream.contains_key(&socket.received) {
            socket.received += 1;
        }
    }

    /// The pod's socket acknowledges, says something, or both.
    fn pod_segment(&mut self, feed: &mut Feed) {
        let Some(socket) = &mut self.socket else { return };
        let count = usize::from(feed.byte() % 12);
        let again = if feed.byte() & 1 == 0 { 0 } else { socket.sent };
        let from = again as usize % socket.script.len();
        let payload = &socket.script[from..(from + count).min(socket.script.len())];
        let flags = feed.pick(&[ACK, ACK, ACK, ACK | FIN]);
        let start = u32::try_from(from).expect("small");
        let seq = socket.pod_isn.wrapping_add(1).wrapping_add(start);
        let ack = socket.client_isn.wrapping_add(1).wrapping_add(socket.received);
        let end = start + u32::try_from(payload.len()).expect("small");
        socket.sent = socket.sent.max(end);
        let (pod_isn, client_isn, received) = (socket.pod_isn, socket.client_isn, socket.received);
        let (passed, reset) = self.run(Direction::FROM_POD, flags, seq, ack, payload);
        if passed {
            for (offset, byte) in (start..).zip(payload) {
                self.left.insert((pod_isn, offset), *byte);
            }
        }
        if reset != 0 {
            assert_eq!(
                reset,
                client_isn.wrapping_add(1).wrapping_add(received),
                "the reset to the pod is not exact"
            );
            self.close();
        }
    }

    /// The pod's socket is gone, and the program at its close says so.
    fn close(&mut self) {
        if let Some(socket) = self.socket.take() {
            let pod_start = socket.pod_isn.wrapping_add(1);
            end_of_socket(&self.model, &SocketTag { key: self.key, pod_start });
        }
        if !self.cookies {
            self.answered.clear();
        }
    }

    /// What must never be.
    fn check(&self) {
        if let Some(socket) = &self.socket {
            let read = socket.readable();
            assert_ne!(classify(&read), Class::Plaintext, "the application can read {read:x?}");
            assert!(socket.urgent.iter().all(|offset| *offset >= 6), "urgent data in the first bytes");
        }
        for ((_, offset), byte) in self.left.iter().filter(|((_, offset), _)| *offset < 5) {
            assert!(pod_byte_fits(*offset, *byte), "byte {offset}, {byte:#x}, left the pod");
        }
    }
}
