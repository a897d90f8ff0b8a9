use super::{Membership, Via, exempt_ports, membership};
use crate::object::{Map, Namespace, Pod};

fn map(pairs: &[(&str, &str)]) -> Map {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn pod(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Pod {
    Pod { labels: map(labels), annotations: map(annotations), ..Pod::default() }
}

fn namespace(labels: &[(&str, &str)]) -> Namespace {
    Namespace { name: "shop".to_owned(), labels: map(labels) }
}

#[test]
fn each_data_plane_is_seen() {
    let sidecar = Membership::Enforced { via: Via::Sidecar };
    assert_eq!(membership(&pod(&[("security.istio.io/tlsMode", "istio")], &[]), None), sidecar);
    assert_eq!(membership(&pod(&[], &[("sidecar.istio.io/status", "{}")]), None), sidecar);
    let ambient = pod(&[], &[("ambient.istio.io/redirection", "enabled")]);
    assert_eq!(membership(&ambient, None), Membership::Enforced { via: Via::Ambient });
    let opted = namespace(&[("enforcer.io/enforce", "true")]);
    assert_eq!(membership(&pod(&[], &[]), Some(&opted)), Membership::Enforced { via: Via::Label });
    assert_eq!(membership(&pod(&[], &[]), None), Membership::NotMeshed);
}

#[test]
fn opting_out_and_the_host_network_win() {
    let out = pod(&[("security.istio.io/tlsMode", "istio"), ("enforcer.io/enforce", "false")], &[]);
    assert_eq!(membership(&out, None), Membership::OptedOut);
    let host = Pod { host_network: true, ..pod(&[("security.istio.io/tlsMode", "istio")], &[]) };
    assert_eq!(membership(&host, None), Membership::HostNetwork);
}

#[test]
fn a_mesh_namespace_without_a_data_plane_is_unprotected() {
    for label in
        [("istio-injection", "enabled"), ("istio.io/rev", "canary"), ("istio.io/dataplane-mode", "ambient")]
    {
        let found = membership(&pod(&[], &[]), Some(&namespace(&[label])));
        let by = format!("namespace label {}={}", label.0, label.1);
        assert_eq!(found, Membership::Unprotected { by });
    }
    for labels in
        [&[("istio-injection", "disabled")][..], &[("istio-injection", "disabled"), ("istio.io/rev", "x")]]
    {
        assert_eq!(membership(&pod(&[], &[]), Some(&namespace(labels))), Membership::NotMeshed);
    }
}

#[test]
fn a_pod_that_asks_for_a_data_plane_and_has_none_is_unprotected() {
    for label in [("istio.io/dataplane-mode", "ambient"), ("sidecar.istio.io/inject", "true")] {
        let by = format!("pod label {}={}", label.0, label.1);
        assert_eq!(membership(&pod(&[label], &[]), None), Membership::Unprotected { by });
    }
}

#[test]
fn pods_that_keep_the_data_plane_off_are_not_reported_as_unprotected() {
    let sidecars = namespace(&[("istio-injection", "enabled")]);
    let ambient = namespace(&[("istio.io/dataplane-mode", "ambient"), ("istio.io/rev", "stable")]);
    for (pod, namespace, by) in [
        (pod(&[("sidecar.istio.io/inject", "false")], &[]), &sidecars, "label sidecar.istio.io/inject=false"),
        (
            pod(&[], &[("sidecar.istio.io/inject", "false")]),
            &sidecars,
            "annotation sidecar.istio.io/inject=false",
        ),
        (pod(&[("istio.io/dataplane-mode", "none")], &[]), &ambient, "label istio.io/dataplane-mode=none"),
        (
            pod(&[("gateway.networking.k8s.io/gateway-name", "waypoint")], &[]),
            &ambient,
            "label gateway.networking.k8s.io/gateway-name",
        ),
    ] {
        assert_eq!(membership(&pod, Some(namespace)), Membership::OutsideDataPlane { by: by.to_owned() });
        assert_eq!(
            membership(&pod, None),
            Membership::NotMeshed,
            "outside the mesh there is nothing to keep off"
        );
    }
    // The word of one data plane says nothing to the other.
    for (label, namespace) in
        [(("sidecar.istio.io/inject", "false"), &ambient), (("istio.io/dataplane-mode", "none"), &sidecars)]
    {
        let found = membership(&pod(&[label], &[]), Some(namespace));
        assert!(matches!(found, Membership::Unprotected { .. }), "{label:?}: {found:?}");
    }
}

#[test]
fn ambient_holds_nothing_where_inbound_capture_is_bypassed() {
    let annotations =
        [("ambient.istio.io/redirection", "enabled"), ("ambient.istio.io/bypass-inbound-capture", "true")];
    let by = "annotation ambient.istio.io/bypass-inbound-capture=true".to_owned();
    assert_eq!(membership(&pod(&[], &annotations), None), Membership::OutsideDataPlane { by });
    let asked = pod(&[("enforcer.io/enforce", "true")], &annotations);
    assert!(matches!(membership(&asked, None), Membership::Enforced { .. }), "the label insists");
    let no = [annotations[0], ("ambient.istio.io/bypass-inbound-capture", "false")];
    assert_eq!(membership(&pod(&[], &no), None), Membership::Enforced { via: Via::Ambient });
}

#[test]
fn annotations_exempt_ports_of_sidecars_only() {
    let excluded = ("traffic.sidecar.istio.io/excludeInboundPorts", "9090, 9091");
    let sidecar = exempt_ports(&pod(&[("security.istio.io/tlsMode", "istio")], &[excluded]));
    assert!(sidecar.ports.contains(&9090) && sidecar.ports.contains(&9091) && sidecar.ports.contains(&15008));
    let ambient = exempt_ports(&pod(&[], &[("ambient.istio.io/redirection", "enabled"), excluded]));
    assert!(!ambient.ports.contains(&9090));
    let included = ("traffic.sidecar.istio.io/includeInboundPorts", "8080");
    let only = exempt_ports(&pod(&[("security.istio.io/tlsMode", "istio")], &[included, excluded]));
    assert_eq!(only.only, Some([8080].into()));
    assert!(!only.ports.contains(&9090), "excludeInboundPorts counts only where everything is included");
}
