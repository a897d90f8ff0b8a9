//! What a change of policies does.

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
    let (old, new) = (objects(old), objects(new));
    let before = Composer::new(old.policies.values(), "root", None);
    let after = Composer::new(new.policies.values(), "root", None);
    let (changes, _) =
        diff(Side { objects: &old, composer: &before }, Side { objects: &new, composer: &after });
    changes
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
            format!("{subject}:{port} {} -> {} by {policy}", change.old, change.new)
        })
        .collect()
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
