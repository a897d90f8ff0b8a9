//! Names for addresses of pods on other nodes: asked of the API server when a flow shows one, one a second at most.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use tokio::sync::mpsc;
use tracing::debug;

use crate::object::{self, ObjectName};
use crate::telemetry::Shared;
use crate::telemetry::names::{Identity, Lookup};

/// Questions that may wait; what is beyond stays without a name until it is asked again.
const WAITING: usize = 256;
/// The shortest time between two questions: each makes the API server look through all pods in its cache.
const PACE: Duration = Duration::from_secs(1);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

struct Asked(mpsc::Sender<IpAddr>);

impl Lookup for Asked {
    fn request(&self, address: IpAddr) -> bool {
        // A full queue leaves the address without a name for now, which is no harm.
        self.0.try_send(address).is_ok()
    }
}

/// Both ends of the queue of questions.
#[must_use]
pub fn channel() -> (Box<dyn Lookup>, mpsc::Receiver<IpAddr>) {
    let (asked, questions) = mpsc::channel(WAITING);
    (Box::new(Asked(asked)), questions)
}

/// Answers questions until nobody asks any more. Finds a pod by its first address, the one that the API server selects by.
pub async fn answer(client: Client, shared: Arc<Shared>, mut questions: mpsc::Receiver<IpAddr>) {
    let pods: Api<Pod> = Api::all(client);
    while let Some(address) = questions.recv().await {
        // As the cache has it, and whole: a list in pages is read from the store.
        let query = ListParams::default().fields(&format!("status.podIP={address}")).match_any();
        match tokio::time::timeout(PATIENCE, pods.list(&query)).await {
            Ok(Ok(found)) => shared.remote.learn(address, found.iter().find_map(identity), Instant::now()),
            Ok(Err(error)) => {
                debug!(%address, "the pod behind an address cannot be asked for: {error}");
                shared.remote.unanswered(address, Instant::now());
            }
            Err(_) => {
                debug!(%address, "the API server does not say in time which pod has an address");
                shared.remote.unanswered(address, Instant::now());
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

/// Who a pod is; `None` when the address is its node's, or was its own once.
fn identity(pod: &Pod) -> Option<Identity> {
    let shares_node = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if shares_node || matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    Some(Identity::of(&object::Pod {
        name: ObjectName::new(pod.namespace().unwrap_or_default(), pod.name_any()),
        labels: pod.labels().clone(),
        ..object::Pod::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(text: &serde_json::Value) -> Pod {
        serde_json::from_value(text.clone()).expect("pod")
    }

    #[test]
    fn a_pod_is_named_with_its_workload_unless_the_address_is_not_its_own() {
        let mut text = serde_json::json!({
            "metadata": {"namespace": "shop", "name": "cart-7d9c-x2x4z", "labels": {"pod-template-hash": "7d9c"}},
            "spec": {"containers": []},
            "status": {"phase": "Running", "podIP": "10.1.0.7"},
        });
        let found = identity(&pod(&text)).expect("identity");
        assert_eq!((&*found.namespace, &*found.pod, &*found.workload), ("shop", "cart-7d9c-x2x4z", "cart"));
        text["status"]["phase"] = "Succeeded".into();
        assert_eq!(identity(&pod(&text)), None);
        text["status"]["phase"] = "Running".into();
        text["spec"]["hostNetwork"] = true.into();
        assert_eq!(identity(&pod(&text)), None);
    }
}
