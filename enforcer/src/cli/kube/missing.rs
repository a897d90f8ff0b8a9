//! Nodes without an agent: what happens there, no agent says.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use tokio::time::timeout;

use super::RemoteArgs;

/// How long one list may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known of nodes without an agent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Missing {
    /// One sentence when there are some.
    pub nodes: Option<String>,
    /// One sentence when that could not be asked.
    pub note: Option<String>,
}

/// Compares the agents' nodes with those that the agents' daemon set is for; without the right to see it, with all nodes.
pub(super) async fn find(client: &Client, args: &RemoteArgs, found: &BTreeSet<&str>) -> Missing {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), &args.namespace);
    let query = ListParams::default().labels(&args.selector);
    let sets = timeout(PATIENCE, sets.list(&query)).await.ok().and_then(Result::ok);
    let wanted = sets.filter(|sets| !sets.items.is_empty()).map(|sets| {
        let counts = sets.iter().filter_map(|set| set.status.as_ref());
        counts.map(|status| usize::try_from(status.desired_number_scheduled).unwrap_or(0)).sum()
    });
    if wanted.is_some_and(|wanted: usize| wanted <= found.len()) {
        return Missing::default();
    }
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes =
        timeout(PATIENCE, nodes.list_metadata(&ListParams::default())).await.ok().and_then(Result::ok);
    let without = nodes.map(|nodes| {
        let names = nodes.iter().map(ResourceExt::name_any);
        names.filter(|name| !found.contains(name.as_str())).collect()
    });
    judge(wanted, without, found.len())
}

/// `wanted`: how many nodes the daemon set is for; `without`: the nodes without an agent; `found`: how many have one.
fn judge(wanted: Option<usize>, without: Option<Vec<String>>, found: usize) -> Missing {
    let lacking = wanted.map(|wanted| wanted.saturating_sub(found));
    let nodes = match (lacking, without) {
        (Some(0), _) => None,
        (Some(count), Some(names)) if names.len() == count => {
            Some(format!("no agent runs on {}", names.join(", ")))
        }
        (Some(count), names) => {
            let among = names.filter(|names| !names.is_empty());
            let among = among.map(|names| format!(", among {}", names.join(", "))).unwrap_or_default();
            Some(format!("{count} of {} nodes have no agent{among}", count + found))
        }
        (None, Some(names)) if names.is_empty() => None,
        (None, Some(names)) => Some(format!("no agent runs on {}", names.join(", "))),
        (None, None) => {
            let note = "whether every node has an agent is not known: the right to list daemonsets in the agents' namespace, or nodes, is needed";
            return Missing { nodes: None, note: Some(note.to_owned()) };
        }
    };
    Missing { nodes, note: None }
}

#[cfg(test)]
mod tests {
    use super::judge;

    #[test]
    fn a_node_without_an_agent_is_named_when_it_is_known_which_it_is() {
        let names = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
        let said = |wanted, without, found| judge(wanted, without, found).nodes.unwrap_or_default();
        assert_eq!(said(Some(3), names(&[]), 3), "");
        assert_eq!(said(Some(3), names(&["b"]), 2), "no agent runs on b");
        // One of them the daemon set is not for.
        assert_eq!(said(Some(3), names(&["b", "c"]), 2), "1 of 3 nodes have no agent, among b, c");
        assert_eq!(said(Some(3), None, 1), "2 of 3 nodes have no agent");
        assert_eq!(said(None, names(&["b", "c"]), 1), "no agent runs on b, c");
        assert_eq!(said(None, names(&[]), 1), "");
        assert!(judge(None, None, 1).note.expect("a note").contains("not known"));
    }
}
