use super::*;
use crate::telemetry::record::{Peer, Suppressed};

fn peer(address: [u8; 4], port: u16, name: Option<(&str, &str)>) -> Peer {
    let mut peer = Peer::at(address.into(), port);
    peer.namespace = name.map(|(namespace, _)| namespace.into());
    peer.pod = name.map(|(_, name)| name.into());
    peer
}

pub(crate) fn flow() -> Flow {
    Flow {
        time: "2026-01-01T00:00:10Z".parse().expect("a time"),
        direction: "to_pod".into(),
        client: peer([10, 0, 0, 9], 4000, Some(("legacy", "sleep"))),
        pod: peer([10, 0, 0, 1], 8080, Some(("shop", "web"))),
        class: "plaintext".into(),
        protocol: Some("http/1".into()),
        sni: None,
        alpn: Vec::new(),
        tls_versions: Vec::new(),
        verdict: "reset".into(),
        reason: "PLAINTEXT".into(),
        remedy: "Give it a certificate.".into(),
        mode: Some("STRICT".into()),
        policy: Some("istio-system/default".into()),
        level: Some("mesh".into()),
        generation: 3,
        bytes_to_pod: 80,
        bytes_from_pod: 0,
        duration_seconds: None,
    }
}

#[test]
fn filters_combine() {
    let line = Line::Verdict(flow());
    let takes = |query: &str| Filter::parse(query).expect("a query").takes(&line);
    for query in [
        "",
        "verdict=reset",
        "reason=plaintext&port=8080",
        "class=plaintext",
        "pod=shop/web",
        "pod=legacy%2Fsleep&verdict=RESET",
        "namespace=shop",
        "namespace=legacy",
        "since=2026-01-01T00:00:10Z",
    ] {
        assert!(takes(query), "{query}");
    }
    for query in [
        "verdict=allow",
        "reason=TLS",
        "class=mesh_tls",
        "port=4000",
        "pod=web",
        "namespace=other",
        "since=2026-01-01T00:00:11Z",
        "verdict=reset&port=1",
    ] {
        assert!(!takes(query), "{query}");
    }
}

#[test]
fn what_is_missing_is_always_told() {
    let gap = Line::Suppressed(Suppressed { suppressed: 4, ..Suppressed::default() });
    assert!(Filter::parse("verdict=reset&port=1").expect("a query").takes(&gap));
}

#[test]
fn queries_come_back() {
    let filter = Filter {
        verdict: Some(Verdict::RESET),
        reason: Some(Reason::PLAINTEXT),
        pod: Some("a b&c=d%é".into()),
        class: Some("mesh_tls"),
        namespace: Some("shop".into()),
        port: Some(80),
        since: Some("2026-01-01T00:00:11.5Z".parse().expect("a time")),
        last: Some(7),
        follow: true,
    };
    assert_eq!(Filter::parse(&filter.query()), Ok(filter));
    assert_eq!(Filter::default().query(), "");
}

#[test]
fn what_is_no_query_is_named() {
    let message = |query: &str| Filter::parse(query).expect_err("no query").to_string();
    assert!(message("color=red").contains("\"color\""));
    assert_eq!(message("port=http"), "parameter port: \"http\" is no port number");
    assert_eq!(message("since=yesterday"), "parameter since: \"yesterday\" is no time");
    assert!(message("follow=maybe").contains("1 or 0"));
    let wrong = message("verdict=resett");
    assert!(wrong.contains("\"resett\"") && wrong.contains("allow, reset, drop, would_reset"), "{wrong}");
    assert!(message("reason=FOO").contains("PLAINTEXT_PERMITTED"));
    assert!(message("class=tsl").contains("mesh_tls"));
    for never in ["verdict=wait", "reason=out_of_order"] {
        assert!(message(never).contains("never recorded"), "{never}");
    }
}

#[test]
fn every_word_of_a_record_can_be_filtered_by() {
    for one in Verdict::ALL.into_iter().filter(|one| *one != Verdict::WAIT) {
        assert_eq!(verdict(one.name()), Ok(one));
    }
    for one in
        Reason::ALL.iter().filter(|one| !one.name().starts_with("OUT") && !one.name().starts_with("SYN"))
    {
        assert_eq!(reason(&one.name().to_lowercase()), Ok(*one));
    }
}

#[test]
fn broken_escapes_stay() {
    for text in ["%", "%4", "%zz", "100%"] {
        assert_eq!(decode(text), text);
    }
    assert_eq!(decode("%41%2f"), "A/");
}
