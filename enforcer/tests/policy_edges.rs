//! Documents at the edges of what Istio admits: refused with the right rule, or read as Istio reads them.

use std::path::Path;

use enforcer::object::Map;
use enforcer::policy::compose::{Composer, Effective};
use enforcer::source::manifest::{Loaded, merge, parse_file};
use enforcer_common::Mode;

const HEAD: &str =
    "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\n";
const SELECTOR: &str = "  selector: {matchLabels: {app: a}}\n";

fn load(text: &str) -> Loaded {
    merge([&parse_file(Path::new("edge.yaml"), text)])
}

fn spec(lines: &str) -> String {
    format!("{HEAD}spec:\n{lines}")
}

fn ports(entries: &str) -> String {
    spec(&format!("{SELECTOR}  portLevelMtls: {entries}\n"))
}

fn with_metadata(more: &str) -> String {
    format!("{}spec: {{mtls: {{mode: STRICT}}}}\n", HEAD.replace("shop}", &format!("shop, {more}}}")))
}

/// The rules by which a text is refused; none: it is accepted.
fn rules(text: &str) -> Vec<&'static str> {
    load(text).problems.iter().map(|problem| problem.rule).collect()
}

/// The effective modes of a pod with label `app: a` in namespace `shop`.
fn effective(text: &str) -> Effective {
    let loaded = load(text);
    assert!(loaded.problems.is_empty(), "{text}\n{:?}", loaded.problems);
    let composer = Composer::new(loaded.objects.policies.values(), "istio-system", None);
    composer.effective("shop", &Map::from([("app".to_owned(), "a".to_owned())]))
}

#[test]
fn port_keys() {
    for (key, port) in [("1", 1), ("65535", 65535), ("8080", 8080), ("\"8080\"", 8080), ("'443'", 443)] {
        let found = effective(&ports(&format!("{{{key}: {{mode: STRICT}}}}")));
        assert_eq!(found.ports.into_iter().collect::<Vec<_>>(), [(port, Mode::STRICT)], "{key}");
    }
    // Istio's webhook decodes a key as it does a number of JSON (`jsonpb`, by which its `ApplyJSON` reads), which knows no
    // leading zeros or signs; the definition's own rule, `int(key)`, would take them.
    for key in [
        "0",
        "65536",
        "-1",
        "+8080",
        "\"+8080\"",
        "\" 8080\"",
        "\"8080 \"",
        "\"08080\"",
        "8080.0",
        "8080.5",
        "1e3",
        "0x1f90",
        "8_080",
        "http",
        "true",
        "\"\"",
        "99999999999999999999999",
        "\"8080/TCP\"",
    ] {
        let found = rules(&ports(&format!("{{{key}: {{mode: STRICT}}}}")));
        assert!(found == ["port-range"], "{key}: {found:?}");
    }
    for twice in ["{8080: {mode: STRICT}, '8080': {mode: DISABLE}}", "{8080: {}, 8080: {}}"] {
        assert_eq!(rules(&ports(twice)), ["syntax"], "{twice}");
    }
}

#[test]
fn port_values() {
    for unset in ["{8080: {}}", "{8080: {mode: UNSET}}"] {
        let found = effective(&ports(unset));
        assert!(found.ports.is_empty() && found.default == Mode::PERMISSIVE, "{unset}: {found:?}");
    }
    for (value, rule) in [
        ("{8080: null}", "null"),
        ("{8080: {mode: null}}", "null"),
        ("{8080: STRICT}", "type"),
        ("{8080: {mode: strict}}", "mode-unknown"),
        ("{8080: {mode: 3}}", "mode-type"),
        ("{8080: {mode: STRICT, note: x}}", "unknown-field"),
        ("[8080]", "type"),
        ("{}", "ports-empty"),
        ("null", "null"),
        ("STRICT", "type"),
    ] {
        assert_eq!(rules(&ports(value)), [rule], "{value}");
    }
    for selector in ["", "  selector: {}\n", "  selector: {matchLabels: {}}\n"] {
        let text = spec(&format!("{selector}  portLevelMtls: {{8080: {{mode: STRICT}}}}\n"));
        assert_eq!(rules(&text), ["ports-without-selector"], "{selector}");
    }
}

