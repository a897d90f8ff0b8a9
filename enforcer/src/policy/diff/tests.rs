//! What a change of policies does.

use enforcer_common::Mode;

use super::{Side, Subject, diff};
use crate::object::Objects;
use crate::policy::compose::Composer;
use crate::source::manifest::{merge, parse_file};

fn objects(text: &str) -> Objects {
    let loaded = merge(&[parse_file("all.yaml".as_ref(), text)]);
    assert_eq!(loaded.problems, []);
    loaded.objects
}

fn lines(old: &str, new: &str) -> Vec<String> {
    compared(old, new).0
}

/// The changes, how many subjects were compared, and how many were left out.
fn compared(old: &str, new: &str) -> (Vec<String>, usize, usize) {
    let (old, new) = (objects(old), objects(new));
    let before = Composer::new(old.policies.values(), "root", None);
    let after = Composer::new(new.policies.values(), "root", None);
    let found = diff(Side { objects: &old, composer: &before }, Side { objects: &new, composer: &after });
    let mode = |mode: Option<Mode>| mode.map_or_else(|| "none".to_owned(), |mode| mode.to_string());
    let lines = found
        .changes
        .iter()
        .map(|change| {
            let subject = match &change.subject {
                Subject::Pod(name) => name.to_string(),
                Subject::Any { namespace, labels } => format!("{namespace}{labels:?}"),
                Subject::Elsewhere => "elsewhere".to_owned(),
            };
            let others = || change.except.iter().fold("*".to_owned(), |text, port| format!("{text}-{port}"));
            let port = change.port.map_or_else(others, |port| port.to_string());
            let policy = change.new_policy.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
            format!("{subject}:{port} {} -> {} by {policy}", mode(change.old), mode(change.new))
        })
        .collect();
    (lines, found.compared, found.left_out)
}

const POD: &str = "
---
{apiVersion: v1, kind: Pod, metadata: {name: cart, namespace: shop, labels: {app: a}},
 spec: {containers: [{ports: [{containerPort: 80}, {containerPort: 90}, {containerPort: 15021}, {containerPort: 53, protocol: UDP}]}]}}
";
const MESH: &str = "
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: mesh, namespace: root}, spec: {mtls: {mode: STRICT}}}
";
const PORT: &str = "
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: port, namespace: shop},
 spec: {selector: {matchLabels: {app: a}}, portLevelMtls: {90: {mode: PERMISSIVE}, 91: {mode: DISABLE}}}}
";

#[test]
fn pods_show_their_declared_ports() {
    let new = format!("{POD}{MESH}{PORT}");
    assert_eq!(
        lines(POD, &new),
        [
            "shop/cart:80 PERMISSIVE -> STRICT by root/mesh",
            "shop/cart:91 PERMISSIVE -> DISABLE by shop/port",
            "shop/cart:*-90 PERMISSIVE -> STRICT by root/mesh",
        ]
    );
    assert!(lines(&new, &new).is_empty());
}

#[test]
fn pods_of_one_side_count_for_both() {
    let old = format!("{POD}{MESH}");
    assert_eq!(
        lines(&old, &format!("{MESH}{PORT}")),
        ["shop/cart:90 STRICT -> PERMISSIVE by shop/port", "shop/cart:91 STRICT -> DISABLE by shop/port"]
    );
}

#[test]
fn without_pods_selectors_stand_for_them() {
    assert_eq!(
        lines(PORT, &format!("{MESH}{PORT}")),
        [
            "root{}:* PERMISSIVE -> STRICT by root/mesh",
            "shop{}:* PERMISSIVE -> STRICT by root/mesh",
            "shop{\"app\": \"a\"}:*-90-91 PERMISSIVE -> STRICT by root/mesh",
            "elsewhere:* PERMISSIVE -> STRICT by root/mesh",
        ]
    );
}

/// A pod that is meshed, with more metadata and spec.
fn pod(metadata: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: cart, namespace: shop, {metadata}}}, spec: {{{spec}}}}}\n"
    )
}

const SIDECAR: &str = "labels: {app: a, security.istio.io/tlsMode: istio}";
const NAMESPACE: &str = "
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
";

#[test]
fn pods_at_which_nothing_is_held_are_left_out() {
    let finished = "---\n{apiVersion: v1, kind: Pod, metadata: {name: cart, namespace: shop}, status: {phase: Succeeded}}\n";
    for text in [
        pod(SIDECAR, "hostNetwork: true"),
        pod("labels: {enforcer.io/enforce: 'false'}", ""),
        finished.to_owned(),
        format!("{}{NAMESPACE}", pod("labels: {app: a}", "")),
    ] {
        assert_eq!(compared(&text, &format!("{text}{MESH}")), (vec![], 0, 1), "{text}");
    }
    // Where the Namespace is not given, the pod may be of a mesh.
    let unknown = pod("labels: {app: a}", "");
    assert_eq!(compared(&unknown, &format!("{unknown}{MESH}")).1, 1);
}

#[test]
fn ports_that_the_sidecar_does_not_capture_do_not_change() {
    let ports = "containers: [{ports: [{containerPort: 80}, {containerPort: 90}]}]";
    let with = |annotation: &str| {
        let annotation = format!("{SIDECAR}, annotations: {{traffic.sidecar.istio.io/{annotation}}}");
        let pod = pod(&annotation, ports);
        lines(&pod, &format!("{pod}{MESH}"))
    };
    assert_eq!(
        with("excludeInboundPorts: '90'"),
        [
            "shop/cart:80 PERMISSIVE -> STRICT by root/mesh",
            "shop/cart:*-90 PERMISSIVE -> STRICT by root/mesh"
        ]
    );
    assert_eq!(with("includeInboundPorts: '90'"), ["shop/cart:90 PERMISSIVE -> STRICT by root/mesh"]);
    assert!(with("includeInboundPorts: ''").is_empty());
}

#[test]
fn a_pod_that_joins_or_leaves_the_mesh_changes() {
    let (out, inside) = (format!("{}{NAMESPACE}{MESH}", pod("labels: {app: a}", "")), pod(SIDECAR, ""));
    let inside = format!("{inside}{NAMESPACE}{MESH}");
    assert_eq!(lines(&out, &inside), ["shop/cart:* none -> STRICT by root/mesh"]);
    assert_eq!(lines(&inside, &out), ["shop/cart:* STRICT -> none by none"]);
}

#[test]
fn a_pod_that_two_selectors_match_is_imagined_too() {
    let policy = |name: &str, label: &str, mode: &str| {
        format!(
            "---\n{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: {name}, namespace: shop}}, spec: {{selector: {{matchLabels: {{{label}}}}}, mtls: {{mode: {mode}}}}}}}\n"
        )
    };
    let old = policy("b", "app: a", "STRICT") + &policy("c", "tier: web", "PERMISSIVE");
    // Renamed, it wins over the other one, which only pods with both labels feel.
    let new = policy("b", "app: a", "STRICT") + &policy("a", "tier: web", "PERMISSIVE");
    assert_eq!(
        lines(&old, &new),
        ["shop{\"app\": \"a\", \"tier\": \"web\"}:* STRICT -> PERMISSIVE by shop/a"]
    );
    // Selectors that contradict each other match no pod together.
    let old = policy("b", "app: a", "STRICT") + &policy("c", "app: b", "PERMISSIVE");
    assert!(lines(&old, &old.replace("name: c", "name: a")).is_empty());
}
