//! A guess at the protocol of a plaintext connection, from the first bytes of whoever spoke first. It is for people who
//! look for the client or server behind a connection; nothing is decided by it.

/// Methods of HTTP/1 (RFC 9110, RFC 5789, those of `WebDAV` and the usual others).
const METHODS: [&str; 14] = [
    "GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "PROPFIND", "MKCOL",
    "REPORT", "SEARCH", "PURGE",
];

/// The protocol that a client's first bytes look like.
#[must_use]
pub fn of_client(bytes: &[u8]) -> Option<&'static str> {
    let starts = |text: &str| bytes.starts_with(text.as_bytes());
    if starts("PRI * HTTP/2.0\r\n") {
        return Some("h2");
    }
    if starts("PROXY ") {
        return Some("proxy");
    }
    if starts("\r\n\r\n\0\r\nQUIT\n") {
        return Some("proxy-v2");
    }
    if is_http1(bytes) {
        return Some("http/1");
    }
    if starts("SSH-") {
        return Some("ssh");
    }
    if starts("AMQP") {
        return Some("amqp");
    }
    if ["EHLO ", "HELO ", "LHLO "].iter().any(|word| starts(word)) {
        return Some("smtp");
    }
    if ["INFO {", "CONNECT {", "PUB ", "SUB "].iter().any(|word| starts(word)) {
        return Some("nats");
    }
    if is_redis(bytes) {
        return Some("redis");
    }
    if ["gets ", "get ", "set ", "add ", "delete ", "version\r\n", "stats"].iter().any(|word| starts(word)) {
        return Some("memcached");
    }
    binary(bytes)
}

/// The protocol that a server's first bytes look like, when it speaks before its client.
#[must_use]
pub fn of_server(bytes: &[u8]) -> Option<&'static str> {
    let starts = |text: &str| bytes.starts_with(text.as_bytes());
    let has =
        |word: &str| bytes.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word.as_bytes()));
    if starts("SSH-") {
        return Some("ssh");
    }
    if starts("220") && (has("smtp") || has("mail")) {
        return Some("smtp");
    }
    if starts("220") && (has("ftp") || has("filezilla")) {
        return Some("ftp");
    }
    if starts("220 ") || starts("220-") {
        return Some("smtp or ftp");
    }
    if starts("+OK") {
        return Some("pop3");
    }
    if starts("* OK") || starts("* PREAUTH") {
        return Some("imap");
    }
    if starts("RFB ") {
        return Some("vnc");
    }
    if starts("INFO {") {
        return Some("nats");
    }
    if is_http1_answer(bytes) {
        return Some("http/1");
    }
    // Packet of at least a version string (length little-endian, sequence 0), protocol 10 (or an error), version digits.
    if let [length, _, 0, 0, kind, digit, ..] = *bytes
        && length > 8
        && ((kind == 10 && digit.is_ascii_digit()) || kind == 0xff)
    {
        return Some("mysql");
    }
    // A telnet server negotiates options first: IAC, then WILL, WONT, DO or DONT.
    if let [0xff, 0xfb..=0xfe, ..] = *bytes {
        return Some("telnet");
    }
    None
}

fn is_http1(bytes: &[u8]) -> bool {
    let Some(space) = bytes.iter().position(|byte| *byte == b' ') else { return false };
    let (method, target) = bytes.split_at(space);
    METHODS.iter().any(|known| known.as_bytes() == method)
        && !matches!(target, [_, b'{', ..])
        && target.get(1).is_none_or(u8::is_ascii_graphic)
}

fn is_http1_answer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"HTTP/1.") || bytes.starts_with(b"HTTP/0.9")
}

/// An array of bulk strings (`*2\r\n$4\r\n…`), or a command that needs no argument.
fn is_redis(bytes: &[u8]) -> bool {
    if let [b'*', digit, rest @ ..] = bytes
        && digit.is_ascii_digit()
    {
        let more = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        return rest.get(more..).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"\r"));
    }
    ["PING\r\n", "AUTH ", "INFO\r\n"].iter().any(|word| bytes.starts_with(word.as_bytes()))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn binary(bytes: &[u8]) -> Option<&'static str> {
    // Start-up message: length, then version 3.x and names, or the codes for cancel, TLS and GSS requests.
    if let (Some(length @ 8..=10_000), Some(code)) = (be32(bytes, 0), be32(bytes, 4)) {
        let names = bytes.get(8).is_some_and(u8::is_ascii_lowercase);
        if (code >> 16 == 3 && code & 0xffff <= 2 && names) || (code >> 16 == 1234 && length <= 16) {
            return Some("postgresql");
        }
    }
    // Header: length, request id, response to, opcode; OP_MSG, OP_QUERY or OP_COMPRESSED (all little-endian).
    if let (Some(16..=48_000_000), Some(2004 | 2010 | 2012 | 2013)) = (le32(bytes, 0), le32(bytes, 12))
        && le32(bytes, 8) == Some(0)
    {
        return Some("mongodb");
    }
    // Request: length, api key, api version, correlation id, client id. The first is ApiVersions or Metadata.
    if let (Some(10..=1_000_000), Some(key_and_version)) = (be32(bytes, 0), be32(bytes, 4)) {
        let (key, version) = (key_and_version >> 16, key_and_version & 0xffff);
        let client = bytes.get(12..14).map(|id| i16::from_be_bytes([id[0], id[1]]));
        if key <= 80 && version <= 17 && client.is_some_and(|length| (-1..=255).contains(&length)) {
            return Some("kafka");
        }
    }
    // CONNECT: type 1, remaining length, then the protocol's name with its length.
    if let [0x10, _, rest @ ..] = bytes
        && rest.windows(6).take(4).any(|window| window == b"\0\x04MQTT" || window == b"\0\x06MQIs")
    {
        return Some("mqtt");
    }
    // Request frame of the native protocol, version 3 to 5: flags, stream, opcode OPTIONS or STARTUP.
    if let [3..=5, _, _, _, 1 | 5, 0, 0, ..] = *bytes {
        return Some("cassandra");
    }
    // Binary request header, with a key of sensible length.
    if let [0x80, 0..=0x2b, 0, ..] = *bytes {
        return Some("memcached");
    }
    // DNS over TCP: length, id, a standard query with one question and no answer.
    if let [_, _, _, _, 0..=1, 0 | 0x20, 0, 1, 0, 0, ..] = *bytes {
        return Some("dns");
    }
    // LDAP message: sequence, message id 1, BindRequest.
    if let [0x30, _, 2, 1, 1, 0x60, ..] = *bytes {
        return Some("ldap");
    }
    // TPKT with a connection request: RDP.
    if let [3, 0, 0, _, _, 0xe0, ..] = *bytes {
        return Some("rdp");
    }
    None
}

#[cfg(test)]
mod tests;
