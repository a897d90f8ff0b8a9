//! The mesh's trust anchors: a PEM file or the value of the mesh's `ConfigMap`, usually several certificates
//! while roots are being rotated.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::x509::{self, Certificate};

/// The `ConfigMap` into which istiod writes the mesh's revocation lists, where that is enabled.
pub const DEFAULT_CRL_CONFIG_MAP: &str = "istio-ca-crl";
/// The key of that `ConfigMap`.
pub const CRL_CONFIG_MAP_KEY: &str = "ca-crl.pem";
/// The `ConfigMap` into which istiod writes the mesh's roots, one per namespace.
pub const DEFAULT_CONFIG_MAP: &str = "istio-ca-root-cert";
/// The key of that `ConfigMap`.
pub const DEFAULT_CONFIG_MAP_KEY: &str = "root-cert.pem";
/// Larger bundles are refused: no mesh has that many roots, and a wrong file must not fill the memory.
pub const MAX_BYTES: usize = 4 << 20;

/// Why a bundle cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BundleError {
    /// The file cannot be read.
    #[error("trust bundle {path:?} cannot be read: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// There is none.
    #[error("there is no trust bundle: {0}")]
    Missing(String),
    /// The revocation lists cannot be read.
    #[error("revocation lists {path:?} cannot be read: {reason}")]
    UnreadableLists {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The text of the revocation lists holds none.
    #[error("there is no PEM revocation list (no -----BEGIN X509 CRL----- block) where one is expected")]
    NoRevocationList,
    /// The text is larger than any bundle of roots.
    #[error("trust bundle has {0} bytes, more than the {MAX_BYTES} that are read; is this the right file?")]
    TooLarge(usize),
    /// It holds no certificate.
    #[error(
        "trust bundle holds no PEM certificate (no -----BEGIN CERTIFICATE----- block); give the mesh's root-cert.pem"
    )]
    Empty,
    /// One of its certificates, counted from 1, is broken.
    #[error("certificate {number} of the trust bundle is broken: {reason}")]
    BadCertificate {
        /// Its number, from 1.
        number: usize,
        /// What is wrong.
        reason: String,
    },
    /// The revocation list is broken.
    #[error("revocation list {number} is broken: {reason}")]
    BadRevocationList {
        /// Its number, from 1.
        number: usize,
        /// What is wrong.
        reason: String,
    },
}

/// One trust anchor and the certificate that it was read from.
#[derive(Debug)]
struct Anchor {
    anchor: TrustAnchor<'static>,
    certificate: Certificate,
}

/// One revocation list.
#[derive(Debug)]
struct RevocationList {
    list: CertRevocationList<'static>,
    issuer: String,
    /// When its successor was to be there.
    next_update: Option<Timestamp>,
}

/// The trust anchors of a mesh, and its revocation lists, if it has any.
#[derive(Debug)]
pub struct TrustBundle {
    anchors: Vec<Anchor>,
    revocation: Vec<RevocationList>,
    fingerprint: String,
}

