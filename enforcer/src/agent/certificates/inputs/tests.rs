use super::*;
use crate::object::ConfigMap;

fn root(name: &str) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&rcgen::KeyPair::generate().expect("a key")).expect("a root").pem()
}

fn with_map(objects: &mut Objects, namespace: &str, name: &str, key: &str, text: &str) {
    let name = ObjectName::new(namespace, name);
    let data = [(key.to_owned(), text.to_owned())].into();
    objects.config_maps.insert(name.clone(), ConfigMap { name, data });
}

/// What the inputs say at last: what cannot be used is told only when it stays so.
fn settled(inputs: &mut Inputs, objects: &Objects) -> Option<Result<TrustBundle, BundleError>> {
    let now = Instant::now();
    inputs.bundle(objects, now).or_else(|| inputs.bundle(objects, now + SETTLE))
}

fn options() -> CertificateOptions {
    CertificateOptions {
        config_map: "roots".to_owned(),
        crl_config_map: "lists".to_owned(),
        root_namespace: "istio-system".to_owned(),
        ..CertificateOptions::default()
    }
}

#[test]
fn the_config_map_of_the_root_namespace_is_preferred_and_its_loss_reported() {
    let (stale, current) = (root("stale"), root("current"));
    let mut objects = Objects::default();
    let mut inputs = Inputs::new(&options());
    assert!(settled(&mut inputs, &objects).is_none() && !inputs.has_bundle(), "there is none yet");

    with_map(&mut objects, "apps", "roots", DEFAULT_CONFIG_MAP_KEY, &stale);
    let of = |text: &str| TrustBundle::from_pem(text.as_bytes()).expect("a bundle").fingerprint().to_owned();
    let mut fingerprint = |objects: &Objects| {
        settled(&mut inputs, objects).map(|bundle| bundle.expect("a bundle").fingerprint().to_owned())
    };
    assert_eq!(fingerprint(&objects), Some(of(&stale)));
    assert_eq!(fingerprint(&objects), None, "nothing has changed");
    with_map(&mut objects, "istio-system", "roots", DEFAULT_CONFIG_MAP_KEY, &current);
    assert_eq!(fingerprint(&objects), Some(of(&current)));

    objects.config_maps.clear();
    let gone = settled(&mut inputs, &objects).expect("it has changed").expect_err("it is gone");
    assert_eq!(gone.to_string(), "there is no trust bundle: config map roots with key root-cert.pem is gone");
}

#[test]
fn revocation_lists_belong_to_the_bundle() {
    let mut objects = Objects::default();
    let mut inputs = Inputs::new(&options());
    with_map(&mut objects, "istio-system", "roots", DEFAULT_CONFIG_MAP_KEY, &root("one"));
    assert!(settled(&mut inputs, &objects).expect("it is new").expect("good").revocation_lists().is_empty());
    with_map(&mut objects, "istio-system", "lists", CRL_CONFIG_MAP_KEY, "garbage");
    let broken = settled(&mut inputs, &objects).expect("it has changed");
    assert_eq!(broken.expect_err("no list"), BundleError::NoRevocationList);
    with_map(&mut objects, "istio-system", "lists", CRL_CONFIG_MAP_KEY, " \n");
    assert!(settled(&mut inputs, &objects).expect("it has changed").is_ok(), "an empty text is no list");

    let dir = tempfile::tempdir().expect("a folder");
    let missing = CertificateOptions { crl: Some(dir.path().join("crl.pem")), ..options() };
    let error = settled(&mut Inputs::new(&missing), &objects).expect("it is new").expect_err("no such file");
    assert!(matches!(error, BundleError::UnreadableLists { .. }), "{error}");
}

#[test]
fn files_are_read_again_when_they_are_written_or_replaced() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("root.pem");
    let mut inputs = Inputs::new(&CertificateOptions { trust_bundle: Some(path.clone()), ..options() });
    let objects = Objects::default();
    let missing = settled(&mut inputs, &objects).expect("it is new").expect_err("no such file");
    assert!(matches!(missing, BundleError::Unreadable { .. }), "{missing}");
    assert!(inputs.has_bundle(), "a named file must be there");
    let (one, two) = (root("one"), root("two"));
    for text in [&one, &two] {
        fs::write(&path, text).expect("written");
        assert!(settled(&mut inputs, &objects).expect("it has changed").is_ok());
        assert!(settled(&mut inputs, &objects).is_none());
    }
    // As a mounted config map changes: another file at the same path.
    let other = dir.path().join("other.pem");
    fs::write(&other, &one).expect("written");
    fs::rename(&other, &path).expect("renamed");
    assert!(settled(&mut inputs, &objects).expect("it has changed").is_ok());
}

#[test]
fn a_pair_that_does_not_match_for_a_moment_is_no_problem() {
    let dir = tempfile::tempdir().expect("a folder");
    let (certificate, key) = (dir.path().join("client.pem"), dir.path().join("client.key"));
    let pair = || {
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::default().self_signed(&key).expect("signed").pem();
        (certificate, key.serialize_pem())
    };
    let write = |pair: &(String, String)| {
        fs::write(&certificate, &pair.0).expect("written");
        fs::write(&key, &pair.1).expect("written");
    };
    let mut inputs =
        Inputs::new(&CertificateOptions { client: Some((certificate.clone(), key.clone())), ..options() });
    let start = Instant::now();
    let (old, new) = (pair(), pair());
    write(&old);
    assert!(inputs.client(start).expect("it is new").is_ok());
    fs::write(&certificate, &new.0).expect("written");
    assert!(inputs.client(start).is_none(), "the key is still on its way");
    fs::write(&key, &new.1).expect("written");
    assert!(inputs.client(start + SETTLE).expect("it has changed").is_ok());
    assert!(inputs.client(start + SETTLE).is_none());

    fs::write(&key, &old.1).expect("written");
    assert!(inputs.client(start).is_none());
    assert!(inputs.client(start + SETTLE / 2).is_none());
    let problem = inputs.client(start + SETTLE).expect("it stays so").expect_err("of another certificate");
    assert!(problem.contains("does not belong"), "{problem}");
    assert!(inputs.client(start + SETTLE * 3).is_none(), "told once");
}
