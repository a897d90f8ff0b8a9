//! Everything that is wrong with a chain that a server presented. Pure: chain, bundle and time in, findings out.
//!
//! Mesh certificates name no host, only a SPIFFE ID, so there is no check of a DNS name. The chain is verified by
//! webpki with the algorithms of the *ring* provider, for the usage "server"; the signature over the handshake,
//! which proves that the server owns the key, is verified by rustls during the handshake.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::bundle::TrustBundle;
use super::finding::Finding;
use super::spiffe::Expected;
use super::x509::Certificate;

/// More certificates than this are not looked at: no mesh has such chains.
pub const MAX_CHAIN: usize = 8;

/// When a certificate counts as near its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExpiryWarning {
    /// Percentage of its lifetime that is left. Istio replaces workload certificates at half of their lifetime,
    /// so a quarter means that a rotation has been missed.
    pub percent_left: i64,
    /// But never earlier than this before the end, so that a root for ten years does not warn for two.
    pub at_most: SignedDuration,
}

impl Default for ExpiryWarning {
    fn default() -> Self {
        Self { percent_left: 25, at_most: SignedDuration::from_hours(14 * 24) }
    }
}

impl ExpiryWarning {
    /// From when on this certificate counts as near its end.
    #[must_use]
    pub fn begins(&self, certificate: &Certificate) -> Timestamp {
        let lifetime = certificate.not_before.duration_until(certificate.not_after);
        let left = SignedDuration::from_secs(lifetime.as_secs() / 100 * self.percent_left).min(self.at_most);
        certificate.not_after.checked_sub(left).unwrap_or(certificate.not_after)
    }
}

/// The rules for one server.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The trust anchors; without them the chain cannot be checked, which is a finding.
    pub bundle: Option<&'a TrustBundle>,
    /// The identity; `None` accepts any, by hand only.
    pub expected: Option<&'a Expected>,
    /// When a certificate counts as near its end.
    pub expiry: ExpiryWarning,
    /// The present.
    pub now: Timestamp,
}

/// Everything that is wrong with this chain, leaf first; empty when nothing is.
#[must_use]
pub fn findings(chain: &[CertificateDer<'_>], rules: Rules<'_>) -> Vec<Finding> {
    let chain = &chain[..chain.len().min(MAX_CHAIN)];
    let Some((leaf, intermediates)) = chain.split_first() else {
        return vec![Finding::Untrusted { detail: "the server presented no certificate".to_owned() }];
    };
    let certificate = match Certificate::read(leaf) {
        Ok(certificate) => certificate,
        Err(error) => {
            return vec![Finding::Untrusted { detail: error.to_string() }];
        }
    };
    let mut findings = Vec::new();
    match rules.bundle {
        None => {
            findings.push(Finding::NoTrustBundle);
            findings.extend(date_finding(&certificate, rules));
        }
        Some(bundle) => {
            match trusted_path(leaf, intermediates, bundle, rules.now, &KeyUsage::server_auth()) {
                Ok(path) => {
                    let path = std::iter::once(&certificate).chain(&path);
                    findings.extend(path.filter_map(|certificate| date_finding(certificate, rules)));
                }
                Err(finding) => {
                    findings.push(finding);
                    findings.extend(date_finding(&certificate, rules));
                }
            }
        }
    }
    if let Some(expected) = rules.expected {
        let good = matches!(&certificate.uris[..], [only] if expected.matches(only));
        if !good {
            let expected = expected.id.to_string();
            findings.push(Finding::WrongIdentity { expected, presented: certificate.uris });
        }
    }
    findings
}

/// When the findings for this chain change by themselves: the next begin of a warning or end of a validity.
#[must_use]
pub fn next_change(chain: &[Certificate], expiry: ExpiryWarning, now: Timestamp) -> Option<Timestamp> {
    let instants = chain
        .iter()
        .flat_map(|certificate| [certificate.not_before, expiry.begins(certificate), certificate.not_after]);
    instants.filter(|instant| *instant > now).min()
}

fn date_finding(certificate: &Certificate, rules: Rules<'_>) -> Option<Finding> {
    let name = certificate.name();
    if rules.now < certificate.not_before {
        Some(Finding::NotValidYet { certificate: name, not_before: certificate.not_before })
    } else if rules.now > certificate.not_after {
        Some(Finding::Expired { certificate: name, not_after: certificate.not_after })
    } else if rules.now >= rules.expiry.begins(certificate) {
        Some(Finding::Expiring { certificate: name, not_after: certificate.not_after })
    } else {
        None
    }
}

/// The certificates above the leaf, root last, on a path that is trusted apart from dates. Dates are a finding of
/// their own, so a chain that fails now is tried again at the instants at which something in it begins or ends:
/// when it is good at one of them, only the dates are wrong.
fn trusted_path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    now: Timestamp,
    usage: &KeyUsage,
) -> Result<Vec<Certificate>, Finding> {
    let read = std::iter::once(leaf).chain(intermediates).filter_map(|der| Certificate::read(der).ok());
    let mut instants: Vec<Timestamp> = read
        .chain(bundle.certificates().cloned())
        .flat_map(|certificate| [certificate.not_after, certificate.not_before])
        .collect();
    instants.sort_unstable();
    instants.dedup();
    // Nearest to the present first; bounded, since both lists come from outside.
    instants.sort_by_key(|instant| now.duration_until(*instant).abs());
    instants.truncate(4 * MAX_CHAIN);

    let mut reason = None;
    for instant in std::iter::once(now).chain(instants) {
        match verify_at(leaf, intermediates, bundle, instant, usage) {
            Ok(path) => return Ok(path),
            Err(error) if is_date(&error) => {}
            // An error that is not about dates says more than "unknown issuer", which is also what a chain to an
            // expired root looks like.
            Err(error) if matches!(reason, None | Some(webpki::Error::UnknownIssuer)) => {
                reason = Some(error);
            }
            Err(_) => {}
        }
    }
    Err(match reason {
        Some(webpki::Error::CertRevoked) => Finding::Revoked,
        Some(error) => Finding::Untrusted { detail: describe(&error) },
        None => Finding::Untrusted {
            detail: "the certificates of the chain were never valid all at once".to_owned(),
        },
    })
}

