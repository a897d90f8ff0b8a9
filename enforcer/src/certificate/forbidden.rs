//! The clients that a server of mutual TLS must refuse.
//!
//! Each claims the identity of a workload of the mesh: a server that only compares names is found out too. Each has an
//! ECDSA and an RSA certificate: a server may ask for signatures of one kind only, and a client that cannot make them
//! would offer no certificate, which is another client. The ECDSA keys are made anew when the agent starts. The RSA key
//! is part of the program, since *ring* makes none; no secret hangs on it, for what it signs is to be refused everywhere.

use std::sync::Arc;

use jiff::{Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::finding::Client;
use super::spiffe::DEFAULT_TRUST_DOMAIN;

/// RSA 2048, PKCS #8, made by `openssl genpkey -algorithm RSA`.
const RSA_KEY: &[u8] = include_bytes!("forbidden/rsa.der");

/// Certificates of forbidden clients, each with one key of each kind.
#[derive(Clone, Debug)]
pub struct ForbiddenClients {
    kinds: [Kind; 2],
}

/// The certificates of one kind of key.
#[derive(Clone, Debug)]
struct Kind {
    self_signed: Arc<CertifiedKey>,
    foreign_ca: Arc<CertifiedKey>,
    expired: Arc<CertifiedKey>,
}

/// The forbidden clients' certificates could not be made.
#[derive(Debug, thiserror::Error)]
#[error("certificates for the clients that must be refused cannot be made: {0}")]
pub struct GenerateError(String);

impl ForbiddenClients {
    /// Makes keys and certificates (a few milliseconds) that claim the identity
    /// `spiffe://<trust domain>/ns/enforcer/sa/forbidden`, valid around `now`.
    ///
    /// # Errors
    /// The system has no randomness, or `trust_domain` cannot be written into a certificate.
    pub fn generate(trust_domain: Option<&str>, now: Timestamp) -> Result<Self, GenerateError> {
        let trust_domain = trust_domain.unwrap_or(DEFAULT_TRUST_DOMAIN);
        let rsa = || KeyPair::try_from(RSA_KEY);
        let ecdsa = || KeyPair::generate();
        let kinds = generate(trust_domain, now, &[ecdsa, ecdsa])
            .and_then(|first| Ok([first, generate(trust_domain, now, &[rsa, rsa])?]));
        kinds.map(|kinds| Self { kinds }).map_err(|error| GenerateError(error.to_string()))
    }

    /// The certificates of which this client offers the one that the server can verify, the preferred first; none for
    /// those without one (and for the mesh client, whose certificate is not made here).
    #[must_use]
    pub fn certificates(&self, client: Client) -> Vec<Arc<CertifiedKey>> {
        let of_kind = |kind: &Kind| {
            Some(Arc::clone(match client {
                Client::SelfSigned => &kind.self_signed,
                Client::ForeignCa => &kind.foreign_ca,
                Client::Expired => &kind.expired,
                Client::NoCertificate | Client::PlainTls | Client::Named | Client::Mesh => return None,
            }))
        };
        self.kinds.iter().filter_map(of_kind).collect()
    }
}

/// `keys`: that of the clients and that of the foreign CA.
fn generate<K>(trust_domain: &str, now: Timestamp, keys: &[K; 2]) -> Result<Kind, Box<dyn std::error::Error>>
where
    K: Fn() -> Result<KeyPair, rcgen::Error>,
{
    let year = i32::from(now.to_zoned(TimeZone::UTC).year());
    let (key, authority_key) = (keys[0]()?, keys[1]()?);

    let mut authority = CertificateParams::default();
    authority.distinguished_name = name("enforcer foreign CA");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    (authority.not_before, authority.not_after) =
        (date_time_ymd(year - 5, 1, 1), date_time_ymd(year + 5, 1, 1));
    let authority_certificate = authority.self_signed(&authority_key)?;
    let authority = Issuer::new(authority, authority_key);

    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = name("enforcer forbidden client");
    let identity = format!("spiffe://{trust_domain}/ns/enforcer/sa/forbidden");
    leaf.subject_alt_names = vec![SanType::URI(identity.as_str().try_into()?)];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    (leaf.not_before, leaf.not_after) = (date_time_ymd(year - 1, 1, 1), date_time_ymd(year + 5, 1, 1));
    let self_signed = leaf.self_signed(&key)?;
    let foreign = leaf.signed_by(&key, &authority)?;
    (leaf.not_before, leaf.not_after) = (date_time_ymd(year - 2, 1, 1), date_time_ymd(year - 1, 1, 1));
    let expired = leaf.signed_by(&key, &authority)?;

    let signer = any_supported_type(&PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())))?;
    let certified = |chain: &[&rcgen::Certificate]| {
        let chain = chain.iter().map(|certificate| certificate.der().clone()).collect();
        Arc::new(CertifiedKey::new(chain, Arc::clone(&signer)))
    };
    Ok(Kind {
        self_signed: certified(&[&self_signed]),
        foreign_ca: certified(&[&foreign, &authority_certificate]),
        expired: certified(&[&expired, &authority_certificate]),
    })
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "enforcer");
    name.push(DnType::CommonName, common);
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::x509::Certificate;

    #[test]
    fn the_certificates_are_what_they_claim() {
        let now: Timestamp = "2026-03-01T00:00:00Z".parse().expect("an instant");
        let clients = ForbiddenClients::generate(Some("td.example"), now).expect("they are made");
        let read = |client| {
            let keys = clients.certificates(client);
            let chains = keys.iter().map(|key| {
                let chain = key.cert.iter().map(|der| Certificate::read(der).expect("readable"));
                chain.collect::<Vec<_>>()
            });
            chains.collect::<Vec<_>>()
        };
        for client in [Client::SelfSigned, Client::ForeignCa, Client::Expired] {
            let chains = read(client);
            assert_eq!(
                chains.iter().map(|chain| &chain[0].key).collect::<Vec<_>>(),
                ["ECDSA P-256", "RSA 2048"]
            );
            for chain in chains {
                assert_eq!(chain[0].uris, ["spiffe://td.example/ns/enforcer/sa/forbidden"]);
                assert_eq!(chain[0].valid_at(now), client != Client::Expired);
            }
        }
        for chain in read(Client::SelfSigned) {
            assert_eq!(chain[0].subject, chain[0].issuer);
        }
        for chain in read(Client::ForeignCa) {
            assert_eq!(chain[0].issuer, chain[1].subject);
            assert!(chain[1].ca && chain[1].valid_at(now));
        }
        for client in [Client::NoCertificate, Client::PlainTls, Client::Named] {
            assert!(clients.certificates(client).is_empty());
        }
    }
}
