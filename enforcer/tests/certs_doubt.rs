//! Servers that are neither clearly strict nor clearly lax: what looks like an answer may be a lost application, a slow
//! machine, or another name.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use enforcer::certificate::finding::{Accepted, Client, Outcome, Refused};
use enforcer::certificate::probe::Settings;
use enforcer::certificate::state::State;

#[expect(dead_code, reason = "shared with other tests")]
#[path = "certs_servers/own.rs"]
mod own;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "certs_servers/support.rs"]
mod support;

use own::Clients;
use support::{Checked, Mesh, envoy_tcp, nginx_by_name, s_server, settings, stunnel_before};

const FOREIGN: [Client; 3] = [Client::SelfSigned, Client::ForeignCa, Client::Expired];

fn mesh() -> Mesh {
    let mesh = Mesh::new();
    mesh.issue("server", |_| {});
    mesh
}

/// An application that keeps its connections open and says nothing.
fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let held: Vec<_> = listener.incoming().collect();
        drop(held);
    });
    address
}

/// An application that ends each connection soon.
fn crashing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                drop(stream);
            });
        }
    });
    address
}

/// A port at which nobody listens.
fn down() -> SocketAddr {
    support::free_port()
}

#[track_caller]
fn nothing_is_said(checked: &Checked, clients: &[Client]) {
    for client in clients {
        let outcome = checked.outcome(*client);
        assert!(matches!(outcome, Outcome::Inconclusive { .. }), "{client}: {:#?}", checked.probe);
    }
}

#[test]
fn envoy_whose_application_is_down_is_not_taken_for_strict() {
    let mesh = mesh();
    for version in ["TLSv1_2", "TLSv1_3"] {
        for behind in [down(), crashing()] {
            let lax = envoy_tcp(&mesh, behind, false, version);
            for checked in
                [mesh.check(lax.address, &settings()), mesh.check_as_stranger(lax.address, &settings())]
            {
                assert!(!checked.state.is_certain(), "{:#?}", checked.probe);
                let inconclusive = |outcome: &Outcome| matches!(outcome, Outcome::Inconclusive { .. });
                assert!(
                    checked.probe.clients.iter().all(|result| inconclusive(&result.outcome)),
                    "{:#?}",
                    checked.probe
                );
            }
        }
        let lax = envoy_tcp(&mesh, application(), false, version);
        mesh.check(lax.address, &settings()).is(State::NoClientAuth);
        mesh.check_as_stranger(lax.address, &settings()).is(State::NoClientAuth);
    }
}

#[test]
fn envoy_that_insists_is_not_taken_for_untrusted_when_its_application_is_down() {
    let mesh = mesh();
    for version in ["TLSv1_2", "TLSv1_3"] {
        for behind in [down(), crashing()] {
            let strict = envoy_tcp(&mesh, behind, true, version);
            let checked = mesh.check(strict.address, &settings());
            // That of the mesh client is closed as all others are: nothing is said of it, and nothing taken away by it.
            assert!(checked.state == State::Verified || !checked.state.is_certain(), "{:#?}", checked.probe);
            let mesh_client = checked.probe.clients.iter().find(|result| result.client == Client::Mesh);
            let refused = mesh_client.is_some_and(|result| matches!(result.outcome, Outcome::Refused(_)));
            assert!(!refused, "{:#?}", checked.probe);
        }
        let strict = envoy_tcp(&mesh, application(), true, version);
        mesh.check(strict.address, &settings()).is(State::Verified).accepted(&[Client::Mesh]);
        mesh.check_as_stranger(strict.address, &settings()).is(State::Verified);
    }
}

#[test]
fn stunnel_whose_application_is_down_is_not_taken_for_strict() {
    let mesh = mesh();
    for version in ["TLSv1.2", "TLSv1.3"] {
        let options = format!("verify = 1\nsslVersion = {version}");
        let checked = mesh.check(stunnel_before(&mesh, down(), &options).address, &settings());
        assert!(!checked.state.is_certain(), "{:#?}", checked.probe);
        let lax = stunnel_before(&mesh, application(), &options);
        mesh.check(lax.address, &settings()).is(State::NoClientAuth);
        let options = format!("verify = 2\nsslVersion = {version}");
        let strict = stunnel_before(&mesh, application(), &options);
        mesh.check(strict.address, &settings()).is(State::Verified).accepted(&[Client::Mesh]);
    }
}

