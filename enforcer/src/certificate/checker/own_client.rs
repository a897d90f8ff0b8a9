//! The agent's own mesh certificate: shown to servers only while it is fit for that. A server that refuses an expired or
//! foreign certificate is right, and it would look as if all servers had failed.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::sign::CertifiedKey;

use super::super::bundle::TrustBundle;
use super::super::verify;

/// The certificate, and what is wrong with it.
#[derive(Debug, Default)]
pub(super) struct OwnClient {
    key: Option<Arc<CertifiedKey>>,
    unreadable: Option<String>,
    unfit: Option<String>,
    /// When it is to be looked at again, since something in it begins or ends.
    review: Option<Timestamp>,
}

impl OwnClient {
    /// Takes in the outcome of reading it; what cannot be read leaves the last good one in use.
    pub(super) fn load(&mut self, loaded: Result<Arc<CertifiedKey>, String>) {
        match loaded {
            Ok(key) => (self.key, self.unreadable) = (Some(key), None),
            Err(problem) => {
                let problem =
                    format!("{problem}; the last good client certificate, if there was one, stays in use");
                tracing::warn!("{problem}");
                self.unreadable = Some(problem);
            }
        }
    }

    /// Whether a look at it is due by itself.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        self.review.is_some_and(|review| review <= now)
    }

    /// Looks at it, by these roots and this time. True when servers are shown another client than before.
    pub(super) fn review(&mut self, bundle: Option<&TrustBundle>, now: Timestamp) -> bool {
        let Some(key) = &self.key else { return false };
        let fitness = verify::own_client(&key.cert, bundle, now);
        self.review = fitness.changes;
        let unfit = fitness.problem.map(|problem| {
            format!(
                "the agent's own client certificate is not shown to servers until it is renewed: {problem}"
            )
        });
        if let Some(problem) = unfit.as_ref().filter(|_| self.unfit != unfit) {
            tracing::warn!("{problem}");
        }
        let changed = unfit.is_some() != self.unfit.is_some();
        self.unfit = unfit;
        changed
    }

    /// The one that servers are shown.
    pub(super) fn usable(&self) -> Option<&Arc<CertifiedKey>> {
        self.key.as_ref().filter(|_| self.unfit.is_none())
    }

    /// What a person should do something about.
    pub(super) fn problem(&self) -> Option<String> {
        let problems: Vec<&str> = self.unreadable.iter().chain(&self.unfit).map(String::as_str).collect();
        (!problems.is_empty()).then(|| problems.join("; "))
    }
}
