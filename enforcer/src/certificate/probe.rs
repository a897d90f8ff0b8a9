//! One check of one server: what it presents, and what each client gets from it. Bounded in time, in bytes and in
//! connections, whatever the server does.
//!
//! The first connection is that of a mesh client that has no certificate; it shows the server's chain. Where the
//! server refuses the mesh's ALPN or SNI before it has shown its certificate (alert `no_application_protocol`,
//! `unrecognized_name`, a close), the same is tried without them: such a refusal says nothing about certificates.
//! Then every other client gets one connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, DnsName};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::bundle::TrustBundle;
use super::finding::{Accepted, Client, Finding, Outcome, Refused};
use super::forbidden::ForbiddenClients;
use super::spiffe::Expected;
use super::verify::{self, ExpiryWarning, Rules};
use super::x509::{Certificate, distinguished_name_of_der};
use session::{Ended, Failure, Hello, Session};

mod announce;
mod http;
mod session;

pub use announce::{Announcer, Notice};
pub use http::certificate_refusal;

/// ALPN of an Istio sidecar for a TCP service.
const MESH_ALPN: [&[u8]; 2] = [b"istio-peer-exchange", b"istio"];
/// ALPN of a client that is not of a mesh.
const PLAIN_ALPN: [&[u8]; 1] = [b"http/1.1"];
/// Mark of the agent's own connections (`SO_MARK`), by which the kernel side knows them. Avoids the bits that
/// kube-proxy (0xc000), Cilium (0x0f00) and Calico (0xffff0000) use.
pub const PROBE_MARK: u32 = enforcer_common::settings::OWN_PROBE_MARK;

/// How checks are made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Limit for one connection: connecting and the handshake. A whole check takes at most three times this and
    /// [`Self::alert_wait`] for every client.
    pub timeout: Duration,
    /// How long after its side of the handshake a client waits for the server's refusal. In TLS 1.3 the server
    /// decides about the client only after the client is done.
    pub alert_wait: Duration,
    /// Ask a server that accepted a client in TLS, although it wants certificates, with `OPTIONS / HTTP/1.1`
    /// whether its HTTP layer refuses it (nginx with `ssl_verify_client on`).
    pub http_probe: bool,
    /// `SO_MARK` of the connections; needs `CAP_NET_ADMIN`.
    pub mark: Option<u32>,
    /// Is told of every connection before it is made.
    pub announcer: Option<Announcer>,
    /// When a certificate counts as near its end.
    pub expiry: ExpiryWarning,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            alert_wait: Duration::from_millis(750),
            http_probe: true,
            mark: None,
            announcer: None,
            expiry: ExpiryWarning::default(),
        }
    }
}

/// One server and what is expected of it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The server.
    pub address: SocketAddr,
    /// Server name to ask for; see [`istio_server_name`].
    pub server_name: Option<&'a DnsName<'static>>,
    /// The trust anchors.
    pub bundle: Option<&'a TrustBundle>,
    /// The identity it must have; `None` accepts any.
    pub expected: Option<&'a Expected>,
    /// The clients that it must refuse.
    pub forbidden: &'a ForbiddenClients,
    /// The client that it must accept.
    pub mesh_client: Option<&'a Arc<CertifiedKey>>,
}

/// What the server showed of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Server {
    /// The presented chain, leaf first, as far as it can be read.
    pub chain: Vec<Certificate>,
    /// Negotiated version, `TLS 1.2` or `TLS 1.3`.
    pub version: Option<String>,
    /// Negotiated cipher suite.
    pub cipher_suite: Option<String>,
    /// Negotiated key exchange group.
    pub group: Option<String>,
    /// Selected ALPN protocol.
    pub alpn: Option<String>,
    /// It asks for a client certificate; then the names of the authorities that it asks for.
    pub asks_for: Option<Vec<String>>,
    /// ALPN and SNI of a mesh client were accepted.
    pub mesh_hello: bool,
}

/// What one client got.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ClientResult {
    /// The client.
    pub client: Client,
    /// What it got.
    pub outcome: Outcome,
}

/// All that one check found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Probe {
    /// Everything that speaks against the server.
    pub findings: Vec<Finding>,
    /// What it showed; `None` when no handshake got that far.
    pub server: Option<Server>,
    /// What each client got, in the order of the connections.
    pub clients: Vec<ClientResult>,
}

