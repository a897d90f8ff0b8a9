use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, date_time_ymd};

use super::*;

fn root(name: &str) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2030, 1, 1));
    let key = KeyPair::generate().expect("a key");
    params.self_signed(&key).expect("a certificate").pem()
}

fn load(text: &str) -> Result<TrustBundle, BundleError> {
    TrustBundle::from_pem(text.as_bytes())
}

#[test]
fn several_certificates_in_any_order_with_text_between_and_repeated() {
    let (old, new) = (root("old"), root("new"));
    let one = load(&format!("# old\n{old}\nand the new one\n{new}")).expect("good");
    let other = load(&format!("{new}{old}{new}")).expect("good");
    assert_eq!(one.certificates().count(), 2);
    assert_eq!(other.certificates().count(), 2);
    assert_eq!(one.fingerprint(), other.fingerprint());
    assert_ne!(one.fingerprint(), load(&old).expect("good").fingerprint());
}

#[test]
fn broken_bundles_are_refused_whole() {
    let good = root("good");
    assert_eq!(load("").err(), Some(BundleError::Empty));
    assert_eq!(load("no pem at all").err(), Some(BundleError::Empty));
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let error = load(&format!("{good}{broken}")).expect_err("broken");
    assert!(matches!(error, BundleError::BadCertificate { number: 2, .. }), "{error}");
    let cut = &good[..good.len() / 2];
    assert!(matches!(load(cut), Err(BundleError::BadCertificate { number: 1, .. } | BundleError::Empty)));
    let large = "x".repeat(MAX_BYTES + 1);
    assert_eq!(load(&large).err(), Some(BundleError::TooLarge(MAX_BYTES + 1)));
    assert!(matches!(
        TrustBundle::from_file(Path::new("/nonexistent/bundle")),
        Err(BundleError::Unreadable { .. })
    ));
}

#[test]
fn an_expired_root_vouches_for_nothing() {
    let bundle = load(&root("r")).expect("good");
    let at = |text: &str| bundle.anchors_at(text.parse().expect("an instant")).len();
    assert_eq!(
        (at("2019-12-31T23:59:59Z"), at("2025-01-01T00:00:00Z"), at("2030-01-01T00:00:01Z")),
        (0, 1, 0)
    );
}

#[test]
fn a_broken_bundle_leaves_the_last_good_one_in_use() {
    let (old, new) = (root("old"), root("new"));
    let mut current = CurrentBundle::default();
    assert!(current.update(load(&old)));
    assert!(!current.update(load(&old)), "the same again is no change");
    assert!(!current.update(load("broken")));
    assert_eq!(current.problem(), Some(&BundleError::Empty));
    let fingerprint = |current: &CurrentBundle| current.good().map(|bundle| bundle.fingerprint().to_owned());
    assert_eq!(fingerprint(&current), Some(load(&old).expect("good").fingerprint().to_owned()));
    assert!(current.update(load(&format!("{old}{new}"))));
    assert_eq!(current.problem(), None);
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_without_panic(text in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        let _ = TrustBundle::from_pem(&text);
    }
}
