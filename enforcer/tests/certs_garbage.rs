//! Servers that are no servers cost a check bounded time and memory, in both address families.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use enforcer::certificate::probe::Settings;
use enforcer::certificate::state::State;

#[expect(dead_code, reason = "shared with another test")]
#[path = "certs_servers/own.rs"]
mod own;
#[expect(dead_code, reason = "shared with another test")]
#[path = "certs_servers/support.rs"]
mod support;

use own::{Clients, Stream};
use support::{Mesh, s_server, settings};

const FAMILIES: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

/// Room for a slow machine on top of what the settings allow a check that gets no handshake: one connection.
const BOUND: Duration = Duration::from_secs(4);

/// What the sockets of one connection may hold beside what is read of it.
const BUFFERS: u64 = 16 << 20;

fn short() -> Settings {
    Settings { timeout: Duration::from_millis(500), ..settings() }
}

/// A server of our own that does one thing to every connection.
fn serve(address: &str, behave: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind(address).expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let behave = behave.clone();
            std::thread::spawn(move || behave(stream));
        }
    });
    address
}

/// A server that sends `start`, then `rest` for ever; the counter has what it got rid of.
fn flood(address: &str, start: Vec<u8>, rest: Vec<u8>) -> (SocketAddr, Arc<AtomicU64>) {
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    let address = serve(address, move |mut stream| {
        let mut hello = [0; 5];
        let _ = stream.read_exact(&mut hello);
        let mut next = &start;
        while stream.write_all(next).is_ok() {
            count.fetch_add(u64::try_from(next.len()).expect("small"), Ordering::Relaxed);
            next = &rest;
        }
    });
    (address, sent)
}

/// A TLS record of handshake bytes.
fn record(content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("short").to_be_bytes();
    [&[0x16, 3, 3], &length[..], content].concat()
}

/// A handshake message that claims this length.
fn message(kind: u8, length: u32, content: &[u8]) -> Vec<u8> {
    [&[kind], &length.to_be_bytes()[1..], content].concat()
}

/// Hello of a TLS 1.2 server: `TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256`, no session, renegotiation info and extended master
/// secret.
fn server_hello() -> Vec<u8> {
    let mut content = vec![3, 3];
    content.extend([7; 32]);
    content.extend([0, 0xc0, 0x2b, 0]);
    content.extend([0, 9, 0xff, 1, 0, 1, 0, 0, 0x17, 0, 0]);
    record(&message(2, u32::try_from(content.len()).expect("short"), &content))
}

/// Resident memory of this process, KiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn plaintext_servers_are_not_tls() {
    let mesh = Mesh::new();
    let answer = |address: &str, text: &'static [u8]| {
        serve(address, move |mut stream| {
            let _ = stream.write_all(text);
            std::thread::sleep(Duration::from_secs(5));
        })
    };
    for family in FAMILIES {
        for text in [
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            b"220 mail ESMTP\r\n",
            b"SSH-2.0-x\r\n",
            b"\x00",
            b"\x16\x02",
        ] {
            mesh.check(answer(family, text), &short()).is(State::NotTls);
        }
    }
}

