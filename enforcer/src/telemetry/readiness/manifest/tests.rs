use super::super::judge::judge;
use super::super::tests::{client, criteria, node, pod};
use super::super::{Class, ClientData};
use super::*;

fn tls(port: u16) -> ClientData {
    client(port, Class::Tls, 5, 7, 10)
}

fn plain(port: u16) -> ClientData {
    client(port, Class::Plaintext, 9, 3, 20)
}

fn of(pods: Vec<PodData>) -> String {
    let nodes = Nodes::from(node("n1", pods));
    documents(&nodes, &judge(&nodes, &criteria()))
}

fn without_comments(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_ready_workload_turns_strict() {
    let text = of(vec![pod("cart-0", vec![tls(8080)])]);
    assert_eq!(
        without_comments(&text),
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: cart\n  namespace: shop\nspec:\n  selector:\n    matchLabels:\n      app: cart\n  mtls:\n    mode: STRICT"
    );
    assert!(text.contains("# shop/cart: READY"), "{text}");
}

#[test]
fn a_port_that_is_not_ready_is_an_exception() {
    let text = of(vec![pod("cart-0", vec![tls(8080), plain(9090)])]);
    assert!(text.contains("mode: STRICT\n  portLevelMtls:\n    9090:\n      mode: PERMISSIVE\n"), "{text}");
    assert!(text.contains("#   port 9090: NOT READY"), "{text}");
}

#[test]
fn what_is_not_ready_at_all_gets_a_comment() {
    let text = of(vec![pod("cart-0", vec![plain(8080)])]);
    assert_eq!(without_comments(&text), "");
    assert!(text.contains("# shop/cart: NOT READY") && text.contains("no policy"), "{text}");
}

#[test]
fn a_policy_that_governs_is_changed_not_shadowed() {
    let governed = |name: &str, workload: &str, clients| {
        let mut pod = pod(name, clients);
        pod.workload = workload.into();
        pod.posture.governed_by =
            Some(Governing { policy: "team".into(), selector: [("team".into(), "1".into())].into() });
        pod
    };
    let mut cart = governed("cart-0", "cart", vec![tls(8080)]);
    cart.posture.ports = [(7070, Mode::Disable)].into();
    // The other workload under the same policy is not ready on another port.
    let pay = governed("pay-0", "pay", vec![tls(8080), plain(9090)]);
    let text = of(vec![cart, pay]);
    assert_eq!(text.matches("kind: PeerAuthentication").count(), 1, "{text}");
    assert!(text.contains("  name: team\n"), "{text}");
    assert!(text.contains("      team: \"1\"\n"), "{text}");
    assert!(text.contains("    7070:\n      mode: DISABLE\n    9090:\n      mode: PERMISSIVE\n"), "{text}");
}

#[test]
fn a_workload_that_is_disabled_by_default_stays_so() {
    let mut cart = pod("cart-0", vec![tls(8080)]);
    cart.posture.mode = Mode::Disable;
    cart.posture.ports = [(8080, Mode::Permissive), (9090, Mode::Strict)].into();
    cart.posture.governed_by =
        Some(Governing { policy: "cart".into(), selector: [("app".into(), "cart".into())].into() });
    let text = of(vec![cart]);
    assert!(
        text.contains(
            "mode: DISABLE\n  portLevelMtls:\n    8080:\n      mode: STRICT\n    9090:\n      mode: STRICT\n"
        ),
        "{text}"
    );
}

#[test]
fn the_selector_reaches_the_workload_alone() {
    let labelled = |name: &str, workload: &str, labels: &[(&str, &str)]| {
        let mut pod = pod(name, vec![tls(8080)]);
        pod.workload = workload.into();
        pod.labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        pod
    };
    // `app` alone would take both.
    let text = of(vec![
        labelled("cart-v1-0", "cart-v1", &[("app", "cart"), ("version", "v1"), ("pod-template-hash", "a")]),
        labelled("cart-v2-0", "cart-v2", &[("app", "cart"), ("version", "v2"), ("pod-template-hash", "b")]),
    ]);
    assert!(text.contains("matchLabels:\n      version: v1\n  mtls"), "{text}");
    assert!(text.contains("matchLabels:\n      version: v2\n  mtls"), "{text}");
    // Nothing tells them apart but what changes with every rollout.
    let text = of(vec![
        labelled("a-0", "a", &[("app", "cart"), ("pod-template-hash", "a")]),
        labelled("b-0", "b", &[("app", "cart"), ("pod-template-hash", "b")]),
    ]);
    assert_eq!(without_comments(&text), "");
    assert!(text.contains("no label tells its pods"), "{text}");
}

#[test]
fn a_name_that_is_taken_is_not_overwritten() {
    let mut node = node("n1", vec![pod("cart-0", vec![tls(8080)])]);
    node.policies = [("shop".to_owned(), ["cart".to_owned()].into())].into();
    let nodes = Nodes::from(node);
    let text = documents(&nodes, &judge(&nodes, &criteria()));
    assert!(text.contains("  name: cart-2\n"), "{text}");
}

#[test]
fn words_that_yaml_reads_otherwise_are_quoted() {
    for text in ["1", "true", "No", "", "1.5", "a b", "a: b", "2024-01-01"] {
        assert!(scalar(text).starts_with('"'), "{text}");
    }
    for text in ["cart", "app.kubernetes.io/name", "a-1_b"] {
        assert_eq!(scalar(text), text);
    }
}
