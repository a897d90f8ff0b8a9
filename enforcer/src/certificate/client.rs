//! The agent's own mesh certificate, if it is given one: the client that every server must accept.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why certificate and key cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientCertificateError {
    /// One of the files cannot be read, or holds something else.
    #[error("{path:?} holds no usable {what}: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Certificate chain or private key.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The key is not that of the certificate.
    #[error("the private key {key:?} does not belong to the certificate {certificate:?}")]
    Mismatch {
        /// File of the certificate.
        certificate: PathBuf,
        /// File of the key.
        key: PathBuf,
    },
}

/// Reads a PEM chain, leaf first, and its PEM private key.
///
/// # Errors
/// A file cannot be read or holds no such thing, or the key is not that of the certificate.
pub fn load(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, ClientCertificateError> {
    let unreadable = |path: &Path, what, reason: String| ClientCertificateError::Unreadable {
        path: path.to_owned(),
        what,
        reason,
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(certificate, "certificate chain", error.to_string()))?;
    if chain.is_empty() {
        return Err(unreadable(certificate, "certificate chain", "there is no certificate in it".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| unreadable(key, "private key", error.to_string()))?;
    let signer =
        any_supported_type(&private).map_err(|error| unreadable(key, "private key", error.to_string()))?;
    let certified = CertifiedKey::new(chain, signer);
    certified.keys_match().map_err(|_| ClientCertificateError::Mismatch {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
    })?;
    Ok(Arc::new(certified))
}
