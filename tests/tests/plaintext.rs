//! Plaintext under STRICT: the client hears of it at once, the pod's application never does.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Result;
use enforcer_common::{Mode, Reason, Verdict};
use enforcer_tests::agent::MESH_STRICT;
use enforcer_tests::client::{self, Ending, Outcome, tls};
use enforcer_tests::lab::Topology;
use enforcer_tests::record::{End, Records};
use enforcer_tests::{Lab, Pod, Scene};

const LIMIT: Duration = Duration::from_secs(5);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: frontend\r\n\r\n";

/// What a reset must look like from both ends.
fn assert_reset(
    ending: &Ending,
    stream: &TcpStream,
    records: &Records,
    seen: usize,
    what: &str,
) -> Result<()> {
    assert_eq!(ending.outcome, Outcome::Reset, "{what}: {ending:?}");
    assert!(ending.received.is_empty(), "{what}: the client was answered: {ending:?}");
    let record = records.next(seen, stream.local_addr()?)?;
    assert_eq!((record.read, record.written, record.end), (0, 0, End::Reset), "{what}: {record:?}");
    Ok(())
}

/// Each way of writing, five times; the time is the median's, so that a busy machine does not fail it, and yet no single one may have
/// waited for a retransmission (200 ms).
fn every_way_of_writing_is_reset(offload: bool) -> Result<()> {
    let scene = Scene::strict()?;
    let lab = &scene.lab;
    for pod in ["frontend", "sleep"] {
        lab.offload(pod, offload)?;
    }
    let (_server, records) = lab.raw_server("frontend", 8080, &[])?;
    let large = vec![b'a'; 60 * 1024];
    let ways: [(&str, &[u8], usize); 3] = [
        ("a request", REQUEST, usize::MAX),
        ("60 KB in one write", &large, usize::MAX),
        ("byte by byte", REQUEST, 1),
    ];
    for v6 in [false, true] {
        for (name, bytes, piece) in ways {
            let what = format!("{name}, IPv6 {v6}, offload {offload}");
            let mut times = Vec::new();
            for _ in 0..5 {
                let seen = records.all()?.len();
                let stream = lab.connect("sleep", lab.address("frontend", 8080, v6))?;
                let ending = client::exchange(&stream, bytes, piece, LIMIT)?;
                times.push(ending.elapsed);
                assert_reset(&ending, &stream, &records, seen, &what)?;
            }
            times.sort_unstable();
            assert!(times[2] < Duration::from_millis(50), "{what}: resets took {times:?}");
            assert!(times[4] < Duration::from_millis(200), "{what}: resets took {times:?}");
        }
    }
    for member in ["frontend", "sleep"] {
        lab.wait_no_sockets(member, 8080)?;
    }
    let counted = lab.count(Verdict::RESET, Reason::PLAINTEXT)?;
    assert_eq!(counted.connections, 30, "{counted:?}");
    Ok(())
}

#[test]
fn reset_at_once_with_checksum_offload() -> Result<()> {
    every_way_of_writing_is_reset(true)
}

#[test]
fn reset_at_once_without_checksum_offload() -> Result<()> {
    every_way_of_writing_is_reset(false)
}

#[test]
fn curl_says_so_and_exits_with_56() -> Result<()> {
    for topology in [Topology::Routed, Topology::Bridge] {
        let lab = Lab::with(topology, Pod::cast())?;
        let scene = Scene::in_lab(lab, &[("mesh.yaml", MESH_STRICT)])?;
        scene.lab.wait_mode("frontend", Mode::STRICT)?;
        let (_server, records) = scene.lab.sidecar("frontend", 8080)?;
        for family in ["-4", "-6"] {
            let output = scene.lab.curl("sleep", &[family, "http://frontend.hipstershopv1v2:8080"])?;
            assert_eq!(output.code, 56, "{topology:?}: {output:?}");
            assert_eq!(output.stdout, "000\n", "{topology:?}: {output:?}");
            assert_eq!(output.stderr, "curl: (56) Recv failure: Connection reset by peer\n", "{topology:?}");
            let mesh =
                scene.lab.mesh_curl("loadgenerator", &[family, "https://frontend.hipstershopv1v2:8080"])?;
            assert_eq!((mesh.code, mesh.stdout.as_str()), (0, "200\n"), "{topology:?}: {mesh:?}");
        }
        for record in records.at_least(4)?.iter().filter(|record| record.class != "tls") {
            assert_eq!((record.read, record.end), (0, End::Reset), "{topology:?}: {record:?}");
        }
    }
    Ok(())
}

