//! Pods that no data plane holds, and pods that are yet to be made.

use super::Linter;
use crate::object::{Objects, Origin, Pod};
use crate::policy::compose::selects;
use crate::policy::membership::{Membership, membership};
use crate::policy::problem::Problem;

/// One pod for the template of each workload of which no pod is given. Where its namespace injects sidecars it has one.
pub(super) fn of_templates(objects: &Objects) -> Vec<Pod> {
    let missing = |template: &&Pod| {
        let same = |pod: &Pod| {
            pod.name.namespace == template.name.namespace && selects(&template.labels, &pod.labels)
        };
        template.labels.is_empty() || !objects.pods.values().any(same)
    };
    let inject = |template: &Pod| {
        let mut pod = template.clone();
        if matches!(
            membership(&pod, objects.namespaces.get(&pod.name.namespace)),
            Membership::Unprotected { by } if !by.contains("dataplane-mode")
        ) {
            pod.annotations.insert("sidecar.istio.io/status".to_owned(), String::new());
        }
        pod
    };
    objects.templates.values().filter(missing).map(inject).collect()
}

impl Linter<'_> {
    pub(super) fn unprotected(&mut self) {
        for pod in self.objects.pods.values().filter(|pod| !pod.finished) {
            let namespace = self.objects.namespaces.get(&pod.name.namespace);
            if let Membership::Unprotected { by } = membership(pod, namespace) {
                let message = format!(
                    "no data plane holds this pod although it belongs to the mesh ({by}): it has no sidecar and ambient did not capture it, so no policy is held there; restart it"
                );
                let object = format!("Pod {}", pod.name);
                self.found.push(Problem::new(
                    &Origin::default(),
                    object,
                    "",
                    "pod-without-data-plane",
                    message,
                ));
            }
        }
    }
}
