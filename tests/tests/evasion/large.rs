//! Batches of segments that the stack has not split yet: 64 KB, and beyond with BIG TCP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use enforcer_common::{Mode, Reason};
use enforcer_tests::Topology;
use enforcer_tests::agent::policy;
use enforcer_tests::lab::NODE;
use enforcer_tests::raw::Wire;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::arena::{Arena, HELLO, PORT};

/// Bytes of one batch.
const BATCH: u32 = 180_000;
/// Attributes of a link (`linux/if_link.h`): what it sends and takes at once, for IPv6 and for IPv4. The second pair is younger
/// than the `ip` of some distributions, hence no `ip link set`.
const BATCH_SIZES: [u16; 4] = [41, 58, 63, 64];
const TOTAL: usize = 96 << 20;

/// An arena whose links and sockets carry batches beyond 64 KB.
fn arena() -> Result<Arena> {
    let arena = Arena::with(Topology::Routed, &[])?;
    let lab = &arena.scene.lab;
    for pod in ["frontend", "sleep"] {
        let host = lab.pod(pod).interface();
        for (member, device) in [(pod, "eth0"), (NODE, host.as_str())] {
            lab.inside(member, || set_batch_size(device))??;
            if pod == "frontend" {
                // IPv6 puts a jumbo option in front of such a batch, which a router counts into each segment.
                lab.exec(member, ["ip", "link", "set", device, "mtu", "2000"])?.success()?;
            }
        }
        lab.exec(pod, ["sysctl", "-qw", "net.ipv4.tcp_wmem=4096 4194304 16777216"])?.success()?;
        lab.exec(pod, ["sysctl", "-qw", "net.ipv4.tcp_rmem=4096 4194304 16777216"])?.success()?;
    }
    Ok(arena)
}

/// `RTM_NEWLINK` with the batch sizes of a link of the namespace that the calling thread is in (rtnetlink(7)).
fn set_batch_size(device: &str) -> Result<()> {
    let mut body = vec![0; 16];
    body[4..8].copy_from_slice(&nix::net::if_::if_nametoindex(device)?.to_ne_bytes());
    for attribute in BATCH_SIZES {
        body.extend(8_u16.to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(BATCH.to_ne_bytes());
    }
    let mut message = u32::try_from(body.len() + 16)?.to_ne_bytes().to_vec();
    message.extend(libc::RTM_NEWLINK.to_ne_bytes());
    message.extend(u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK)?.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 64];
    recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let error = i32::from_ne_bytes(answer[16..20].try_into()?);
    ensure!(error == 0, "the batch size of {device}: {}", std::io::Error::from_raw_os_error(-error));
    Ok(())
}

/// Runs `work` while the frames that come to the pod are watched; gives the size of the largest.
fn largest_frame(arena: &Arena, work: impl FnOnce() -> Result<()>) -> Result<usize> {
    let wire = Wire::listen(&arena.scene.lab, "frontend")?;
    let (done, largest) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let watcher = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                if let Some(packet) = wire.receive(Instant::now() + Duration::from_millis(100))? {
                    largest.fetch_max(packet.len(), Ordering::Relaxed);
                }
            }
            Ok(())
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        watcher.join().expect("the watcher")?;
        result
    })?;
    Ok(largest.into_inner())
}

/// Writes until all is written or the connection is reset; true when it was.
fn blast(stream: &mut TcpStream, total: usize) -> Result<bool> {
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..total / piece.len() {
        match stream.write_all(&piece) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

#[test]
fn a_judged_flow_carries_batches_beyond_64_kilobytes() -> Result<()> {
    let arena = arena()?;
    for v6 in [false, true] {
        let mut stream = arena.scene.lab.connect("sleep", arena.target(v6))?;
        let peer = stream.local_addr()?;
        stream.write_all(HELLO)?;
        let largest = largest_frame(&arena, || {
            ensure!(!blast(&mut stream, TOTAL)?, "reset");
            Ok(())
        })?;
        ensure!(largest > 0x1_0000, "IPv6 {v6}: no frame was beyond 64 KB, the largest had {largest} bytes");
        drop(stream);
        let record = arena.records.of_peer(peer)?;
        ensure!(record.read == (HELLO.len() + TOTAL) as u64, "{record:?}");
    }
    arena.nothing_refused()
}

/// The policy turns STRICT while plaintext flows in batches: the batch at hand becomes two exact resets.
#[test]
fn a_batch_beyond_64_kilobytes_is_reset() -> Result<()> {
    let arena = arena()?;
    let lab = &arena.scene.lab;
    for v6 in [false, true] {
        lab.apply("frontend.yaml", &permissive())?;
        lab.wait_mode("frontend", Mode::PERMISSIVE)?;
        arena.refused()?;
        let seen = arena.records.all()?.len();
        let mut stream = lab.connect("sleep", arena.target(v6))?;
        stream.write_all(b"plaintext")?;
        let largest = largest_frame(&arena, || {
            ensure!(!blast(&mut stream, TOTAL)?, "reset too early");
            thread::scope(|scope| {
                let writer = scope.spawn(|| blast(&mut stream, 4096 << 20));
                lab.withdraw("frontend.yaml")?;
                let reset = writer.join().expect("the writer")?;
                ensure!(reset, "IPv6 {v6}: not reset");
                Ok(())
            })
        })?;
        ensure!(largest > 0x1_0000, "IPv6 {v6}: no frame was beyond 64 KB, the largest had {largest} bytes");
        ensure!(stream.read(&mut [0]).map_or(0, |count| count) == 0, "an answer");
        let record = arena.records.next(seen, stream.local_addr()?)?;
        ensure!(record.end == enforcer_tests::record::End::Reset, "IPv6 {v6}: {record:?}");
        lab.wait_no_sockets("frontend", PORT)?;
        arena.was_reset_for(Reason::POLICY_CHANGED)?;
    }
    Ok(())
}

fn permissive() -> String {
    let app = "frontend.hipstershopv1v2.svc.cluster.local";
    policy("hipstershopv1v2", "frontend", Some(app), "PERMISSIVE", &[])
}