#[test]
fn what_only_begins_like_tls_is_reset_where_it_differs() -> Result<()> {
    let scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_server, records) = lab.raw_server("frontend", 8080, &[])?;
    // Each is a hello up to the last of its bytes.
    let prefixes: [&[u8]; 5] =
        [b"\x17", b"\x16\x02", b"\x16\x03\x05", b"\x16\x03\x01\xff\xff", b"\x16\x03\x01\x02\x00\x02"];
    for v6 in [false, true] {
        for prefix in prefixes {
            for piece in [1, prefix.len()] {
                let seen = records.all()?.len();
                let stream = lab.connect("sleep", lab.address("frontend", 8080, v6))?;
                let ending = client::exchange(&stream, prefix, piece, LIMIT)?;
                assert_eq!(ending.outcome, Outcome::Reset, "{prefix:x?} by {piece}: {ending:?}");
                let record = records.next(seen, stream.local_addr()?)?;
                assert!(record.read <= 5, "{prefix:x?} by {piece}: {record:?}");
                assert_eq!(record.end, End::Reset, "{prefix:x?} by {piece}: {record:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_server_that_speaks_first_is_reset() -> Result<()> {
    let scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_server, records) = lab.raw_server("frontend", 8080, &["--greet", "220 ready\r\n"])?;
    for (seen, v6) in [false, true].into_iter().enumerate() {
        let to = lab.address("frontend", 8080, v6);
        // The greeting follows the handshake so closely that the reset may be there before connect returns.
        match lab.inside("sleep", || TcpStream::connect_timeout(&to, LIMIT))? {
            Ok(stream) => {
                let ending = client::read_to_end(&stream, LIMIT)?;
                assert_eq!(ending.outcome, Outcome::Reset, "{ending:?}");
                assert!(ending.received.is_empty(), "the greeting left the pod: {ending:?}");
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
        assert_eq!(records.at_least(seen + 1)?[seen].end, End::Reset);
    }
    assert_eq!(lab.count(Verdict::RESET, Reason::SERVER_FIRST)?.connections, 2);
    Ok(())
}

#[test]
fn a_plaintext_answer_to_a_hello_is_reset() -> Result<()> {
    let scene = Scene::strict()?;
    let lab = &scene.lab;
    let (_server, records) =
        lab.raw_server("frontend", 8080, &["--answer", "HTTP/1.1 400 Bad Request\r\n\r\n"])?;
    let hello = tls::hello(lab, "loadgenerator", "frontend.hipstershopv1v2", tls::Shape::default())?;
    for v6 in [false, true] {
        let seen = records.all()?.len();
        let stream = lab.connect("loadgenerator", lab.address("frontend", 8080, v6))?;
        let ending = client::exchange(&stream, &hello, hello.len(), LIMIT)?;
        assert_eq!(ending.outcome, Outcome::Reset, "{ending:?}");
        assert!(ending.received.is_empty(), "the answer left the pod: {ending:?}");
        assert_eq!(records.next(seen, stream.local_addr()?)?.end, End::Reset);
    }
    assert_eq!(lab.count(Verdict::RESET, Reason::SERVER_NOT_TLS)?.connections, 2);
    Ok(())
}
