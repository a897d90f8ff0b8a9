use super::*;

fn expected() -> Expected {
    TrustDomains::new("cluster.local", ["old.example".to_owned()])
        .expected("shop", "frontend")
        .expect("well-formed names")
}

#[test]
fn five_segments_and_nothing_else() {
    let id: SpiffeId = "spiffe://td/ns/n/sa/s".parse().expect("well formed");
    assert_eq!((id.trust_domain(), id.namespace(), id.service_account()), ("td", "n", "s"));
    for wrong in [
        "",
        "spiffe://",
        "td/ns/n/sa/s",
        "SPIFFE://td/ns/n/sa/s",
        "https://td/ns/n/sa/s",
        "spiffe:/td/ns/n/sa/s",
        "spiffe://td/ns/n/sa",
        "spiffe://td/ns/n/sa/s/",
        "spiffe://td/ns/n/sa/s/t",
        "spiffe://td//ns/n/sa/s",
        "spiffe://td/NS/n/sa/s",
        "spiffe://td/ns/n/SA/s",
        "spiffe://td/sa/s/ns/n",
        "spiffe:///ns/n/sa/s",
        "spiffe://td/ns//sa/s",
        "spiffe://td/ns/n/sa/",
    ] {
        assert!(wrong.parse::<SpiffeId>().is_err(), "{wrong}");
    }
}

#[test]
fn display_and_parse_are_inverse() {
    let text = "spiffe://cluster.local/ns/shop/sa/frontend";
    assert_eq!(text.parse::<SpiffeId>().expect("well formed").to_string(), text);
}

#[test]
fn the_comparison_is_exact() {
    let expected = expected();
    assert!(expected.matches("spiffe://cluster.local/ns/shop/sa/frontend"));
    assert!(expected.matches("spiffe://old.example/ns/shop/sa/frontend"));
    for other in [
        "spiffe://cluster.local/ns/shop/sa/Frontend",
        "spiffe://cluster.local/ns/shop/sa/frontend2",
        "spiffe://cluster.local/ns/shops/sa/frontend",
        "spiffe://Cluster.local/ns/shop/sa/frontend",
        "spiffe://cluster.local/ns/shop/sa/frontend/",
        "spiffe://cluster.local/ns/shop/sa/%66rontend",
        "spiffe://cluster.local:443/ns/shop/sa/frontend",
        "spiffe://other.example/ns/shop/sa/frontend",
        "spiffe://old.example.cluster.local/ns/shop/sa/frontend",
        "frontend.shop.svc.cluster.local",
    ] {
        assert!(!expected.matches(other), "{other}");
    }
}

#[test]
fn an_at_sign_in_a_trust_domain_is_written_as_a_dot() {
    let domains = TrustDomains::new("me@corp.example", ["you@corp.example".to_owned()]);
    let expected = domains.expected("n", "s").expect("well-formed names");
    assert_eq!(expected.id.to_string(), "spiffe://me.corp.example/ns/n/sa/s");
    assert!(expected.matches("spiffe://you.corp.example/ns/n/sa/s"));
    assert!(!expected.matches("spiffe://me@corp.example/ns/n/sa/s"));
}

#[test]
fn aliases_are_reduced() {
    let aliases = ["", "a", "own", "a", "b"].map(str::to_owned);
    assert_eq!(TrustDomains::new("own", aliases).aliases, ["a", "b"]);
}

#[test]
fn names_that_cannot_be_an_identity_are_refused() {
    assert!(SpiffeId::new("td", "", "s").is_err());
    assert!(SpiffeId::new("td", "a/b", "s").is_err());
    assert!(SpiffeId::new("", "n", "s").is_err());
}

proptest::proptest! {
    #[test]
    fn any_text_is_parsed_without_panic_and_round_trips(text in ".{0,80}") {
        if let Ok(id) = text.parse::<SpiffeId>() {
            proptest::prop_assert_eq!(id.to_string(), text);
        }
    }
}
