//! One TLS connection as a client that judges nothing and records everything.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ClientConfig, ClientConnection};
use rustls_pki_types::{DnsName, IpAddr, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};

use super::super::finding::Refused;
use super::announce::{Announced, Announcer};
use super::http;
use super::recorder::{Observed, Recorder};

/// More bytes than this are read from no server: the longest sane handshake is a tenth of it.
const MAX_BYTES: usize = 256 << 10;

/// What a client says first, and the certificate that it offers when asked.
#[derive(Clone, Default, Debug)]
pub(super) struct Hello {
    pub(super) alpn: Vec<Vec<u8>>,
    pub(super) server_name: Option<DnsName<'static>>,
    /// It offers TLS 1.3 alone.
    pub(super) only_tls13: bool,
    /// The first whose signature the server can verify is offered.
    pub(super) certificates: Vec<Arc<CertifiedKey>>,
}

/// What was negotiated, as far as it got.
#[derive(Default, Debug)]
pub(super) struct Negotiated {
    pub(super) version: Option<String>,
    pub(super) cipher_suite: Option<String>,
    pub(super) group: Option<String>,
    pub(super) alpn: Option<String>,
}

/// How a phase of a connection ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// The server sent this fatal alert.
    Alert(String),
    /// The server closed the connection.
    Closed,
    /// The server reset the connection.
    Reset,
    /// The server sent something that is no TLS.
    NotTls(String),
    /// The server broke the protocol, or the bounds.
    Protocol(String),
    /// The connection was lost underway.
    Lost(String),
    /// The server sent application data.
    Data,
    /// The server sent a session ticket.
    Ticket,
    /// Nothing happened until the deadline.
    Silent,
}

/// Why there was no handshake.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) ended: Ended,
    /// Bytes that the server had sent until then.
    pub(super) received: usize,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = if self.received == 0 {
            "without a byte in answer to the TLS hello"
        } else {
            "within the handshake"
        };
        match &self.ended {
            Ended::Alert(alert) => write!(f, "the server refused the handshake with alert {alert}"),
            Ended::Closed => write!(f, "the server closed the connection {before}"),
            Ended::Reset => write!(f, "the connection was reset {before}"),
            Ended::NotTls(detail) | Ended::Protocol(detail) | Ended::Lost(detail) => f.write_str(detail),
            Ended::Data | Ended::Ticket => write!(f, "the server sent data before the handshake was done"),
            Ended::Silent if self.received == 0 => write!(f, "no answer to the TLS hello in time"),
            Ended::Silent => write!(f, "the handshake did not end in time ({} bytes came)", self.received),
        }
    }
}

/// What a question in HTTP led to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// The client is refused for its certificate.
    Refused(Refused),
    /// Something else was answered.
    Other,
    /// No question was possible, or there was no answer.
    None,
}

/// One connection.
pub(super) struct Session {
    stream: TcpStream,
    _announced: Option<Announced>,
    tls: ClientConnection,
    recorder: Arc<Recorder>,
    received: usize,
    /// The first bytes of the server: the header of a TLS record, or not.
    first: [u8; 2],
    failure: Option<Failure>,
}