impl TrustBundle {
    /// Reads all certificates of a PEM text. Repeated ones count once, text between the blocks is ignored, the
    /// order does not matter.
    ///
    /// # Errors
    /// There is no certificate, or one of them is broken: half a bundle is no bundle.
    pub fn from_pem(text: &[u8]) -> Result<Self, BundleError> {
        if text.len() > MAX_BYTES {
            return Err(BundleError::TooLarge(text.len()));
        }
        let mut anchors: Vec<Anchor> = Vec::new();
        for (number, der) in (1..).zip(CertificateDer::pem_slice_iter(text)) {
            let bad = |reason: String| BundleError::BadCertificate { number, reason };
            let der = der.map_err(|error| bad(error.to_string()))?;
            let certificate = Certificate::read(&der).map_err(|error| bad(error.to_string()))?;
            let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|error| bad(error.to_string()))?;
            if anchors.iter().all(|known| known.certificate.fingerprint != certificate.fingerprint) {
                anchors.push(Anchor { anchor: anchor.to_owned(), certificate });
            }
        }
        if anchors.is_empty() {
            return Err(BundleError::Empty);
        }
        let mut bundle = Self { anchors, revocation: Vec::new(), fingerprint: String::new() };
        bundle.fingerprint = bundle.compute_fingerprint(&[]);
        Ok(bundle)
    }

    /// The same bundle with the revocation lists of a PEM text.
    ///
    /// # Errors
    /// There is none in the text, or one is broken.
    pub fn with_revocation_lists(mut self, text: &[u8]) -> Result<Self, BundleError> {
        if text.len() > MAX_BYTES {
            return Err(BundleError::TooLarge(text.len()));
        }
        self.revocation.clear();
        for (number, der) in (1..).zip(CertificateRevocationListDer::pem_slice_iter(text)) {
            let bad = |reason: String| BundleError::BadRevocationList { number, reason };
            let der = der.map_err(|error| bad(error.to_string()))?;
            let list = OwnedCertRevocationList::from_der(&der).map_err(|error| bad(error.to_string()))?;
            let (issuer, next_update) =
                x509::list_issuer_and_end(&der).map_err(|error| bad(error.to_string()))?;
            self.revocation.push(RevocationList { list: list.into(), issuer, next_update });
        }
        if self.revocation.is_empty() {
            return Err(BundleError::NoRevocationList);
        }
        self.fingerprint = self.compute_fingerprint(text);
        Ok(self)
    }

    /// Reads a PEM file.
    ///
    /// # Errors
    /// The file cannot be read, or see [`Self::from_pem`].
    pub fn from_file(path: &Path) -> Result<Self, BundleError> {
        let unreadable = |reason: String| BundleError::Unreadable { path: path.to_owned(), reason };
        let length = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_BYTES {
            return Err(BundleError::TooLarge(length));
        }
        Self::from_pem(&std::fs::read(path).map_err(|error| unreadable(error.to_string()))?)
    }

    /// The anchors that may vouch at this instant: an expired root vouches for nothing, as in Envoy.
    #[must_use]
    pub fn anchors_at(&self, now: Timestamp) -> Vec<TrustAnchor<'_>> {
        let valid = self.anchors.iter().filter(|known| known.certificate.valid_at(now));
        valid.map(|known| known.anchor.clone()).collect()
    }

    /// The certificate behind an anchor that a verification ended at.
    #[must_use]
    pub fn certificate_of(&self, anchor: &TrustAnchor<'_>) -> Option<&Certificate> {
        self.anchors.iter().find(|known| known.anchor == *anchor).map(|known| &known.certificate)
    }

    /// All root certificates.
    pub fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        self.anchors.iter().map(|known| &known.certificate)
    }

    /// The revocation lists.
    #[must_use]
    pub fn revocation_lists(&self) -> Vec<&CertRevocationList<'static>> {
        self.revocation.iter().map(|known| &known.list).collect()
    }

    /// The revocation lists that are past their time for renewal, as people read it.
    #[must_use]
    pub fn old_revocation_lists(&self, now: Timestamp) -> Vec<String> {
        let old = |known: &RevocationList| {
            let end = known.next_update.filter(|end| *end < now)?;
            Some(format!("that of {} was to be renewed by {end}", known.issuer))
        };
        self.revocation.iter().filter_map(old).collect()
    }

    /// Equal for bundles that say the same, whatever the order of their certificates.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn compute_fingerprint(&self, revocation: &[u8]) -> String {
        let mut all: Vec<&str> = self.certificates().map(|known| known.fingerprint.as_str()).collect();
        all.sort_unstable();
        let mut text = all.concat().into_bytes();
        text.extend_from_slice(revocation);
        x509::fingerprint(&text)
    }
}

/// The bundle in use: a new text replaces it only when it is good.
#[derive(Debug, Default)]
pub struct CurrentBundle {
    good: Option<std::sync::Arc<TrustBundle>>,
    problem: Option<BundleError>,
}

impl CurrentBundle {
    /// Takes the outcome of a (re)load; true when the bundle in use has changed. A failed load keeps the last
    /// good bundle and is remembered as [`Self::problem`] until the next good one.
    pub fn update(&mut self, loaded: Result<TrustBundle, BundleError>) -> bool {
        match loaded {
            Ok(bundle) => {
                self.problem = None;
                let changed = self.good.as_ref().is_none_or(|old| old.fingerprint != bundle.fingerprint);
                if changed {
                    self.good = Some(std::sync::Arc::new(bundle));
                }
                changed
            }
            Err(problem) => {
                self.problem = Some(problem);
                false
            }
        }
    }

    /// The last good bundle.
    #[must_use]
    pub fn good(&self) -> Option<&std::sync::Arc<TrustBundle>> {
        self.good.as_ref()
    }

    /// Why the last load failed, if it did.
    #[must_use]
    pub fn problem(&self) -> Option<&BundleError> {
        self.problem.as_ref()
    }
}

#[cfg(test)]
mod tests;
