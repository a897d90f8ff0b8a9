//! Nodes whose pods nobody was asked about: those without an agent, and those whose agent gave no answer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};

use super::exec::Agents;
use crate::object;
use crate::telemetry::names::workload_name;
use crate::telemetry::readiness::Absent;

/// How long one list may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why nothing is known of a node on which no agent runs.
const NO_AGENT: &str = "no agent runs there: let the DaemonSet run on it";

/// The nodes of the cluster of which nothing is known. `silent`: nodes whose agent gave no answer, with the reason.
///
/// What cannot be asked counts as not known: then it may be any workload, or any node.
pub(super) async fn absent(agents: &Agents, silent: BTreeMap<String, String>) -> Vec<Absent> {
    let mut missing = silent;
    let mut absent = Vec::new();
    let nodes = Api::<Node>::all(agents.client());
    match patiently(nodes.list_metadata(&ListParams::default())).await {
        Ok(nodes) => {
            let names = nodes.items.into_iter().filter_map(|node| node.metadata.name);
            for name in names.filter(|name| !agents.nodes().any(|node| node == name)) {
                missing.entry(name).or_insert_with(|| NO_AGENT.to_owned());
            }
        }
        Err(error) => absent.push(Absent {
            node: "unknown".to_owned(),
            why: format!(
                "whether every node has an agent is not known ({error:#}): the right to list nodes is needed"
            ),
            workloads: None,
        }),
    }
    for (node, why) in missing {
        let pods = Api::<Pod>::all(agents.client());
        let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
        // Without the right to list them it may be any workload.
        let workloads = patiently(pods.list(&on_node)).await.ok().map(|pods| workloads(&pods.items));
        if workloads.as_ref().is_none_or(|workloads| !workloads.is_empty()) {
            absent.push(Absent { node, why, workloads });
        }
    }
    absent
}

/// Waits for the API server, but not for ever.
async fn patiently<T>(answer: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
    Ok(tokio::time::timeout(PATIENCE, answer).await.context("the API server does not answer")??)
}

/// The workloads (`namespace/name`) of the pods that have a network of their own and run.
fn workloads(pods: &[Pod]) -> BTreeSet<String> {
    let runs = |pod: &&Pod| {
        let host = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        !host && !matches!(phase, Some("Succeeded" | "Failed"))
    };
    pods.iter()
        .filter(runs)
        .map(|pod| {
            let (meta, namespace) = (&pod.metadata, pod.metadata.namespace.clone().unwrap_or_default());
            let pod = object::Pod {
                name: object::ObjectName::new(namespace.as_str(), meta.name.as_deref().unwrap_or_default()),
                labels: meta.labels.clone().unwrap_or_default(),
                ..object::Pod::default()
            };
            format!("{namespace}/{}", workload_name(&pod))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_pods_that_could_be_meshed_count_and_under_their_workloads_name() {
        let pods: Vec<Pod> = serde_json::from_value(json!([
            {"metadata": {"namespace": "shop", "name": "cart-6d4cf56db6-x7k2p",
                          "labels": {"pod-template-hash": "6d4cf56db6"}}, "status": {"phase": "Running"}},
            {"metadata": {"namespace": "kube-system", "name": "proxy-1"}, "spec": {"hostNetwork": true, "containers": []}},
            {"metadata": {"namespace": "shop", "name": "once"}, "status": {"phase": "Succeeded"}},
        ]))
        .expect("pods");
        assert_eq!(workloads(&pods), ["shop/cart".to_owned()].into());
    }
}
