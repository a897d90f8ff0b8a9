//! One tuple used again and again: what is known of the old connection must not speak for the new one, and what is known of
//! the new one must be the one that the pod's stack has.

use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer_common::Reason;
use enforcer_common::tcp::{ACK, FIN, RST, SYN};
use enforcer_tests::poll;
use enforcer_tests::raw::{Client, Tcp};
use enforcer_tests::record::End;

use crate::arena::{Arena, ECHO, HELLO, HELLO_LEN, ISN, REQUEST, REQUEST_LEN, each_family, hello};

/// A judged flow, reset by its client, and the same tuple again at once with plaintext.
#[test]
fn a_tuple_reopened_at_once_is_judged_anew() -> Result<()> {
    each_family(reopened)
}

pub(crate) fn reopened(arena: &Arena, v6: bool) -> Result<()> {
    let earlier = arena.records.all()?.len();
    let mut client = arena.judged(v6)?;
    for isn in [ISN, ISN + 1000, ISN - 1000, ISN ^ 0x8000_0000] {
        let seen = arena.records.all()?.len();
        client.abort(HELLO_LEN)?;
        let seen = arena.records.at_least(seen + 1)?.len();
        client.received.clear();
        client.isn = isn;
        client.shake()?;
        client.send(&client.data(0, REQUEST))?;
        client.expect_reset()?;
        arena.records.at_least(seen + 1)?;
        arena.was_reset_for(Reason::PLAINTEXT)?;
        client.received.clear();
        client.isn = isn.wrapping_add(77_777);
        client.shake()?;
        hello(&mut client)?;
        arena.nothing_refused()?;
    }
    client.abort(HELLO_LEN)?;
    for record in arena.records.all()?.into_iter().skip(earlier) {
        ensure!(record.head.is_empty() || record.head == HELLO, "{record:?}");
    }
    Ok(())
}

/// Closed by the pod first, so that the pod's socket is in TIME-WAIT when the tuple comes again.
#[test]
fn a_tuple_in_time_wait_is_judged_anew() -> Result<()> {
    const PORT: u16 = 8081;
    each_family(|arena, v6| {
        let lab = &arena.scene.lab;
        let (mut server, _) = lab.raw_server("frontend", PORT, ECHO)?;
        let mut client = Client::new(&arena.wire, 39_000, lab.address("frontend", PORT, v6), ISN);
        client.shake()?;
        hello(&mut client)?;
        // The server ends, and with it the connection.
        server.kill()?;
        let fin = client.wait("the pod's FIN", |segment| segment.has(FIN))?;
        client.send(&Tcp { ack: fin.seq.wrapping_add(1), ..client.ack(HELLO_LEN).with(FIN) })?;
        poll::until("the pod's socket to be in TIME-WAIT", Duration::from_secs(3), || {
            let listed = lab.exec("frontend", ["ss", "-tanH", "state", "time-wait"])?.stdout;
            ensure!(listed.contains(":39000"), "{listed}");
            Ok(())
        })?;
        let (_server, records) = lab.raw_server("frontend", PORT, ECHO)?;
        client.received.clear();
        // Higher than what was used, as RFC 6191 wants it.
        client.isn = client.isn.wrapping_add(100_000);
        client.shake()?;
        client.send(&client.data(0, REQUEST))?;
        client.expect_reset()?;
        let record = records.next(0, client.local())?;
        ensure!(record.end == End::Reset && record.head.is_empty(), "{record:?}");
        arena.was_reset_for(Reason::PLAINTEXT)
    })
}

