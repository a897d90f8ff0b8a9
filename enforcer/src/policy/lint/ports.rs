//! Port entries against what the pods and Services declare.

use super::Linter;
use crate::object::{ObjectName, PeerAuthentication, Pod, Service, TargetPort};
use crate::policy::compose::selects;
use crate::policy::membership::{MESH_PORTS, exempt_ports};

/// The port of the pod that a Service's target means.
pub(super) fn resolve(target: &TargetPort, pod: Option<&Pod>) -> Option<u16> {
    match target {
        TargetPort::Number(port) => Some(*port),
        TargetPort::Name(name) => {
            pod?.ports.iter().find(|port| port.tcp && port.name.as_ref() == Some(name)).map(|port| port.port)
        }
    }
}

impl Linter<'_> {
    /// The port entries of a policy; `governed` are the pods on which it is the workload policy.
    pub(super) fn ports(&mut self, policy: &PeerAuthentication, governed: &[&Pod]) {
        let namespace = policy.name.namespace.as_str();
        let first = ObjectName::new(namespace, "");
        let services: Vec<&Service> = self
            .objects
            .services
            .range(first..)
            .map(|(_, service)| service)
            .take_while(|service| service.name.namespace == namespace)
            .filter(|service| !service.selector.is_empty())
            .filter(|service| {
                governed.iter().any(|pod| selects(&service.selector, &pod.labels))
                    || (governed.is_empty() && selects(&service.selector, &policy.selector))
            })
            .collect();
        let targets: Vec<(&Service, u16, u16)> = services
            .iter()
            .flat_map(|service| service.ports.iter().map(move |port| (*service, port)))
            .filter_map(|(service, port)| {
                let pod = governed.iter().copied().find(|pod| selects(&service.selector, &pod.labels));
                Some((service, port.port, resolve(&port.target, pod)?))
            })
            .collect();
        let declared: Vec<u16> = governed
            .iter()
            .flat_map(|pod| pod.ports.iter().filter(|port| port.tcp).map(|port| port.port))
            .collect();
        for &port in policy.ports.keys() {
            let field = format!("spec.portLevelMtls.{port}");
            if MESH_PORTS.contains(&port) {
                let message = format!(
                    "port {port} belongs to the mesh itself, where no policy is held: remove the entry"
                );
                self.warn(policy, &field, "port-reserved", message);
                continue;
            }
            let excluding = governed.iter().find(|pod| exempt_ports(pod).contains(port));
            if let Some(pod) = excluding {
                let message = format!(
                    "the sidecar of pod {} does not capture port {port} (its annotations excludeInboundPorts and includeInboundPorts), so no policy is held there: remove the entry, or capture the port",
                    pod.name.name
                );
                self.warn(policy, &field, "port-excluded", message);
                continue;
            }
            if declared.contains(&port) || targets.iter().any(|(.., target)| *target == port) {
                continue;
            }
            if let Some((service, _, target)) = targets.iter().find(|(_, own, _)| *own == port) {
                let message = format!(
                    "{port} is the port of Service {}, not of the container, which listens on {target}: write {target}",
                    service.name.name
                );
                self.warn(policy, &field, "port-of-service", message);
            } else if !declared.is_empty() {
                let mut known = declared.clone();
                known.sort_unstable();
                known.dedup();
                let known: Vec<_> = known.iter().map(ToString::to_string).collect();
                let message = format!(
                    "no selected pod declares port {port} (declared: {}): correct it, unless the container listens there undeclared",
                    known.join(", ")
                );
                self.warn(policy, &field, "port-not-declared", message);
            }
        }
    }
}