/// Revocation lists are taken one by one, and one that the issuer of the path has not signed says nothing: webpki takes the
/// first one of the issuer's name, but while a root is replaced by another one of its name there is a list of each.
fn verify_at(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    instant: Timestamp,
    usage: &KeyUsage,
) -> Result<Vec<Certificate>, webpki::Error> {
    let anchors = bundle.anchors_at(instant);
    let since_epoch = Duration::from_secs(u64::try_from(instant.as_second()).unwrap_or(0));
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    let leaf = EndEntityCert::try_from(leaf)?;
    let verify = |lists: &[&CertRevocationList<'_>]| {
        let revocation = RevocationOptionsBuilder::new(lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                // A mesh publishes lists for some of its authorities only, and an old list still names the revoked.
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        let time = UnixTime::since_unix_epoch(since_epoch);
        leaf.verify_for_usage(algorithms, &anchors, intermediates, time, *usage, revocation, None)
    };
    let path = verify(&[])?;
    for list in bundle.revocation_lists() {
        if matches!(verify(&[list]), Err(webpki::Error::CertRevoked)) {
            return Err(webpki::Error::CertRevoked);
        }
    }
    let above = path.intermediate_certificates().filter_map(|cert| Certificate::read(&cert.der()).ok());
    Ok(above.chain(bundle.certificate_of(path.anchor()).cloned()).collect())
}

/// Whether a client certificate of our own may be shown to servers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fitness {
    /// Why not, if not.
    pub problem: Option<String>,
    /// When that is to be asked again.
    pub changes: Option<Timestamp>,
}

/// Looks at a client certificate of our own: its dates, and its way to the bundle where there is one.
#[must_use]
pub fn own_client(chain: &[CertificateDer<'_>], bundle: Option<&TrustBundle>, now: Timestamp) -> Fitness {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Fitness { problem: Some("there is no certificate in it".to_owned()), changes: None };
    };
    let mut known: Vec<Certificate> = chain.iter().filter_map(|der| Certificate::read(der).ok()).collect();
    let trust = bundle.map(|bundle| trusted_path(leaf, intermediates, bundle, now, &KeyUsage::client_auth()));
    let untrusted = match trust {
        Some(Ok(path)) => {
            known.extend(path);
            None
        }
        Some(Err(finding)) => Some(finding),
        None => None,
    };
    let outside = known.iter().find(|certificate| !certificate.valid_at(now)).map(|certificate| {
        let (name, end) = (certificate.name(), certificate.not_after);
        if now > end { format!("{name} expired at {end}") } else { format!("{name} is not valid yet") }
    });
    let instants = known.iter().flat_map(|certificate| [certificate.not_before, certificate.not_after]);
    // Its last second is still within the validity.
    let changes = instants.filter(|instant| *instant >= now).min();
    let changes = changes.and_then(|instant| instant.checked_add(SignedDuration::from_secs(1)).ok());
    Fitness { problem: untrusted.map(|finding| finding.to_string()).or(outside), changes }
}

fn is_date(error: &webpki::Error) -> bool {
    matches!(error, webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. })
}

fn describe(error: &webpki::Error) -> String {
    use webpki::Error as E;
    match error {
        E::UnknownIssuer => "its issuer is not in the trust bundle".to_owned(),
        E::CaUsedAsEndEntity => "the server presents a CA certificate as its own".to_owned(),
        E::RequiredEkuNotFoundContext(_) => {
            "the certificate may not be used by a server (extended key usage)".to_owned()
        }
        E::InvalidSignatureForPublicKey => "a signature in the chain is wrong".to_owned(),
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            "a signature in the chain uses an algorithm or key that is too weak or unknown".to_owned()
        }
        E::PathLenConstraintViolated => "the chain is longer than its CA permits".to_owned(),
        E::NameConstraintViolation => "the name constraints of its CA forbid the certificate".to_owned(),
        E::UnsupportedCertVersion => "it is no X.509 version 3 certificate".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
