//! Findings into one state, and the state's consequence. Pure.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::finding::{Client, Finding};

/// What is known about the certificates of one endpoint and port.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Mutual TLS with the mesh's certificates is proven.
    Verified,
    /// The same, but a certificate is near its end.
    Expiring,
    /// A certificate of the chain is outside its validity.
    Expired,
    /// The chain does not lead to the trust bundle, is revoked, or no safe handshake comes about; or the server
    /// does not trust a good client of the mesh.
    Untrusted,
    /// The chain is good, but it is that of another workload.
    WrongIdentity,
    /// The server accepts clients without a certificate.
    NoClientAuth,
    /// The server wants a certificate, but takes one that is self-signed, of a foreign CA or expired.
    AcceptsForeign,
    /// The server does not speak TLS.
    NotTls,
    /// There was no connection, or no answer.
    Unreachable,
    /// Not checked yet, or not to an end.
    #[default]
    Unchecked,
}

impl State {
    /// All states.
    pub const ALL: [Self; 10] = [
        Self::Verified,
        Self::Expiring,
        Self::Expired,
        Self::Untrusted,
        Self::WrongIdentity,
        Self::NoClientAuth,
        Self::AcceptsForeign,
        Self::NotTls,
        Self::Unreachable,
        Self::Unchecked,
    ];

    /// The word for it in JSON, metrics and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Expiring => "expiring",
            Self::Expired => "expired",
            Self::Untrusted => "untrusted",
            Self::WrongIdentity => "wrong_identity",
            Self::NoClientAuth => "no_client_auth",
            Self::AcceptsForeign => "accepts_foreign",
            Self::NotTls => "not_tls",
            Self::Unreachable => "unreachable",
            Self::Unchecked => "unchecked",
        }
    }

    /// Mutual TLS with the mesh's certificates is proven.
    #[must_use]
    pub fn is_good(self) -> bool {
        matches!(self, Self::Verified | Self::Expiring)
    }

    /// It is proven that there is no mutual TLS with the mesh's certificates, as opposed to not knowing.
    #[must_use]
    pub fn is_bad(self) -> bool {
        !self.is_good() && !matches!(self, Self::Unreachable | Self::Unchecked)
    }

    /// It says something about the server: [`Self::is_good`] or [`Self::is_bad`].
    #[must_use]
    pub fn is_certain(self) -> bool {
        self.is_good() || self.is_bad()
    }

    /// The weightier of two.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        PRECEDENCE.into_iter().find(|state| *state == self || *state == other).unwrap_or(self)
    }

    /// What a person should do about it.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Verified => "nothing to do",
            Self::Expiring => {
                "find out why the workload has not renewed its certificate (connection to the mesh's CA?)"
            }
            Self::Expired => "restart the workload's proxy or renew the certificate, and check the clocks",
            Self::Untrusted => {
                "give the workload a certificate of the mesh's CA, or add its root to the trust bundle"
            }
            Self::WrongIdentity => {
                "give the workload the certificate of its own service account, or configure the trust domain aliases"
            }
            Self::NoClientAuth => {
                "make the server require client certificates of the mesh, or set the port to PERMISSIVE if plain clients are intended"
            }
            Self::AcceptsForeign => {
                "make the server verify client certificates against the mesh's root, not just ask for any"
            }
            Self::NotTls => {
                "put the mesh's proxy in front of the server, or set the port to PERMISSIVE or DISABLE"
            }
            Self::Unreachable => "check that the port is being listened on and not filtered",
            Self::Unchecked => "wait for the next check, and see that a trust bundle is configured",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The state that a finding leads to if it is the only one.
#[must_use]
pub fn of_finding(finding: &Finding) -> State {
    match finding {
        Finding::Unreachable { .. } => State::Unreachable,
        Finding::NotTls { .. } => State::NotTls,
        Finding::HandshakeFailed { .. }
        | Finding::Untrusted { .. }
        | Finding::Revoked
        | Finding::MeshClientRefused { .. } => State::Untrusted,
        Finding::NotValidYet { .. } | Finding::Expired { .. } => State::Expired,
        Finding::Expiring { .. } => State::Expiring,
        Finding::WrongIdentity { .. } => State::WrongIdentity,
        Finding::ForbiddenAccepted { client, .. } if client.is_anonymous() => State::NoClientAuth,
        Finding::ForbiddenAccepted { .. } => State::AcceptsForeign,
        // Mutual TLS is proven by those that are refused.
        Finding::Inconclusive { client: Client::Mesh, .. } => State::Verified,
        Finding::Inconclusive { .. } | Finding::NoTrustBundle => State::Unchecked,
    }
}

