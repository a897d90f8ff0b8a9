//! A flood of SYNs with addresses that nobody has, as fast as one core writes frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_common::tcp::SYN;
use nix::net::if_::if_nametoindex;

use crate::Lab;
use crate::lab::NODE;
use crate::raw::{Ip, Tcp};

/// Where the spoofed clients are (RFC 2544 and 5180: for benchmarks).
const NETWORK: [u8; 2] = [198, 18];
const NETWORK_V6: [u16; 3] = [0x2001, 2, 0];
const GATEWAY_MAC: [u8; 6] = [0xee; 6];
/// Frames per system call.
const BATCH: usize = 512;
const SOL_PACKET: libc::c_int = 263;
const PACKET_QDISC_BYPASS: libc::c_int = 20;

/// What a flood was.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// SYNs sent.
    pub sent: u64,
    /// How long it took.
    pub took: Duration,
}

/// Sends SYNs to an address and port from inside a pod until `count` are sent, each connection's from another address or
/// port as far as `different` goes. The answers go back to that pod, which drops them.
///
/// # Errors
/// When the route back cannot be set or the kernel refuses frames.
pub fn syns(lab: &Lab, from: &str, to: SocketAddr, different: usize, count: u64) -> Result<Flood> {
    let (pod, interface) = (lab.pod(from), lab.pod(from).interface());
    let (network, gateway) = match to.ip() {
        IpAddr::V4(_) => (format!("{}.{}.0.0/16", NETWORK[0], NETWORK[1]), pod.v4().to_string()),
        IpAddr::V6(_) => (format!("{:x}:{:x}::/48", NETWORK_V6[0], NETWORK_V6[1]), pod.v6().to_string()),
    };
    // A second flood finds the route there.
    let words = ["ip", "route", "replace", &network, "via", &gateway, "dev", &interface, "onlink"];
    lab.exec(NODE, words)?.success()?;
    let mac: [u8; 6] = [0x02, 0, 0, 0, 0, pod.number];
    let frames: Vec<Vec<u8>> = (0..different).map(|number| frame(mac, to, number)).collect();
    lab.inside(from, || {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0")?;
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0")?;
        let socket = packet_socket()?;
        let begun = Instant::now();
        let mut sent = 0;
        for chunk in frames.chunks(BATCH).cycle() {
            if sent >= count {
                break;
            }
            sent += send(&socket, chunk)?;
        }
        Ok(Flood { sent, took: begun.elapsed() })
    })?
}

fn packet_socket() -> Result<OwnedFd> {
    // SAFETY: a plain system call; the descriptor is checked and then owned.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    ensure!(fd >= 0, "no packet socket: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and ours alone.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let index = i32::try_from(if_nametoindex("eth0").context("no eth0")?)?;
    // SAFETY: all zeros is a valid address of this type.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET)?;
    address.sll_ifindex = index;
    let len = libc::socklen_t::try_from(size_of_val(&address))?;
    // SAFETY: pointer and length are those of a live address.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    ensure!(bound == 0, "cannot bind: {}", std::io::Error::last_os_error());
    let on: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of_val(&on))?;
    // SAFETY: pointer and length are those of a live number. Without it the flood is only slower.
    unsafe {
        libc::setsockopt(socket.as_raw_fd(), SOL_PACKET, PACKET_QDISC_BYPASS, (&raw const on).cast(), len);
    }
    Ok(socket)
}

fn send(socket: &OwnedFd, frames: &[Vec<u8>]) -> Result<u64> {
    let mut parts: Vec<libc::iovec> = frames
        .iter()
        .map(|frame| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: all zeros is a valid header.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let count = u32::try_from(messages.len())?;
    // SAFETY: the headers, their parts and the frames live during the call; the kernel only reads the frames.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
    match u64::try_from(sent) {
        Ok(sent) => Ok(sent),
        // The interface's queue is full: the next ones get through.
        Err(_) if std::io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
        Err(_) => Err(std::io::Error::last_os_error()).context("cannot send"),
    }
}

/// The `number`th SYN: another address each, then another port.
fn frame(mac: [u8; 6], to: SocketAddr, number: usize) -> Vec<u8> {
    let [low, high, ports @ ..] = number.to_le_bytes();
    let source = match to.ip() {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::new(NETWORK[0], NETWORK[1], high, low)),
        IpAddr::V6(_) => {
            let [one, two, three] = NETWORK_V6;
            Ipv6Addr::new(one, two, three, 0, 0, 0, 0, u16::from_be_bytes([high, low])).into()
        }
    };
    let syn = Tcp {
        source: 1024 + u16::from(ports[0]),
        destination: to.port(),
        seq: u32::try_from(number & 0xffff_ffff).unwrap_or(0).wrapping_mul(40_503),
        flags: SYN,
        window: 0xff00,
        ..Tcp::default()
    };
    let protocol = if to.is_ipv6() { [0x86, 0xdd] } else { [0x08, 0x00] };
    let packet = Ip::new(source, to.ip()).encode(&syn.encode(source, to.ip()));
    [&GATEWAY_MAC[..], &mac, &protocol, &packet].concat()
}

/// Lets this process and those that it starts have this many open files.
///
/// # Errors
/// When the kernel refuses, without root.
pub fn raise_open_files(count: u64) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < count {
        setrlimit(Resource::RLIMIT_NOFILE, count, hard.max(count)).context("cannot have more open files")?;
    }
    Ok(())
}