/// The server name that an Istio sidecar sends for a service,
/// `outbound_.<service port>_._.<service>.<namespace>.svc.cluster.local`; `None` when that is no possible name.
#[must_use]
pub fn istio_server_name(port: u16, service: &str, namespace: &str) -> Option<DnsName<'static>> {
    DnsName::try_from(format!("outbound_.{port}_._.{service}.{namespace}.svc.cluster.local")).ok()
}

/// Checks one server.
pub async fn probe(request: Request<'_>, settings: &Settings) -> Probe {
    let clients = u32::try_from(Client::FORBIDDEN.len() + 1).unwrap_or(u32::MAX);
    let check = Check {
        request,
        settings,
        deadline: Instant::now() + settings.timeout * 3 + settings.alert_wait * clients,
    };
    check.run().await
}

struct Check<'a> {
    request: Request<'a>,
    settings: &'a Settings,
    deadline: Instant,
}

impl Check<'_> {
    async fn run(&self) -> Probe {
        let mut result = Probe::default();
        let (hello, mut first) = match self.first_contact().await {
            Ok(found) => found,
            Err(finding) => {
                result.findings.push(finding);
                return result;
            }
        };
        let outcome = self.outcome(Client::NoCertificate, &mut first).await;
        result.server = Some(server_of(&first, &hello));
        self.judge_chain(&first.observed().chain, &mut result);
        if let Some(failure @ Failure { ended: Ended::Protocol(_), .. }) = first.failure() {
            result.findings.push(Finding::HandshakeFailed { detail: failure.to_string() });
        }
        drop(first);
        record(&mut result, Client::NoCertificate, outcome);

        let rest = Client::FORBIDDEN.into_iter().skip(1).chain([Client::Mesh]);
        for client in rest {
            if client == Client::Mesh && self.request.mesh_client.is_none() {
                continue;
            }
            let outcome = self.try_client(client, &hello).await;
            record(&mut result, client, outcome);
        }
        result
    }

    /// Connects as a mesh client without a certificate, and with less of a mesh client where that is refused.
    async fn first_contact(&self) -> Result<(Hello, Session), Finding> {
        let mesh = Hello {
            alpn: MESH_ALPN.map(<[u8]>::to_vec).to_vec(),
            server_name: self.request.server_name.cloned(),
            certificate: None,
        };
        let mut hellos = vec![
            mesh.clone(),
            Hello { alpn: Vec::new(), ..mesh.clone() },
            Hello { alpn: Vec::new(), server_name: None, certificate: None },
        ];
        hellos.dedup_by(|next, earlier| next.alpn == earlier.alpn && next.server_name == earlier.server_name);
        let mut first_failure = None;
        for hello in hellos {
            let mut session = self.connect(&hello).await.map_err(|detail| Finding::Unreachable { detail })?;
            match session.handshake(self.limit()).await {
                Ok(()) => return Ok((hello, session)),
                // It has shown its certificate, so what ended the handshake was the missing one of the client.
                Err(_) if session.observed().chain_seen => return Ok((hello, session)),
                Err(failure) => {
                    let retry = matches!(failure.ended, Ended::Alert(_) | Ended::Closed | Ended::Reset);
                    let first = first_failure.get_or_insert(failure);
                    if !retry {
                        return Err(finding_of(first));
                    }
                }
            }
        }
        Err(first_failure.as_ref().map_or_else(
            || Finding::Unreachable { detail: "no connection was tried".to_owned() },
            finding_of,
        ))
    }

    async fn try_client(&self, client: Client, mesh: &Hello) -> Outcome {
        let certificate = match client {
            Client::Mesh => self.request.mesh_client.cloned(),
            forbidden => self.request.forbidden.certificate(forbidden),
        };
        let hello = if client == Client::PlainTls {
            Hello { alpn: PLAIN_ALPN.map(<[u8]>::to_vec).to_vec(), server_name: None, certificate: None }
        } else {
            Hello { certificate, ..mesh.clone() }
        };
        if Instant::now() >= self.deadline {
            return Outcome::Inconclusive { detail: "the time for this check is used up".to_owned() };
        }
        match self.connect(&hello).await {
            Ok(mut session) => {
                // Its end is remembered by the session and told by `outcome`.
                let _ = session.handshake(self.limit()).await;
                self.outcome(client, &mut session).await
            }
            Err(detail) => Outcome::Inconclusive { detail },
        }
    }

    async fn connect(&self, hello: &Hello) -> Result<Session, String> {
        let Settings { mark, announcer, .. } = &self.settings;
        Session::connect(self.request.address, hello, *mark, announcer.as_ref(), self.limit()).await
    }

    fn limit(&self) -> Instant {
        (Instant::now() + self.settings.timeout).min(self.deadline)
    }

    /// What became of a client whose handshake has been driven to its end.
    async fn outcome(&self, client: Client, session: &mut Session) -> Outcome {
        if let Some(failure) = session.failure() {
            return refusal(client, failure, session.observed().chain_seen);
        }
        if session.observed().asked.is_none() {
            return Outcome::Accepted(Accepted::NotAsked);
        }
        let wait = self.settings.alert_wait;
        let accepted = match session.listen(Instant::now() + wait).await {
            Ended::Alert(alert) => return Outcome::Refused(Refused::Alert { alert }),
            Ended::Closed => return Outcome::Refused(Refused::Closed),
            Ended::Reset => return Outcome::Refused(Refused::Reset),
            Ended::NotTls(detail) | Ended::Protocol(detail) => return Outcome::Inconclusive { detail },
            Ended::Data => Accepted::Data,
            Ended::Ticket => Accepted::Ticket,
            Ended::Silent => {
                Accepted::Silent { waited_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) }
            }
        };
        // A server that speaks first has said what it thinks of the client; and the mesh client may be answered by
        // an application, which is none of our business.
        if self.settings.http_probe && client != Client::Mesh && accepted != Accepted::Data {
            match session.http_refusal(Instant::now() + wait).await {
                Some(refused) => return Outcome::Refused(refused),
                None => return Outcome::Accepted(accepted),
            }
        }
        Outcome::Accepted(accepted)
    }

    fn judge_chain(&self, chain: &[CertificateDer<'_>], result: &mut Probe) {
        let rules = Rules {
            bundle: self.request.bundle,
            expected: self.request.expected,
            expiry: self.settings.expiry,
            now: Timestamp::now(),
        };
        result.findings.extend(verify::findings(chain, rules));
    }
}