#[test]
fn modes_and_absence() {
    for nothing in [
        HEAD.to_owned(),
        format!("{HEAD}spec: {{}}\n"),
        spec("  mtls: {}\n"),
        spec("  mtls: {mode: UNSET}\n"),
    ] {
        assert_eq!(effective(&nothing).default, Mode::PERMISSIVE, "{nothing}");
    }
    for (value, rule) in [
        ("  mtls:\n", "null"),
        ("  mtls: {mode: }\n", "null"),
        ("  mtls: {mode: ''}\n", "mode-unknown"),
        ("  mtls: {mode: Strict}\n", "mode-unknown"),
        ("  mtls: {mode: ' STRICT'}\n", "mode-unknown"),
        ("  mtls: {mode: MUTUAL}\n", "mode-unknown"),
        ("  mtls: {mode: 0}\n", "mode-type"),
        ("  mtls: {mode: true}\n", "mode-type"),
        ("  mtls: {mode: [STRICT]}\n", "mode-type"),
        ("  mtls: STRICT\n", "type"),
        ("  mTLS: {mode: STRICT}\n", "unknown-field"),
        ("  mtls: {Mode: STRICT}\n", "unknown-field"),
        ("  targetRefs: []\n", "unknown-field"),
    ] {
        assert_eq!(rules(&spec(value)), [rule], "{value}");
    }
    assert_eq!(rules(&format!("{HEAD}spec:\n")), ["null"]);
    assert_eq!(rules(&format!("{HEAD}spec: []\n")), ["type"]);
    assert_eq!(rules(&format!("{HEAD}Spec: {{mtls: {{mode: STRICT}}}}\n")), ["unknown-field"]);
}

#[test]
fn selectors() {
    let strict = |selector: &str| spec(&format!("  selector: {selector}\n  mtls: {{mode: STRICT}}\n"));
    for wide in ["{}", "{matchLabels: {}}"] {
        assert_eq!(effective(&strict(wide)).default, Mode::STRICT, "{wide}");
    }
    for (narrow, mode) in [
        ("{matchLabels: {app: a}}", Mode::STRICT),
        ("{matchLabels: {app: A}}", Mode::PERMISSIVE),
        ("{matchLabels: {App: a}}", Mode::PERMISSIVE),
        ("{matchLabels: {app: ''}}", Mode::PERMISSIVE),
        ("{matchLabels: {other: ''}}", Mode::PERMISSIVE),
        ("{matchLabels: {app: a, b: c}}", Mode::PERMISSIVE),
        ("{matchLabels: {'a b': 'c d'}}", Mode::PERMISSIVE),
    ] {
        assert_eq!(effective(&strict(narrow)).default, mode, "{narrow}");
    }
    let long = |length: usize| format!("{{matchLabels: {{app: {}}}}}", "a".repeat(length));
    assert!(rules(&strict(&long(63))).is_empty());
    for (selector, rule) in [
        (long(64).as_str(), "selector-value-length"),
        ("{matchLabels: {'': a}}", "selector-key-empty"),
        ("{matchLabels: {app: 'a*'}}", "selector-wildcard"),
        ("{matchLabels: {'a*': a}}", "selector-wildcard"),
        ("{matchLabels: {app: 1}}", "type"),
        ("{matchLabels: {app: true}}", "type"),
        ("{matchLabels: {app: ~}}", "type"),
        ("{matchLabels: [app]}", "type"),
        ("{matchLabels: }", "null"),
        ("null", "null"),
        ("{matchLables: {app: a}}", "unknown-field"),
        ("{matchExpressions: []}", "unknown-field"),
    ] {
        assert_eq!(rules(&strict(selector)), [rule], "{selector}");
    }
}

