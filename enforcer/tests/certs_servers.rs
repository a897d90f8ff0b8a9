//! Every state of the certificate check, reached against real servers.

use enforcer::certificate::finding::{Client, Finding, Outcome, Refused};
use enforcer::certificate::probe::Settings;
use enforcer::certificate::state::State;
use rcgen::date_time_ymd;

#[expect(dead_code, reason = "shared with other tests")]
#[path = "certs_servers/support.rs"]
mod support;

use support::{Mesh, free_port, nginx, s_server, settings, stunnel, uri};

const BOTH: &str = "TLSv1.2 TLSv1.3";
const FORBIDDEN: [Client; 5] = Client::FORBIDDEN;

fn mesh() -> Mesh {
    let mesh = Mesh::new();
    mesh.issue("server", |_| {});
    mesh
}

#[test]
fn nginx_that_insists_is_verified() {
    let mesh = mesh();
    for protocols in ["TLSv1.2", BOTH] {
        let server = nginx(&mesh, "on", protocols, "server");
        let checked = mesh.check(server.address, &settings());
        checked.is(State::Verified).accepted(&[Client::Mesh]);
        let by_http = Outcome::Refused(Refused::Http { status: 400 });
        assert_eq!(*checked.outcome(Client::NoCertificate), by_http);
        // Without the question in HTTP, what TLS says is all there is.
        let silent = Settings { http_probe: false, ..settings() };
        mesh.check(server.address, &silent).is(State::NoClientAuth);
    }
}

#[test]
fn nginx_that_only_asks_is_found_out() {
    let mesh = mesh();
    for protocols in ["TLSv1.2", BOTH] {
        let server = nginx(&mesh, "optional", protocols, "server");
        let checked = mesh.check(server.address, &settings());
        checked.is(State::NoClientAuth).accepted(&[Client::NoCertificate, Client::PlainTls, Client::Mesh]);
        let server = nginx(&mesh, "optional_no_ca", protocols, "server");
        mesh.check(server.address, &settings()).is(State::NoClientAuth);
    }
}

#[test]
fn nginx_that_does_not_ask_is_found_out() {
    let mesh = mesh();
    let server = nginx(&mesh, "off", BOTH, "server");
    let checked = mesh.check(server.address, &settings());
    checked.is(State::NoClientAuth);
    assert_eq!(checked.probe.server.as_ref().and_then(|server| server.asks_for.as_ref()), None);
}

#[test]
fn openssl_that_insists_is_verified_with_every_kind_of_key() {
    let mesh = mesh();
    mesh.issue_by_openssl("ed25519", "ED25519");
    mesh.issue_by_openssl("rsa", "RSA");
    for (name, kind) in [("server", "ECDSA P-256"), ("ed25519", "Ed25519"), ("rsa", "RSA 2048")] {
        for (version, number) in [("-tls1_2", "TLS 1.2"), ("-tls1_3", "TLS 1.3")] {
            let server = s_server(&mesh, name, &["-Verify", "3", "-verify_return_error", version]);
            let checked = mesh.check(server.address, &settings());
            checked.is(State::Verified).accepted(&[Client::Mesh]);
            let seen = checked.probe.server.as_ref().expect("a handshake");
            assert_eq!(seen.version.as_deref(), Some(number));
            assert_eq!((seen.chain.len(), seen.chain[0].key.as_str()), (2, kind));
            for client in FORBIDDEN {
                assert!(
                    matches!(checked.outcome(client), Outcome::Refused(Refused::Alert { .. })),
                    "{client} {version}: {:?}",
                    checked.outcome(client)
                );
            }
        }
    }
}

#[test]
fn openssl_that_only_asks_is_found_out() {
    let mesh = mesh();
    for version in ["-tls1_2", "-tls1_3"] {
        for arguments in
            [&["-verify", "3", version][..], &["-verify", "3", "-verify_return_error", version], &[version]]
        {
            let server = s_server(&mesh, "server", arguments);
            mesh.check(server.address, &settings()).is(State::NoClientAuth);
        }
    }
}

#[test]
fn openssl_that_takes_any_certificate_accepts_foreign_ones() {
    let mesh = mesh();
    for version in ["-tls1_2", "-tls1_3"] {
        let server = s_server(&mesh, "server", &["-Verify", "3", version]);
        let checked = mesh.check(server.address, &settings());
        checked.is(State::AcceptsForeign);
        checked.accepted(&[Client::SelfSigned, Client::ForeignCa, Client::Expired, Client::Mesh]);
    }
}

#[test]
fn stunnel_that_verifies_the_chain_is_verified() {
    let mesh = mesh();
    let server = stunnel(&mesh, "verifyChain = yes");
    mesh.check(server.address, &settings()).is(State::Verified);
}

const INSIST: [&str; 3] = ["-Verify", "3", "-verify_return_error"];

#[test]
fn dates_are_seen() {
    let mesh = Mesh::new();
    mesh.issue("expired", |params| params.not_after = date_time_ymd(2022, 1, 1));
    mesh.issue("future", |params| params.not_before = date_time_ymd(2118, 1, 1));
    for name in ["expired", "future"] {
        let server = s_server(&mesh, name, &INSIST);
        mesh.check(server.address, &settings()).is(State::Expired).accepted(&[Client::Mesh]);
    }
    let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    let day = tomorrow.to_zoned(jiff::tz::TimeZone::UTC).date();
    let (month, number) = (day.month().unsigned_abs(), day.day().unsigned_abs());
    mesh.issue("late", |params| {
        params.not_after = date_time_ymd(i32::from(day.year()), month, number);
    });
    let server = s_server(&mesh, "late", &INSIST);
    mesh.check(server.address, &settings()).is(State::Expiring);
}

#[test]
fn another_mesh_and_another_workload_are_seen() {
    let (mesh, other) = (mesh(), mesh());
    let server = s_server(&mesh, "server", &INSIST);
    let checked = other.check(server.address, &settings());
    checked.is(State::Untrusted).accepted(&[]);
    let refused = |finding: &Finding| matches!(finding, Finding::MeshClientRefused { .. });
    assert!(checked.probe.findings.iter().any(refused), "{:#?}", checked.probe);

    mesh.issue("other", |params| {
        params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/shop/sa/db")];
    });
    let server = s_server(&mesh, "other", &INSIST);
    mesh.check(server.address, &settings()).is(State::WrongIdentity);
}

#[test]
fn nobody_listening_is_unreachable() {
    let checked = mesh().check(free_port(), &settings());
    checked.is(State::Unreachable);
}
