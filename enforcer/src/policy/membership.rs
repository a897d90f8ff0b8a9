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
    /// In the mesh but for its own label or annotation, which keeps the data plane's hands off it: Istio holds no policy there.
    OutsideDataPlane {
        /// What says so.
        by: String,
    },
    /// It belongs to the mesh, but no data plane holds it.
    Unprotected {
        /// What puts it into the mesh, such as `namespace label istio-injection=enabled`.
        by: String,
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
    let none = Map::new();
    let labels = namespace.map_or(&none, |namespace| &namespace.labels);
    let asked = own == Some("true") || is(labels, ENFORCE_LABEL, "true");
    if is_ambient(pod) {
        // Ambient holds what the pod sends, not what reaches it (`cni/pkg/nodeagent/net.go` in Istio).
        if is(&pod.annotations, BYPASS, "true") && !asked {
            return Membership::OutsideDataPlane { by: format!("annotation {BYPASS}=true") };
        }
        return Membership::Enforced { via: Via::Ambient };
    }
    if asked {
        return Membership::Enforced { via: Via::Label };
    }
    let gateway = GATEWAYS.into_iter().find(|key| pod.labels.contains_key(*key));
    let planes =
        [(sidecar(&pod.labels, labels), no_sidecar(pod)), (ambient(&pod.labels, labels), no_ambient(pod))];
    let mut outside = None;
    for (by, kept_off) in planes {
        let Some(by) = by else { continue };
        // A gateway or waypoint is a proxy itself.
        match gateway.map(|key| format!("label {key}")).or(kept_off) {
            Some(by) => outside = Some(by),
            None => return Membership::Unprotected { by },
        }
    }
    outside.map_or(Membership::NotMeshed, |by| Membership::OutsideDataPlane { by })
}

/// Annotation that switches off ambient's hold on what reaches the pod.
const BYPASS: &str = "ambient.istio.io/bypass-inbound-capture";

/// Label by which a pod or namespace is given to ambient, or kept from it.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// Label (formerly annotation) by which a pod asks for a sidecar, or for none.
const INJECT: &str = "sidecar.istio.io/inject";

fn word(what: &str, map: &Map, key: &str) -> String {
    format!("{what} {key}={}", map.get(key).map_or("", String::as_str))
}

/// What asks for a sidecar, if anything does.
fn sidecar(own: &Map, namespace: &Map) -> Option<String> {
    if is(own, INJECT, "true") {
        return Some(word("pod label", own, INJECT));
    }
    let injection = namespace.get("istio-injection").map(String::as_str);
    let key = match injection {
        Some("enabled") => "istio-injection",
        // It goes before a revision.
        None if namespace.contains_key("istio.io/rev") && !is(namespace, DATAPLANE_MODE, "ambient") => {
            "istio.io/rev"
        }
        _ => return None,
    };
    Some(word("namespace label", namespace, key))
}

/// What asks for ambient, if anything does.
fn ambient(own: &Map, namespace: &Map) -> Option<String> {
    let (what, map) =
        if own.contains_key(DATAPLANE_MODE) { ("pod label", own) } else { ("namespace label", namespace) };
    let asked = is(map, DATAPLANE_MODE, "ambient") || is(namespace, DATAPLANE_MODE, "ambient");
    asked.then(|| word(what, map, DATAPLANE_MODE))
}

/// What keeps the sidecar off a pod.
fn no_sidecar(pod: &Pod) -> Option<String> {
    if pod.labels.contains_key(INJECT) {
        return is(&pod.labels, INJECT, "false").then(|| word("label", &pod.labels, INJECT));
    }
    is(&pod.annotations, INJECT, "false").then(|| word("annotation", &pod.annotations, INJECT))
}

/// What keeps ambient off a pod.
fn no_ambient(pod: &Pod) -> Option<String> {
    is(&pod.labels, DATAPLANE_MODE, "none").then(|| word("label", &pod.labels, DATAPLANE_MODE))
}

/// Labels of the pods that Istio makes for a Gateway, waypoints among them.
const GATEWAYS: [&str; 3] =
    ["gateway.networking.k8s.io/gateway-name", "gateway.istio.io/managed", "istio.io/gateway-name"];

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

impl ExemptPorts {
    /// Connections to this port are never judged.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.ports.contains(&port) || self.only.as_ref().is_some_and(|only| !only.contains(&port))
    }
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