/// Segments of the old connection after the new handshake: they count for the new one only where they fall on its bytes.
#[test]
fn old_segments_do_not_speak_for_a_new_connection() -> Result<()> {
    each_family(|arena, v6| {
        let seen = arena.records.all()?.len();
        let mut client = arena.judged(v6)?;
        let old = client.data(HELLO_LEN, b"an old segment");
        client.abort(HELLO_LEN)?;
        let seen = arena.records.at_least(seen + 1)?.len();
        client.received.clear();
        client.isn = client.isn.wrapping_sub(500);
        client.knock()?;
        client.send(&old)?;
        client.send(&client.ack(0))?;
        client.send(&old)?;
        client.send(&client.data(0, REQUEST))?;
        client.wait("a reset", |segment| segment.has(RST))?;
        let record = arena.records.at_least(seen + 1)?.pop();
        ensure!(record.as_ref().is_some_and(|record| record.head.is_empty()), "{record:?}");
        Ok(())
    })
}

/// The client answers the pod's own SYN with a SYN: the connection is judged as inbound.
#[test]
fn a_simultaneous_open_is_judged() -> Result<()> {
    each_family(|arena, v6| {
        for first in [REQUEST, HELLO] {
            let mut client = arena.client(v6, ISN);
            let (to, from) = (client.local(), client.remote().port());
            let connect = arena.scene.lab.inside("frontend", || pod_connects(from, to))?;
            let _socket = connect?;
            let syn = client.wait("the pod's SYN", |segment| segment.flags & (SYN | ACK) == SYN)?;
            client.pod_isn = syn.seq;
            client.knock()?;
            ensure!(client.pod_isn == syn.seq, "another connection");
            // Completes the handshake from our side: SYN and ACK for the pod's SYN.
            client.send(&Tcp { ack: client.pod_isn.wrapping_add(1), ..client.syn() }.with(ACK))?;
            client.send(&client.ack(0))?;
            client.send(&client.data(0, first))?;
            if first == REQUEST {
                client.expect_reset()?;
                arena.was_reset_for(Reason::PLAINTEXT)?;
            } else {
                client.expect_acked(HELLO_LEN)?;
                arena.nothing_refused()?;
            }
        }
        Ok(())
    })
}

/// A socket of the pod that connects from its server's port, without waiting.
fn pod_connects(port: u16, to: std::net::SocketAddr) -> Result<std::os::fd::OwnedFd> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
    };
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
    use std::os::fd::AsRawFd;

    let (family, any): (_, SocketAddr) = match to {
        SocketAddr::V4(_) => (AddressFamily::Inet, (Ipv4Addr::UNSPECIFIED, port).into()),
        SocketAddr::V6(_) => (AddressFamily::Inet6, (Ipv6Addr::UNSPECIFIED, port).into()),
    };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(any))?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(fd),
        Err(error) => Err(error.into()),
    }
}

/// With SYN cookies the pod keeps nothing of a handshake, so two can be open for one tuple, each with numbers of its own.
/// The second is what is known here; the first is the one that the pod's socket is made from.
#[test]
fn two_handshakes_under_syn_cookies_do_not_cross() -> Result<()> {
    each_family(|arena, v6| {
        arena.scene.lab.exec("frontend", ["sysctl", "-qw", "net.ipv4.tcp_syncookies=2"])?.success()?;
        for damaged in [false, true] {
            let seen = arena.records.all()?.len();
            let mut real = arena.client(v6, ISN);
            real.knock()?;
            let (isn, pod_isn) = (real.isn, real.pod_isn);
            let mut shadow = real;
            shadow.isn = isn.wrapping_sub(1000);
            shadow.knock()?;
            if damaged {
                // Judged, and discarded by the pod: the shadow's flow is there, its socket is not.
                shadow.send(&shadow.ack(0).damaged())?;
                shadow.send(&shadow.data(0, HELLO).damaged())?;
                (shadow.isn, shadow.pod_isn) = (isn, pod_isn);
                shadow.send(&shadow.data(0, REQUEST))?;
            } else {
                let (shadow_ack, shadow_hello) = (shadow.ack(0), shadow.data(0, HELLO));
                (shadow.isn, shadow.pod_isn) = (isn, pod_isn);
                shadow.send(&shadow.ack(0))?;
                shadow.send(&shadow_ack)?;
                shadow.send(&shadow_hello)?;
                shadow.send(&shadow.data(0, REQUEST))?;
            }
            shadow.send(&shadow.data(REQUEST_LEN, REQUEST))?;
            shadow.listen(Duration::from_millis(200))?;
            shadow.abort(0)?;
            shadow.abort(REQUEST_LEN)?;
            shadow.abort(2 * REQUEST_LEN)?;
            shadow.listen(Duration::from_millis(200))?;
            for record in arena.records.all()?.get(seen..).unwrap_or_default() {
                ensure!(record.head.is_empty(), "damaged {damaged}: the pod read {record:?}");
            }
        }
        Ok(())
    })
}

