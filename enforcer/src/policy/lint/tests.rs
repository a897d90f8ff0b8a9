//! Each rule: where it speaks up, and where it must not.

use std::collections::BTreeSet;

use crate::policy::compose::Composer;
use crate::policy::lint::{lint, service_ports};
use crate::source::manifest::{merge, parse_file};

/// Documents in short: `policy NS NAME TIME SPEC`, or a whole document.
fn found(documents: &[String]) -> Vec<String> {
    let loaded = merge(&[parse_file("all.yaml".as_ref(), &documents.join("\n---\n"))]);
    assert_eq!(loaded.problems, []);
    let empty: BTreeSet<String> = loaded.warnings.iter().map(|problem| problem.object.clone()).collect();
    let composer = Composer::new(loaded.objects.policies.values(), "root", None);
    lint(&loaded.objects, &composer, &empty)
        .into_iter()
        .map(|problem| {
            format!(
                "{} {} {}",
                problem.rule,
                problem.object.replace("PeerAuthentication ", ""),
                problem.field
            )
        })
        .collect()
}

fn message(documents: &[String], rule: &str) -> String {
    let loaded = merge(&[parse_file("all.yaml".as_ref(), &documents.join("\n---\n"))]);
    let composer = Composer::new(loaded.objects.policies.values(), "root", None);
    let problem =
        lint(&loaded.objects, &composer, &BTreeSet::new()).into_iter().find(|problem| problem.rule == rule);
    problem.expect("the rule speaks up").message
}

fn policy(name: &str, second: u8, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    format!(
        "{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: {name}, namespace: {namespace}, \
         creationTimestamp: '2024-01-01T00:00:{second:02}Z'}}, spec: {spec}}}"
    )
}

fn pod(name: &str, labels: &str, ports: &str) -> String {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {labels}, \
         annotations: {{sidecar.istio.io/status: x}}}}, spec: {{containers: [{{ports: {ports}}}]}}}}"
    )
}

const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop}, \
    spec: {selector: {app: a}, ports: [{port: 80, targetPort: web}, {port: 443, targetPort: 8443}]}}";

#[test]
fn the_older_policy_shadows() {
    let both = [policy("shop/a", 1, "{mtls: {mode: STRICT}}"), policy("shop/b", 0, "{}")];
    assert_eq!(found(&both), ["shadowed shop/a "]);
    let narrower = [
        policy("shop/a", 1, "{selector: {matchLabels: {app: a, tier: b}}}"),
        policy("shop/b", 0, "{selector: {matchLabels: {app: a}}}"),
    ];
    assert_eq!(found(&narrower), ["shadowed shop/a spec.selector"]);
    // The other way round the wider one still holds for the rest.
    let wider = [
        policy("shop/a", 0, "{selector: {matchLabels: {app: a, tier: b}}}"),
        policy("shop/b", 1, "{selector: {matchLabels: {app: a}}}"),
    ];
    assert!(found(&wider).is_empty());
    let pods = [pod("shop/one", "{app: a, tier: b}", "[]"), pod("shop/two", "{app: a}", "[]")];
    assert_eq!(found(&[&wider[..], &pods].concat()), ["shadowed-partly shop/b spec.selector"]);
    assert_eq!(found(&[&wider[..], &pods[..1]].concat()), ["shadowed shop/b spec.selector"]);
}

#[test]
fn a_selector_that_matches_nothing_names_the_nearest_pod() {
    let documents =
        [policy("shop/a", 0, "{selector: {matchLabels: {app: crat}}}"), pod("shop/one", "{app: cart}", "[]")];
    assert_eq!(found(&documents), ["selector-matches-nothing shop/a spec.selector.matchLabels"]);
    let message = message(&documents, "selector-matches-nothing");
    assert!(
        message.contains("nearest is one: the selector wants app=crat, the pod has app=cart"),
        "{message}"
    );
    // Without pods nothing is known.
    assert!(found(&documents[..1]).is_empty());
}

