//! What a check of a server found: facts, each on its own, never only the first one.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::x509::printable;

/// A client that a check connects as.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Client {
    /// No certificate, ALPN and SNI of a mesh client.
    NoCertificate,
    /// No certificate, ALPN of a web client and no SNI: what `curl -k` is to the server.
    PlainTls,
    /// The same, asking for a Service by its DNS name: what `curl -k https://SERVICE` is to the server.
    Named,
    /// A self-signed certificate that claims an identity of the mesh.
    SelfSigned,
    /// A certificate of another CA that claims an identity of the mesh.
    ForeignCa,
    /// An expired certificate.
    Expired,
    /// The mesh certificate that the check was given: the one client that must be accepted.
    Mesh,
}

impl Client {
    /// The clients that every server of mutual TLS refuses, beside [`Self::Named`], of which there is one for each name.
    pub const FORBIDDEN: [Self; 5] =
        [Self::NoCertificate, Self::PlainTls, Self::SelfSigned, Self::ForeignCa, Self::Expired];

    /// It offers no certificate at all.
    #[must_use]
    pub fn is_anonymous(self) -> bool {
        matches!(self, Self::NoCertificate | Self::PlainTls | Self::Named)
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCertificate => "no certificate",
            Self::PlainTls => "no certificate, not of a mesh",
            Self::Named => "no certificate, asking for a Service",
            Self::SelfSigned => "self-signed certificate",
            Self::ForeignCa => "certificate of a foreign CA",
            Self::Expired => "expired certificate",
            Self::Mesh => "mesh certificate",
        })
    }
}

/// The name behind a client, if it is one of several.
pub(super) struct Asked<'a>(pub(super) Option<&'a str>);

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |name| write!(f, " {name}"))
    }
}

/// Why a client counts as accepted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "evidence", rename_all = "snake_case")]
pub enum Accepted {
    /// The handshake ended and the server had not even asked for a certificate.
    NotAsked,
    /// The server sent a session ticket, which it does only once it is content with the client, and did not close
    /// the connection.
    Ticket,
    /// The server sent application data.
    Data,
    /// The server's side of the handshake is done too, which in TLS 1.2 is after its look at the client's certificate,
    /// and it did not close the connection.
    Handshake,
    /// The client's side of the handshake is done, and neither an alert nor a close came within this time. In TLS 1.3
    /// that is no proof: the server may be slow.
    Silent {
        /// How long was waited, ms.
        waited_ms: u64,
    },
}

impl fmt::Display for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked => write!(f, "accepted: it was not asked for a certificate"),
            Self::Ticket => write!(f, "accepted: it got a session ticket"),
            Self::Data => write!(f, "accepted: it got application data"),
            Self::Handshake => write!(f, "accepted: the server finished the handshake"),
            Self::Silent { waited_ms } => {
                write!(f, "accepted: handshake done and no alert within {waited_ms} ms")
            }
        }
    }
}

/// How a client was refused.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Refused {
    /// By a TLS alert.
    Alert {
        /// Name of the alert, as in RFC 8446.
        alert: String,
    },
    /// The connection was closed without an alert, while that of the mesh client lived on.
    Closed,
    /// The connection was reset without an alert, while that of the mesh client lived on.
    Reset,
    /// TLS was accepted, but the server's HTTP layer answers every request of such a client with a certificate
    /// error (nginx with `ssl_verify_client on`).
    Http {
        /// Status of the answer.
        status: u16,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alert { alert } => write!(f, "refused: alert {alert}"),
            Self::Closed => write!(f, "refused: closed without an alert"),
            Self::Reset => write!(f, "refused: reset without an alert"),
            Self::Http { status } => write!(f, "refused by HTTP: certificate error {status}"),
        }
    }
}