fn record(result: &mut Probe, client: Client, outcome: Outcome) {
    match (client, &outcome) {
        (Client::Mesh, Outcome::Accepted(_)) => {}
        (Client::Mesh, Outcome::Refused(how)) => {
            result.findings.push(Finding::MeshClientRefused { how: how.clone() });
        }
        (_, Outcome::Accepted(why)) => {
            result.findings.push(Finding::ForbiddenAccepted { client, why: why.clone() });
        }
        (_, Outcome::Refused(_)) => {}
        (_, Outcome::Inconclusive { detail }) => {
            result.findings.push(Finding::Inconclusive { client, detail: detail.clone() });
        }
    }
    result.clients.push(ClientResult { client, outcome });
}

/// A handshake that ended before it was done is a refusal of the client when the server has shown its certificate:
/// negotiation has succeeded then, and what is left to dislike is the client. The plain client needs no certificate
/// to be refused: a server of the mesh may serve the mesh's ALPN only.
fn refusal(client: Client, failure: &Failure, chain_seen: bool) -> Outcome {
    let told = chain_seen || client == Client::PlainTls;
    match &failure.ended {
        Ended::Alert(alert) if told => Outcome::Refused(Refused::Alert { alert: alert.clone() }),
        Ended::Closed if told => Outcome::Refused(Refused::Closed),
        Ended::Reset if told => Outcome::Refused(Refused::Reset),
        _ => Outcome::Inconclusive { detail: failure.to_string() },
    }
}

/// What a first contact that got to see no certificate says about the server.
fn finding_of(failure: &Failure) -> Finding {
    let detail = failure.to_string();
    match failure.ended {
        Ended::NotTls(_) => Finding::NotTls { detail },
        Ended::Closed if failure.received == 0 => Finding::NotTls { detail },
        Ended::Reset | Ended::Silent if failure.received == 0 => Finding::Unreachable { detail },
        _ => Finding::HandshakeFailed { detail },
    }
}

fn server_of(session: &Session, hello: &Hello) -> Server {
    let observed = session.observed();
    let negotiated = session.negotiated();
    let readable = observed.chain.iter().take(verify::MAX_CHAIN);
    Server {
        chain: readable.filter_map(|der| Certificate::read(der).ok()).collect(),
        version: negotiated.version,
        cipher_suite: negotiated.cipher_suite,
        group: negotiated.group,
        alpn: negotiated.alpn,
        asks_for: observed
            .asked
            .map(|names| names.iter().take(32).map(|name| distinguished_name_of_der(name)).collect()),
        mesh_hello: !hello.alpn.is_empty(),
    }
}
