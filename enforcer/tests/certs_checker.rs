//! The checker task against a real server: results, block and opening, bundle rotation, the file.

use std::time::Duration;

use enforcer::certificate::bundle::TrustBundle;
use enforcer::certificate::checker::{Checker, CheckerConfig};
use enforcer::certificate::finding::Client;
use enforcer::certificate::report::{CertificateReport, PodPort};
use enforcer::certificate::schedule::ScheduleSettings;
use enforcer::certificate::spiffe::TrustDomains;
use enforcer::certificate::state::{Consequences, OnFailure, State};
use enforcer::certificate::target::{Target, istio_server_name};
use enforcer::object::ObjectName;
use tokio::sync::watch;

#[expect(dead_code, reason = "shared with another test")]
#[path = "certs_servers/support.rs"]
mod support;

use support::{Mesh, s_server_at, settings};

const INSIST: [&str; 3] = ["-Verify", "3", "-verify_return_error"];

fn target(port: u16) -> Target {
    Target {
        pod: ObjectName::new("shop", "web-1"),
        address: [127, 0, 0, 1].into(),
        port,
        expected: TrustDomains::default().expected("shop", "web").expect("an identity"),
        uid: "u".to_owned(),
        server_name: istio_server_name(80, "web", "shop", "cluster.local"),
        names: Vec::new(),
        tunnel: false,
    }
}

async fn until(
    reports: &mut watch::Receiver<CertificateReport>,
    what: &str,
    wanted: impl FnMut(&CertificateReport) -> bool,
) -> CertificateReport {
    let found = tokio::time::timeout(Duration::from_secs(40), reports.wait_for(wanted)).await;
    found.unwrap_or_else(|_| panic!("never {what}")).expect("the checker runs").clone()
}

#[tokio::test]
async fn a_lax_server_is_blocked_and_opened_when_it_is_fixed() {
    let mesh = Mesh::new();
    mesh.issue("server", |_| {});
    let address = support::free_port();
    let bundle = || TrustBundle::from_file(&mesh.path("root.pem"));
    let file = mesh.path("certificates.json");
    let config = CheckerConfig {
        probe: settings(),
        schedule: ScheduleSettings {
            interval: Duration::from_millis(800),
            retry: Duration::from_millis(200),
            ..ScheduleSettings::default()
        },
        consequences: Consequences { on_failure: OnFailure::Block, ..Consequences::default() },
        trust_domain: None,
        file: Some(file.clone()),
        earlier: CertificateReport::default(),
    };
    let checker = Checker::spawn(config).expect("it starts");
    let mut reports = checker.subscribe();

    let server = s_server_at(&mesh, address, "server", &["-verify", "3"]);
    checker.set_bundle(bundle());
    checker.set_targets(vec![target(address.port())]);
    let key = (address.ip(), address.port());
    let port = PodPort { pod: ObjectName::new("shop", "web-1"), uid: "u".to_owned(), port: address.port() };
    let report = until(&mut reports, "blocked", |report| report.blocked().contains(&port)).await;
    assert_eq!(report.state(key.0, key.1), State::NoClientAuth);
    drop(server);

    let _server = s_server_at(&mesh, address, "server", &INSIST);
    let report = until(&mut reports, "opened", |report| report.blocked().is_empty()).await;
    assert_eq!(report.state(key.0, key.1), State::Verified);
    assert!(report.entries[0].expires.is_some());

    // Rotation: old -> both -> new while the server still has a certificate of the old root.
    let other = Mesh::new();
    let read = |mesh: &Mesh| std::fs::read(mesh.path("root.pem")).expect("a root");
    checker.set_bundle(TrustBundle::from_pem(b"broken"));
    let report =
        until(&mut reports, "told of the broken bundle", |report| report.bundle_problem.is_some()).await;
    assert_eq!(report.state(key.0, key.1), State::Verified);
    checker.set_bundle(TrustBundle::from_pem(&[read(&mesh), read(&other)].concat()));
    for _ in 0..8 {
        reports.changed().await.expect("the checker runs");
        assert_eq!(reports.borrow().state(key.0, key.1), State::Verified, "no false alarm");
    }
    checker.set_bundle(TrustBundle::from_pem(&read(&other)));
    until(&mut reports, "untrusted", |report| report.state(key.0, key.1) == State::Untrusted).await;

    tokio::time::sleep(Duration::from_millis(2500)).await;
    let kept = CertificateReport::read(&file).expect("the file is there");
    assert_eq!(kept.state(key.0, key.1), State::Untrusted);
    checker.set_targets(Vec::new());
    until(&mut reports, "forgotten", |report| report.entries.is_empty()).await;
}