/// What one client got.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Outcome {
    /// It was let in.
    Accepted(Accepted),
    /// It was turned away.
    Refused(Refused),
    /// It cannot be said.
    Inconclusive {
        /// Why not.
        detail: String,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted(accepted) => accepted.fmt(f),
            Self::Refused(refused) => refused.fmt(f),
            Self::Inconclusive { detail } => write!(f, "cannot be said: {detail}"),
        }
    }
}

/// One fact that speaks against mutual TLS with the mesh's certificates.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// No connection, or no answer.
    Unreachable {
        /// What happened.
        detail: String,
    },
    /// The server answers a TLS hello with something else.
    NotTls {
        /// What happened.
        detail: String,
    },
    /// The server speaks TLS, but no handshake came about.
    HandshakeFailed {
        /// What happened.
        detail: String,
    },
    /// The chain does not lead to the trust bundle, or is broken.
    Untrusted {
        /// What is wrong with it.
        detail: String,
    },
    /// The mesh's revocation list names a certificate of the chain.
    Revoked,
    /// A certificate of the chain is not valid yet.
    NotValidYet {
        /// Which one.
        certificate: String,
        /// Begin of its validity.
        not_before: Timestamp,
    },
    /// A certificate of the chain, or its root, has expired.
    Expired {
        /// Which one.
        certificate: String,
        /// End of its validity.
        not_after: Timestamp,
    },
    /// A certificate of the chain, or its root, is near its end: rotation is late.
    Expiring {
        /// Which one.
        certificate: String,
        /// End of its validity.
        not_after: Timestamp,
    },
    /// The URI names of the certificate are not exactly the expected identity.
    WrongIdentity {
        /// What it must be.
        expected: String,
        /// What it is.
        presented: Vec<String>,
    },
    /// A client that must be refused was accepted.
    ForbiddenAccepted {
        /// Which client.
        client: Client,
        /// The Service's name that it asked for, where that is what makes it another client.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server_name: Option<String>,
        /// Why it counts as accepted.
        why: Accepted,
    },
    /// The one client that must be accepted was refused.
    MeshClientRefused {
        /// How.
        how: Refused,
    },
    /// The outcome for a client cannot be said.
    Inconclusive {
        /// Which client.
        client: Client,
        /// The Service's name that it asked for, where that is what makes it another client.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server_name: Option<String>,
        /// Why not.
        detail: String,
    },
    /// There is no trust bundle, so that the chain could not be checked.
    NoTrustBundle,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { detail } => write!(f, "unreachable: {detail}"),
            Self::NotTls { detail } => write!(f, "not TLS: {detail}"),
            Self::HandshakeFailed { detail } => write!(f, "no TLS handshake: {detail}"),
            Self::Untrusted { detail } => write!(f, "chain not trusted: {detail}"),
            Self::Revoked => write!(f, "a certificate of the chain is revoked"),
            Self::NotValidYet { certificate, not_before } => {
                write!(f, "{certificate} is not valid before {not_before}")
            }
            Self::Expired { certificate, not_after } => {
                write!(f, "{certificate} expired at {not_after}")
            }
            Self::Expiring { certificate, not_after } => {
                write!(f, "{certificate} expires at {not_after}; its rotation is late")
            }
            Self::WrongIdentity { expected, presented } if presented.is_empty() => {
                write!(f, "the certificate has no SPIFFE ID, expected {expected}")
            }
            Self::WrongIdentity { expected, presented } => {
                let presented = printable(&presented.join(" and "));
                write!(f, "identity is {presented}, expected exactly {expected}")
            }
            Self::ForbiddenAccepted { client, server_name, why } => {
                write!(f, "client with {client}{} {why}", Asked(server_name.as_deref()))
            }
            Self::MeshClientRefused { how } => write!(f, "the mesh client is {how}"),
            Self::Inconclusive { client, server_name, detail } => {
                write!(f, "client with {client}{}: cannot be said: {detail}", Asked(server_name.as_deref()))
            }
            Self::NoTrustBundle => write!(f, "chain not checked: there is no trust bundle"),
        }
    }
}
