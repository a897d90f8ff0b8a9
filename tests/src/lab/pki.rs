//! Certificates of a lab: a throw-away authority, one certificate per pod, and an authority that nobody trusts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};

use super::Pod;
use super::process::run;

/// The files of one identity.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Certificate, PEM.
    pub certificate: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

impl Credentials {
    /// The file with what goes behind the certificate; empty where it is signed by a root.
    #[must_use]
    pub fn chain(&self) -> PathBuf {
        self.certificate.with_extension("chain")
    }
}

/// An authority that signs certificates, and the folder where its files are.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
    /// What goes behind each certificate: the authority's own one where it is no root.
    chain: String,
    /// The root's certificate, PEM.
    pub certificate: PathBuf,
}

impl Authority {
    /// A new root with its files in `dir`, named `ca`.
    ///
    /// # Errors
    /// When a key cannot be made or a file not written.
    pub fn create(dir: &Path, name: &str) -> Result<Self> {
        Self::create_as(dir, "ca", name)
    }

    /// A new root with its files in `dir`, named `file`.
    ///
    /// # Errors
    /// As [`Authority::create`].
    pub fn create_as(dir: &Path, file: &str, name: &str) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let key = KeyPair::generate()?;
        let params = authority(name);
        let certificate = dir.join(format!("{file}.pem"));
        write(&certificate, &params.self_signed(&key)?.pem())?;
        write(&dir.join(format!("{file}.key")), &key.serialize_pem())?;
        Ok(Self { issuer: Issuer::new(params, key), dir: dir.to_owned(), chain: String::new(), certificate })
    }

    /// A new authority below this one; what it issues comes with its own certificate.
    ///
    /// # Errors
    /// As [`Authority::create`].
    pub fn intermediate(&self, name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let params = authority(name);
        let chain = format!("{}{}", params.signed_by(&key, &self.issuer)?.pem(), self.chain);
        let (dir, certificate) = (self.dir.clone(), self.certificate.clone());
        Ok(Self { issuer: Issuer::new(params, key), dir, chain, certificate })
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
        self.issue_as(name, &KeyPair::generate()?, names, |_| {})
    }

    /// The same with a key of the caller's, and what else is to be different.
    ///
    /// # Errors
    /// When it cannot be signed or written.
    pub fn issue_as(
        &self,
        name: &str,
        key: &KeyPair,
        names: Vec<SanType>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Credentials> {
        let mut params = CertificateParams::default();
        // As Istio issues them: the identity is in the alternative names alone.
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let credentials = self.credentials(name);
        let leaf = params.signed_by(key, &self.issuer)?.pem();
        write(&credentials.certificate, &format!("{leaf}{}", self.chain))?;
        write(&credentials.chain(), &self.chain)?;
        write(&credentials.key, &key.serialize_pem())?;
        Ok(credentials)
    }

    /// The same made by the `openssl` command alone, key of `algorithm` (`RSA`, `ED25519`) included.
    ///
    /// # Errors
    /// When openssl refuses; only a root can do it.
    pub fn issue_by_openssl(&self, name: &str, algorithm: &str, uri: &str) -> Result<Credentials> {
        let credentials = self.credentials(name);
        let text = |path: &Path| path.display().to_string();
        let (key, certificate) = (text(&credentials.key), text(&credentials.certificate));
        let root = [text(&self.certificate), text(&self.certificate.with_extension("key"))];
        run("openssl", ["genpkey", "-quiet", "-algorithm", algorithm, "-out", &key])?.success()?;
        let names = format!("subjectAltName=critical,URI:{uri}");
        let mut words = vec!["req", "-x509", "-new", "-key", &key, "-out", &certificate, "-days", "30"];
        words.extend(["-subj", "/", "-CA", &root[0], "-CAkey", &root[1], "-addext", &names]);
        words.extend(["-addext", "extendedKeyUsage=serverAuth,clientAuth"]);
        words.extend(["-addext", "basicConstraints=critical,CA:FALSE"]);
        run("openssl", words)?.success()?;
        Ok(credentials)
    }

    /// A revocation list that names these serial numbers, PEM.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn revoke(&self, serials: &[u64]) -> Result<String> {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2124, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }

    fn credentials(&self, name: &str) -> Credentials {
        let file = |extension| self.dir.join(format!("{name}.{extension}"));
        Credentials { certificate: file("pem"), key: file("key") }
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
