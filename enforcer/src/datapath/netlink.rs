//! A netlink socket, its messages and attributes: the little that links, filters, namespaces and socket tables need.
//!
//! The socket belongs to the network namespace of the thread that opened it. Numbers: `include/uapi/linux/netlink.h`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};

pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;
/// How often a dump that changed under way is asked for again.
const DUMP_TRIES: u32 = 5;

/// One message: its type and what follows the header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Message {
    pub kind: u16,
    pub payload: Vec<u8>,
}

impl Message {
    /// A message of this type that starts with a fixed structure's bytes.
    pub(super) fn new(kind: u16, fixed: &[u8]) -> Self {
        Self { kind, payload: fixed.to_vec() }
    }

    /// Appends an attribute.
    #[must_use]
    pub(super) fn with(mut self, attribute: u16, value: &[u8]) -> Self {
        push_attribute(&mut self.payload, attribute, value);
        self
    }

    /// Appends an attribute that holds attributes.
    #[must_use]
    pub(super) fn with_nested(self, attribute: u16, inner: &[(u16, &[u8])]) -> Self {
        let mut bytes = Vec::new();
        for (kind, value) in inner {
            push_attribute(&mut bytes, *kind, value);
        }
        self.with(attribute | NLA_F_NESTED, &bytes)
    }

    /// The attributes behind a fixed structure of this size.
    pub(super) fn attributes(&self, fixed: usize) -> Attributes<'_> {
        Attributes(self.payload.get(fixed..).unwrap_or_default())
    }

    /// The fixed structure's `i32` or `u32` at this offset, in host byte order.
    pub(super) fn u32_at(&self, offset: usize) -> Option<u32> {
        read_u32(self.payload.get(offset..)?)
    }
}

fn push_attribute(to: &mut Vec<u8>, attribute: u16, value: &[u8]) {
    to.resize(to.len().next_multiple_of(4), 0);
    let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    to.extend_from_slice(&len.to_ne_bytes());
    to.extend_from_slice(&attribute.to_ne_bytes());
    to.extend_from_slice(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// The first four bytes as a number in host byte order.
pub(super) fn read_u32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

/// The attributes in a piece of a message: type and value of each.
#[derive(Clone, Debug)]
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Inside a nested attribute's value.
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The value of the first attribute of this type.
    pub(super) fn get(&self, attribute: u16) -> Option<&'a [u8]> {
        self.clone().find(|(kind, _)| *kind == attribute).map(|(_, value)| value)
    }

    /// The same as a number in host byte order.
    pub(super) fn u32(&self, attribute: u16) -> Option<u32> {
        self.get(attribute).and_then(read_u32)
    }

    /// The same as text that ends with a zero byte.
    pub(super) fn text(&self, attribute: u16) -> Option<String> {
        let value = self.get(attribute)?;
        let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
        Some(String::from_utf8_lossy(&value[..end]).into_owned())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (len, rest) = self.0.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let len = usize::from(u16::from_ne_bytes(*len));
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & NLA_TYPE_MASK, value))
    }
}