impl Session {
    /// Connects, no TLS yet.
    pub(super) async fn connect(
        address: SocketAddr,
        hello: &Hello,
        mark: Option<u32>,
        announcer: Option<&Announcer>,
        deadline: Instant,
    ) -> Result<Self, String> {
        let recorder = Arc::new(Recorder::new(hello.certificates.clone()));
        let tls = client(hello, &recorder, address).map_err(|error| error.to_string())?;
        let connecting = async {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            if let Some(mark) = mark {
                nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Mark, &mark)?;
            }
            let announced = announcer.map(|announcer| announcer.announce(&socket, address)).transpose()?;
            let stream = socket.connect(address).await?;
            stream.set_nodelay(true)?;
            io::Result::Ok((stream, announced))
        };
        let (stream, announced) = match timeout_at(deadline, connecting).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => return Err(format!("cannot connect to {address}: {error}")),
            Err(_) => return Err(format!("cannot connect to {address}: no answer in time")),
        };
        Ok(Self { stream, _announced: announced, tls, recorder, received: 0, first: [0; 2], failure: None })
    }

    /// Drives the handshake until our side of it is sent.
    pub(super) async fn handshake(&mut self, deadline: Instant) -> Result<(), Failure> {
        let ended = loop {
            if let Err(ended) = self.flush(deadline).await {
                break ended;
            }
            if !self.tls.is_handshaking() {
                return Ok(());
            }
            match self.read(deadline).await {
                Ok(_) => {}
                Err(ended) => break ended,
            }
        };
        let failure = Failure { ended, received: self.received };
        self.failure = Some(failure.clone());
        Err(failure)
    }

    /// Why the handshake failed, if it did.
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// What was seen of the server.
    pub(super) fn observed(&self) -> Observed {
        self.recorder.observed()
    }

    /// After the handshake: what the server does until the deadline. A ticket is told only when nothing came behind
    /// it: some servers finish the handshake with everybody and then close the connections of some.
    pub(super) async fn listen(&mut self, deadline: Instant) -> Ended {
        loop {
            match self.read(deadline).await {
                Ok(Read { plaintext: 1.., .. }) => return Ended::Data,
                Ok(_) => {}
                Err(Ended::Silent) if self.tls.tls13_tickets_received() > 0 => return Ended::Ticket,
                Err(ended) => return ended,
            }
        }
    }

    /// The server's side of the handshake is done once ours is: TLS 1.2, in which the server speaks last.
    pub(super) fn server_is_done(&self) -> bool {
        self.tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_2)
    }

    /// Asks by HTTP what becomes of the client; also hears an alert that comes only now.
    pub(super) async fn ask_http(&mut self, host: Option<&str>, deadline: Instant) -> Answer {
        if self.tls.alpn_protocol().is_some_and(|protocol| protocol != b"http/1.1")
            || io::Write::write_all(&mut self.tls.writer(), &http::request(host)).is_err()
        {
            return Answer::None;
        }
        let mut answer = Vec::new();
        let mut end = self.flush(deadline).await.err();
        while end.is_none() && answer.len() < http::ANSWER_BYTES {
            match self.read(deadline).await {
                Ok(_) => {
                    self.take_plaintext(&mut answer);
                    if let Some(refused) = http::certificate_refusal(&answer) {
                        return Answer::Refused(refused);
                    }
                }
                Err(ended) => end = Some(ended),
            }
        }
        match end {
            Some(Ended::Alert(alert)) if answer.is_empty() => Answer::Refused(Refused::Alert { alert }),
            _ if answer.is_empty() => Answer::None,
            _ => Answer::Other,
        }
    }

    /// What was negotiated.
    pub(super) fn negotiated(&self) -> Negotiated {
        let tls = &self.tls;
        Negotiated {
            version: tls.protocol_version().map(|version| match version {
                rustls::ProtocolVersion::TLSv1_2 => "TLS 1.2".to_owned(),
                rustls::ProtocolVersion::TLSv1_3 => "TLS 1.3".to_owned(),
                other => format!("{other:?}"),
            }),
            cipher_suite: tls.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite())),
            group: tls.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name())),
            alpn: tls
                .alpn_protocol()
                .map(|protocol| String::from_utf8_lossy(protocol).escape_debug().to_string()),
        }
    }

    fn take_plaintext(&mut self, answer: &mut Vec<u8>) {
        let mut buffer = [0; 1024];
        while answer.len() < http::ANSWER_BYTES {
            match io::Read::read(&mut self.tls.reader(), &mut buffer) {
                Ok(read @ 1..) => answer.extend_from_slice(&buffer[..read]),
                _ => break,
            }
        }
    }

    /// One read from the socket into rustls. Errors are ends of the connection.
    async fn read(&mut self, deadline: Instant) -> Result<Read, Ended> {
        let mut buffer = [0; 4096];
        let read = match timeout_at(deadline, self.stream.read(&mut buffer)).await {
            Err(_) => return Err(Ended::Silent),
            Ok(Err(error)) => return Err(ended_by(&error)),
            Ok(Ok(read)) => read,
        };
        if read == 0 {
            return Err(Ended::Closed);
        }
        self.check_bounds(&buffer[..read])?;
        let mut rest = &buffer[..read];
        let mut plaintext = 0;
        while !rest.is_empty() {
            let taken = self.tls.read_tls(&mut rest).map_err(|error| Ended::Protocol(error.to_string()))?;
            match self.tls.process_new_packets() {
                Ok(state) => {
                    plaintext = state.plaintext_bytes_to_read();
                    if state.peer_has_closed() && plaintext == 0 {
                        return Err(Ended::Closed);
                    }
                }
                Err(error) => {
                    // Our own alert, so that the server's log says why; the outcome stands whether it arrives or not.
                    let _ = self.flush(Instant::now() + std::time::Duration::from_millis(100)).await;
                    return Err(ended_by_tls(&error));
                }
            }
            if taken == 0 {
                break;
            }
        }
        self.flush(deadline).await?;
        Ok(Read { plaintext })
    }

    fn check_bounds(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        for (position, byte) in (self.received..self.first.len()).zip(bytes) {
            self.first[position] = *byte;
        }
        self.received += bytes.len();
        // Content types 20-23 and major version 3; every answer to a hello begins so.
        let [kind, major] = self.first;
        if !(0x14..=0x17).contains(&kind) || (self.received > 1 && major != 3) {
            return Err(Ended::NotTls(format!(
                "the answer to the TLS hello is no TLS, it begins {:?}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(16)])
            )));
        }
        if self.received > MAX_BYTES {
            return Err(Ended::Protocol(format!("the server sent more than {MAX_BYTES} bytes")));
        }
        Ok(())
    }

    async fn flush(&mut self, deadline: Instant) -> Result<(), Ended> {
        while self.tls.wants_write() {
            let mut out = Vec::new();
            self.tls.write_tls(&mut out).map_err(|error| Ended::Protocol(error.to_string()))?;
            match timeout_at(deadline, self.stream.write_all(&out)).await {
                Err(_) => return Err(Ended::Silent),
                // The server may have sent its alert before it closed: that says more than a broken pipe.
                Ok(Err(_)) => return Err(self.last_words(deadline).await),
                Ok(Ok(())) => {}
            }
        }
        Ok(())
    }

    /// What the server had sent before its end of the connection went away.
    async fn last_words(&mut self, deadline: Instant) -> Ended {
        let mut buffer = [0; 4096];
        loop {
            let read = match timeout_at(deadline, self.stream.read(&mut buffer)).await {
                Ok(Ok(read @ 1..)) => read,
                Ok(Ok(_)) => return Ended::Closed,
                Ok(Err(error)) => return ended_by(&error),
                Err(_) => return Ended::Silent,
            };
            if let Err(ended) = self.check_bounds(&buffer[..read]) {
                return ended;
            }
            let mut rest = &buffer[..read];
            while !rest.is_empty() && self.tls.read_tls(&mut rest).is_ok_and(|taken| taken > 0) {
                if let Err(error) = self.tls.process_new_packets() {
                    return ended_by_tls(&error);
                }
            }
        }
    }
}

