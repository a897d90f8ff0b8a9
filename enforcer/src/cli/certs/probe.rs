//! `enforcer certs probe`: one check by hand.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use rustls_pki_types::DnsName;
use serde::Serialize;

use super::super::EXIT_NO;
use super::super::output::{OutputFormat, print_json};
use super::{Switch, seconds, text};
use crate::certificate::bundle::TrustBundle;
use crate::certificate::client;
use crate::certificate::finding::Finding;
use crate::certificate::forbidden::ForbiddenClients;
use crate::certificate::probe::{Probe, Request, Settings, probe};
use crate::certificate::spiffe::{Expected, SpiffeId};
use crate::certificate::state::{State, judge};

/// Arguments of `enforcer certs probe`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The server, ADDRESS:PORT; IPv6 as [ADDRESS]:PORT.
    #[arg(value_name = "ADDRESS:PORT")]
    server: String,
    /// The identity it must have, as `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`; without it any will do.
    #[arg(long, value_name = "SPIFFE-ID")]
    expect: Option<SpiffeId>,
    /// Further trust domains that are accepted in the identity.
    #[arg(long, value_name = "DOMAIN", requires = "expect")]
    trust_domain_alias: Vec<String>,
    /// PEM file with the mesh's root certificates; without it the chain is not checked, and mutual TLS of the mesh cannot be
    /// proven.
    #[arg(long, env = "ENFORCER_TRUST_BUNDLE", value_name = "FILE")]
    trust_bundle: Option<PathBuf>,
    /// PEM file with revocation lists.
    #[arg(long, value_name = "FILE", requires = "trust_bundle")]
    crl: Option<PathBuf>,
    /// PEM file with a mesh certificate, which the server must accept.
    #[arg(long, value_name = "FILE", requires = "client_key")]
    client_certificate: Option<PathBuf>,
    /// PEM file with its private key.
    #[arg(long, value_name = "FILE", requires = "client_certificate")]
    client_key: Option<PathBuf>,
    /// Server name (SNI) to ask for, such as `outbound_.8080_._.web.shop.svc.cluster.local`; none by default.
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// Name that a client without a certificate asks for too, such as `web.shop.svc.cluster.local`: a server may treat
    /// its clients by name; may be given several times.
    #[arg(long, value_name = "NAME")]
    server_name: Vec<String>,
    /// The server is the end of a tunnel of ambient mode (HBONE, port 15008): mesh clients offer ALPN `h2` and TLS 1.3.
    #[arg(long, conflicts_with = "sni")]
    hbone: bool,
    /// Limit for connecting and handshake of one connection, seconds.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    timeout: Duration,
    /// How long to wait for a refusal after the handshake, seconds.
    #[arg(long, value_name = "SECONDS", default_value = "0.75", value_parser = seconds)]
    alert_wait: Duration,
    /// Whether a server that asks for a certificate but goes on without one may be sent `OPTIONS / HTTP/1.1`, to
    /// find out whether it refuses in HTTP.
    #[arg(long, value_enum, default_value_t)]
    http_probe: Switch,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// The form of `-o json`.
#[expect(clippy::struct_excessive_bools, reason = "each is a field of the output")]
#[derive(Serialize)]
struct Answer<'a> {
    server: SocketAddr,
    /// By all that was checked.
    state: State,
    /// Clients that must be refused are refused, the chain leads to the bundle, and the identity is the expected one, where
    /// one was named.
    mutual_tls: bool,
    /// Clients that must be refused are refused; says nothing of the server's own certificate.
    clients_verified: bool,
    chain_checked: bool,
    identity_checked: bool,
    #[serde(flatten)]
    probe: &'a Probe,
}

/// Runs the check: exit code 0 when mutual TLS is proven, else 1.
///
/// # Errors
/// An argument or file is wrong.
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let server = address(&args.server)?;
    let bundle = args.trust_bundle.as_deref().map(TrustBundle::from_file).transpose()?;
    let bundle = match (bundle, &args.crl) {
        (Some(bundle), Some(path)) => {
            let lists = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            Some(bundle.with_revocation_lists(&lists)?)
        }
        (bundle, _) => bundle,
    };
    let mesh_client = match (&args.client_certificate, &args.client_key) {
        (Some(certificate), Some(key)) => Some(client::load(certificate, key)?),
        _ => None,
    };
    let server_name = args.sni.clone().map(DnsName::try_from).transpose();
    let server_name = server_name.context("--sni is no DNS name")?;
    let names = args.server_name.iter().cloned().map(DnsName::try_from).collect::<Result<Vec<_>, _>>();
    let names = names.context("--server-name is no DNS name")?;
    let trust_domain = args.expect.as_ref().map(|id| id.trust_domain().to_owned());
    let forbidden = ForbiddenClients::generate(trust_domain.as_deref(), Timestamp::now())?;
    let expected = args.expect.map(|id| Expected { id, aliases: args.trust_domain_alias });
    let settings = Settings {
        timeout: args.timeout,
        alert_wait: args.alert_wait,
        http_probe: args.http_probe == Switch::On,
        ..Settings::default()
    };
    let request = Request {
        address: server,
        server_name: server_name.as_ref(),
        names: &names,
        tunnel: args.hbone,
        bundle: bundle.as_ref(),
        expected: expected.as_ref(),
        forbidden: &forbidden,
        mesh_client: mesh_client.as_ref(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("cannot start")?.block_on(probe(request, &settings));

    // By hand the bundle may be left out; then the rest of the answer stands on its own.
    let asked_for = result.findings.iter().filter(|finding| **finding != Finding::NoTrustBundle);
    let state = judge(&asked_for.cloned().collect::<Vec<_>>());
    let chain_checked = bundle.is_some() && result.server.is_some();
    let answer = Answer {
        server,
        state,
        mutual_tls: state.is_good() && chain_checked,
        clients_verified: state.is_good(),
        chain_checked,
        identity_checked: expected.is_some() && result.server.is_some(),
        probe: &result,
    };
    match args.output {
        OutputFormat::Json => print_json(&answer)?,
        OutputFormat::Table => print(&answer),
    }
    Ok(if answer.mutual_tls { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) })
}

fn print(answer: &Answer<'_>) {
    print!("{}", text::page(answer.probe, Timestamp::now()));
    for finding in &answer.probe.findings {
        println!("{:<31}{finding}", "finding:");
    }
    if answer.mutual_tls && !answer.identity_checked {
        println!("{:<31}identity not checked: give --expect", "note:");
    }
    if answer.clients_verified && !answer.chain_checked {
        println!(
            "{:<31}clients are verified; chain not checked, so that mutual TLS of the mesh is not proven: give --trust-bundle",
            "state:"
        );
        return;
    }
    let verdict = if answer.mutual_tls { "mutual TLS is proven" } else { "mutual TLS is not proven" };
    println!("{:<31}{} ({verdict}); {}", "state:", answer.state, answer.state.remedy());
}

fn address(text: &str) -> anyhow::Result<SocketAddr> {
    let hint = || format!("{text:?} is no ADDRESS:PORT; write for example 10.0.0.7:8080 or [fd00::7]:8080");
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    text.to_socket_addrs().with_context(hint)?.next().with_context(hint)
}
