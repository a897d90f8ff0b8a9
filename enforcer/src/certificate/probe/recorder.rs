//! What a connection takes down of its server, and the certificate that it offers.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// What was seen of the server, whatever became of the handshake.
#[derive(Clone, Default, Debug)]
pub(super) struct Observed {
    /// The server has sent a certificate message.
    pub(super) chain_seen: bool,
    /// The presented chain, leaf first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// The server has asked for a certificate; the authorities that it named (DER).
    pub(super) asked: Option<Vec<Vec<u8>>>,
    /// The server cannot verify a signature of any key of this client: it got no certificate although there is one.
    pub(super) withheld: bool,
}

/// Takes down what the server shows and asks. It accepts every chain, because the chain is judged afterwards, with
/// all that is wrong with it; but it verifies the signature over the handshake, so that the shown certificate is
/// the server's own.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) provider: Arc<CryptoProvider>,
    certificates: Vec<Arc<CertifiedKey>>,
    observed: Mutex<Observed>,
}

impl Recorder {
    pub(super) fn new(certificates: Vec<Arc<CertifiedKey>>) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Self { provider, certificates, observed: Mutex::default() }
    }

    pub(super) fn observed(&self) -> Observed {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, note: impl FnOnce(&mut Observed)) {
        note(&mut self.observed.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(end_entity).chain(intermediates);
        let chain = chain.map(|der| der.clone().into_owned()).collect();
        self.note(|observed| (observed.chain, observed.chain_seen) = (chain, true));
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ResolvesClientCert for Recorder {
    fn resolve(
        &self,
        root_hint_subjects: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let names = root_hint_subjects.iter().map(|name| name.to_vec()).collect();
        let fits = |offered: &&Arc<CertifiedKey>| offered.key.choose_scheme(schemes).is_some();
        let chosen = self.certificates.iter().find(fits).cloned();
        let withheld = chosen.is_none() && !self.certificates.is_empty();
        self.note(|observed| (observed.asked, observed.withheld) = (Some(names), withheld));
        chosen
    }

    fn has_certs(&self) -> bool {
        true
    }
}
