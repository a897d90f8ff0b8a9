//! Workload identities: SPIFFE IDs in Istio's form, `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! The rules are Istio's (`pkg/spiffe/spiffe.go`, `ParseIdentity`): exactly five segments, literal `ns` and `sa`,
//! comparison of exact strings: no case folding, no percent decoding, no trailing slash.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What every SPIFFE ID begins with.
const SCHEME: &str = "spiffe://";

/// Istio's default trust domain (`meshConfig.trustDomain`).
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// One workload identity.
#[derive(
    Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct SpiffeId {
    trust_domain: String,
    namespace: String,
    service_account: String,
}

/// Why a text is no identity of a workload.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{text:?} is no workload identity: {reason}; write it as spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
)]
pub struct InvalidSpiffeId {
    text: String,
    reason: &'static str,
}

impl SpiffeId {
    /// The identity of a service account in a trust domain. `@` in the trust domain is written `.`, as Istio does
    /// when it generates identities.
    ///
    /// # Errors
    /// A part is empty or holds a `/`, so that no well-formed identity can come out of it.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, InvalidSpiffeId> {
        let trust_domain = trust_domain.replace('@', ".");
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |reason| InvalidSpiffeId { text: text.to_owned(), reason };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| invalid("it does not begin with spiffe://"))?;
        let segments: Vec<&str> = rest.split('/').collect();
        let [trust_domain, ns, namespace, sa, service_account] = segments[..] else {
            return Err(invalid("it does not have exactly five segments"));
        };
        if ns != "ns" || sa != "sa" {
            return Err(invalid("its second segment is not ns or its fourth not sa"));
        }
        if trust_domain.is_empty() || namespace.is_empty() || service_account.is_empty() {
            return Err(invalid("a segment is empty"));
        }
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        })
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = InvalidSpiffeId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}

/// What the server of one workload must be: one identity, in any of the mesh's trust domains.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Expected {
    /// The identity in the mesh's own trust domain.
    pub id: SpiffeId,
    /// Further trust domains in which the same namespace and service account are accepted
    /// (`meshConfig.trustDomainAliases`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
}

impl Expected {
    /// One identity, in its own trust domain only.
    #[must_use]
    pub fn exactly(id: SpiffeId) -> Self {
        Self { id, aliases: Vec::new() }
    }

    /// Whether `presented`, a URI name of a certificate, is this identity: an exact comparison of strings.
    #[must_use]
    pub fn matches(&self, presented: &str) -> bool {
        let domains = std::iter::once(&self.id.trust_domain).chain(&self.aliases);
        presented.parse().is_ok_and(|presented: SpiffeId| {
            presented.namespace == self.id.namespace
                && presented.service_account == self.id.service_account
                && domains.into_iter().any(|domain| *domain == presented.trust_domain)
        })
    }
}

/// The mesh's trust domain and its aliases.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TrustDomains {
    own: String,
    aliases: Vec<String>,
}

impl Default for TrustDomains {
    fn default() -> Self {
        Self::new(DEFAULT_TRUST_DOMAIN, [])
    }
}

impl TrustDomains {
    /// Own trust domain and aliases; empty and repeated ones are dropped, `@` is written `.`.
    pub fn new(own: &str, aliases: impl IntoIterator<Item = String>) -> Self {
        let own = own.replace('@', ".");
        let mut kept: Vec<String> = Vec::new();
        for alias in aliases.into_iter().map(|alias| alias.replace('@', ".")) {
            if !alias.is_empty() && alias != own && !kept.contains(&alias) {
                kept.push(alias);
            }
        }
        Self { own, aliases: kept }
    }

    /// What a pod of this namespace and service account must present.
    ///
    /// # Errors
    /// No well-formed identity comes out of these names.
    pub fn expected(&self, namespace: &str, service_account: &str) -> Result<Expected, InvalidSpiffeId> {
        let id = SpiffeId::new(&self.own, namespace, service_account)?;
        Ok(Expected { id, aliases: self.aliases.clone() })
    }
}

#[cfg(test)]
mod tests;