/// Under SYN cookies the pod makes a new socket of an old third packet, for as long as the cookie is valid.
#[test]
fn a_cookie_played_again_opens_nothing() -> Result<()> {
    each_family(|arena, v6| {
        arena.scene.lab.exec("frontend", ["sysctl", "-qw", "net.ipv4.tcp_syncookies=2"])?.success()?;
        let seen = arena.records.all()?.len();
        let mut client = arena.judged(v6)?;
        client.expect_acked(HELLO_LEN)?;
        client.abort(HELLO_LEN)?;
        arena.records.at_least(seen + 1)?;
        client.received.clear();
        client.send(&client.data(0, REQUEST))?;
        client.wait("a reset", |segment| segment.has(RST))?;
        client.send(&client.ack(0))?;
        client.send(&client.data(0, REQUEST))?;
        client.listen(Duration::from_millis(200))?;
        client.abort(0)?;
        client.abort(REQUEST_LEN)?;
        client.listen(Duration::from_millis(200))?;
        for record in arena.records.all()?.get(seen + 1..).unwrap_or_default() {
            ensure!(record.head.is_empty(), "the pod read {record:?}");
        }
        Ok(())
    })
}

/// A cookie outlives the flood that it was given out in. The tuple's next handshake is an ordinary one, its socket is gone, and the
/// cookie would make another whose first bytes nobody has seen.
#[test]
fn a_cookie_of_before_an_ordinary_handshake_opens_nothing() -> Result<()> {
    each_family(|arena, v6| {
        let cookies = |mode: &str| -> Result<()> {
            let set = format!("net.ipv4.tcp_syncookies={mode}");
            arena.scene.lab.exec("frontend", ["sysctl", "-qw", &set])?.success()?;
            Ok(())
        };
        // Whether the ordinary handshake got its socket.
        for made in [true, false] {
            let seen = arena.records.all()?.len();
            cookies("2")?;
            let mut client = arena.client(v6, ISN);
            client.knock()?;
            let (isn, pod_isn) = (client.isn, client.pod_isn);
            cookies("1")?;
            // So that the cookie's first byte lies right behind the hello.
            client.isn = isn.wrapping_sub(HELLO_LEN);
            client.received.clear();
            client.knock()?;
            if made {
                client.send(&client.ack(0))?;
                client.send(&client.data(0, HELLO))?;
                client.expect_acked(HELLO_LEN)?;
                client.abort(HELLO_LEN)?;
                arena.records.at_least(seen + 1)?;
            } else {
                client.send(&client.data(0, HELLO).damaged())?;
                // The request answers what lies outside its window, which confirms nothing.
                client.send(&client.ack(1 << 20))?;
                client.listen(Duration::from_millis(100))?;
                client.abort(0)?;
            }
            let genuine = arena.records.all()?.len();
            (client.isn, client.pod_isn) = (isn, pod_isn);
            client.send(&client.data(0, REQUEST))?;
            client.send(&client.data(REQUEST_LEN, REQUEST))?;
            client.listen(Duration::from_millis(200))?;
            client.abort(2 * REQUEST_LEN)?;
            client.abort(0)?;
            client.listen(Duration::from_millis(200))?;
            for record in arena.records.all()?.get(genuine..).unwrap_or_default() {
                ensure!(record.head.is_empty(), "made {made}: the pod read {record:?}");
            }
        }
        Ok(())
    })
}