/// A checker with this interval.
fn checker(mesh: &Mesh, interval: Duration) -> Checker {
    let config = CheckerConfig {
        probe: settings(),
        schedule: ScheduleSettings {
            interval,
            retry: Duration::from_millis(200),
            ..ScheduleSettings::default()
        },
        ..CheckerConfig::default()
    };
    let checker = Checker::spawn(config).expect("it starts");
    checker.set_bundle(TrustBundle::from_file(&mesh.path("root.pem")));
    checker
}

fn own_client(mesh: &Mesh, name: &str) -> Result<std::sync::Arc<rustls::sign::CertifiedKey>, String> {
    let loaded = enforcer::certificate::client::load(
        &mesh.path(&format!("{name}.pem")),
        &mesh.path(&format!("{name}.key")),
    );
    loaded.map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_bad_certificate_of_our_own_is_not_held_against_servers() {
    let mesh = Mesh::new();
    mesh.issue("server", |_| {});
    mesh.issue("old", |params| params.not_after = rcgen::date_time_ymd(2024, 1, 1));
    let foreign = Mesh::new();
    let server = support::s_server(&mesh, "server", &INSIST);
    let checker = checker(&mesh, Duration::from_millis(500));
    let mut reports = checker.subscribe();
    checker.set_targets(vec![target(server.address.port())]);
    let clients = |report: &CertificateReport| {
        let probe = report.entries.first().and_then(|entry| entry.probe.as_ref());
        let mut clients = probe.iter().flat_map(|probe| &probe.clients).map(|result| result.client);
        probe.is_some().then(|| clients.any(|client| client == Client::Mesh))
    };
    for bad in [own_client(&mesh, "old"), own_client(&foreign, "client")] {
        checker.set_mesh_client(bad);
        let told =
            |report: &CertificateReport| report.client_problem.is_some() && clients(report) == Some(false);
        let report = until(&mut reports, "told of it, and checked without it", told).await;
        assert_eq!(report.entries[0].history.state, State::Verified, "{report:#?}");
        let problem = report.client_problem.expect("a problem");
        assert!(problem.contains("not shown to servers until it is renewed"), "{problem}");
        // A good one has everything checked at once.
        checker.set_mesh_client(own_client(&mesh, "client"));
        let good =
            |report: &CertificateReport| report.client_problem.is_none() && clients(report) == Some(true);
        let report = until(&mut reports, "checked with it", good).await;
        assert_eq!(report.entries[0].history.state, State::Verified, "{report:#?}");
    }
    // With roots that do not know it, it is not shown either.
    checker.set_bundle(TrustBundle::from_file(&foreign.path("root.pem")));
    until(&mut reports, "told of it", |report| report.client_problem.is_some()).await;
}

#[tokio::test]
async fn a_lost_check_takes_nothing_away_and_another_pod_is_another_server() {
    let mesh = Mesh::new();
    mesh.issue("server", |_| {});
    let address = support::free_port();
    let checker = checker(&mesh, Duration::from_millis(500));
    let mut reports = checker.subscribe();
    let server = s_server_at(&mesh, address, "server", &INSIST);
    checker.set_targets(vec![target(address.port())]);
    let state = |report: &CertificateReport| report.entries.first().map(|entry| entry.history.state);
    until(&mut reports, "verified", |report| state(report) == Some(State::Verified)).await;
    drop(server);
    let report = until(&mut reports, "unreachable", |report| state(report) == Some(State::Unreachable)).await;
    let entry = &report.entries[0];
    assert!(entry.expires.is_some() && !entry.doubts.is_empty(), "{entry:#?}");
    let chain = entry.probe.as_ref().and_then(|probe| probe.server.as_ref()).map(|server| server.chain.len());
    assert_eq!(chain, Some(2));

    // Of another pod with the name and address of the first one nothing is known.
    checker.set_targets(vec![Target { uid: "v".to_owned(), ..target(address.port()) }]);
    let report = until(&mut reports, "another", |report| report.entries[0].uid == "v").await;
    assert!(!report.entries[0].history.known && report.entries[0].expires.is_none(), "{report:#?}");
    let _server = s_server_at(&mesh, address, "server", &INSIST);
    until(&mut reports, "verified", |report| state(report) == Some(State::Verified)).await;
}
