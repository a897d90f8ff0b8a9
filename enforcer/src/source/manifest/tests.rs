use std::path::Path;

use enforcer_common::Mode;

use super::{FileContent, load_paths, merge, parse_file};
use crate::object::{ObjectName, Objects};
use crate::source::document::Object;

fn parse(text: &str) -> FileContent {
    parse_file(Path::new("test.yaml"), text)
}

fn good(text: &str) -> Objects {
    let content = parse(text);
    assert!(content.problems.is_empty(), "{:?}", content.problems);
    merge([&content]).objects
}

#[test]
fn port_keys_as_integers_and_strings() {
    let objects = good(
        "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: ns, creationTimestamp: 2024-01-01T00:00:00Z}\nspec:\n  selector: {matchLabels: {app: a}}\n  portLevelMtls:\n    8080: {mode: STRICT}\n    '9090': {mode: DISABLE}\n",
    );
    let policy = &objects.policies[&ObjectName::new("ns", "a")];
    assert_eq!(policy.ports[&8080], Some(Mode::STRICT));
    assert_eq!(policy.ports[&9090], Some(Mode::DISABLE));
    assert!(policy.created.is_some(), "an unquoted time is a time");
}

#[test]
fn lists_probes_and_sidecars() {
    let objects = good(
        r"
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata: {name: p, namespace: ns, labels: {app: a}}
  spec:
    initContainers:
    - {name: once, ports: [{containerPort: 1}]}
    - {name: side, restartPolicy: Always, ports: [{containerPort: 2}]}
    containers:
    - name: main
      ports: [{containerPort: 8080, name: web}, {containerPort: 53, protocol: UDP}]
      readinessProbe: {httpGet: {port: web}}
      livenessProbe: {tcpSocket: {port: 9000}}
  status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: other}}
---
---
apiVersion: v1
kind: PodList
items:
- metadata: {name: q}
",
    );
    let pod = &objects.pods[&ObjectName::new("ns", "p")];
    assert_eq!(
        pod.ports.iter().map(|port| (port.port, port.tcp)).collect::<Vec<_>>(),
        [(8080, true), (53, false), (2, true)]
    );
    assert_eq!(pod.probe_ports, [8080, 9000]);
    assert_eq!(pod.addresses.len(), 2);
    assert!(objects.pods.contains_key(&ObjectName::new("default", "q")));
}

#[test]
fn refusals_name_the_field() {
    let content = parse(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {selector: {matchLables: {app: a}}, mtls: {mode: strict}}\n---\nkind: PeerAuthentcation\nmetadata: {name: b}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: c, labels: {on: yes}}\n",
    );
    let said: Vec<String> = content.problems.iter().map(ToString::to_string).collect();
    assert_eq!(content.problems.len(), 4, "{said:#?}");
    assert!(said[0].starts_with(
        "test.yaml, document 1: PeerAuthentication default/a: spec.selector.matchLables: unknown field"
    ));
    assert!(said[0].contains("every pod of the namespace"));
    assert!(said[1].contains("write STRICT, in capitals"));
    assert!(said[2].contains("write PeerAuthentication"));
    assert!(said[3].contains("a boolean"), "{}", said[3]);
    assert!(content.objects.is_empty());
}

#[test]
fn a_refused_document_keeps_its_last_good_version_and_a_broken_file_all_of_them() {
    let good = parse(
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: a}, spec: {mtls: {mode: STRICT}}}\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: ns}}",
    );
    let refused = parse(
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: a}, spec: {mtls: {mode: OFF}}}",
    );
    let now = refused.over(&good);
    assert_eq!(now.objects.len(), 1, "the policy stays, the namespace was taken out on purpose");
    assert_eq!(now.objects[0].key(), "PeerAuthentication default/a");
    let broken = parse("kind: [").over(&good);
    assert!(broken.unreadable);
    assert_eq!(broken.objects.len(), 2);
    let emptied = parse("# nothing\n").over(&good);
    assert_eq!(emptied.objects.len(), 2, "an emptied file is an accident, a removed one is not");
    assert_eq!((emptied.problems.len(), emptied.warnings.len()), (1, 0));
    let fresh = parse("# nothing\n").over(&FileContent::default());
    assert_eq!((fresh.problems.len(), fresh.warnings.len()), (0, 1), "nothing was lost");
    assert!(!fresh.is_good(), "and nothing is worth keeping");
}

const POLICY: &str = "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: a, namespace: ns}, spec: {mtls: {mode: STRICT}}}";

fn names(content: &FileContent) -> Vec<String> {
    content.objects.iter().map(Object::key).collect()
}

/// Whatever is misspelt, the policy that was good stays.
#[test]
fn a_document_that_does_not_say_what_it_is_drops_nothing() {
    let good = parse(POLICY);
    for broken in [
        POLICY.replace("PeerAuthentication", "PeerAuthentcation"),
        POLICY.replace("PeerAuthentication", "peerauthentication"),
        POLICY.replace("kind: PeerAuthentication, ", ""),
        POLICY.replace("kind:", "kid:"),
        POLICY.replace("name: a", "nam: a"),
        POLICY.replace("namespace: ns", "namespac: ns"),
        POLICY.replace("namespace: ns", "namespace: on"),
        POLICY.replace("metadata:", "metdata:"),
        POLICY.replace("{name: a, namespace: ns}", "[]"),
        POLICY.replace("istio.io/v1", "istio.io/v2"),
        format!("{{apiVersion: v1, kind: list, items: [{POLICY}]}}"),
        format!("{{apiVersion: v1, kind: List, item: [{POLICY}]}}"),
        "just text".to_owned(),
    ] {
        let read = parse(&broken);
        assert!(!read.problems.is_empty() && read.objects.is_empty(), "{broken}");
        assert_eq!(names(&read.over(&good)), ["PeerAuthentication ns/a"], "{broken}");
    }
    // A good document without it takes it out.
    let other = parse("{apiVersion: v1, kind: Namespace, metadata: {name: ns}}");
    assert_eq!(names(&other.over(&good)), ["Namespace ns"]);
}

