use std::path::Path;

use enforcer_common::Mode;

use super::{FileContent, merge, parse_file};
use crate::object::{ObjectName, Objects};

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
    assert_eq!(emptied.problems.len(), 1);
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