#[test]
fn port_entries_mean_container_ports() {
    let port = |port: &str| {
        policy(
            "shop/a",
            0,
            &format!(
                "{{selector: {{matchLabels: {{app: a}}}}, portLevelMtls: {{{port}: {{mode: STRICT}}}}}}"
            ),
        )
    };
    let pod = pod("shop/one", "{app: a}", "[{name: web, containerPort: 8080}]");
    let all = |number| [port(number), pod.clone(), SERVICE.to_owned()];
    assert!(found(&all("8080")).is_empty());
    assert!(found(&all("8443")).is_empty(), "a Service sends there");
    assert_eq!(found(&all("80")), ["port-of-service shop/a spec.portLevelMtls.80"]);
    let message = message(&all("80"), "port-of-service");
    assert!(message.ends_with("write 8080"), "{message}");
    assert_eq!(found(&all("9090")), ["port-not-declared shop/a spec.portLevelMtls.9090"]);
    assert_eq!(found(&all("15021")), ["port-reserved shop/a spec.portLevelMtls.15021"]);
    // Without pods, the Service's number alone tells.
    assert_eq!(found(&[port("443"), SERVICE.to_owned()]), ["port-of-service shop/a spec.portLevelMtls.443"]);
}

#[test]
fn an_agent_is_told_of_numbers_of_services_and_of_nothing_that_other_nodes_may_know_better() {
    let said = |documents: &[String]| {
        let loaded = merge(&[parse_file("all.yaml".as_ref(), &documents.join("\n---\n"))]);
        let composer = Composer::new(loaded.objects.policies.values(), "root", None);
        let found = service_ports(&loaded.objects, &composer);
        found.into_iter().map(|problem| format!("{} {}", problem.rule, problem.field)).collect::<Vec<_>>()
    };
    let port = |port: &str| {
        policy(
            "shop/a",
            1,
            &format!(
                "{{selector: {{matchLabels: {{app: a}}}}, portLevelMtls: {{{port}: {{mode: STRICT}}}}}}"
            ),
        )
    };
    let nowhere = policy(
        "shop/b",
        2,
        "{selector: {matchLabels: {app: elsewhere}}, portLevelMtls: {443: {mode: STRICT}}}",
    );
    let cart = pod("shop/cart", "{app: a}", "[{containerPort: 8443}]");
    let all = |entry: &str| [port(entry), nowhere.clone(), cart.clone(), SERVICE.to_owned()];
    assert_eq!(said(&all("443")), ["port-of-service spec.portLevelMtls.443"]);
    assert_eq!(said(&all("8443")), [""; 0]);
    assert_eq!(said(&all("9999")), [""; 0], "the container may listen there");
    assert_eq!(said(&[port("443"), cart.clone()]), [""; 0], "no Service is known");
}

#[test]
fn policies_in_the_wrong_namespace() {
    let chosen = policy("root/a", 0, "{selector: {matchLabels: {app: a}}}");
    assert_eq!(found(&[chosen]), ["selector-in-root root/a spec.selector"]);
    assert_eq!(
        found(&[policy("istio-system/default", 0, "{mtls: {mode: STRICT}}")]),
        ["mesh-policy-outside-root istio-system/default metadata.namespace"]
    );
    for fine in ["istio-ingress/default", "mesh-tools/global", "cluster-services/istio", "default/default"] {
        assert!(found(&[policy(fine, 0, "{mtls: {mode: STRICT}}")]).is_empty(), "{fine}");
    }
    let nobody = [policy("default/default", 0, "{mtls: {mode: STRICT}}"), pod("shop/one", "{}", "[]")];
    assert_eq!(found(&nobody), ["mesh-policy-outside-root default/default metadata.namespace"]);
    assert!(found(&[policy("shop/default", 0, "{mtls: {mode: STRICT}}")]).is_empty());
}

