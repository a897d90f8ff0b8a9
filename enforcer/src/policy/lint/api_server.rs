//! STRICT ports that the API server must reach: it has no mesh certificate.

use enforcer_common::Mode;

use super::Linter;
use super::ports::resolve;
use crate::object::{Map, Pod, Service};
use crate::policy::compose::selects;
use crate::policy::membership::{Membership, exempt_ports, membership};

impl Linter<'_> {
    /// Webhooks, `APIService`s and conversions of custom resources.
    pub(super) fn api_server_clients(&mut self) {
        for client in &self.objects.api_server_clients {
            let Some(service) = self.objects.services.get(&client.service) else {
                continue;
            };
            if service.selector.is_empty() {
                continue;
            }
            let target = service.ports.iter().find(|port| port.port == client.port);
            let pods = self.pods(&service.name.namespace);
            for pod in pods.into_iter().filter(|pod| selects(&service.selector, &pod.labels)) {
                let Some(port) = target.and_then(|target| resolve(&target.target, Some(pod))) else {
                    continue;
                };
                let namespace = self.objects.namespaces.get(&pod.name.namespace);
                let captured = matches!(membership(pod, namespace), Membership::Enforced { .. })
                    && !exempt_ports(pod).contains(port);
                let effective = self.composer.effective(&pod.name.namespace, &pod.labels);
                if !captured || effective.mode(port) != Mode::STRICT {
                    continue;
                }
                let decider = effective.decision(Some(port)).map(|decision| &decision.policy);
                let Some(policy) = decider.and_then(|name| self.objects.policies.get(name)) else {
                    continue;
                };
                let message = format!(
                    "makes port {port} of pods behind Service {} STRICT, but {} makes the API server call it, which has no mesh certificate: {}",
                    service.name,
                    client.description,
                    self.remedy(service, pod, port)
                );
                self.warn(policy, "", "api-server-locked-out", message);
            }
        }
    }

    /// What opens one port of a pod, and nothing else.
    fn remedy(&self, service: &Service, pod: &Pod, port: u16) -> String {
        let namespace = &pod.name.namespace;
        if namespace == self.composer.root_namespace() {
            return format!(
                "no policy can open one port in the root namespace; exclude the port from the mesh (annotation traffic.sidecar.istio.io/excludeInboundPorts: \"{port}\" on its pods), or move the Service to another namespace"
            );
        }
        if let Some(own) = self.composer.winners(namespace, &pod.labels).workload {
            return format!("add `\"{port}\": {{mode: PERMISSIVE}}` to spec.portLevelMtls of {}", own.name);
        }
        format!(
            "apply {{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: {}, namespace: {namespace}}}, spec: {{selector: {{matchLabels: {}}}, portLevelMtls: {{\"{port}\": {{mode: PERMISSIVE}}}}}}}}",
            service.name.name,
            flow(&service.selector)
        )
    }
}

/// Labels as a YAML mapping on one line.
fn flow(labels: &Map) -> String {
    let pairs: Vec<_> = labels.iter().map(|(key, value)| format!("{key:?}: {value:?}")).collect();
    format!("{{{}}}", pairs.join(", "))
}
