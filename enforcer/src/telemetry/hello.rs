//! What a TLS client hello says: server name, application protocols, versions. The extensions are read by a library; what
//! leads to them (RFC 8446, sections 4.1.2 and 5.1) is walked here, so that a hello that is only partly there still tells
//! what it can.

use std::sync::Arc;

use tls_parser::{SNIType, TlsExtension, TlsVersion, parse_tls_client_hello_extension};

use super::record::Word;

/// Content type of a handshake record.
const HANDSHAKE: u8 = 22;
/// Handshake type of a `ClientHello`.
const CLIENT_HELLO: u8 = 1;
/// Length of a record's header.
const RECORD_HEADER: usize = 5;
/// Length of a handshake message's header.
const MESSAGE_HEADER: usize = 4;
/// The longest hello that is put together; what is longer tells what its beginning says.
pub const LONGEST: usize = 16 * 1024;
/// Names of applications protocols and servers that are longer than any real one are cut.
const LONGEST_NAME: usize = 255;
/// More application protocols than this nobody offers.
const MOST_PROTOCOLS: usize = 16;

/// What a hello says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hello {
    /// Server name.
    pub sni: Option<Arc<str>>,
    /// Application protocols, in the client's order.
    pub alpn: Vec<Arc<str>>,
    /// Versions, in the client's order.
    pub versions: Vec<Word>,
}

impl Hello {
    /// A client of the mesh: it offers one of Istio's own protocols.
    #[must_use]
    pub fn is_mesh(&self) -> bool {
        self.alpn.iter().any(|name| &**name == "istio" || name.starts_with("istio-"))
    }
}

/// How much of a stream's first hello is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// All of it.
    Complete,
    /// More bytes are to come.
    Partial,
    /// The stream does not open with a hello.
    None,
}

/// The handshake message that a client's stream opens with, out of its records.
fn message(stream: &[u8]) -> (Vec<u8>, Extent) {
    let mut message = Vec::new();
    let mut rest = stream;
    loop {
        if let [kind, high, middle, low, ..] = *message {
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            if kind != CLIENT_HELLO {
                return (Vec::new(), Extent::None);
            }
            if message.len() >= MESSAGE_HEADER + length {
                message.truncate(MESSAGE_HEADER + length);
                return (message, Extent::Complete);
            }
        }
        let [kind, 3, _, high, low, body @ ..] = rest else {
            let fits = rest.first().is_none_or(|kind| *kind == HANDSHAKE) && rest.len() < RECORD_HEADER;
            return (message, if fits { Extent::Partial } else { Extent::None });
        };
        if *kind != HANDSHAKE {
            return (message, Extent::None);
        }
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let there = body.get(..length).unwrap_or(body);
        message.extend_from_slice(there);
        rest = body.get(length..).unwrap_or_default();
        if length == 0 {
            return (message, Extent::None);
        }
    }
}

/// How much of the hello that `stream` opens with is there.
#[must_use]
pub fn extent(stream: &[u8]) -> Extent {
    message(stream).1
}

/// Takes `count` bytes off the front.
fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (front, back) = rest.split_at_checked(count)?;
    *rest = back;
    Some(front)
}

/// Takes a number of `bytes` bytes off the front, and as many bytes as it says.
fn take_counted(rest: &mut &[u8], bytes: usize) -> Option<()> {
    let length = take(rest, bytes)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    take(rest, length).map(|_| ())
}

/// Reads the hello that `stream` opens with, as far as it is there; `None` when it does not open with one.
#[must_use]
pub fn parse(stream: &[u8]) -> Option<Hello> {
    let (message, _) = message(stream);
    let mut rest = message.as_slice();
    let header = take(&mut rest, MESSAGE_HEADER)?;
    if header.first() != Some(&CLIENT_HELLO) {
        return None;
    }
    let mut hello = Hello::default();
    let Some(&[major, minor]) = take(&mut rest, 2) else { return Some(hello) };
    let legacy = u16::from_be_bytes([major, minor]);
    if extensions(rest, &mut hello).is_none() || hello.versions.is_empty() {
        hello.versions.extend(version(legacy));
    }
    Some(hello)
}

/// Reads what is behind the version: random, session id, cipher suites, compression methods, extensions.
fn extensions(mut rest: &[u8], hello: &mut Hello) -> Option<()> {
    take(&mut rest, 32)?;
    take_counted(&mut rest, 1)?;
    take_counted(&mut rest, 2)?;
    take_counted(&mut rest, 1)?;
    take(&mut rest, 2)?;
    while let Ok((after, extension)) = parse_tls_client_hello_extension(rest) {
        match extension {
            TlsExtension::SNI(names) => {
                let host = names.iter().find(|(kind, _)| *kind == SNIType::HostName);
                hello.sni = host.map(|(_, name)| text(name));
            }
            TlsExtension::ALPN(names) => {
                hello.alpn = names.iter().take(MOST_PROTOCOLS).map(|name| text(name)).collect();
            }
            TlsExtension::SupportedVersions(versions) => {
                hello.versions = versions.iter().filter_map(|TlsVersion(number)| version(*number)).collect();
            }
            _ => {}
        }
        if after.len() == rest.len() {
            break;
        }
        rest = after;
    }
    Some(())
}

/// The client chose these bytes: what cannot be printed is replaced, so that no terminal and no log is led astray.
fn text(bytes: &[u8]) -> Arc<str> {
    let shown = bytes.get(..LONGEST_NAME).unwrap_or(bytes);
    let plain = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' };
    shown.iter().map(plain).collect::<String>().into()
}

fn version(number: u16) -> Option<Word> {
    Some(Word::Borrowed(match number {
        0x0300 => "SSL 3.0",
        0x0301 => "1.0",
        0x0302 => "1.1",
        0x0303 => "1.2",
        0x0304 => "1.3",
        // Reserved values that clients strew in (RFC 8701), drafts, and what comes after.
        _ => return None,
    }))
}

#[cfg(test)]
mod tests;
