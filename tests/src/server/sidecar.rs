//! The front of a pod: mutual TLS and plaintext on one port, both handed to the application as plaintext.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::Counted;
use crate::record::Journal;

/// First byte of a TLS record that carries a handshake.
const HANDSHAKE: u8 = 0x16;

/// The front.
pub(super) struct Front {
    pub(super) acceptor: TlsAcceptor,
    /// Where the application listens.
    pub(super) app: SocketAddr,
    pub(super) journal: Journal,
}

/// TLS that asks every client for a certificate of `ca`, as Istio's sidecar does.
pub(super) fn acceptor(cert: &Path, key: &Path, ca: &Path) -> Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(ca)?);
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("cannot read {}", key.display()))?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(cert)?, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect();
    let result: Result<_, rustls_pki_types::pem::Error> = read();
    result.with_context(|| format!("cannot read {}", path.display()))
}

impl Front {
    /// Serves one connection to its end and writes it down.
    pub(super) async fn serve(&self, stream: TcpStream) -> Result<()> {
        // A hop in the middle must not hold back small pieces.
        stream.set_nodelay(true).ok();
        let (stream, counts) = Counted::new(stream);
        let outcome = match stream.peek().await {
            None => Ok(()),
            Some(HANDSHAKE) => {
                counts.class("tls");
                match self.acceptor.accept(stream).await {
                    Ok(stream) => self.forward(stream).await,
                    Err(error) => Err(error.into()),
                }
            }
            Some(_) => {
                counts.class("plaintext");
                self.forward(stream).await
            }
        };
        self.journal.add(&counts.record(outcome.err().map(|error| format!("{error:#}"))))
    }

    async fn forward<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S) -> Result<()> {
        let mut app = TcpStream::connect(self.app).await.context("the application does not answer")?;
        app.set_nodelay(true)?;
        copy_bidirectional(&mut stream, &mut app).await?;
        Ok(())
    }
}
