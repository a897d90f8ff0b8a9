//! Any bytes as what a server, a config map or an earlier agent may present: SPIFFE IDs, PEM, certificates, chains, HTTP
//! answers, the file of results. No panic, no hang, and what is accepted is what it claims to be.

#![no_main]

use enforcer::certificate::bundle::TrustBundle;
use enforcer::certificate::probe::certificate_refusal;
use enforcer::certificate::report::CertificateReport;
use enforcer::certificate::spiffe::{Expected, SpiffeId};
use enforcer::certificate::state::judge;
use enforcer::certificate::verify::{ExpiryWarning, Rules, findings, next_change};
use enforcer::certificate::x509::Certificate;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;

fuzz_target!(|bytes: &[u8]| {
    let now = Timestamp::from_second(1_800_000_000).expect("an instant");
    let text = String::from_utf8_lossy(bytes);
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text);
        assert!(Expected::exactly(id).matches(&text));
    }
    let _ = certificate_refusal(bytes);
    if let Ok(report) = serde_json::from_slice::<CertificateReport>(bytes) {
        assert!(report.samples().len() <= report.entries.len());
        assert!(report.blocked().is_disjoint(&report.open()));
    }

    let bundle = TrustBundle::from_pem(bytes).ok();
    if let Some(bundle) = &bundle {
        assert!(bundle.certificates().count() > 0);
    }
    if let Ok(bundle) = TrustBundle::from_pem(bytes) {
        let _ = bundle.with_revocation_lists(bytes);
    }
    // The same bytes as a chain: cut in two, so that there is something above the leaf.
    let (leaf, above) = bytes.split_at(bytes.len() / 2);
    for chain in [
        vec![CertificateDer::from(bytes)],
        vec![CertificateDer::from(leaf), CertificateDer::from(above)],
        Vec::new(),
    ] {
        let expiry = ExpiryWarning::default();
        let rules = Rules { bundle: bundle.as_ref(), expected: None, expiry, now };
        let _ = judge(&findings(&chain, rules));
        let read: Vec<Certificate> = chain.iter().filter_map(|der| Certificate::read(der).ok()).collect();
        assert!(next_change(&read, expiry, now).is_none_or(|next| next > now));
    }
});
