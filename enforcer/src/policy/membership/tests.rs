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
        assert_eq!(found, Membership::Unprotected { namespace: format!("{}={}", label.0, label.1) });
    }
    assert_eq!(
        membership(&pod(&[], &[]), Some(&namespace(&[("istio-injection", "disabled")]))),
        Membership::NotMeshed
    );
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