/// Cuts a datagram into messages with flags; the length fields are the kernel's.
fn messages(mut datagram: &[u8]) -> Vec<(u16, Message)> {
    let mut all = Vec::new();
    while let (Some(len), Some(kind), Some(flags)) =
        (read_u32(datagram), datagram.get(4..6), datagram.get(6..8))
    {
        let len = len as usize;
        let Some(payload) = datagram.get(HEADER..len) else {
            break;
        };
        let kind = u16::from_ne_bytes([kind[0], kind[1]]);
        let flags = u16::from_ne_bytes([flags[0], flags[1]]);
        all.push((flags, Message { kind, payload: payload.to_vec() }));
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

/// A netlink socket.
#[derive(Debug)]
pub(super) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Netlink {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Netlink {
    /// Opens a socket for links, addresses, filters and namespaces, in the calling thread's network namespace.
    pub(super) fn route() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute, 0, SockFlag::SOCK_CLOEXEC)
    }

    /// Opens a socket for socket tables, in the calling thread's network namespace.
    pub(super) fn sock_diag() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkSockDiag, 0, SockFlag::SOCK_CLOEXEC)
    }

    /// Opens a socket for connection tracking, in the calling thread's network namespace.
    pub(super) fn netfilter() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter, 0, SockFlag::SOCK_CLOEXEC)
    }

    /// Opens a non-blocking socket that receives the multicast groups of the bit mask.
    pub(super) fn subscribe(groups: u32) -> io::Result<Self> {
        let socket =
            Self::open(SockProtocol::NetlinkRoute, groups, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
        // A burst of new pods must not overrun the queue at once; an overrun is healed by a dump, but costs time.
        let wanted = 4 << 20;
        if setsockopt(&socket.fd, sockopt::RcvBufForce, &wanted).is_err() {
            setsockopt(&socket.fd, sockopt::RcvBuf, &wanted)?;
        }
        Ok(socket)
    }

    fn open(protocol: SockProtocol, groups: u32, flags: SockFlag) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { fd, sequence: 0 })
    }

    fn send(&mut self, message: &Message, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(HEADER + message.payload.len());
        let len = u32::try_from(HEADER + message.payload.len()).map_err(io::Error::other)?;
        bytes.extend_from_slice(&len.to_ne_bytes());
        bytes.extend_from_slice(&message.kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.extend_from_slice(&message.payload);
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
        Ok(())
    }

    /// The next datagram's messages; `ENOBUFS` when the kernel had to throw some away.
    pub(super) fn receive(&self) -> io::Result<Vec<Message>> {
        Ok(self.receive_flagged()?.into_iter().map(|(_, message)| message).collect())
    }

    fn receive_flagged(&self) -> io::Result<Vec<(u16, Message)>> {
        let mut buffer = vec![0; 64 << 10];
        let len = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        Ok(messages(buffer.get(..len).unwrap_or_default()))
    }

    /// Asks for a change and waits for the kernel's yes or error.
    pub(super) fn change(&mut self, message: &Message, flags: u16) -> io::Result<()> {
        self.send(message, flags | NLM_F_ACK)?;
        loop {
            for reply in self.receive()? {
                if reply.kind == NLMSG_ERROR {
                    return acknowledged(&reply);
                }
            }
        }
    }

    /// Asks for one object and gives its message.
    pub(super) fn ask(&mut self, message: &Message) -> io::Result<Message> {
        self.send(message, 0)?;
        loop {
            if let Some(reply) = self.receive()?.into_iter().next() {
                if reply.kind == NLMSG_ERROR {
                    acknowledged(&reply)?;
                    continue;
                }
                return Ok(reply);
            }
        }
    }

    /// Asks for all objects; asks again when they changed under way.
    pub(super) fn dump(&mut self, message: &Message) -> io::Result<Vec<Message>> {
        for _ in 1..DUMP_TRIES {
            if let Some(all) = self.dump_once(message)? {
                return Ok(all);
            }
        }
        self.dump_once(message)?
            .ok_or_else(|| io::Error::other("the table changes faster than it can be read"))
    }

    fn dump_once(&mut self, message: &Message) -> io::Result<Option<Vec<Message>>> {
        self.send(message, NLM_F_DUMP)?;
        let (mut all, mut interrupted) = (Vec::new(), false);
        loop {
            for (flags, reply) in self.receive_flagged()? {
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                match reply.kind {
                    NLMSG_DONE => return Ok((!interrupted).then_some(all)),
                    NLMSG_ERROR => acknowledged(&reply)?,
                    _ => all.push(reply),
                }
            }
        }
    }
}

/// An error message with number 0 is the kernel's yes.
fn acknowledged(reply: &Message) -> io::Result<()> {
    match reply.u32_at(0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(negative) => Err(io::Error::from_raw_os_error(-negative)),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a netlink answer was cut short")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_back_as_written() {
        let message = Message::new(7, &[1, 2, 3, 4])
            .with(1, b"bpf\0")
            .with_nested(2, &[(6, &9_u32.to_ne_bytes()), (7, b"abcde\0")]);
        assert_eq!(message.u32_at(0), Some(u32::from_ne_bytes([1, 2, 3, 4])));
        let attributes = message.attributes(4);
        assert_eq!(attributes.text(1).as_deref(), Some("bpf"));
        let inner = Attributes::of(attributes.get(2).expect("nested"));
        assert_eq!(inner.u32(6), Some(9));
        assert_eq!(inner.text(7).as_deref(), Some("abcde"));
        assert_eq!(inner.get(8), None);
    }

    #[test]
    fn cut_messages_end_the_walk() {
        for cut in 0..20 {
            let message = Message::new(0, &[]).with(1, &[0; 8]).with(2, &[0; 4]);
            assert!(Attributes::of(&message.payload[..cut]).count() <= 2);
        }
        assert!(messages(&[255, 0, 0, 0, 1, 0, 0, 0]).is_empty());
        assert!(messages(&[0; 16]).is_empty());
    }

    #[test]
    fn the_loopback_interface_is_in_the_dump() {
        let links = Netlink::route().expect("a socket").dump(&Message::new(18, &[0; 16])).expect("a dump");
        assert!(links.iter().any(|link| link.attributes(16).text(3).as_deref() == Some("lo")));
    }
}
