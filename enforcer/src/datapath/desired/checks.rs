//! What follows from certificate checks.

use enforcer_common::map::port_flags;

use super::*;
use crate::source::manifest::{merge, parse_file};

const ADDRESS: &str = "10.0.0.1";

/// Whether port 8080 of a meshed pod is blocked, whose uid is "new".
fn is_blocked(annotation: &str, facts: &Facts) -> bool {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  {{name: web, namespace: shop, uid: new, annotations: {{{annotation}}}}}\n\
         spec: {{containers: [{{name: a, ports: [{{containerPort: 8080}}]}}]}}\n\
         status: {{podIP: {ADDRESS}}}\n\
         ---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: shop}}\n\
         spec: {{mtls: {{mode: STRICT}}}}\n"
    );
    let loaded = merge(&[parse_file("all.yaml".as_ref(), &text)]);
    assert_eq!(loaded.problems, []);
    let options = Options { root_namespace: "istio-system".to_owned(), revision: None, list_all_pods: false };
    let wanted = desired(&loaded.objects, facts, &options, &mut WorkloadIds::default());
    let address = Address::from(ADDRESS.parse::<IpAddr>().expect("an address"));
    let plan = wanted.endpoints.get(&address).expect("the pod is enforced");
    plan.ports.get(&8080).is_some_and(|port| port.flags & port_flags::BLOCKED != 0)
}

const SIDECAR: &str = "sidecar.istio.io/status: x";
const AMBIENT: &str = "ambient.istio.io/redirection: enabled";

fn of(uid: &str) -> BTreeSet<PodPort> {
    BTreeSet::from([PodPort { pod: ObjectName::new("shop", "web"), uid: uid.to_owned(), port: 8080 }])
}

#[test]
fn what_was_found_of_one_pod_says_nothing_about_the_next_of_its_name() {
    for (uid, of_this_pod) in [("new", true), ("", true), ("old", false)] {
        let blocked = Facts { blocked: of(uid), ..Facts::default() };
        assert_eq!(is_blocked(SIDECAR, &blocked), of_this_pod, "{uid}");
        let passed = Facts { passed: Some(of(uid)), ..Facts::default() };
        assert_eq!(is_blocked(SIDECAR, &passed), !of_this_pod, "{uid}");
    }
}

#[test]
fn ports_behind_a_tunnel_are_not_checked_and_so_not_closed_for_that() {
    let facts = Facts { passed: Some(BTreeSet::new()), ..Facts::default() };
    assert!(is_blocked(SIDECAR, &facts));
    assert!(!is_blocked(AMBIENT, &facts));
}
