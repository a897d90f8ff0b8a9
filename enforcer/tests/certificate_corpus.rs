//! The short form of the fuzz target `certificate`: certificates, bundles, lists, answers and results, cut off at each place
//! and with bytes changed, are read without a panic, and quickly.

use std::time::{Duration, Instant};

use enforcer::certificate::bundle::TrustBundle;
use enforcer::certificate::probe::certificate_refusal;
use enforcer::certificate::report::CertificateReport;
use enforcer::certificate::spiffe::SpiffeId;
use enforcer::certificate::state::judge;
use enforcer::certificate::verify::{ExpiryWarning, Rules, findings};
use enforcer::certificate::x509::Certificate;
use rcgen::{CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::CertificateDer;

const ID: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// A root, and a certificate below it.
fn certificates() -> [rcgen::Certificate; 2] {
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let root_certificate = root.self_signed(&key).expect("a root");
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::URI(ID.try_into().expect("ASCII"))];
    let own = KeyPair::generate().expect("a key");
    let leaf = leaf.signed_by(&own, &Issuer::new(root, key)).expect("signed");
    [root_certificate, leaf]
}

/// Everything that reads bytes of others, on these bytes; what it makes of a chain.
fn read(bytes: &[u8], bundle: &TrustBundle) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text);
    }
    let _ = certificate_refusal(bytes);
    let _ = serde_json::from_slice::<CertificateReport>(bytes).map(|report| report.samples());
    if let Ok(read) = TrustBundle::from_pem(bytes) {
        let _ = read.with_revocation_lists(bytes);
    }
    let _ = Certificate::read(&CertificateDer::from(bytes));
    let now = "2026-03-01T00:00:00Z".parse().expect("an instant");
    let rules = Rules { bundle: Some(bundle), expected: None, expiry: ExpiryWarning::default(), now };
    let _ = judge(&findings(&[CertificateDer::from(bytes)], rules));
}

#[test]
fn damaged_inputs_are_refused_not_fatal() {
    // A fixed generator: a failure comes again.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % (below as u64)).expect("small")
    };
    let [root, leaf] = certificates();
    let bundle = TrustBundle::from_pem(root.pem().as_bytes()).expect("a bundle");
    let answer = "HTTP/1.1 400 Bad Request\r\n\r\n<h1>No required SSL certificate was sent</h1>";
    let results = serde_json::to_vec(&CertificateReport::default()).expect("JSON");
    let inputs = [
        leaf.der().to_vec(),
        format!("{}{}", root.pem(), leaf.pem()).into(),
        ID.into(),
        answer.into(),
        results,
    ];
    for input in &inputs {
        let start = Instant::now();
        for end in 0..=input.len() {
            read(&input[..end], &bundle);
        }
        for _ in 0..500 {
            let mut changed = input.clone();
            for _ in 0..=random(4) {
                let at = random(changed.len());
                changed[at] = u8::try_from(random(256)).expect("a byte");
            }
            read(&changed, &bundle);
        }
        assert!(start.elapsed() < Duration::from_mins(1), "it takes {:?}", start.elapsed());
    }
}
