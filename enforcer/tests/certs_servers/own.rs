//! A TLS server of our own for what no other one does on demand: slowness, silence, bad manners after the handshake.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, ServerConnection};
use rustls::{SignatureScheme, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use super::support::Mesh;

/// A connection whose handshake is done.
pub(crate) type Stream = StreamOwned<ServerConnection, TcpStream>;

/// Whom the server lets finish the handshake, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clients {
    /// Those without a certificate are not refused by TLS.
    pub anonymous: bool,
    /// It takes so long to look at a certificate, or at the lack of one.
    pub delay: Duration,
}

/// Serves each connection that got through the handshake, with TLS 1.3 and no tickets.
pub(crate) fn serve(
    mesh: &Mesh,
    clients: Clients,
    behave: impl Fn(Stream) + Send + Sync + Clone + 'static,
) -> SocketAddr {
    let certificates = |name: &str| -> Vec<CertificateDer<'static>> {
        let read = CertificateDer::pem_file_iter(mesh.path(name)).expect("a file");
        read.collect::<Result<_, _>>().expect("certificates")
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates("root.pem"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = if clients.anonymous { verifier.allow_unauthenticated() } else { verifier };
    let verifier = Slow { inner: verifier.build().expect("a verifier"), delay: clients.delay };
    let key = PrivateKeyDer::from_pem_file(mesh.path("server.key")).expect("a key");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(certificates("server.pem"), key)
        .expect("a server");
    config.send_tls13_tickets = 0;
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (behave, config) = (behave.clone(), Arc::clone(&config));
            std::thread::spawn(move || {
                let tls = ServerConnection::new(config).expect("a connection");
                let mut stream = StreamOwned::new(tls, stream);
                // The alert is written when this fails.
                if stream.conn.complete_io(&mut stream.sock).is_ok() && !stream.conn.is_handshaking() {
                    behave(stream);
                }
            });
        }
    });
    address
}

/// Keeps a connection open until the client ends it.
pub(crate) fn hold(mut stream: Stream) {
    while stream.read(&mut [0; 256]).is_ok_and(|read| read > 0) {}
}

/// Closes those without a certificate, with no word, and keeps the others.
pub(crate) fn hold_known(stream: Stream) {
    if stream.conn.peer_certificates().is_some() {
        hold(stream);
    }
}

/// Sends the same for ever.
pub(crate) fn flood(mut stream: Stream, bytes: &[u8]) {
    while stream.write_all(bytes).and_then(|()| stream.flush()).is_ok() {}
}

#[derive(Debug)]
struct Slow {
    inner: Arc<dyn ClientCertVerifier>,
    delay: Duration,
}

impl ClientCertVerifier for Slow {
    fn client_auth_mandatory(&self) -> bool {
        std::thread::sleep(self.delay);
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        std::thread::sleep(self.delay);
        self.inner.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