/// What outweighs what, the weightiest first. A server that cannot be reached or speaks no TLS has no certificate
/// to talk about; then who gets in (anybody, anybody with some certificate), then whose certificate it is, then
/// its dates; what could not be found out outweighs only a warning.
const PRECEDENCE: [State; 10] = [
    State::Unreachable,
    State::NotTls,
    State::NoClientAuth,
    State::AcceptsForeign,
    State::Untrusted,
    State::WrongIdentity,
    State::Expired,
    State::Unchecked,
    State::Expiring,
    State::Verified,
];

/// The state that all findings of one check lead to.
#[must_use]
pub fn judge(findings: &[Finding]) -> State {
    let present: Vec<State> = findings.iter().map(of_finding).collect();
    PRECEDENCE.into_iter().find(|state| present.contains(state)).unwrap_or(State::Verified)
}

/// The state that decides whether the port is open: that of all findings but the refusal of the mesh client. A server
/// that refuses the mesh client lets nobody in who must not come in, and the fault may be ours.
#[must_use]
pub fn effect(findings: &[Finding]) -> State {
    let of_server = findings.iter().filter(|finding| !matches!(finding, Finding::MeshClientRefused { .. }));
    judge(&of_server.cloned().collect::<Vec<_>>())
}

/// `--on-certificate-failure`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum OnFailure {
    /// Say it, let connections through.
    #[default]
    Report,
    /// Refuse new connections to the port until a check is good.
    Block,
}

/// `--unchecked-ports`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum UncheckedPorts {
    /// A port of which nothing is known yet is open.
    #[default]
    Allow,
    /// It is blocked until its first good check (only with `--on-certificate-failure block`).
    Block,
}

/// What follows from states.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Consequences {
    /// What a proven failure does.
    pub on_failure: OnFailure,
    /// What not knowing does, before the first certain result.
    pub unchecked: UncheckedPorts,
    /// So many bad checks in a row, whatever their kinds, close an open port. One good check opens it.
    pub failures_to_block: u32,
}

impl Default for Consequences {
    fn default() -> Self {
        Self { on_failure: OnFailure::default(), unchecked: UncheckedPorts::default(), failures_to_block: 2 }
    }
}

/// The history of one endpoint and port, as far as it matters.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct History {
    /// The state that is reported: that of the last certain result, or of the last result when there was none.
    pub state: State,
    /// Since when that is the state.
    pub since: Option<Timestamp>,
    /// Bad results in a row (uncertain ones between them count for nothing).
    pub bad: u32,
    /// Uncertain results in a row: the server could not be reached, or not be checked to the end.
    pub uncertain: u32,
    /// Some check has had a certain result.
    pub known: bool,
    /// The port is closed.
    pub blocked: bool,
}

/// So many uncertain results in a row replace a certain one in what is reported.
pub const UNCERTAIN_TO_REPORT: u32 = 2;

impl History {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(consequences: Consequences) -> Self {
        let mut history = Self::default();
        history.blocked = history.wants_block(consequences);
        history
    }

    /// Goes on after a restart: what is known stays known, and the consequences are those of now.
    pub fn resume(&mut self, consequences: Consequences) {
        self.blocked = self.wants_block(consequences);
    }

    /// Takes in one more check: the state to report ([`judge`]) and the one that opens or closes ([`effect`]). True when
    /// the reported state or the block has changed.
    ///
    /// Damping: one lost packet changes nothing. A result that could not be had neither closes nor opens a port,
    /// and is reported when it comes twice; a bad one is reported at once and closes the port when it comes
    /// [`Consequences::failures_to_block`] times; a good one is believed at once.
    pub fn record(
        &mut self,
        state: State,
        effect: State,
        now: Timestamp,
        consequences: Consequences,
    ) -> bool {
        let before = (self.state, self.blocked);
        if effect.is_good() {
            (self.bad, self.uncertain, self.known) = (0, 0, true);
        } else if effect.is_bad() {
            self.bad = self.bad.saturating_add(1);
            (self.uncertain, self.known) = (0, true);
        } else {
            self.uncertain = self.uncertain.saturating_add(1);
        }
        if state.is_certain() || !self.known || self.uncertain >= UNCERTAIN_TO_REPORT {
            if state != self.state || self.since.is_none() {
                self.since = Some(now);
            }
            self.state = state;
        }
        if effect.is_certain() || !self.known {
            self.blocked = self.wants_block(consequences);
        }
        before != (self.state, self.blocked)
    }

    fn wants_block(&self, consequences: Consequences) -> bool {
        // A closed port stays closed until a good check; that one has set `bad` to 0.
        let still_closed = self.blocked && self.bad > 0;
        consequences.on_failure == OnFailure::Block
            && if self.known {
                still_closed || self.bad >= consequences.failures_to_block.max(1)
            } else {
                consequences.unchecked == UncheckedPorts::Block
            }
    }
}

#[cfg(test)]
mod tests;