#[test]
fn the_api_server_must_reach_its_webhooks() {
    let webhook = "{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: hook}, \
        webhooks: [{clientConfig: {service: {name: cart, namespace: shop}}}]}";
    let all = |spec: &str| {
        [
            policy("shop/a", 0, spec),
            pod("shop/one", "{app: a}", "[{name: web, containerPort: 8080}]"),
            SERVICE.to_owned(),
            webhook.to_owned(),
        ]
    };
    assert_eq!(found(&all("{mtls: {mode: STRICT}}")), ["api-server-locked-out shop/a "]);
    assert!(found(&all("{mtls: {mode: PERMISSIVE}}")).is_empty());
    let open = "{selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}, portLevelMtls: {8443: {mode: PERMISSIVE}}}";
    assert!(found(&all(open)).is_empty());
}

/// What is proposed is applied, and the warning is gone.
#[test]
fn the_remedy_for_a_locked_out_api_server_works() {
    let hook = "{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: carts.shop}, \
        spec: {conversion: {strategy: Webhook, webhook: {clientConfig: {service: {name: cart, namespace: shop}}}}}}";
    let mut all = vec![
        policy("shop/default", 0, "{mtls: {mode: STRICT}}"),
        pod("shop/one", "{app: a}", "[{name: web, containerPort: 8080}]"),
        SERVICE.to_owned(),
        hook.to_owned(),
    ];
    assert_eq!(found(&all), ["api-server-locked-out shop/default "]);
    let said = message(&all, "api-server-locked-out");
    let (_, proposed) = said.split_once(": apply ").expect("a policy to apply");
    all.push(proposed.to_owned());
    assert!(found(&all).is_empty(), "{said}");
    // Where another workload policy wins, a second one would not count.
    let own = policy("shop/own", 0, "{selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}}");
    all[0] = own;
    all.pop();
    assert!(message(&all, "api-server-locked-out").ends_with("to spec.portLevelMtls of shop/own"));
}

#[test]
fn templates_stand_for_pods_that_are_not_given() {
    let namespace =
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio-injection: enabled}}}"
            .to_owned();
    let deployment =
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}, spec: {template: \
        {metadata: {labels: {app: a}, annotations: {traffic.sidecar.istio.io/excludeInboundPorts: '8081'}}, \
        spec: {containers: [{ports: [{name: web, containerPort: 8080}, {containerPort: 8081}]}]}}}}"
            .to_owned();
    let cron = "{apiVersion: batch/v1, kind: CronJob, metadata: {name: night, namespace: shop}, spec: {jobTemplate: {spec: \
        {template: {metadata: {labels: {app: night}}, spec: {containers: [{ports: [{containerPort: 1}]}]}}}}}}"
        .to_owned();
    let with = |selector: &str, port: &str| {
        let spec =
            format!("{{selector: {{matchLabels: {selector}}}, portLevelMtls: {{{port}: {{mode: STRICT}}}}}}");
        found(&[namespace.clone(), deployment.clone(), cron.clone(), policy("shop/p", 0, &spec)])
    };
    assert!(with("{app: a}", "8080").is_empty());
    assert!(with("{app: night}", "1").is_empty());
    assert_eq!(with("{app: b}", "8080"), ["selector-matches-nothing shop/p spec.selector.matchLabels"]);
    assert_eq!(with("{app: a}", "9090"), ["port-not-declared shop/p spec.portLevelMtls.9090"]);
    assert_eq!(with("{app: a}", "8081"), ["port-excluded shop/p spec.portLevelMtls.8081"]);
    // Nothing is known of another namespace.
    let other = policy("other/p", 0, "{selector: {matchLabels: {app: b}}}");
    assert!(found(&[namespace.clone(), deployment.clone(), other]).is_empty());
}

