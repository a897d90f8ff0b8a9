use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd,
};

use super::*;
use crate::certificate::spiffe::SpiffeId;

const ID: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// Root, intermediate and leaf, each valid from the first to the last of these years.
struct Mesh {
    root: Issuer<'static, KeyPair>,
    root_pem: String,
    intermediate: Issuer<'static, KeyPair>,
    intermediate_der: CertificateDer<'static>,
}

fn authority(name: &str, years: (i32, i32)) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (date_time_ymd(years.0, 1, 1), date_time_ymd(years.1, 1, 1));
    params
}

impl Mesh {
    fn new(root_years: (i32, i32), intermediate_years: (i32, i32)) -> Self {
        let (root, intermediate) = (authority("root", root_years), authority("sub", intermediate_years));
        let key = KeyPair::generate().expect("a key");
        let root_pem = root.self_signed(&key).expect("a root").pem();
        let root = Issuer::new(root, key);
        let key = KeyPair::generate().expect("a key");
        let intermediate_der = intermediate.signed_by(&key, &root).expect("signed").der().clone();
        Self { root, root_pem, intermediate: Issuer::new(intermediate, key), intermediate_der }
    }

    fn chain(&self, change: impl FnOnce(&mut CertificateParams)) -> Vec<CertificateDer<'static>> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![uri(ID)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from(42_u64));
        (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2026, 12, 31));
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.intermediate).expect("signed");
        vec![leaf.der().clone(), self.intermediate_der.clone()]
    }

    fn bundle(&self) -> TrustBundle {
        TrustBundle::from_pem(self.root_pem.as_bytes()).expect("a bundle")
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

fn check(chain: &[CertificateDer<'_>], bundle: &TrustBundle, now: &str) -> Vec<Finding> {
    let expected = Expected::exactly(ID.parse::<SpiffeId>().expect("an identity"));
    let now = now.parse().expect("an instant");
    let expiry = ExpiryWarning::default();
    findings(chain, Rules { bundle: Some(bundle), expected: Some(&expected), expiry, now })
}

const NOW: &str = "2026-06-01T00:00:00Z";

fn mesh() -> Mesh {
    Mesh::new((2020, 2040), (2024, 2030))
}

#[test]
fn a_good_chain_has_no_findings() {
    let mesh = mesh();
    assert_eq!(check(&mesh.chain(|_| {}), &mesh.bundle(), NOW), []);
}

#[test]
fn another_root_of_the_same_name_does_not_vouch() {
    let found = check(&mesh().chain(|_| {}), &mesh().bundle(), NOW);
    assert!(matches!(&found[..], [Finding::Untrusted { .. }]), "{found:?}");
}

#[test]
fn a_missing_intermediate_is_untrusted() {
    let mesh = mesh();
    let found = check(&mesh.chain(|_| {})[..1], &mesh.bundle(), NOW);
    assert!(matches!(&found[..], [Finding::Untrusted { .. }]), "{found:?}");
    assert!(matches!(&check(&[], &mesh.bundle(), NOW)[..], [Finding::Untrusted { .. }]));
    let junk = CertificateDer::from(vec![1, 2, 3]);
    assert!(matches!(&check(&[junk], &mesh.bundle(), NOW)[..], [Finding::Untrusted { .. }]));
}

#[test]
fn dates_alone_are_no_lack_of_trust() {
    let mesh = mesh();
    let chain = mesh.chain(|_| {});
    let at = |now| check(&chain, &mesh.bundle(), now);
    assert!(matches!(&at("2025-12-31T23:59:59Z")[..], [Finding::NotValidYet { .. }]));
    assert!(matches!(&at("2026-12-25T00:00:00Z")[..], [Finding::Expiring { .. }]));
    assert!(matches!(&at("2027-02-01T00:00:00Z")[..], [Finding::Expired { .. }]));
}

#[test]
fn expired_authorities_are_found() {
    let long = |params: &mut CertificateParams| params.not_after = date_time_ymd(2035, 1, 1);
    let mesh = Mesh::new((2020, 2040), (2024, 2026));
    let found = check(&mesh.chain(long), &mesh.bundle(), NOW);
    assert!(
        matches!(&found[..], [Finding::Expired { certificate, .. }] if certificate == "CN=sub"),
        "{found:?}"
    );
    let mesh = Mesh::new((2020, 2026), (2024, 2030));
    let found = check(&mesh.chain(long), &mesh.bundle(), "2026-06-01T00:00:00Z");
    let expired = |finding: &Finding| matches!(finding, Finding::Expired { .. } | Finding::Untrusted { .. });
    assert!(found.iter().any(expired), "{found:?}");
}

#[test]
fn the_identity_is_exactly_one_uri() {
    let mesh = mesh();
    let wrong = |names: Vec<SanType>| {
        let chain = mesh.chain(|params| params.subject_alt_names = names);
        check(&chain, &mesh.bundle(), NOW)
    };
    for names in [
        vec![],
        vec![uri("spiffe://cluster.local/ns/shop/sa/other")],
        vec![uri("spiffe://other/ns/shop/sa/web")],
        vec![uri(ID), uri(ID)],
        vec![uri(ID), uri("https://example.com")],
        vec![SanType::DnsName("web.shop.svc".try_into().expect("ASCII"))],
    ] {
        let found = wrong(names.clone());
        assert!(matches!(&found[..], [Finding::WrongIdentity { .. }]), "{names:?}: {found:?}");
    }
    let with_dns = vec![SanType::DnsName("istiod.istio-system.svc".try_into().expect("ASCII")), uri(ID)];
    assert_eq!(wrong(with_dns), [], "DNS names beside the identity are fine");
}

#[test]
fn a_client_certificate_is_no_server_certificate() {
    let mesh = mesh();
    let usage = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let chain = mesh.chain(|params| params.extended_key_usages = usage);
    let found = check(&chain, &mesh.bundle(), NOW);
    assert!(matches!(&found[..], [Finding::Untrusted { detail }] if detail.contains("server")), "{found:?}");
}

#[test]
fn everything_wrong_is_found_at_once() {
    let chain = mesh().chain(|params| {
        params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/shop/sa/other")];
    });
    let found = check(&chain, &mesh().bundle(), "2027-02-01T00:00:00Z");
    let kinds = found.iter().map(|finding| match finding {
        Finding::Untrusted { .. } => "trust",
        Finding::Expired { .. } => "date",
        Finding::WrongIdentity { .. } => "identity",
        _ => "other",
    });
    assert_eq!(kinds.collect::<Vec<_>>(), ["trust", "date", "identity"]);
}

#[test]
fn a_revoked_certificate_is_found() {
    let mesh = mesh();
    let list = |serial: u64| {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2026, 2, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 2, 1),
            next_update: date_time_ymd(2026, 3, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&mesh.intermediate).expect("signed").pem().expect("PEM")
    };
    let with = |serial| mesh.bundle().with_revocation_lists(list(serial).as_bytes()).expect("a list");
    let chain = mesh.chain(|_| {});
    assert_eq!(check(&chain, &with(42), NOW), [Finding::Revoked]);
    assert_eq!(check(&chain, &with(43), NOW), []);
    assert_ne!(with(42).fingerprint(), with(43).fingerprint());
    let _ = &mesh.root;
}

#[test]
fn without_a_bundle_the_rest_is_still_checked() {
    let chain = mesh().chain(|_| {});
    let rules = Rules {
        bundle: None,
        expected: None,
        expiry: ExpiryWarning::default(),
        now: "2027-02-01T00:00:00Z".parse().expect("an instant"),
    };
    assert!(matches!(&findings(&chain, rules)[..], [Finding::NoTrustBundle, Finding::Expired { .. }]));
}

/// A list of this authority with this one serial number.
fn list(by: &Issuer<'static, KeyPair>, serial: u64) -> String {
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2026, 1, 1),
        next_update: date_time_ymd(2026, 7, 1),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(by).expect("signed").pem().expect("PEM")
}