#[test]
fn names_versions_and_times() {
    let whole = with_metadata("labels: {}");
    for (wrong, rule) in [
        (whole.replace("name: p, ", ""), "name"),
        (whole.replace("name: p", "name: P"), "name"),
        (whole.replace("name: p", "name: -p"), "name"),
        (whole.replace("name: p", "name: a..b"), "name"),
        (whole.replace("name: p", "name: a.-b"), "name"),
        (whole.replace("name: p", "name: a-.b"), "name"),
        (whole.replace("name: p", "name: .a"), "name"),
        (whole.replace("name: p", "name: a_b"), "name"),
        (whole.replace("name: p", "generateName: A-"), "name"),
        (whole.replace("name: p", "generateName: -a"), "name"),
        (whole.replace("namespace: shop", "namespace: shop.x"), "name"),
        (whole.replace("namespace: shop", "namespace: Shop"), "name"),
        (whole.replace("namespace: shop", "namespace: -shop"), "name"),
        (whole.replace("io/v1\n", "io/v1alpha1\n"), "api-version"),
        (whole.replace("security.istio.io/v1\n", "v1\n"), "api-version"),
        (whole.replace("kind: PeerAuthentication", "kind: peerauthentication"), "kind"),
        (whole.replace("kind: PeerAuthentication", "kind: PeerAuthetication"), "kind"),
        (whole.replace("kind: PeerAuthentication\n", ""), "kind"),
        (with_metadata("creationTimestamp: 2024-01-01"), "timestamp"),
        (with_metadata("creationTimestamp: '2024-01-01 00:00:00Z'"), "timestamp"),
        (with_metadata("creationTimestamp: 5"), "timestamp"),
        (with_metadata("creationTimestamp: ''"), "timestamp"),
        (with_metadata("annotations: {istio.io/dry-run: 'false'}"), "annotation"),
        (with_metadata("labels: {a: 1}"), "type"),
        (with_metadata("label: {a: b}"), "unknown-field"),
    ] {
        assert_eq!(rules(&wrong), [rule], "{wrong}");
    }
    for good in [
        whole.replace("name: p", "name: a.b-c.9"),
        whole.replace("name: p", "name: '1'"),
        whole.replace("name: p", "generateName: p-"),
        whole.replace("name: p", "generateName: p-, name: p"),
        whole.replace("io/v1\n", "io/v1beta1\n"),
        with_metadata("creationTimestamp: null"),
        with_metadata("creationTimestamp: 2024-01-01T00:00:00Z"),
        with_metadata("creationTimestamp: '2024-01-01T02:00:00.5+02:00'"),
        with_metadata("creationTimestamp: '9999-12-31T23:59:59Z'"),
        with_metadata("managedFields: [], uid: x, generation: 1, resourceVersion: '7', ownerReferences: []"),
        whole.replace("spec:", "status: {conditions: []}\nspec:"),
        whole.replace('\n', "\r\n"),
        format!("\u{feff}{whole}"),
        format!("%YAML 1.1\n---\n{whole}...\n"),
    ] {
        assert_eq!(effective(&good).default, Mode::STRICT, "{good}");
    }
}

#[test]
fn age_is_an_instant_and_the_zero_time_is_none() {
    // (time and mode of the policy `a`, of the policy `b`) and the mode that wins.
    for (a, b, winner) in [
        (("2024-01-01T01:00:00Z", "STRICT"), ("2024-01-01T02:30:00+02:00", "DISABLE"), Mode::DISABLE),
        (("2024-01-01T00:00:00Z", "STRICT"), ("2024-01-01T00:00:00.000Z", "DISABLE"), Mode::STRICT),
        (("2024-01-01T00:00:00.5Z", "STRICT"), ("2024-01-01T00:00:00.4Z", "DISABLE"), Mode::DISABLE),
        (("2024-01-01T00:00:00Z", "STRICT"), ("null", "DISABLE"), Mode::DISABLE),
        (("null", "STRICT"), ("0001-01-01T00:00:00Z", "DISABLE"), Mode::STRICT),
        (("0001-01-01T00:00:00Z", "UNSET"), ("null", "DISABLE"), Mode::PERMISSIVE),
        (("9999-12-31T23:59:59Z", "STRICT"), ("9999-01-01T00:00:00Z", "DISABLE"), Mode::DISABLE),
    ] {
        let document = |name: &str, (time, mode): (&str, &str)| {
            let text = with_metadata(&format!("creationTimestamp: {time}"));
            text.replace("name: p", &format!("name: {name}")).replace("STRICT", mode)
        };
        for text in [[document("a", a), document("b", b)], [document("b", b), document("a", a)]] {
            assert_eq!(effective(&text.join("---\n")).default, winner, "{text:?}");
        }
    }
}