#[test]
fn a_policy_of_another_revision_is_told() {
    let canary = "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: a, namespace: shop, \
        labels: {istio.io/rev: canary}}}";
    let loaded = merge(&[parse_file("all.yaml".as_ref(), canary)]);
    let rules = |revision| {
        let composer = Composer::new(loaded.objects.policies.values(), "root", revision);
        let found = lint(&loaded.objects, &composer, &BTreeSet::new());
        found.iter().map(|problem| problem.rule).collect::<Vec<_>>()
    };
    assert_eq!(rules(Some("stable")), ["other-revision"]);
    assert!(rules(Some("canary")).is_empty() && rules(None).is_empty());
}

#[test]
fn pods_that_no_data_plane_holds() {
    let namespace =
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio-injection: enabled}}}"
            .to_owned();
    let bare = "{apiVersion: v1, kind: Pod, metadata: {name: bare, namespace: shop}}".to_owned();
    assert_eq!(found(&[namespace.clone(), bare]), ["pod-without-data-plane Pod shop/bare "]);
    assert!(found(&[namespace, pod("shop/one", "{}", "[]")]).is_empty());
}

#[test]
fn ambient_reads_some_policies_differently() {
    let strict_mesh = policy("root/mesh", 0, "{mtls: {mode: STRICT}}");
    let workload =
        |spec: &str| policy("shop/w", 1, &format!("{{selector: {{matchLabels: {{app: a}}}}, {spec}}}"));
    let expected = ["ambient-differs shop/w spec.portLevelMtls"];
    let permissive_port = workload("portLevelMtls: {9090: {mode: PERMISSIVE}}");
    let unset = policy("shop/all", 0, "{}");
    assert_eq!(found(&[strict_mesh.clone(), unset, permissive_port.clone()]), expected);
    assert!(found(&[strict_mesh.clone(), permissive_port.clone()]).is_empty());
    let strict_port = workload("mtls: {mode: PERMISSIVE}, portLevelMtls: {9090: {mode: STRICT}}");
    assert_eq!(found(&[strict_mesh.clone(), strict_port.clone()]), expected);
    assert_eq!(found(&[strict_mesh.clone(), workload("portLevelMtls: {9090: {mode: DISABLE}}")]), expected);
    let braces = policy("shop/all", 0, "{selector: {}, mtls: {mode: STRICT}}");
    assert_eq!(found(&[braces, permissive_port]), expected);
    // Sidecars read it as written.
    let sidecar = pod("shop/one", "{app: a}", "[]");
    assert!(found(&[strict_mesh, strict_port, sidecar]).is_empty());
    let mesh = policy("root/mesh", 0, "{selector: {}, mtls: {mode: STRICT}}");
    assert_eq!(found(&[mesh]), ["ambient-differs root/mesh spec.selector"]);
    let mesh_tie = [policy("root/a", 0, "{}"), policy("root/b", 0, "{}"), policy("root/c", 1, "{}")];
    let differs = "ambient-differs root/b metadata.creationTimestamp";
    assert!(found(&mesh_tie).iter().filter(|line| line.starts_with("ambient")).eq([differs]));
    let labels = |name: &str, second, label: &str| {
        policy(name, second, &format!("{{selector: {{matchLabels: {{{label}}}}}, mtls: {{mode: STRICT}}}}"))
    };
    let overlap = [labels("shop/a", 0, "app: a"), labels("shop/b", 0, "tier: b")];
    assert_eq!(found(&overlap), ["ambient-differs shop/b metadata.creationTimestamp"]);
    assert!(found(&[labels("shop/a", 0, "app: a"), labels("shop/b", 0, "app: b")]).is_empty());
    assert!(found(&[labels("shop/a", 0, "app: a"), labels("shop/b", 1, "tier: b")]).is_empty());
    let tie = [policy("shop/a", 0, "{}"), policy("shop/b", 0, "{}")];
    assert_eq!(found(&tie), ["shadowed shop/b ", "ambient-differs shop/b metadata.creationTimestamp"]);
}
