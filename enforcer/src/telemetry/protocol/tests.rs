use super::*;

/// First bytes as the clients of these protocols send them.
const CLIENTS: &[(&str, &[u8])] = &[
    ("http/1", b"GET / HTTP/1.1\r\nHost: frontend\r\n\r\n"),
    ("http/1", b"POST /checkout HTTP/1.0\r\n"),
    ("http/1", b"OPTIONS * HTTP/1.1\r\n"),
    ("http/1", b"CONNECT db:443 HTTP/1.1\r\n"),
    ("h2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0"),
    ("proxy", b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"),
    ("proxy-v2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"),
    ("ssh", b"SSH-2.0-OpenSSH_9.6\r\n"),
    ("amqp", b"AMQP\0\0\x09\x01"),
    ("smtp", b"EHLO client.example\r\n"),
    ("redis", b"*1\r\n$4\r\nPING\r\n"),
    ("redis", b"*13\r\n$5\r\nHELLO\r\n"),
    ("redis", b"PING\r\n"),
    ("memcached", b"get key\r\n"),
    ("memcached", b"\x80\x0a\0\0\0\0\0\0\0\0\0\0"),
    ("nats", b"CONNECT {\"verbose\":false}\r\n"),
    // Start-up message, version 3.0, user; and the request for TLS.
    ("postgresql", b"\0\0\0\x21\0\x03\0\0user\0shop\0database\0shop\0\0"),
    ("postgresql", b"\0\0\0\x08\x04\xd2\x16\x2f"),
    // OP_MSG hello, and the OP_QUERY that drivers still send first.
    ("mongodb", b"\x3b\0\0\0\x01\0\0\0\0\0\0\0\xdd\x07\0\0\0\0\0\0\0"),
    ("mongodb", b"\x3a\0\0\0\x02\0\0\0\0\0\0\0\xd4\x07\0\0"),
    // ApiVersions v3, correlation id 1, client id "rdkafka".
    ("kafka", b"\0\0\0\x21\0\x12\0\x03\0\0\0\x01\0\x07rdkafka\0"),
    ("kafka", b"\0\0\0\x14\0\x03\0\0\0\0\0\0\xff\xff"),
    ("mqtt", b"\x10\x1a\0\x04MQTT\x04\x02\0\x3c"),
    ("cassandra", b"\x04\0\0\0\x05\0\0\0\0"),
    ("dns", b"\0\x1d\x12\x34\x01\x20\0\x01\0\0\0\0\0\0\x07example"),
    ("ldap", b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\0\x80\0"),
    ("rdp", b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0"),
];

const SERVERS: &[(&str, &[u8])] = &[
    ("ssh", b"SSH-2.0-OpenSSH_9.6\r\n"),
    ("smtp", b"220 mx.example ESMTP Postfix\r\n"),
    ("ftp", b"220 (vsFTPd 3.0.5)\r\n"),
    ("smtp or ftp", b"220 welcome\r\n"),
    ("pop3", b"+OK ready\r\n"),
    ("imap", b"* OK [CAPABILITY IMAP4rev1] ready\r\n"),
    ("vnc", b"RFB 003.008\n"),
    ("nats", b"INFO {\"server_id\":\"N\"}\r\n"),
    ("mysql", b"\x4a\0\0\0\x0a8.0.36\0\x08\0\0\0"),
    ("mysql", b"\x45\0\0\0\xffj\x04Host '10.0.0.9' is not allowed"),
    ("telnet", b"\xff\xfd\x18\xff\xfd\x20"),
    ("http/1", b"HTTP/1.1 408 Request Timeout\r\n"),
];

#[test]
fn clients_are_told_apart() {
    for (protocol, bytes) in CLIENTS {
        assert_eq!(of_client(bytes), Some(*protocol), "{}", bytes.escape_ascii());
    }
}

#[test]
fn servers_are_told_apart() {
    for (protocol, bytes) in SERVERS {
        assert_eq!(of_server(bytes), Some(*protocol), "{}", bytes.escape_ascii());
    }
}

#[test]
fn what_is_nothing_known_is_not_guessed() {
    for bytes in [
        &b""[..],
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"hello\n",
        b"GETTING / there",
        b"get",
        b"x",
        b"*",
        b"*a\r\n",
        &[0; 64],
        &[0xff; 64],
    ] {
        assert_eq!(of_client(bytes), None, "{}", bytes.escape_ascii());
        assert_eq!(of_server(bytes), None, "{}", bytes.escape_ascii());
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
        let _ = (of_client(&bytes), of_server(&bytes));
    }
}