#[test]
fn lists_of_two_authorities_of_one_name_are_each_for_their_own() {
    // Names of both are the same, as when a root is replaced.
    let (old, new) = (mesh(), mesh());
    let roots = format!("{}{}", old.root_pem, new.root_pem);
    let lists = [list(&old.intermediate, 41), list(&new.intermediate, 42)];
    for lists in [lists.concat(), lists.iter().rev().cloned().collect::<String>()] {
        let bundle = TrustBundle::from_pem(roots.as_bytes()).expect("a bundle");
        let bundle = bundle.with_revocation_lists(lists.as_bytes()).expect("lists");
        assert_eq!(check(&old.chain(|_| {}), &bundle, NOW), [], "42 is revoked by the other one");
        assert_eq!(check(&new.chain(|_| {}), &bundle, NOW), [Finding::Revoked]);
        let serial = |params: &mut CertificateParams| params.serial_number = Some(SerialNumber::from(41_u64));
        assert_eq!(check(&old.chain(serial), &bundle, NOW), [Finding::Revoked]);
        assert_eq!(check(&new.chain(serial), &bundle, NOW), []);
        let at = |now: &str| bundle.old_revocation_lists(now.parse().expect("an instant"));
        assert!(at(NOW).is_empty());
        assert_eq!(at("2026-08-01T00:00:00Z").len(), 2);
        assert!(at("2026-08-01T00:00:00Z")[0].contains("CN=sub was to be renewed"), "{:?}", at(NOW));
    }
}

