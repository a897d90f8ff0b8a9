//! Which pods are meshed, and which of their ports the mesh never captures.

use std::collections::BTreeSet;

use crate::object::{Map, Namespace, Pod};

/// Ports of the mesh itself: HBONE tunnel, merged telemetry, health checks, Envoy's own metrics
/// (`tools/istio-iptables/pkg/capture/run.go` in Istio).
pub const MESH_PORTS: [u16; 4] = [15008, 15020, 15021, 15090];

/// Label that opts a pod or namespace in (`"true"`) or a pod out (`"false"`).
pub const ENFORCE_LABEL: &str = "enforcer.io/enforce";

/// Whether a pod is held to policy, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Membership {
    /// Held to policy.
    Enforced {
        /// What says so.
        via: Via,
    },
    /// Outside the mesh.
    NotMeshed,
    /// In the node's network namespace: policy has no effect there.
    HostNetwork,
    /// Opted out by label.
    OptedOut,
    /// In a mesh namespace, but no data plane holds it.
    Unprotected {
        /// What makes the namespace a mesh namespace.
        namespace: String,
    },
}

/// What makes a pod meshed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Via {
    /// A sidecar was injected.
    Sidecar,
    /// Ambient captured it.
    Ambient,
    /// A label opts it in.
    Label,
}

/// Ambient captures this pod: mesh clients come through its tunnel (HBONE, port 15008) and not to its own ports.
#[must_use]
pub fn is_ambient(pod: &Pod) -> bool {
    !has_sidecar(pod) && is(&pod.annotations, "ambient.istio.io/redirection", "enabled")
}

/// Decides whether a pod is meshed. `namespace`: the pod's namespace, where it is known.
#[must_use]
pub fn membership(pod: &Pod, namespace: Option<&Namespace>) -> Membership {
    if pod.host_network {
        return Membership::HostNetwork;
    }
    let own = pod.labels.get(ENFORCE_LABEL).map(String::as_str);
    if own == Some("false") {
        return Membership::OptedOut;
    }
    if has_sidecar(pod) {
        return Membership::Enforced { via: Via::Sidecar };
    }
    if is_ambient(pod) {
        return Membership::Enforced { via: Via::Ambient };
    }
    let none = Map::new();
    let labels = namespace.map_or(&none, |namespace| &namespace.labels);
    if own == Some("true") || is(labels, ENFORCE_LABEL, "true") {
        return Membership::Enforced { via: Via::Label };
    }
    let mesh = [
        ("istio-injection", Some("enabled")),
        ("istio.io/rev", None),
        ("istio.io/dataplane-mode", Some("ambient")),
    ]
    .into_iter()
    .find(|(key, value)| labels.get(*key).is_some_and(|found| value.is_none_or(|value| found == value)));
    match mesh {
        Some((key, _)) => Membership::Unprotected {
            namespace: format!("{key}={}", labels.get(key).map_or("", String::as_str)),
        },
        None => Membership::NotMeshed,
    }
}

/// A sidecar was injected.
#[must_use]
pub fn has_sidecar(pod: &Pod) -> bool {
    is(&pod.labels, "security.istio.io/tlsMode", "istio")
        || pod.annotations.contains_key("sidecar.istio.io/status")
}

fn is(map: &Map, key: &str, value: &str) -> bool {
    map.get(key).is_some_and(|found| found == value)
}

/// Ports that are never judged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExemptPorts {
    /// The mesh's own and those that annotations exclude.
    pub ports: BTreeSet<u16>,
    /// With `includeInboundPorts`: only these are captured, so only these are judged. `None`: all.
    pub only: Option<BTreeSet<u16>>,
}

/// The ports of a pod that its mesh does not capture. Annotations count for sidecars only: ambient reads none of them.
#[must_use]
pub fn exempt_ports(pod: &Pod) -> ExemptPorts {
    let mut exempt = ExemptPorts { ports: BTreeSet::from(MESH_PORTS), only: None };
    if !has_sidecar(pod) {
        return exempt;
    }
    let annotation = |name: &str| pod.annotations.get(name).map(|value| value.trim());
    if let Some(port) = annotation("status.sidecar.istio.io/port").and_then(|value| value.parse().ok()) {
        exempt.ports.insert(port);
    }
    match annotation("traffic.sidecar.istio.io/includeInboundPorts") {
        None | Some("*") => {
            let excluded = annotation("traffic.sidecar.istio.io/excludeInboundPorts").unwrap_or_default();
            exempt.ports.extend(port_list(excluded));
        }
        Some(list) => exempt.only = Some(port_list(list).collect()),
    }
    exempt
}

fn port_list(list: &str) -> impl Iterator<Item = u16> {
    list.split(',').filter_map(|port| port.trim().parse().ok())
}

#[cfg(test)]
mod tests;
