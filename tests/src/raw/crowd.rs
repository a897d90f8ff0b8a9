//! Many connections of a client without a stack, on one descriptor: what a client with a socket each could not hold.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_common::tcp::{ACK, RST, SYN};

use super::{Ip, Tcp, Wire, option};

const PSH: u8 = 0x08;
/// Connections that take a step at the same time: their answers fit into the descriptor's queue.
const BATCH: usize = 500;
/// An honest client says it again after so long without an answer.
const AGAIN: Duration = Duration::from_secs(1);
const TRIES: usize = 10;
/// Room for any frame of an answer.
const FRAME: usize = 1 << 16;

/// One of them.
#[derive(Debug)]
struct Member {
    local: SocketAddr,
    remote: SocketAddr,
    isn: u32,
    /// The pod's initial sequence number, once it said so.
    pod_isn: Option<u32>,
    /// Bytes sent that the pod acknowledged.
    acked: u32,
    /// Bytes of the pod that came in order.
    heard: u32,
    /// Bytes sent in all.
    sent: u32,
}

/// Connections from one address of each family, each from a port of its own.
#[derive(Debug)]
pub struct Crowd<'a> {
    wire: &'a Wire,
    members: Vec<Member>,
    /// By local and remote port, and family.
    places: HashMap<(u16, u16, bool), usize>,
}

impl<'a> Crowd<'a> {
    /// So many connections, evenly to these addresses; nothing is sent.
    ///
    /// # Errors
    /// When the ports do not suffice.
    pub fn new(wire: &'a Wire, to: &[SocketAddr], count: usize) -> Result<Self> {
        let mut crowd = Self { wire, members: Vec::new(), places: HashMap::new() };
        for number in 0..count {
            let remote = *to.get(number % to.len()).context("nowhere to connect to")?;
            let port = u16::try_from(1024 + number / to.len()).context("more connections than ports")?;
            let local = SocketAddr::new(wire.address(remote.is_ipv6()), port);
            let isn = u32::try_from(number)?.wrapping_mul(2_654_435_761);
            crowd.places.insert((port, remote.port(), remote.is_ipv6()), number);
            crowd.members.push(Member { local, remote, isn, pod_isn: None, acked: 0, heard: 0, sent: 0 });
        }
        Ok(crowd)
    }

    /// Shakes hands on all of them, says these bytes on each and waits for so many bytes of answer, which it acknowledges.
    ///
    /// # Errors
    /// When one is reset, or not answered.
    pub fn open(&mut self, hello: &[u8], answer: u32) -> Result<()> {
        for first in (0..self.members.len()).step_by(BATCH) {
            self.step(first, "a SYN-ACK", Member::syn, |member| member.pod_isn.is_some())?;
            self.say(first, hello, |member| member.heard >= answer)?;
            for member in self.members.iter().skip(first).take(BATCH) {
                self.wire.send(&member.packet(&member.bare()))?;
            }
        }
        Ok(())
    }

    /// Says more on each of them, and waits until the pod has acknowledged it.
    ///
    /// # Errors
    /// When one is reset, or not acknowledged.
    pub fn go_on(&mut self, bytes: &[u8]) -> Result<()> {
        for first in (0..self.members.len()).step_by(BATCH) {
            self.say(first, bytes, |_| true)?;
        }
        Ok(())
    }

    fn say(&mut self, first: usize, bytes: &[u8], and: impl Fn(&Member) -> bool) -> Result<()> {
        let length = u32::try_from(bytes.len())?;
        for member in self.members.iter_mut().skip(first).take(BATCH) {
            member.sent += length;
        }
        let segment = |member: &Member| member.data(member.sent - length, bytes);
        self.step(first, "an answer", segment, |member| member.acked == member.sent && and(member))
    }

    /// Sends a segment on each connection of the batch until all have got where they should.
    fn step(
        &mut self,
        first: usize,
        what: &str,
        segment: impl Fn(&Member) -> Tcp,
        done: impl Fn(&Member) -> bool,
    ) -> Result<()> {
        let mut frame = vec![0; FRAME];
        let batch = first..self.members.len().min(first + BATCH);
        for _ in 0..TRIES {
            let members = || self.members.iter().skip(first).take(BATCH);
            for member in members().filter(|member| !done(member)) {
                self.wire.send(&member.packet(&segment(member)))?;
            }
            let deadline = Instant::now() + AGAIN;
            loop {
                if self.members.iter().skip(first).take(BATCH).all(&done) {
                    return Ok(());
                }
                let Some(packet) = self.wire.receive_into(&mut frame, deadline)? else { break };
                self.hear(packet)?;
            }
        }
        let open = self.members.iter().skip(first).take(BATCH).find(|member| !done(member));
        anyhow::bail!("connections {batch:?}: waited in vain for {what}: {open:?}")
    }

    /// Takes a packet of the pod.
    fn hear(&mut self, packet: &[u8]) -> Result<()> {
        let Some((from, to, segment)) = Tcp::decode(packet) else { return Ok(()) };
        let place = (segment.destination, segment.source, from.is_ipv6());
        let member = self.places.get(&place).and_then(|&number| self.members.get_mut(number));
        let Some(member) = member.filter(|member| (member.local.ip(), member.remote.ip()) == (to, from))
        else {
            return Ok(());
        };
        ensure!(!segment.has(RST), "reset: {member:?}");
        if segment.is_syn_ack() {
            if segment.ack == member.isn.wrapping_add(1) {
                member.pod_isn = Some(segment.seq);
            }
            return Ok(());
        }
        let Some(pod_isn) = member.pod_isn else { return Ok(()) };
        member.acked = member.acked.max(segment.ack.wrapping_sub(member.isn.wrapping_add(1)));
        if segment.seq.wrapping_sub(pod_isn.wrapping_add(1)) == member.heard {
            member.heard += u32::try_from(segment.payload.len())?;
        }
        Ok(())
    }
}

impl Member {
    fn syn(&self) -> Tcp {
        Tcp { seq: self.isn, flags: SYN, options: vec![option::MSS, 4, 0x05, 0xa0], ..self.blank() }
    }

    /// Acknowledges what was heard.
    fn bare(&self) -> Tcp {
        let seq = self.isn.wrapping_add(1).wrapping_add(self.sent);
        let ack = self.pod_isn.unwrap_or_default().wrapping_add(1).wrapping_add(self.heard);
        Tcp { seq, ack, flags: ACK, ..self.blank() }
    }

    fn data(&self, offset: u32, bytes: &[u8]) -> Tcp {
        let seq = self.isn.wrapping_add(1).wrapping_add(offset);
        Tcp { seq, payload: bytes.to_vec(), ..self.bare().with(PSH) }
    }

    fn blank(&self) -> Tcp {
        Tcp { source: self.local.port(), destination: self.remote.port(), window: 0xfff0, ..Tcp::default() }
    }

    fn packet(&self, segment: &Tcp) -> Vec<u8> {
        let (local, remote) = (self.local.ip(), self.remote.ip());
        Ip::new(local, remote).encode(&segment.encode(local, remote))
    }
}