#[test]
fn a_server_that_verifies_rsa_alone_is_found_out_too() {
    let mesh = mesh();
    let only = ["-client_sigalgs", "RSA-PSS+SHA256:RSA+SHA256"];
    for version in ["-tls1_2", "-tls1_3"] {
        let any = s_server(&mesh, "server", &[&["-Verify", "3", version], &only[..]].concat());
        let checked = mesh.check(any.address, &settings());
        checked.is(State::AcceptsForeign);
        for client in FOREIGN {
            assert!(matches!(checked.outcome(client), Outcome::Accepted(_)), "{:#?}", checked.probe);
        }
        // Our own key is of the other kind: that is no refusal.
        nothing_is_said(&checked, &[Client::Mesh]);
        let strict = ["-Verify", "3", "-verify_return_error", version];
        let strict = s_server(&mesh, "server", &[&strict, &only[..]].concat());
        mesh.check(strict.address, &settings()).is(State::Verified);
    }
    // A server that takes no kind that there is.
    let odd = s_server(&mesh, "server", &["-Verify", "3", "-client_sigalgs", "ed25519", "-tls1_3"]);
    let checked = mesh.check(odd.address, &settings());
    checked.is(State::Unchecked);
    nothing_is_said(&checked, &FOREIGN);
}

#[test]
fn a_server_that_is_lax_under_another_name_is_found_out() {
    let mesh = mesh();
    let server = nginx_by_name(&mesh, "on", "web.shop.svc.cluster.local", "off");
    mesh.check(server.address, &settings()).is(State::Verified);
    let names = ["web", "web.shop", "web.shop.svc.cluster.local"];
    let checked = mesh.check_with(server.address, &settings(), &names);
    checked.is(State::NoClientAuth);
    let accepted: Vec<_> = checked
        .probe
        .clients
        .iter()
        .filter(|result| result.client == Client::Named && matches!(result.outcome, Outcome::Accepted(_)))
        .map(|result| result.server_name.as_deref().expect("a name"))
        .collect();
    assert_eq!(accepted, ["web.shop.svc.cluster.local"]);
    // With each other name strict too, nothing is found.
    let server = nginx_by_name(&mesh, "on", "web.shop.svc.cluster.local", "on");
    mesh.check_with(server.address, &settings(), &names).is(State::Verified);
}

#[test]
fn a_close_behind_the_handshake_is_judged_by_the_mesh_client() {
    let mesh = mesh();
    let clients = Clients { anonymous: true, delay: Duration::ZERO };
    // TLS lets in those without a certificate, the layer above does not.
    let server = own::serve(&mesh, clients, own::hold_known);
    let checked = mesh.check(server, &settings());
    checked.is(State::Verified);
    assert_eq!(*checked.outcome(Client::NoCertificate), Outcome::Refused(Refused::Closed));
    let alone = mesh.check_as_stranger(server, &settings());
    alone.is(State::Unchecked);
    nothing_is_said(&alone, &[Client::NoCertificate, Client::PlainTls]);
    // All are closed.
    let server = own::serve(&mesh, clients, drop);
    mesh.check(server, &settings()).is(State::Unchecked);
}

#[test]
fn a_slow_server_is_not_taken_for_lax() {
    let mesh = mesh();
    let quick = Settings { http_probe: false, patience: Duration::from_secs(3), ..settings() };
    let clients = Clients { anonymous: false, delay: Duration::from_millis(600) };
    // Slower than the first look, quicker than the second one.
    let server = own::serve(&mesh, clients, own::hold);
    let checked = mesh.check(server, &quick);
    checked.is(State::Verified);
    for client in Client::FORBIDDEN {
        assert!(matches!(checked.outcome(client), Outcome::Refused(Refused::Alert { .. })), "{client}");
    }
}

#[test]
fn silence_that_lasts_is_acceptance() {
    let mesh = mesh();
    let clients = Clients { anonymous: true, delay: Duration::ZERO };
    let checked = mesh.check(own::serve(&mesh, clients, own::hold), &settings());
    checked.is(State::NoClientAuth);
    let lasting = Outcome::Accepted(Accepted::Silent { waited_ms: 1000 });
    assert_eq!(*checked.outcome(Client::NoCertificate), lasting);
    for version in ["-tls1_2", "-tls1_3"] {
        let server = s_server(&mesh, "server", &["-verify", "3", "-num_tickets", "0", version]);
        mesh.check(server.address, &settings()).is(State::NoClientAuth);
    }
}

#[test]
fn a_signature_that_a_server_does_not_want_is_no_refusal_of_ours() {
    let mesh = mesh();
    let strict =
        s_server(&mesh, "server", &["-Verify", "3", "-verify_return_error", "-client_sigalgs", "ed25519"]);
    let checked = mesh.check(strict.address, &settings());
    nothing_is_said(&checked, &[Client::SelfSigned, Client::Mesh]);
    checked.is(State::Unchecked);
}

#[test]
fn the_end_of_a_tunnel_speaks_tls_1_3() {
    let mesh = mesh();
    let insist = ["-Verify", "3", "-verify_return_error", "-alpn", "h2"];
    let server = s_server(&mesh, "server", &insist);
    let checked = mesh.check_tunnel(server.address, &settings());
    checked.is(State::Verified);
    let seen = checked.probe.server.as_ref().expect("a handshake");
    assert_eq!((seen.alpn.as_deref(), seen.version.as_deref()), (Some("h2"), Some("TLS 1.3")));
    let old = s_server(&mesh, "server", &[&insist[..], &["-tls1_2"]].concat());
    mesh.check_tunnel(old.address, &settings()).is(State::Untrusted);
}
