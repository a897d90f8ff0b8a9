//! One check of one server: what it presents, and what each client gets from it. Bounded in time, in bytes and in
//! connections, whatever the server does.
//!
//! The first connection is that of a mesh client that has no certificate; it shows the server's chain. Where the
//! server refuses the mesh's ALPN or SNI before it has shown its certificate (alert `no_application_protocol`,
//! `unrecognized_name`, a close), the same is tried without them: such a refusal says nothing about certificates.
//! Then every other client gets one connection, all at the same time. What they got is compared at the end
//! ([`weigh`]): a connection that was closed without an alert says something about the client only where that of the
//! mesh client lived on, and silence only when it lasts. Where either matters, these clients come once more.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::sign::CertifiedKey;
use rustls_pki_types::DnsName;
use serde::{Deserialize, Serialize};

use super::bundle::TrustBundle;
use super::finding::{Asked, Client, Finding, Outcome};
use super::forbidden::ForbiddenClients;
use super::spiffe::Expected;
use super::verify::ExpiryWarning;
use super::x509::Certificate;

mod announce;
mod check;
mod http;
mod recorder;
mod session;
mod weigh;

pub use announce::{Announcer, Notice};
pub use http::certificate_refusal;

/// ALPN of an Istio sidecar for a TCP service.
const MESH_ALPN: [&[u8]; 2] = [b"istio-peer-exchange", b"istio"];
/// ALPN of a mesh client that tunnels (HBONE), which offers TLS 1.3 alone and no SNI.
const TUNNEL_ALPN: [&[u8]; 1] = [b"h2"];
/// ALPN of a client that is not of a mesh.
const PLAIN_ALPN: [&[u8]; 1] = [b"http/1.1"];
/// How checks are made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Limit for one connection: connecting and the handshake. A whole check takes at most four times this, and the
    /// waits.
    pub timeout: Duration,
    /// How long after its side of the handshake a client waits for the server's refusal. In TLS 1.3 the server
    /// decides about the client only after the client is done.
    pub alert_wait: Duration,
    /// How long silence after the handshake must last at the second try to count as acceptance.
    pub patience: Duration,
    /// Ask a server that accepted a client in TLS, although it wants certificates, with `OPTIONS / HTTP/1.1`
    /// whether its HTTP layer refuses it (nginx with `ssl_verify_client on`).
    pub http_probe: bool,
    /// `SO_MARK` of the connections, by which the kernel side knows them
    /// ([`enforcer_common::settings::OWN_PROBE_MARK`]); needs `CAP_NET_ADMIN`.
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
            patience: Duration::from_secs(5),
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
    /// Server name to ask for; see [`super::target::istio_server_name`].
    pub server_name: Option<&'a DnsName<'static>>,
    /// Names of Services by which clients that are not of a mesh may ask for it too.
    pub names: &'a [DnsName<'static>],
    /// It is the end of a tunnel (HBONE): mesh clients come with other words and without a server name.
    pub tunnel: bool,
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
    /// The Service's name that it asked for, where that is what makes it another client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// What it got.
    pub outcome: Outcome,
}

impl ClientResult {
    /// The client as people read it.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}{}", self.client, Asked(self.server_name.as_deref()))
    }
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

/// Checks one server.
pub async fn probe(request: Request<'_>, settings: &Settings) -> Probe {
    check::probe(request, settings).await
}