#[test]
fn unset_passes_through_at_every_level() {
    let document = |name: &str, namespace: &str, spec: &str| {
        format!(
            "{}spec: {spec}\n",
            HEAD.replace("name: p", &format!("name: {name}")).replace("shop", namespace)
        )
    };
    let mode = |mode: &str| format!("{{mtls: {{mode: {mode}}}}}");
    let workload = |mode: &str, port: &str| {
        format!(
            "{{selector: {{matchLabels: {{app: a}}}}, mtls: {{mode: {mode}}}, portLevelMtls: {{80: {{mode: {port}}}}}}}"
        )
    };
    let modes = ["UNSET", "DISABLE", "PERMISSIVE", "STRICT"];
    let first = |chain: &[&str]| {
        chain.iter().find(|mode| **mode != "UNSET").copied().unwrap_or("PERMISSIVE").to_owned()
    };
    for mesh in modes {
        for namespace in modes {
            for own in modes {
                for port in modes {
                    let text = [
                        document("m", "istio-system", &mode(mesh)),
                        document("wide", "shop", &mode(namespace)),
                        document("w", "shop", &workload(own, port)),
                        // None of these reaches the pod.
                        document("r", "istio-system", &workload("DISABLE", "DISABLE")),
                        document("o", "other", &workload("DISABLE", "DISABLE")),
                    ];
                    let found = effective(&text.join("---\n"));
                    let default = first(&[own, namespace, mesh]);
                    assert_eq!(found.default.name(), default, "{mesh} {namespace} {own}");
                    let at_port = if port == "UNSET" { default } else { port.to_owned() };
                    assert_eq!(found.mode(80).name(), at_port, "{mesh} {namespace} {own} {port}");
                    assert!(
                        found.ports.values().all(|mode| *mode != found.default),
                        "no override repeats the default"
                    );
                }
            }
        }
    }
}

#[test]
fn lists_in_lists_and_streams_of_json() {
    let policy = r#"{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","metadata":{"name":"p","namespace":"shop"},"spec":{"mtls":{"mode":"STRICT"}}}"#;
    let list = |items: &str| format!(r#"{{"apiVersion":"v1","kind":"List","items":[{items}]}}"#);
    for text in [
        list(policy),
        list(&list(policy)),
        list(&format!("{},{}", list(""), list(policy))),
        format!("{}\n{policy}", list("")),
        policy
            .replace(r#""kind":"PeerAuthentication","#, "")
            .replace(r#""apiVersion":"security.istio.io/v1","#, "")
            .replacen(
                '{',
                r#"{"apiVersion":"security.istio.io/v1","kind":"PeerAuthenticationList","items":[{"#,
                1,
            )
            + "]}",
    ] {
        assert_eq!(effective(&text).default, Mode::STRICT, "{text}");
    }
    // Documents are counted through lists.
    let broken = policy.replace("STRICT", "strict");
    let loaded = load(&format!("{}\n{broken}", list(&format!("{policy},{}", list(policy)))));
    assert_eq!(loaded.problems.iter().map(|problem| problem.document).collect::<Vec<_>>(), [3]);
    assert_eq!(rules(&list("null")), ["kind"]);
}
