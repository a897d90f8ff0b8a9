//! A client without a TCP stack: it writes every packet itself, so that it can say what no honest stack would.
//!
//! It lives in the network namespace of one of the lab's clients, behind that client's interface, and has addresses that
//! the kernel there does not own: no stack answers its packets but the pod's, and none sends resets in its name.

mod client;
mod crowd;
mod packet;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;

pub use client::Client;
pub use crowd::Crowd;
pub use packet::{Extension, Ip, Tcp, fragments, option};

use crate::lab::{NODE, Topology};
use crate::{Lab, Pod};

/// Added to the number of the client whose interface is used: the raw client's own addresses.
const NUMBER_ABOVE: u8 = 100;
const ETHERNET_LEN: usize = 14;
/// Bytes of frames, as the kernel counts them, that may wait to be read.
const QUEUE: usize = 4 << 20;

/// A VLAN tag of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    /// What says that it is one: [`Tag::CUSTOMER`] or [`Tag::SERVICE`].
    pub protocol: u16,
    /// Priority (the upper three bits) and VLAN id (the lower twelve).
    pub control: u16,
}

impl Tag {
    /// IEEE 802.1Q.
    pub const CUSTOMER: u16 = 0x8100;
    /// IEEE 802.1ad.
    pub const SERVICE: u16 = 0x88a8;

    /// Of 802.1Q.
    #[must_use]
    pub const fn customer(control: u16) -> Self {
        Self { protocol: Self::CUSTOMER, control }
    }

    /// Of 802.1ad.
    #[must_use]
    pub const fn service(control: u16) -> Self {
        Self { protocol: Self::SERVICE, control }
    }

    fn begins(bytes: Option<&[u8]>) -> bool {
        [Self::CUSTOMER, Self::SERVICE].iter().any(|protocol| bytes == Some(&protocol.to_be_bytes()))
    }
}

/// The Ethernet end of a client's interface, for whole frames.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    /// Source and destination MAC of frames to the pod.
    macs: [[u8; 6]; 2],
    me: Pod,
}

impl Wire {
    /// Takes the interface of `from` as the way to pod `to`, and gives the raw client addresses there.
    ///
    /// # Errors
    /// When a route cannot be set or the socket not be opened.
    pub fn open(lab: &Lab, from: &str, to: &str) -> Result<Self> {
        let host = lab.pod(from);
        let me = Pod::new("raw", "raw", host.number + NUMBER_ABOVE);
        let (mac, interface) = (host.mac(), host.interface());
        for address in me.addresses().map(|address| address.to_string()) {
            let whole = format!("{address}/{}", if address.contains(':') { 128 } else { 32 });
            let (member, device) = match lab.topology() {
                Topology::Routed => (NODE, interface.as_str()),
                Topology::Bridge => (to, "eth0"),
            };
            lab.exec(member, ["ip", "neighbour", "add", &address, "lladdr", &mac, "dev", device])?
                .success()?;
            if lab.topology() == Topology::Routed {
                lab.exec(NODE, ["ip", "route", "add", &whole, "dev", device])?.success()?;
            }
        }
        let gateway = match lab.topology() {
            Topology::Routed => [0xee; 6],
            Topology::Bridge => mac_of(lab.pod(to)),
        };
        let socket = lab.inside(from, || {
            // The kernel here must not send on what is not for it.
            fs::write("/proc/sys/net/ipv4/ip_forward", "0")?;
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0")?;
            packet_socket("eth0")
        })?;
        Ok(Self { socket: socket?, macs: [mac_of(host), gateway], me })
    }

    /// Only listens, at the interface of a pod.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn listen(lab: &Lab, pod: &str) -> Result<Self> {
        let socket = lab.inside(pod, || packet_socket("eth0"))?;
        let me = lab.pod(pod);
        Ok(Self { socket: socket?, macs: [mac_of(me), [0xee; 6]], me: me.clone() })
    }

    /// The raw client's address.
    #[must_use]
    pub fn address(&self, v6: bool) -> IpAddr {
        let [v4, six] = self.me.addresses();
        if v6 { six } else { v4 }
    }

    /// Sends an IP packet.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn send(&self, packet: &[u8]) -> Result<()> {
        self.send_tagged(&[], packet)
    }

    /// Sends an IP packet behind VLAN tags, outermost first.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn send_tagged(&self, tags: &[Tag], packet: &[u8]) -> Result<()> {
        let [from, to] = self.macs;
        let mut frame = [to, from].concat();
        for tag in tags {
            frame.extend(tag.protocol.to_be_bytes());
            frame.extend(tag.control.to_be_bytes());
        }
        let v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
        frame.extend(if v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        frame.extend(packet);
        self.send_frame(&frame)
    }

    /// Sends whatever bytes these are.
    ///
    /// # Errors
    /// When the kernel refuses them.
    pub fn send_frame(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the pointer and the length are those of a slice.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if usize::try_from(sent) != Ok(frame.len()) {
            return Err(io::Error::last_os_error()).context("cannot send a frame");
        }
        Ok(())
    }

    /// The next IP packet that comes in, without its VLAN tags, before `deadline`.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn receive(&self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; 1 << 18];
        Ok(self.receive_into(&mut frame, deadline)?.map(<[u8]>::to_vec))
    }

    /// The same, in a buffer that many calls share.
    fn receive_into<'b>(&self, frame: &'b mut [u8], deadline: Instant) -> Result<Option<&'b [u8]>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut wanted = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one entry, as the count says.
            match unsafe { libc::poll(&raw mut wanted, 1, i32::try_from(left.as_millis())?) } {
                0 => return Ok(None),
                1 => {}
                _ => bail!("cannot wait for a frame: {}", io::Error::last_os_error()),
            }
            // SAFETY: the pointer and the length are those of the buffer.
            let count = unsafe {
                libc::recv(
                    self.socket.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            let Ok(count) = usize::try_from(count) else {
                bail!("cannot receive a frame: {}", io::Error::last_os_error());
            };
            let mut at = ETHERNET_LEN;
            while at <= count && Tag::begins(frame.get(at - 2..at)) {
                at += 4;
            }
            if at <= count {
                return Ok(frame.get(at..count));
            }
        }
    }
}

fn mac_of(pod: &Pod) -> [u8; 6] {
    [2, 0, 0, 0, 0, pod.number]
}

/// A socket for all frames of an interface of the namespace that the calling thread is in.
fn packet_socket(interface: &str) -> Result<OwnedFd> {
    let protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
    let index = i32::try_from(if_nametoindex(interface)?)?;
    // SAFETY: no pointer is passed; the descriptor is ours alone.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol));
        if fd < 0 {
            return Err(io::Error::last_os_error())
                .context("cannot open a packet socket; the lab needs root");
        }
        OwnedFd::from_raw_fd(fd)
    };
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET)?,
        sll_protocol: protocol,
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is a whole `sockaddr_ll`, whose size is passed.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot bind to {interface}"));
    }
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &QUEUE)?;
    Ok(socket)
}
