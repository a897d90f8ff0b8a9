//! What is remembered of connections between their events: the hello while it comes in pieces, then what it said, until the
//! connection ends. Bounded: the oldest are forgotten first, and then their records say less.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use enforcer_common::event::Event;
use enforcer_common::map::FlowKey;

use super::hello::{self, Extent, Hello};

/// How long the record of a verdict waits for the rest of the hello.
pub const PATIENCE: Duration = Duration::from_millis(100);

/// One connection: its tuple, and when its handshake completed, since tuples are used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Id {
    key: [u8; size_of::<FlowKey>()],
    opened_ns: u64,
}

impl Id {
    /// Of a tuple and when its handshake completed; 0: it was not seen.
    #[must_use]
    pub fn new(key: &FlowKey, opened_ns: u64) -> Self {
        let mut bytes = [0; size_of::<FlowKey>()];
        bytes.copy_from_slice(bytemuck::bytes_of(key));
        Self { key: bytes, opened_ns }
    }
}

/// What is known of a connection beside its events.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// What the client's hello says.
    pub hello: Option<Arc<Hello>>,
    /// Guess at the protocol of plaintext.
    pub protocol: Option<&'static str>,
}

#[derive(Debug, Default)]
struct Connection {
    known: Known,
    /// The client's stream, as far as it came, while its hello is not complete.
    stream: Vec<u8>,
    /// A verdict that waits for the hello: apart, because few wait at a time and thousands are remembered.
    waiting: Option<Box<Event>>,
    /// All of the hello was read.
    complete: bool,
    /// A record with its hello was written.
    told: bool,
}

/// The connections.
#[derive(Debug)]
pub struct Connections {
    capacity: usize,
    open: HashMap<Id, Connection>,
    /// In the order in which they came; ended ones stay until they are at the front.
    order: VecDeque<Id>,
    waiting: VecDeque<(Instant, Id)>,
}

/// An event whose record can be written, with what is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ready {
    /// The event.
    pub event: Event,
    /// What is known.
    pub known: Known,
    /// It is the first of its connection that goes with a hello which says whether the client is the mesh's: all of it was
    /// read, or what was read says so.
    pub fresh: bool,
}

impl Connections {
    /// At most `capacity` connections.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity, open: HashMap::new(), order: VecDeque::new(), waiting: VecDeque::new() }
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// True without any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The connection, which is remembered from now on. Another one's verdict may have to go without its hello for it.
    fn remember(&mut self, id: Id, ready: &mut Vec<Ready>) -> &mut Connection {
        if !self.open.contains_key(&id) {
            while self.order.len() >= self.capacity.max(1) {
                let Some(oldest) = self.order.pop_front() else { break };
                ready.extend(self.open.remove(&oldest).and_then(Connection::release));
            }
            self.order.push_back(id);
        }
        self.open.entry(id).or_default()
    }

    /// Bytes of a client that speaks TLS. Gives the verdict that waited for them.
    pub fn chunk(&mut self, id: Id, offset: u32, bytes: &[u8]) -> Vec<Ready> {
        let mut ready = Vec::new();
        let connection = self.remember(id, &mut ready);
        if connection.known.hello.is_some() {
            return ready;
        }
        let stream = &mut connection.stream;
        // What is behind a gap cannot be read; what came before may say enough.
        if usize::try_from(offset).is_ok_and(|offset| offset == stream.len()) {
            let room = hello::LONGEST.saturating_sub(stream.len());
            stream.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        }
        if hello::extent(stream) != Extent::Partial || stream.len() >= hello::LONGEST {
            connection.read();
            ready.extend(connection.release_now());
        }
        ready
    }

    /// A verdict fell. `tls` says whether a hello belongs to it. Gives what can be written now.
    pub fn verdict(
        &mut self,
        id: Id,
        event: Event,
        tls: bool,
        protocol: Option<&'static str>,
        now: Instant,
    ) -> Vec<Ready> {
        let mut ready = Vec::new();
        // Where there is no flow there is nothing to remember.
        if id.opened_ns == 0 {
            ready.push(Ready { event, known: Known { hello: None, protocol }, fresh: false });
            return ready;
        }
        let connection = self.remember(id, &mut ready);
        connection.known.protocol = connection.known.protocol.or(protocol);
        if let Some(earlier) = connection.release_now() {
            ready.push(earlier);
        }
        if tls && connection.known.hello.is_none() {
            connection.waiting = Some(Box::new(event));
            self.waiting.push_back((now + PATIENCE, id));
        } else {
            ready.push(connection.ready(event));
        }
        ready
    }

    /// A connection ended: the verdict that still waited, and the end.
    pub fn end(&mut self, id: Id, event: Event) -> Vec<Ready> {
        let mut ready = Vec::new();
        let mut connection = self.open.remove(&id).unwrap_or_default();
        ready.extend(connection.release_now());
        while self.order.front().is_some_and(|oldest| !self.open.contains_key(oldest)) {
            self.order.pop_front();
        }
        ready.push(connection.ready(event));
        ready
    }

    /// Verdicts that waited long enough.
    pub fn overdue(&mut self, now: Instant) -> Vec<Ready> {
        let mut ready = Vec::new();
        while let Some((_, id)) = self.waiting.pop_front_if(|(deadline, _)| *deadline <= now) {
            ready.extend(self.open.get_mut(&id).and_then(Connection::release_now));
        }
        ready
    }
}

impl Connection {
    /// Reads what has come of the hello.
    fn read(&mut self) {
        self.known.hello = hello::parse(&self.stream).map(Arc::new);
        self.complete = hello::extent(&self.stream) == Extent::Complete;
        self.stream = Vec::new();
    }

    /// Lets the verdict go that waits, with what has come of the hello so far.
    fn release_now(&mut self) -> Option<Ready> {
        let event = self.waiting.take()?;
        if self.known.hello.is_none() && !self.stream.is_empty() {
            self.known.hello = hello::parse(&self.stream).map(Arc::new);
        }
        Some(self.ready(*event))
    }

    /// The event with what is known by now.
    fn ready(&mut self, event: Event) -> Ready {
        let says = self.known.hello.as_ref().is_some_and(|hello| self.complete || hello.is_mesh());
        let fresh = says && !self.told;
        self.told |= fresh;
        Ready { event, known: self.known.clone(), fresh }
    }

    fn release(mut self) -> Option<Ready> {
        self.release_now()
    }
}

#[cfg(test)]
pub(crate) mod tests;