#[test]
fn servers_that_say_little_cost_bounded_time() {
    let mesh = Mesh::new();
    for family in FAMILIES {
        let silent = serve(family, |stream| {
            std::thread::sleep(Duration::from_secs(30));
            drop(stream);
        });
        let checked = mesh.check(silent, &short());
        checked.is(State::Unreachable);
        assert!(checked.took < BOUND, "{:?}", checked.took);

        // With the hello unread a close is a reset, with it read it is a close: so does a proxy without its application.
        mesh.check(serve(family, drop), &short()).is(State::Unreachable);
        let reads = serve(family, |mut stream| drop(stream.read(&mut [0; 4096])));
        mesh.check(reads, &short()).is(State::Unreachable);

        let slow = serve(family, |mut stream| {
            for byte in b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc".iter().chain(std::iter::repeat(&0)) {
                if stream.write_all(&[*byte]).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let checked = mesh.check(slow, &short());
        checked.is(State::Unreachable);
        assert!(checked.took < BOUND, "{:?}", checked.took);
    }
}

#[test]
fn servers_that_say_too_much_cost_bounded_time_and_memory() {
    let mesh = Mesh::new();
    let zeros = vec![0; 0x4000];
    let certificate = [&[0, 3, 0xe8][..], &[0x30; 1000]].concat().repeat(16);
    let cases: [(&str, Vec<u8>, Vec<u8>); 6] = [
        ("a handshake message of 16 MB", record(&message(2, 0xff_ffff, &zeros[4..])), record(&zeros)),
        ("a record that is longer than any may be", vec![0x16, 3, 3, 0xff, 0xff], zeros.clone()),
        (
            "a certificate chain without end",
            [server_hello(), record(&message(11, 0xff_ffff, &[0xff, 0xff, 0xfc]))].concat(),
            record(&certificate),
        ),
        ("empty records", Vec::new(), record(&[]).repeat(1000)),
        ("changes of the cipher", Vec::new(), [0x14, 3, 3, 0, 1, 1].repeat(1000)),
        ("warnings", Vec::new(), [0x15, 3, 3, 0, 2, 1, 90].repeat(1000)),
    ];
    // Whatever is made once is made now.
    mesh.check(flood(FAMILIES[0], Vec::new(), zeros.clone()).0, &short());
    let before = memory();
    for (what, start, rest) in cases {
        for family in FAMILIES {
            let (address, sent) = flood(family, start.clone(), rest.clone());
            let checked = mesh.check(address, &short());
            assert!(!checked.state.is_good(), "{what}: {:?}", checked.state);
            assert!(checked.took < BOUND, "{what}: {:?}", checked.took);
            let sent = sent.load(Ordering::Relaxed);
            assert!(sent < 3 * BUFFERS, "{what}: {sent} bytes were taken");
        }
    }
    let grown = memory().saturating_sub(before);
    assert!(grown < 16 << 10, "memory grew by {grown} KiB");
}

#[test]
fn a_long_chain_of_a_real_server_costs_bounded_time() {
    let mesh = Mesh::new();
    mesh.issue("long", |_| {});
    let one = std::fs::read_to_string(mesh.path("long.chain")).expect("a chain");
    std::fs::write(mesh.path("long.chain"), one.repeat(200)).expect("written");
    let server = s_server(&mesh, "long", &["-Verify", "3", "-verify_return_error"]);
    let checked = mesh.check(server.address, &short());
    checked.is(State::Untrusted);
    assert!(checked.took < BOUND, "{:?}", checked.took);
}

/// Bytes below the TLS of a connection.
fn below(mut stream: Stream, bytes: &[u8], pause: Duration) {
    while stream.sock.write_all(bytes).is_ok() {
        std::thread::sleep(pause);
    }
}

/// What it is called, what is done with the connection, and what is found.
type Misbehaviour = (&'static str, fn(Stream), Option<State>);

#[test]
fn servers_that_misbehave_behind_the_handshake_cost_bounded_time_and_memory() {
    let mesh = Mesh::new();
    mesh.issue("server", |_| {});
    let clients = Clients { anonymous: true, delay: Duration::ZERO };
    let cases: [Misbehaviour; 5] = [
        (
            "application data without end",
            |stream| own::flood(stream, &[b'x'; 16 << 10]),
            Some(State::NoClientAuth),
        ),
        (
            "one byte of it now and then",
            |mut stream| {
                while stream.write_all(b"x").and_then(|()| stream.flush()).is_ok() {
                    std::thread::sleep(Duration::from_millis(50));
                }
            },
            Some(State::NoClientAuth),
        ),
        ("records that nobody can decrypt", |stream| below(stream, &record(&[7; 100]), Duration::ZERO), None),
        (
            "half a record, then nothing",
            |mut stream| {
                let _ = stream.sock.write_all(&[0x17, 3, 3, 0x40, 0]);
                own::hold(stream);
            },
            None,
        ),
        (
            "changes of the key without end",
            |mut stream| {
                while stream.conn.refresh_traffic_keys().is_ok()
                    && stream.conn.complete_io(&mut stream.sock).is_ok()
                {}
            },
            None,
        ),
    ];
    mesh.check(own::serve(&mesh, clients, own::hold), &short());
    let before = memory();
    for (what, behave, state) in cases {
        let checked = mesh.check(own::serve(&mesh, clients, behave), &short());
        assert!(!checked.state.is_good(), "{what}: {:#?}", checked.probe);
        assert!(state.is_none_or(|state| state == checked.state), "{what}: {:#?}", checked.probe);
        // Three looks of two waits, and one with patience.
        assert!(checked.took < BOUND + Duration::from_secs(3), "{what}: {:?}", checked.took);
    }
    let grown = memory().saturating_sub(before);
    assert!(grown < 32 << 10, "memory grew by {grown} KiB");
}