/// A policy that the API server holds although admission would refuse it today is in force, but not over a good version.
#[test]
fn a_refused_version_yields_to_the_last_good_one() {
    let dated = POLICY.replace("namespace: ns", "namespace: ns, creationTimestamp: '2024-01-01T00:00:00Z'");
    let good = parse(&dated.replace("STRICT", "DISABLE"));
    let mode = |content: &FileContent| match content.objects.as_slice() {
        [Object::Policy(policy)] => policy.mode,
        other => panic!("{other:?}"),
    };
    let bypassed = dated.replace("spec: {", "spec: {portLevelMtls: {80: {mode: DISABLE}}, ");
    let read = parse(&bypassed);
    assert_eq!((read.problems.len(), read.objects.len()), (1, 0));
    assert_eq!(mode(&read.clone().over(&good)), Some(Mode::DISABLE));
    assert_eq!(mode(&read.over(&FileContent::default())), Some(Mode::STRICT));
    // Without a time nobody holds it; with a selector that is null it may be wider than meant.
    for nobody in [
        bypassed.replace("creationTimestamp: '2024-01-01T00:00:00Z'", ""),
        dated.replace("spec: {", "spec: {selector: null, "),
    ] {
        let read = parse(&nobody);
        assert_eq!(read.bypassed.len(), 1, "{nobody}");
        assert!(read.over(&FileContent::default()).objects.is_empty(), "{nobody}");
    }
}

#[test]
fn a_replaced_policy_keeps_its_age() {
    let dated = POLICY.replace("namespace: ns", "namespace: ns, creationTimestamp: '2024-01-01T00:00:00Z'");
    let created = |texts: &[&str]| {
        let contents: Vec<_> = texts.iter().map(|text| parse(text)).collect();
        merge(&contents).objects.policies.values().next().and_then(|policy| policy.created)
    };
    assert!(created(&[&dated, POLICY]).is_some());
    assert_eq!(created(&[POLICY]), None);
}

#[test]
fn lists_without_items_are_refused() {
    for (text, good) in [
        ("{kind: List, apiVersion: v1}", false),
        ("{kind: List, apiVersion: v1, items: {}}", false),
        ("{kind: LIST, apiVersion: v1, items: []}", false),
        ("{kind: PodList, apiVersion: v1}", false),
        ("{kind: List, apiVersion: v1, items: []}", true),
        ("{kind: PodList, apiVersion: v1, items: null}", true),
        ("{kind: AllowList, apiVersion: example.org/v1, spec: {}}", true),
    ] {
        assert_eq!(parse(text).problems.is_empty(), good, "{text}");
    }
}

#[test]
fn documents_that_are_passed_over_are_told() {
    let rules = |text: &str| parse(text).warnings.iter().map(|warning| warning.rule).collect::<Vec<_>>();
    for (kind, told) in [
        ("v1, kind: Secret", None),
        ("v1, kind: SecretList", None),
        ("apps/v1, kind: ControllerRevision", None),
        ("networking.k8s.io/v1, kind: Ingress", None),
        ("networking.istio.io/v1, kind: Gateway", None),
        ("example.org/v1, kind: Pods", Some("kind-foreign")),
        ("cert-manager.io/v1, kind: Issuer", Some("kind-foreign")),
        ("v1, kind: pod", Some("kind-unknown")),
        ("v1, kind: Pods", Some("kind-unknown")),
        ("v1, kind: Surprise", Some("kind-unknown")),
        ("authentication.istio.io/v1alpha1, kind: Policy", Some("kind-legacy")),
        ("authentication.istio.io/v1alpha1, kind: MeshPolicy", Some("kind-legacy")),
    ] {
        let found = rules(&format!("{{apiVersion: {kind}, metadata: {{name: a}}}}"));
        assert_eq!(found.first().copied(), told, "{kind}");
    }
}

#[test]
fn subfolders_with_manifests_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for (place, file) in
        [("deep/er", Some("a.yaml")), ("..2024", Some("a.yaml")), ("none", None), ("given", Some("a.yml"))]
    {
        std::fs::create_dir_all(at(place)).expect("made");
        if let Some(file) = file {
            std::fs::write(at(place).join(file), POLICY).expect("written");
        }
    }
    let loaded = load_paths(&[folder.path().to_owned(), at("given")]);
    let told: Vec<_> = loaded.warnings.iter().map(|warning| (warning.rule, warning.file.clone())).collect();
    assert_eq!(told, [("folder-skipped", Some(at("deep")))]);
    assert_eq!(loaded.objects.policies.len(), 1);
}

#[test]
fn aliases_cannot_multiply_without_end() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let line = format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 10].join(", "));
        text.push_str(&line);
    }
    assert!(parse(&text).unreadable);
    assert!(parse(&"[".repeat(100_000)).unreadable);
    assert!(parse(&"{".repeat(100_000)).unreadable);
}

#[test]
fn a_namespace_that_yaml_reads_as_a_boolean_is_refused_not_moved_to_default() {
    let content = parse(
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: a, namespace: on}}",
    );
    assert!(content.objects.is_empty());
    assert_eq!(content.problems.len(), 1, "{:?}", content.problems);
    assert_eq!(content.problems[0].field, "metadata.namespace");
}