#[test]
fn our_own_client_certificate_is_shown_only_while_it_is_fit() {
    let mesh = mesh();
    let chain = mesh.chain(|_| {});
    let at = |bundle, now: &str| own_client(&chain, bundle, now.parse().expect("an instant"));
    let (own, other) = (mesh.bundle(), Mesh::new((2020, 2040), (2024, 2030)).bundle());
    let good = at(Some(&own), NOW);
    assert_eq!(good.problem, None);
    assert_eq!(good.changes.map(|instant| instant.to_string()).as_deref(), Some("2026-12-31T00:00:01Z"));
    assert_eq!(at(None, NOW).problem, None);
    for (bundle, now, what) in [
        (Some(&own), "2027-01-01T00:00:00Z", "expired at"),
        (None, "2027-01-01T00:00:00Z", "expired at"),
        (Some(&own), "2025-06-01T00:00:00Z", "not valid yet"),
        (Some(&other), NOW, "chain not trusted"),
    ] {
        let problem = at(bundle, now).problem.expect("a problem");
        assert!(problem.contains(what), "{problem}");
    }
    let server_only =
        mesh.chain(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert!(own_client(&server_only, Some(&own), NOW.parse().expect("an instant")).problem.is_some());
}

#[test]
fn a_control_character_in_an_identity_makes_it_another_one() {
    let mesh = mesh();
    let chain = mesh.chain(|params| {
        params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/shop/sa/w\u{1}eb")];
    });
    let found = check(&chain, &mesh.bundle(), NOW);
    assert!(matches!(&found[..], [Finding::WrongIdentity { .. }]), "{found:?}");
    assert!(found[0].to_string().contains("w\u{fffd}eb"), "{}", found[0]);
}

#[test]
fn a_certificate_that_names_no_usage_may_be_used_for_any() {
    let mesh = mesh();
    let of = |usages: Vec<ExtendedKeyUsagePurpose>| {
        check(&mesh.chain(|params| params.extended_key_usages = usages), &mesh.bundle(), NOW)
    };
    assert_eq!(of(Vec::new()), []);
    let found = of(vec![ExtendedKeyUsagePurpose::ClientAuth]);
    assert!(matches!(&found[..], [Finding::Untrusted { .. }]), "{found:?}");
}
