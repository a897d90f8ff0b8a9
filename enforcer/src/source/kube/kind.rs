//! The kinds that are watched, and what is asked for of each.

use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::watcher;
use kube::{Api, Client};

use super::Options;

/// How long one watch of an essential kind lasts, seconds; the next goes on where it ended. A connection that dies alone is
/// noticed then: this is how long policy may be out of date unnoticed. Others last as long as the library has it, 290 s.
const WATCH: u32 = 120;

/// A kind of object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// `PeerAuthentication`, of all namespaces.
    Policies,
    /// `Namespace`.
    Namespaces,
    /// `Pod`, of this node.
    Pods,
    /// `ConfigMap`: the mesh's trust bundle alone, in the root namespace.
    Bundle,
    /// `ConfigMap`: revocation lists, in the root namespace.
    Revocations,
    /// `Service`, for warnings.
    Services,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Policies, Self::Namespaces, Self::Pods, Self::Bundle, Self::Revocations, Self::Services];

    /// The name in the API, in the plural.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Policies => "peerauthentications",
            Self::Namespaces => "namespaces",
            Self::Pods => "pods",
            Self::Bundle | Self::Revocations => "configmaps",
            Self::Services => "services",
        }
    }

    /// The name of one object's kind.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Policies => "PeerAuthentication",
            Self::Namespaces => "Namespace",
            Self::Pods => "Pod",
            Self::Bundle | Self::Revocations => "ConfigMap",
            Self::Services => "Service",
        }
    }

    /// What is enforced follows from it: nothing is changed before it is known.
    #[must_use]
    pub const fn is_essential(self) -> bool {
        matches!(self, Self::Policies | Self::Namespaces | Self::Pods)
    }

    /// What the kind is called in the set of objects: kind, namespace and name.
    #[must_use]
    pub fn key(self, namespace: Option<&str>, name: &str) -> String {
        match self {
            Self::Namespaces => format!("Namespace {name}"),
            _ => format!("{} {}/{name}", self.name(), namespace.unwrap_or("default")),
        }
    }

    /// The API of the objects that are watched; `version` as in `apiVersion`.
    pub(super) fn api(self, client: Client, version: &str, options: &Options) -> Api<DynamicObject> {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let kind = GroupVersionKind::gvk(group, version, self.name());
        let resource = ApiResource::from_gvk_with_plural(&kind, self.plural());
        match self {
            Self::Bundle | Self::Revocations => {
                Api::namespaced_with(client, &options.root_namespace, &resource)
            }
            _ => Api::all_with(client, &resource),
        }
    }

    /// What is asked for.
    pub(super) fn query(self, options: &Options) -> watcher::Config {
        let query = watcher::Config::default();
        let query = if self.is_essential() { query.timeout(WATCH) } else { query };
        match self {
            // The newest, from the store: what is in force must not go back to an older list of another API server.
            Self::Policies | Self::Namespaces => query,
            Self::Pods => cached(query.fields(&format!("spec.nodeName={}", options.node))),
            Self::Bundle => query.fields(&format!("metadata.name={}", options.bundle)),
            Self::Revocations => query.fields(&format!("metadata.name={}", options.revocations)),
            Self::Services => cached(query),
        }
    }
}

/// From the API server's cache: a read of every object of the cluster from its store, by every node, would be felt. In one
/// piece: a list in pages is read from the store, whatever else is asked for.
fn cached(query: watcher::Config) -> watcher::Config {
    watcher::Config { page_size: None, ..query.any_semantic() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_node_asks_for_is_cheap_and_what_is_in_force_is_never_old_for_long() {
        let options = Options {
            node: "node-a".into(),
            root_namespace: "istio-system".into(),
            bundle: "roots".into(),
            revocations: "lists".into(),
        };
        for kind in Kind::ALL {
            let query = kind.query(&options);
            let cached = matches!(kind, Kind::Pods | Kind::Services);
            assert_eq!(query.list_semantic == watcher::ListSemantic::Any, cached, "{kind:?}");
            // In pages it is read from the store.
            assert_eq!(query.page_size.is_none(), cached, "{kind:?}");
            assert_eq!(query.timeout, kind.is_essential().then_some(120), "{kind:?}");
        }
    }
}
