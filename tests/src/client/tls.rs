//! A mesh client in TLS whose way of writing can be shaped: hello in small segments, a large hello, old versions.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::Lab;

/// A TLS connection of a mesh client.
pub type Stream = StreamOwned<ClientConnection, Pieces>;

/// Writes to a socket in pieces of a given size, each in a segment of its own.
#[derive(Debug)]
pub struct Pieces {
    stream: TcpStream,
    size: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for piece in bytes.chunks(self.size) {
            self.stream.write_all(piece)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

/// What a mesh client sends.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Size of the segments that it writes.
    pub piece: usize,
    /// Number of made-up ALPN names of 200 bytes, which make the hello larger.
    pub ballast: usize,
    /// Versions of TLS.
    pub versions: &'static [&'static SupportedProtocolVersion],
}

impl Default for Shape {
    fn default() -> Self {
        Self { piece: usize::MAX, ballast: 0, versions: rustls::DEFAULT_VERSIONS }
    }
}

/// The client configuration of a pod: its own certificate, the lab's authority.
///
/// # Errors
/// When its files cannot be read.
pub fn config(lab: &Lab, pod: &str, shape: Shape) -> Result<Arc<ClientConfig>> {
    let own = lab.credentials(pod);
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&lab.authority().certificate)?);
    let key = PrivateKeyDer::from_pem_file(&own.key).context("cannot read the client's key")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(shape.versions)?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(&own.certificate)?, key)?;
    config.alpn_protocols = (0..shape.ballast).map(|i| format!("{i:0200}").into_bytes()).collect();
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect();
    let result: Result<_, rustls_pki_types::pem::Error> = read();
    result.with_context(|| format!("cannot read {}", path.display()))
}

/// Puts TLS on an open connection; the handshake happens with the first request.
///
/// # Errors
/// When the server's name is not one.
pub fn start(stream: TcpStream, config: Arc<ClientConfig>, server: &str, shape: Shape) -> Result<Stream> {
    let name = ServerName::try_from(server.to_owned())?;
    Ok(StreamOwned::new(ClientConnection::new(config, name)?, Pieces { stream, size: shape.piece }))
}

/// The bytes of a TLS 1.3 hello, as a client would send them first.
///
/// # Errors
/// When the client cannot be set up.
pub fn hello(lab: &Lab, pod: &str, server: &str, shape: Shape) -> Result<Vec<u8>> {
    let name = ServerName::try_from(server.to_owned())?;
    let mut connection = ClientConnection::new(config(lab, pod, shape)?, name)?;
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes)?;
    Ok(bytes)
}

/// One HTTP request on an open connection, which stays open.
///
/// # Errors
/// When the connection fails or the answer is not 200.
pub fn get(stream: &mut (impl Read + Write), host: &str) -> Result<String> {
    write!(stream, "GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").context("cannot send the request")?;
    stream.flush()?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        ensure!(stream.read(&mut byte).context("cannot read the answer")? == 1, "the server closed");
        answer.push(byte[0]);
    }
    let head = String::from_utf8(answer)?;
    ensure!(head.starts_with("HTTP/1.1 200"), "not a 200: {head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.context("no length")?.parse()?];
    stream.read_exact(&mut body)?;
    Ok(String::from_utf8(body)?)
}

impl Lab {
    /// One request from a pod to another as its sidecar would make it: its own certificate, and Istio's own ALPN.
    ///
    /// # Errors
    /// When it is not served.
    pub fn mesh_get(&self, from: &str, to: &str, port: u16) -> Result<()> {
        let shape = Shape::default();
        let mut config = ClientConfig::clone(&*config(self, from, shape)?);
        config.alpn_protocols = vec![b"istio-peer-exchange".to_vec(), b"istio".to_vec()];
        let stream = self.connect(from, self.address(to, port, false))?;
        let host = self.pod(to).host();
        get(&mut start(stream, Arc::new(config), &host, shape)?, &host)?;
        Ok(())
    }
}
