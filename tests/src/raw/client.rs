//! One connection of a raw client: it knows both initial sequence numbers and nothing else by itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use enforcer_common::tcp::{ACK, RST, SYN};

use super::{Ip, Tag, Tcp, Wire, option};

const PSH: u8 = 0x08;
/// How long an answer may take. The pod's stack may have to send again first.
const ANSWER: Duration = Duration::from_secs(3);

/// A connection, or what passes for one.
#[derive(Debug)]
pub struct Client<'a> {
    wire: &'a Wire,
    /// The IP header of all its packets.
    pub ip: Ip,
    local: SocketAddr,
    remote: SocketAddr,
    /// The client's initial sequence number.
    pub isn: u32,
    /// The pod's, from its SYN-ACK.
    pub pod_isn: u32,
    /// Options of every segment but the SYN.
    pub options: Vec<u8>,
    /// Options of the SYN.
    pub syn_options: Vec<u8>,
    /// VLAN tags of every packet, outermost first.
    pub tags: Vec<Tag>,
    /// Every segment of the pod so far.
    pub received: Vec<Tcp>,
}

impl<'a> Client<'a> {
    /// A connection from this port; nothing is sent.
    #[must_use]
    pub fn new(wire: &'a Wire, port: u16, remote: SocketAddr, isn: u32) -> Self {
        let local = SocketAddr::new(wire.address(remote.is_ipv6()), port);
        Self {
            wire,
            ip: Ip::new(local.ip(), remote.ip()),
            local,
            remote,
            isn,
            pod_isn: 0,
            options: Vec::new(),
            syn_options: vec![option::MSS, 4, 0x05, 0xa0],
            tags: Vec::new(),
            received: Vec::new(),
        }
    }

    /// Its address, as the pod's socket knows it.
    #[must_use]
    pub const fn local(&self) -> SocketAddr {
        self.local
    }

    /// The pod's address.
    #[must_use]
    pub const fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// The SYN.
    #[must_use]
    pub fn syn(&self) -> Tcp {
        Tcp { seq: self.isn, flags: SYN, options: self.syn_options.clone(), ..self.blank() }
    }

    /// A segment without data, the next in order after `offset` bytes.
    #[must_use]
    pub fn ack(&self, offset: u32) -> Tcp {
        Tcp {
            seq: self.isn.wrapping_add(1).wrapping_add(offset),
            ack: self.pod_isn.wrapping_add(1),
            flags: ACK,
            options: self.options.clone(),
            ..self.blank()
        }
    }

    /// A segment with data at an offset of the stream.
    #[must_use]
    pub fn data(&self, offset: u32, bytes: &[u8]) -> Tcp {
        Tcp { payload: bytes.to_vec(), ..self.ack(offset).with(PSH) }
    }

    fn blank(&self) -> Tcp {
        Tcp { source: self.local.port(), destination: self.remote.port(), window: 0xfff0, ..Tcp::default() }
    }

    /// The TCP part of a packet.
    #[must_use]
    pub fn encode(&self, segment: &Tcp) -> Vec<u8> {
        segment.encode(self.local.ip(), self.remote.ip())
    }

    /// Sends a segment.
    ///
    /// # Errors
    /// When the kernel refuses the frame.
    pub fn send(&self, segment: &Tcp) -> Result<()> {
        self.wire.send_tagged(&self.tags, &self.ip.encode(&self.encode(segment)))
    }

