//! What keeps a kind from being followed, in one sentence that does not change while the cause is the same.

use std::error::Error as _;
use std::fmt;

use kube::core::Status;
use kube::runtime::watcher;

use super::kind::Kind;

/// Why a kind cannot be followed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The API server does not answer, or not in time.
    Unreachable(String),
    /// It does not know who asks.
    Unauthenticated,
    /// It knows, and refuses.
    Denied(Kind),
    /// It does not know the kind: the custom resource definition is missing, or being removed.
    NotServed(Kind),
    /// Anything else, as the server says it.
    Other(Kind, String),
}

impl Failure {
    /// From what the watcher says; `None` for what is no failure: the server has forgotten the past, and the list is
    /// read anew.
    pub(super) fn of_watcher(kind: Kind, error: &watcher::Error) -> Option<Self> {
        match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => match error {
                kube::Error::Api(status) if status.code == 410 => None,
                error => Some(Self::of(kind, error)),
            },
            watcher::Error::WatchError(status) if status.code == 410 => None,
            watcher::Error::WatchError(status) => Some(Self::of_status(kind, status)),
            watcher::Error::NoResourceVersion => {
                Some(Self::Other(kind, "the list has no resource version".to_owned()))
            }
        }
    }

    /// The API server does not answer in time.
    pub(super) fn silent() -> Self {
        Self::Unreachable("it does not answer in time".to_owned())
    }

    pub(super) fn of(kind: Kind, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(kind, status),
            kube::Error::Auth(_) => Self::Unauthenticated,
            kube::Error::SerdeError(error) => {
                Self::Other(kind, format!("its answer cannot be read: {error}"))
            }
            error => Self::Unreachable(innermost(error)),
        }
    }

    fn of_status(kind: Kind, status: &Status) -> Self {
        match status.code {
            401 => Self::Unauthenticated,
            403 => Self::Denied(kind),
            404 => Self::NotServed(kind),
            429 | 500 | 502..=504 => Self::Unreachable(format!("it answers {}", status.code)),
            _ => Self::Other(kind, status.message.clone()),
        }
    }
}

/// The cause at the bottom: what is above it repeats it, or names connections by numbers that change.
fn innermost(error: &kube::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    text
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const STAYS: &str = "what was known last stays in force";
        match self {
            Self::Unreachable(why) => {
                write!(f, "the API server cannot be reached ({why}): {STAYS}, and it is tried again")
            }
            Self::Unauthenticated => write!(
                f,
                "the API server does not accept the agent's credentials: {STAYS}; check its service account or kubeconfig"
            ),
            Self::Denied(kind) => {
                write!(f, "the agent may not list and watch {}: {STAYS}; grant it in its role", kind.plural())
            }
            Self::NotServed(Kind::Policies) => write!(
                f,
                "the cluster does not serve peerauthentications.security.istio.io: {STAYS}; install Istio's custom resource definitions"
            ),
            Self::NotServed(kind) => {
                write!(f, "the cluster does not serve {}: {STAYS}", kind.plural())
            }
            Self::Other(kind, why) => {
                write!(f, "{} cannot be followed ({why}): {STAYS}, and it is tried again", kind.plural())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(Status { code, message: "as told".to_owned(), ..Status::default() }))
    }

    #[test]
    fn what_the_server_says_is_told_apart() {
        let kind = Kind::Policies;
        assert_eq!(Failure::of(kind, &api(401)), Failure::Unauthenticated);
        assert_eq!(Failure::of(kind, &api(403)), Failure::Denied(kind));
        assert_eq!(Failure::of(kind, &api(404)), Failure::NotServed(kind));
        assert_eq!(Failure::of(kind, &api(503)), Failure::Unreachable("it answers 503".to_owned()));
        assert_eq!(Failure::of(kind, &api(422)), Failure::Other(kind, "as told".to_owned()));
    }

    #[test]
    fn a_server_that_has_forgotten_the_past_does_not_fail() {
        for error in [watcher::Error::WatchStartFailed(api(410)), watcher::Error::InitialListFailed(api(410))]
        {
            assert_eq!(Failure::of_watcher(Kind::Pods, &error), None);
        }
        assert!(Failure::of_watcher(Kind::Pods, &watcher::Error::WatchStartFailed(api(403))).is_some());
    }
}