struct Read {
    plaintext: usize,
}

fn ended_by_tls(error: &rustls::Error) -> Ended {
    match error {
        rustls::Error::AlertReceived(alert) => Ended::Alert(alert_name(*alert)),
        rustls::Error::PeerIncompatible(what) => {
            Ended::Protocol(format!("the server offers no TLS that is safe enough: {what:?}"))
        }
        other => Ended::Protocol(format!("the server broke the TLS protocol: {other}")),
    }
}

fn ended_by(error: &io::Error) -> Ended {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Ended::Reset,
        _ => Ended::Lost(format!("the connection failed: {error}")),
    }
}

fn client(
    hello: &Hello,
    recorder: &Arc<Recorder>,
    address: SocketAddr,
) -> Result<ClientConnection, rustls::Error> {
    let versions: &[_] = if hello.only_tls13 { &[&rustls::version::TLS13] } else { rustls::DEFAULT_VERSIONS };
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&recorder.provider))
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(recorder) as Arc<dyn ServerCertVerifier>)
        .with_client_cert_resolver(Arc::clone(recorder) as Arc<dyn ResolvesClientCert>);
    config.alpn_protocols.clone_from(&hello.alpn);
    config.resumption = Resumption::disabled();
    let name = match &hello.server_name {
        Some(name) => ServerName::DnsName(name.clone()),
        None => ServerName::IpAddress(IpAddr::from(address.ip())),
    };
    ClientConnection::new(Arc::new(config), name)
}

/// The name of an alert as RFC 8446 writes it.
fn alert_name(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::UnknownCA => "unknown_ca".to_owned(),
        AlertDescription::UnrecognisedName => "unrecognized_name".to_owned(),
        AlertDescription::UnknownPSKIdentity => "unknown_psk_identity".to_owned(),
        AlertDescription::Unknown(number) => format!("number {number}"),
        known => {
            let mut name = String::new();
            for c in format!("{known:?}").chars() {
                if c.is_ascii_uppercase() && !name.is_empty() {
                    name.push('_');
                }
                name.push(c.to_ascii_lowercase());
            }
            name
        }
    }
}
