//! Certificates of a lab: a throw-away authority, one certificate per pod, and an authority that nobody trusts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::Pod;

/// The files of one identity.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Certificate, PEM.
    pub certificate: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// An authority that signs certificates, and the folder where its files are.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
    /// The authority's own certificate, PEM.
    pub certificate: PathBuf,
}

impl Authority {
    /// A new authority with its files in `dir`.
    ///
    /// # Errors
    /// When a key cannot be made or a file not written.
    pub fn create(dir: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = dir.join("ca.pem");
        write(&certificate, &params.self_signed(&key)?.pem())?;
        Ok(Self { issuer: Issuer::new(params, key), dir: dir.to_owned(), certificate })
    }

    /// A certificate for a pod: its SPIFFE identity, as Istio issues it, and its DNS name, so that clients that only
    /// know names can verify it too.
    ///
    /// # Errors
    /// When it cannot be signed or written.
    pub fn issue(&self, pod: &Pod) -> Result<Credentials> {
        let names = vec![SanType::URI(pod.spiffe().try_into()?), SanType::DnsName(pod.host().try_into()?)];
        self.issue_with(&pod.host(), names)
    }

    /// A certificate with the given subject alternative names, in files called `name`.
    ///
    /// # Errors
    /// When it cannot be signed or written.
    pub fn issue_with(&self, name: &str, names: Vec<SanType>) -> Result<Credentials> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        // As Istio issues them: the identity is in the alternative names alone.
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let credentials = Credentials {
            certificate: self.dir.join(format!("{name}.pem")),
            key: self.dir.join(format!("{name}.key")),
        };
        write(&credentials.certificate, &params.signed_by(&key, &self.issuer)?.pem())?;
        write(&credentials.key, &key.serialize_pem())?;
        Ok(credentials)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
