//! The clients that a server of mutual TLS must refuse. Their keys are made anew when the agent starts and never
//! leave its memory; they vouch for nothing anywhere.
//!
//! Each claims the identity of a workload of the mesh: a server that only compares names is found out too.

use std::sync::Arc;

use jiff::{Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::finding::Client;
use super::spiffe::DEFAULT_TRUST_DOMAIN;

/// Certificates of forbidden clients, with one key for all.
#[derive(Clone, Debug)]
pub struct ForbiddenClients {
    self_signed: Arc<CertifiedKey>,
    foreign_ca: Arc<CertifiedKey>,
    expired: Arc<CertifiedKey>,
}

/// The forbidden clients' certificates could not be made.
#[derive(Debug, thiserror::Error)]
#[error("certificates for the clients that must be refused cannot be made: {0}")]
pub struct GenerateError(String);

impl ForbiddenClients {
    /// Makes key and certificates (ECDSA P-256, well under a millisecond) that claim the identity
    /// `spiffe://<trust domain>/ns/enforcer/sa/forbidden`, valid around `now`.
    ///
    /// # Errors
    /// The system has no randomness, or `trust_domain` cannot be written into a certificate.
    pub fn generate(trust_domain: Option<&str>, now: Timestamp) -> Result<Self, GenerateError> {
        generate(trust_domain.unwrap_or(DEFAULT_TRUST_DOMAIN), now)
            .map_err(|error| GenerateError(error.to_string()))
    }

    /// The certificate that this client offers; `None` for those without one (and for the mesh client, whose
    /// certificate is not made here).
    #[must_use]
    pub fn certificate(&self, client: Client) -> Option<Arc<CertifiedKey>> {
        match client {
            Client::SelfSigned => Some(Arc::clone(&self.self_signed)),
            Client::ForeignCa => Some(Arc::clone(&self.foreign_ca)),
            Client::Expired => Some(Arc::clone(&self.expired)),
            Client::NoCertificate | Client::PlainTls | Client::Mesh => None,
        }
    }
}

fn generate(trust_domain: &str, now: Timestamp) -> Result<ForbiddenClients, Box<dyn std::error::Error>> {
    let year = i32::from(now.to_zoned(TimeZone::UTC).year());
    let key = KeyPair::generate()?;

    let mut authority = CertificateParams::default();
    authority.distinguished_name = name("enforcer foreign CA");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    (authority.not_before, authority.not_after) =
        (date_time_ymd(year - 5, 1, 1), date_time_ymd(year + 5, 1, 1));
    let authority_key = KeyPair::generate()?;
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

    let signer = any_ecdsa_type(&PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())))?;
    let certified = |chain: &[&rcgen::Certificate]| {
        let chain = chain.iter().map(|certificate| certificate.der().clone()).collect();
        Arc::new(CertifiedKey::new(chain, Arc::clone(&signer)))
    };
    Ok(ForbiddenClients {
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
            let key = clients.certificate(client).expect("it has a certificate");
            let chain = key.cert.iter().map(|der| Certificate::read(der).expect("readable"));
            chain.collect::<Vec<_>>()
        };
        for client in [Client::SelfSigned, Client::ForeignCa, Client::Expired] {
            assert_eq!(read(client)[0].uris, ["spiffe://td.example/ns/enforcer/sa/forbidden"]);
            assert_eq!(read(client)[0].valid_at(now), client != Client::Expired);
        }
        let self_signed = &read(Client::SelfSigned)[0];
        assert_eq!(self_signed.subject, self_signed.issuer);
        let foreign = read(Client::ForeignCa);
        assert_eq!(foreign[0].issuer, foreign[1].subject);
        assert!(foreign[1].ca && foreign[1].valid_at(now));
        assert!(clients.certificate(Client::NoCertificate).is_none());
        assert!(clients.certificate(Client::PlainTls).is_none());
    }
}
