//! Makes the kernel side look at a flow again whose client fell silent: a segment without data in the client's name, sent
//! through the hook towards the pod. It says nothing that the client did not say; should it pass, the pod's stack takes it for a
//! repeated acknowledgement.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use enforcer_common::map::{Flow, FlowKey, Pending};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const TCP_LEN: usize = 20;
const HOP_LIMIT: u8 = 64;

/// A way to send frames.
#[derive(Debug)]
pub struct Nudge {
    socket: OwnedFd,
}

impl Nudge {
    /// Opens it, in the network namespace of this thread.
    ///
    /// # Errors
    /// Without the capability `CAP_NET_RAW`.
    pub fn open() -> io::Result<Self> {
        // SAFETY: no pointers are passed. Protocol 0: nothing is ever received.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and belongs to nobody else.
        Ok(Self { socket: unsafe { OwnedFd::from_raw_fd(socket) } })
    }

    /// Sends a segment of the client of this flow.
    ///
    /// # Errors
    /// When the interface is gone, or its queue is full.
    pub fn send(&self, key: &FlowKey, pending: &Pending, flow: &Flow) -> io::Result<()> {
        let frame = segment(key, pending, flow);
        // SAFETY: all zero is a valid `sockaddr_ll`.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET.unsigned_abs().try_into().unwrap_or_default();
        to.sll_protocol = u16::from_ne_bytes([frame[12], frame[13]]);
        to.sll_ifindex = pending.ifindex.try_into().unwrap_or_default();
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&pending.frame[..6]);
        let len = libc::socklen_t::try_from(size_of_val(&to)).unwrap_or_default();
        // SAFETY: both pointers are to values that live through the call, with their lengths.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
                (&raw const to).cast(),
                len,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The frame: an ACK without data, at the place in the stream where the client stopped.
fn segment(key: &FlowKey, pending: &Pending, flow: &Flow) -> Vec<u8> {
    let (client, pod) = (&key.client.bytes, &key.pod.on_wire().bytes);
    let v4 = std::net::Ipv6Addr::from(*pod).to_ipv4_mapped().is_some();
    let (client, pod) = if v4 { (&client[12..], &pod[12..]) } else { (&client[..], &pod[..]) };
    let seq = flow.client_start.wrapping_add(flow.client_mask.trailing_ones());

    let mut tcp = Vec::with_capacity(TCP_LEN);
    tcp.extend(key.client_port.to_be_bytes());
    tcp.extend(key.pod_port.to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    tcp.extend(flow.pod_start.to_be_bytes());
    // Five words of header, ACK, the largest window.
    tcp.extend([0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [client, pod, &[0, TCP, 0, 20]].concat();
    let sum = checksum(&[&pseudo, &tcp]).to_be_bytes();
    tcp[16..18].copy_from_slice(&sum);

    let mut ip = Vec::with_capacity(40);
    if v4 {
        // Don't fragment; the sum is filled in below.
        ip.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, HOP_LIMIT, TCP, 0, 0]);
        ip.extend(client);
        ip.extend(pod);
        let sum = checksum(&[&ip]).to_be_bytes();
        ip[10..12].copy_from_slice(&sum);
    } else {
        ip.extend([0x60, 0, 0, 0, 0, 20, TCP, HOP_LIMIT]);
        ip.extend(client);
        ip.extend(pod);
    }
    let kind = if v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    [&pending.frame[..12], &kind.to_be_bytes(), &ip, &tcp].concat()
}

/// The internet checksum (RFC 1071) of parts of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use enforcer_common::Address;
    use enforcer_common::map::HalfOpen;
    use std::net::IpAddr;

    #[test]
    fn a_segment_stands_where_the_client_stopped_and_its_sums_are_right() {
        for (client, pod, header) in [("10.0.0.9", "10.0.0.2", 20), ("fd00::9", "fd00::2", 40)] {
            let address = |text: &str| Address::from(text.parse::<IpAddr>().expect("address"));
            let key =
                FlowKey { client: address(client), pod: address(pod), client_port: 40000, pod_port: 8080 };
            let mut flow = Flow::open(&HalfOpen { client_isn: 0xffff_fffe, pod_isn: 99, flags: 0 }, 1, 1, 0);
            flow.client_mask = 0b111;
            let pending = Pending { since_ns: 0, ifindex: 3, frame: [7; 14], reserved: [0; 6] };
            let frame = segment(&key, &pending, &flow);
            assert_eq!(frame.len(), 14 + header + TCP_LEN);
            assert_eq!(frame[..12], [7; 12]);
            let (ip, tcp) = frame[14..].split_at(header);
            assert_eq!(tcp[4..8], 2_u32.to_be_bytes(), "three bytes after 0xffffffff");
            assert_eq!(tcp[8..12], 100_u32.to_be_bytes());
            let addresses = if header == 20 { &ip[12..] } else { &ip[8..] };
            assert_eq!(checksum(&[addresses, &[0, TCP, 0, 20], tcp]), 0, "the TCP sum of {client}");
            if header == 20 {
                assert_eq!(checksum(&[ip]), 0, "the sum of the IPv4 header");
            }
        }
    }
}