    /// Sends a whole IP packet as it is.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_packet(&self, packet: &[u8]) -> Result<()> {
        self.wire.send_tagged(&self.tags, packet)
    }

    /// Sends a SYN and waits for the pod's answer, whose number it remembers. The handshake is not completed.
    ///
    /// # Errors
    /// When there is no SYN-ACK for exactly this SYN.
    pub fn knock(&mut self) -> Result<Tcp> {
        let syn = self.syn();
        self.knock_with(&syn)
    }

    /// The same with another SYN.
    ///
    /// # Errors
    /// As [`Self::knock`].
    pub fn knock_with(&mut self, syn: &Tcp) -> Result<Tcp> {
        self.send(syn)?;
        let expected = syn.seq.wrapping_add(1);
        let answer =
            self.wait("the pod's SYN-ACK", |segment| segment.is_syn_ack() && segment.ack == expected)?;
        self.pod_isn = answer.seq;
        Ok(answer)
    }

    /// The whole handshake.
    ///
    /// # Errors
    /// As [`Self::knock`].
    pub fn shake(&mut self) -> Result<()> {
        self.knock()?;
        self.send(&self.ack(0))
    }

    /// Waits for a segment of the pod that was not there before the call.
    ///
    /// # Errors
    /// When none comes within three seconds, with what came instead.
    pub fn wait(&mut self, what: &str, wanted: impl Fn(&Tcp) -> bool) -> Result<Tcp> {
        let seen = self.received.len();
        let deadline = Instant::now() + ANSWER;
        while self.receive(deadline)? {
            if let Some(segment) = self.received.last().filter(|segment| wanted(segment)) {
                return Ok(segment.clone());
            }
        }
        let since = self.received.get(seen..).unwrap_or_default();
        bail!("waited in vain for {what}; meanwhile the pod sent {since:?}")
    }

    /// Takes what the pod sends during this time.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn listen(&mut self, time: Duration) -> Result<&[Tcp]> {
        let seen = self.received.len();
        let deadline = Instant::now() + time;
        while self.receive(deadline)? {}
        Ok(self.received.get(seen..).unwrap_or_default())
    }

    /// Takes one segment of the pod; false when the deadline has passed.
    fn receive(&mut self, deadline: Instant) -> Result<bool> {
        while let Some(packet) = self.wire.receive(deadline)? {
            if let Some((from, to, segment)) = Tcp::decode(&packet)
                && (from, to) == (self.remote.ip(), self.local.ip())
                && (segment.source, segment.destination) == (self.remote.port(), self.local.port())
            {
                self.received.push(segment);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits for the reset that answers a segment of this client: bare, with exactly the number that the segment
    /// acknowledged (RFC 9293, section 3.10.7.4), and nothing of the pod's data before it.
    ///
    /// # Errors
    /// When it does not come or is another.
    pub fn expect_reset(&mut self) -> Result<()> {
        let reset = self.wait("a reset", |segment| segment.has(RST))?;
        ensure!(reset.seq == self.pod_isn.wrapping_add(1), "not the exact number: {reset:?}, {self:?}");
        ensure!(reset.flags == RST && reset.payload.is_empty(), "not a bare reset: {reset:?}");
        ensure!(self.heard().is_empty(), "the pod answered: {:?}", self.received);
        Ok(())
    }

    /// The pod's bytes so far, as far as they are in order.
    #[must_use]
    pub fn heard(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::new();
        let mut grown = true;
        while grown {
            grown = false;
            for segment in self.received.iter().filter(|segment| !segment.payload.is_empty()) {
                let at = segment.seq.wrapping_sub(self.pod_isn.wrapping_add(1)) as usize;
                if at <= bytes.len()
                    && let Some(new) = segment.payload.get(bytes.len() - at..).filter(|new| !new.is_empty())
                {
                    bytes.extend(new);
                    grown = true;
                }
            }
        }
        bytes
    }

    /// Waits until the pod's stream is exactly this.
    ///
    /// # Errors
    /// When it does not get there.
    pub fn expect_heard(&mut self, expected: &[u8]) -> Result<()> {
        let deadline = Instant::now() + ANSWER;
        while self.heard().len() < expected.len() && self.receive(deadline)? {}
        let heard = self.heard();
        ensure!(heard == expected, "heard {heard:x?} instead of {expected:x?}");
        Ok(())
    }

    /// Waits until the pod has acknowledged this many bytes.
    ///
    /// # Errors
    /// When it does not.
    pub fn expect_acked(&mut self, count: u32) -> Result<()> {
        let end = self.isn.wrapping_add(1).wrapping_add(count);
        if self.received.iter().any(|segment| segment.has(ACK) && segment.ack == end && !segment.is_syn_ack())
        {
            return Ok(());
        }
        self.wait(&format!("the acknowledgement of {count} bytes"), |segment| segment.ack == end)
            .context("not acknowledged")?;
        Ok(())
    }

    /// Ends the connection after `offset` bytes of its own with a reset that the pod takes.
    ///
    /// # Errors
    /// When the kernel refuses the frame.
    pub fn abort(&self, offset: u32) -> Result<()> {
        self.send(&self.ack(offset).with(RST))
    }
}
