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
    assert!(inputs.bundle(&objects).is_none() && !inputs.has_bundle(), "there is none yet");

    with_map(&mut objects, "apps", "roots", DEFAULT_CONFIG_MAP_KEY, &stale);
    let of = |text: &str| TrustBundle::from_pem(text.as_bytes()).expect("a bundle").fingerprint().to_owned();
    let mut fingerprint = |objects: &Objects| {
        inputs.bundle(objects).map(|bundle| bundle.expect("a bundle").fingerprint().to_owned())
    };
    assert_eq!(fingerprint(&objects), Some(of(&stale)));
    assert_eq!(fingerprint(&objects), None, "nothing has changed");
    with_map(&mut objects, "istio-system", "roots", DEFAULT_CONFIG_MAP_KEY, &current);
    assert_eq!(fingerprint(&objects), Some(of(&current)));

    objects.config_maps.clear();
    let gone = inputs.bundle(&objects).expect("it has changed").expect_err("it is gone");
    assert_eq!(gone.to_string(), "there is no trust bundle: config map roots with key root-cert.pem is gone");
}

#[test]
fn revocation_lists_belong_to_the_bundle() {
    let mut objects = Objects::default();
    let mut inputs = Inputs::new(&options());
    with_map(&mut objects, "istio-system", "roots", DEFAULT_CONFIG_MAP_KEY, &root("one"));
    assert!(inputs.bundle(&objects).expect("it is new").expect("good").revocation_lists().is_empty());
    with_map(&mut objects, "istio-system", "lists", CRL_CONFIG_MAP_KEY, "garbage");
    let broken = inputs.bundle(&objects).expect("it has changed");
    assert_eq!(broken.expect_err("no list"), BundleError::NoRevocationList);
    with_map(&mut objects, "istio-system", "lists", CRL_CONFIG_MAP_KEY, " \n");
    assert!(inputs.bundle(&objects).expect("it has changed").is_ok(), "an empty text is no list");

    let dir = tempfile::tempdir().expect("a folder");
    let missing = CertificateOptions { crl: Some(dir.path().join("crl.pem")), ..options() };
    let error = Inputs::new(&missing).bundle(&objects).expect("it is new").expect_err("no such file");
    assert!(matches!(error, BundleError::UnreadableLists { .. }), "{error}");
}

#[test]
fn files_are_read_again_when_they_are_written_or_replaced() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("root.pem");
    let mut inputs = Inputs::new(&CertificateOptions { trust_bundle: Some(path.clone()), ..options() });
    let objects = Objects::default();
    let missing = inputs.bundle(&objects).expect("it is new").expect_err("no such file");
    assert!(matches!(missing, BundleError::Unreadable { .. }), "{missing}");
    assert!(inputs.has_bundle(), "a named file must be there");
    let (one, two) = (root("one"), root("two"));
    for text in [&one, &two] {
        fs::write(&path, text).expect("written");
        assert!(inputs.bundle(&objects).expect("it has changed").is_ok());
        assert!(inputs.bundle(&objects).is_none());
    }
    // As a mounted config map changes: another file at the same path.
    let other = dir.path().join("other.pem");
    fs::write(&other, &one).expect("written");
    fs::rename(&other, &path).expect("renamed");
    assert!(inputs.bundle(&objects).expect("it has changed").is_ok());
}
