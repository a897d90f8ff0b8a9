//! What is shown of a certificate. Only reads: whether a certificate is good is decided in [`super::verify`].

use std::fmt::Write;

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry as oid;
use x509_parser::parse_x509_certificate;
use x509_parser::public_key::PublicKey;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Name};

/// The parts of a certificate that people look at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Certificate {
    /// Distinguished name of the subject; often empty in mesh certificates.
    pub subject: String,
    /// Distinguished name of the issuer.
    pub issuer: String,
    /// Serial number, hexadecimal, bytes separated by colons.
    pub serial: String,
    /// First instant of the validity.
    pub not_before: Timestamp,
    /// Last instant of the validity.
    pub not_after: Timestamp,
    /// Kind and size of the public key, such as `ECDSA P-256` or `RSA 2048`.
    pub key: String,
    /// URI names, in order, exactly as they are in the certificate; a mesh certificate has exactly one, the SPIFFE ID.
    pub uris: Vec<String>,
    /// DNS names, in order, exactly as they are in the certificate.
    pub dns_names: Vec<String>,
    /// Marked as a certificate authority.
    pub ca: bool,
    /// SHA-256 of the whole certificate, hexadecimal.
    pub fingerprint: String,
}

/// A certificate that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not an X.509 certificate or list: {0}")]
pub struct Unreadable(String);

impl Certificate {
    /// Reads one certificate.
    ///
    /// # Errors
    /// The bytes are no X.509 certificate, or its dates are outside the years that can be told.
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, Unreadable> {
        let (rest, parsed) =
            parse_x509_certificate(der.as_ref()).map_err(|error| Unreadable(error.to_string()))?;
        if !rest.is_empty() {
            return Err(Unreadable("bytes follow its end".to_owned()));
        }
        let (uris, dns_names) = names(&parsed);
        Ok(Self {
            subject: distinguished_name(parsed.subject()),
            issuer: distinguished_name(parsed.issuer()),
            serial: parsed.raw_serial_as_string(),
            not_before: instant(parsed.validity().not_before)?,
            not_after: instant(parsed.validity().not_after)?,
            key: key_type(parsed.public_key()),
            uris,
            dns_names,
            ca: parsed.is_ca(),
            fingerprint: fingerprint(der),
        })
    }

    /// What to call it in a message: its SPIFFE ID, else its subject, else its serial number.
    #[must_use]
    pub fn name(&self) -> String {
        match (&self.uris[..], self.subject.is_empty()) {
            ([uri, ..], _) => printable(uri),
            ([], false) => self.subject.clone(),
            ([], true) => format!("serial {}", self.serial),
        }
    }

    /// Whether `now` lies within the validity.
    #[must_use]
    pub fn valid_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// A DER distinguished name as text (`CN=…, O=…`); what cannot be read is shown in hexadecimal.
#[must_use]
pub fn distinguished_name_of_der(der: &[u8]) -> String {
    use x509_parser::prelude::FromDer as _;
    X509Name::from_der(der).map_or_else(|_| hexadecimal(der), |(_, name)| distinguished_name(&name))
}

/// Who issued a DER revocation list, and when its successor is to be there.
///
/// # Errors
/// It cannot be read, or its dates are outside the years that can be told.
pub fn list_issuer_and_end(der: &[u8]) -> Result<(String, Option<Timestamp>), Unreadable> {
    use x509_parser::prelude::FromDer as _;
    let (_, list) =
        CertificateRevocationList::from_der(der).map_err(|error| Unreadable(error.to_string()))?;
    Ok((distinguished_name(list.issuer()), list.next_update().map(instant).transpose()?))
}

/// SHA-256 in hexadecimal.
#[must_use]
pub fn fingerprint(bytes: &[u8]) -> String {
    hexadecimal(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A name from a peer for people to read: nothing in it reaches a terminal as a control character. Names are compared as
/// they are, never in this form.
#[must_use]
pub fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn distinguished_name(name: &X509Name<'_>) -> String {
    printable(&name.to_string())
}

fn instant(time: ASN1Time) -> Result<Timestamp, Unreadable> {
    Timestamp::from_second(time.timestamp()).map_err(|error| Unreadable(error.to_string()))
}

fn names(certificate: &X509Certificate<'_>) -> (Vec<String>, Vec<String>) {
    let (mut uris, mut dns) = (Vec::new(), Vec::new());
    if let Ok(Some(extension)) = certificate.subject_alternative_name() {
        for name in &extension.value.general_names {
            match name {
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                _ => {}
            }
        }
    }
    (uris, dns)
}

fn key_type(key: &SubjectPublicKeyInfo<'_>) -> String {
    let algorithm = &key.algorithm.algorithm;
    if *algorithm == oid::OID_SIG_ED25519 {
        return "Ed25519".to_owned();
    }
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => format!("RSA {}", rsa.key_size()),
        Ok(PublicKey::EC(_)) => match curve {
            Some(curve) if curve == oid::OID_EC_P256 => "ECDSA P-256".to_owned(),
            Some(curve) if curve == oid::OID_NIST_EC_P384 => "ECDSA P-384".to_owned(),
            Some(curve) if curve == oid::OID_NIST_EC_P521 => "ECDSA P-521".to_owned(),
            Some(curve) => format!("ECDSA {curve}"),
            None => "ECDSA".to_owned(),
        },
        _ => algorithm.to_id_string(),
    }
}
