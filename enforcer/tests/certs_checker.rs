//! The checker task against a real server: results, block and opening, bundle rotation, the file.

use std::time::Duration;

use enforcer::certificate::bundle::TrustBundle;
use enforcer::certificate::checker::{Checker, CheckerConfig, Front, Target};
use enforcer::certificate::report::CertificateReport;
use enforcer::certificate::schedule::ScheduleSettings;
use enforcer::certificate::spiffe::TrustDomains;
use enforcer::certificate::state::{Consequences, OnFailure, State};
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
        service: Some(Front { name: "web".to_owned(), port: 80 }),
    }
}

async fn until(
    reports: &mut watch::Receiver<CertificateReport>,
    what: &str,
    wanted: impl FnMut(&CertificateReport) -> bool,
) -> CertificateReport {
    let found = tokio::time::timeout(Duration::from_secs(20), reports.wait_for(wanted)).await;
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
    let port = (ObjectName::new("shop", "web-1"), address.port());
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
