use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

/// What a rustls client sends first.
fn hello(name: &str, alpn: &[&str], versions: &[&'static rustls::SupportedProtocolVersion]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions that the provider has")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = name.to_owned().try_into().expect("a server name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut stream = Vec::new();
    client.write_tls(&mut stream).expect("a vector takes everything");
    stream
}

fn words(names: &[Arc<str>]) -> Vec<&str> {
    names.iter().map(|name| &**name).collect()
}

const ISTIO_SNI: &str = "outbound_.8080_._.frontend.hipstershopv1v2.svc.cluster.local";

fn mesh_hello() -> Vec<u8> {
    // rustls refuses underscores in host names; the length stays, so that the hello is well formed.
    let plain = ISTIO_SNI.replace('_', "x");
    let stream = hello(&plain, &["istio-peer-exchange", "istio"], rustls::ALL_VERSIONS);
    let at = stream.windows(plain.len()).position(|window| window == plain.as_bytes()).expect("the name");
    let mut stream = stream;
    stream[at..at + plain.len()].copy_from_slice(ISTIO_SNI.as_bytes());
    stream
}

/// The same message in records of `size` bytes.
fn in_records(stream: &[u8], size: usize) -> Vec<u8> {
    let mut records = Vec::new();
    for piece in stream[RECORD_HEADER..].chunks(size) {
        records.extend([HANDSHAKE, 3, 1]);
        records.extend(u16::try_from(piece.len()).expect("a record's length").to_be_bytes());
        records.extend(piece);
    }
    records
}

#[test]
fn a_mesh_client_is_known_by_its_protocols() {
    let found = parse(&mesh_hello()).expect("a hello");
    assert_eq!(found.sni.as_deref(), Some(ISTIO_SNI));
    assert_eq!(words(&found.alpn), ["istio-peer-exchange", "istio"]);
    assert_eq!(found.versions, ["1.3", "1.2"]);
    assert!(found.is_mesh());
}

#[test]
fn another_client_is_none() {
    let found =
        parse(&hello("web.example", &["h2", "http/1.1"], &[&rustls::version::TLS12])).expect("a hello");
    assert_eq!(found.sni.as_deref(), Some("web.example"));
    assert_eq!(words(&found.alpn), ["h2", "http/1.1"]);
    assert_eq!(found.versions, ["1.2"], "without the extension it is the version of the message");
    assert!(!found.is_mesh());
}

#[test]
fn an_address_is_no_server_name() {
    let found = parse(&hello("10.0.0.1", &[], rustls::ALL_VERSIONS)).expect("a hello");
    assert_eq!((found.sni, found.alpn.len()), (None, 0));
}

#[test]
fn records_may_cut_a_hello_anywhere() {
    let stream = mesh_hello();
    let whole = parse(&stream);
    for size in [1, 2, 5, 64, 200] {
        let cut = in_records(&stream, size);
        assert_eq!(parse(&cut), whole, "records of {size} bytes");
        assert_eq!(extent(&cut), Extent::Complete);
        assert_eq!(extent(&cut[..cut.len() - 1]), Extent::Partial);
    }
}

#[test]
fn every_beginning_is_partial_and_tells_no_lies() {
    let stream = mesh_hello();
    let whole = parse(&stream).expect("a hello");
    for length in 0..stream.len() {
        let beginning = &stream[..length];
        assert_eq!(extent(beginning), Extent::Partial, "{length} bytes");
        let Some(found) = parse(beginning) else {
            assert!(length < RECORD_HEADER + MESSAGE_HEADER, "{length} bytes");
            continue;
        };
        assert!(found.sni.is_none() || found.sni == whole.sni, "{length} bytes");
        assert!(found.alpn.is_empty() || found.alpn == whole.alpn, "{length} bytes");
    }
    let mut more = stream.clone();
    more.extend_from_slice(b"\x14\x03\x03\x00\x01\x01");
    assert_eq!((extent(&more), parse(&more)), (Extent::Complete, Some(whole)));
}

#[test]
fn what_is_no_hello_is_none() {
    for stream in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        b"\x15\x03\x01\x00\x02\x01\x00",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x02\x00\x00\x02\x01\x00",
    ] {
        assert_eq!((extent(stream), parse(stream)), (Extent::None, None), "{stream:?}");
    }
    assert_eq!((extent(b""), parse(b"")), (Extent::Partial, None));
}

#[test]
fn names_cannot_write_to_a_terminal() {
    assert_eq!(&*text(b"evil\x1b[2J\r\n.example"), "evil?[2J??.example");
    assert_eq!(text(&[b'a'; 1000]).len(), LONGEST_NAME);
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(stream in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
        let _ = parse(&stream);
        let mut framed = vec![HANDSHAKE, 3, 1, 0x10, 0, CLIENT_HELLO, 0, 2, 0, 3, 3];
        framed.extend(&stream);
        let _ = parse(&framed);
    }
}
