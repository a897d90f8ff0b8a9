//! `enforcer policy` as people and pipelines call it.

use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

const PODS: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: cart-0, namespace: shop, labels: {app: cart}},
   spec: {containers: [{ports: [{containerPort: 8080}]}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: pay-0, namespace: shop, labels: {app: pay}}}
";
const POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system, creationTimestamp: '2024-01-01T00:00:00Z'}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: cart, namespace: shop, creationTimestamp: '2024-01-01T00:00:00Z'}
spec:
  selector: {matchLabels: {app: cart}}
  portLevelMtls: {8080: {mode: PERMISSIVE}}
";
const MISSPELT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: pay, namespace: shop}
spec:
  selector: {matchLables: {app: pay}}
  mtls: {mode: DISABLE}
";

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    for (name, text) in files {
        fs::write(folder.path().join(name), text).expect("the folder takes files");
    }
    folder
}

fn run(folder: &TempDir, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_enforcer"))
        .arg("policy")
        .args(args)
        .current_dir(folder.path())
        .output()
        .expect("the binary starts")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ends by itself")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn answer(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn explain_has_the_promised_form() {
    let folder = folder(&[("pods.yaml", PODS), ("policies.yaml", POLICIES)]);
    let output = run(&folder, &["explain", "--manifests", ".", "--pod", "shop/cart-0", "-o", "json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(
        answer(&output),
        json!({
            "pod": "shop/cart-0",
            "default": "STRICT",
            "ports": {"8080": "PERMISSIVE"},
            "decided_by": [
                {"level": "mesh", "policy": "istio-system/default", "mode": "STRICT"},
                {"level": "port", "policy": "shop/cart", "mode": "PERMISSIVE"},
            ],
        })
    );
    let output = run(
        &folder,
        &["explain", "--manifests", ".", "--pod", "shop/cart-0", "--port", "9090", "-o", "json"],
    );
    assert_eq!(answer(&output)["ports"], json!({}));
    assert_eq!(answer(&output)["decided_by"].as_array().map(Vec::len), Some(1));
}

#[test]
fn explain_answers_from_what_is_good_and_warns_of_the_rest() {
    let files = [("pods.yaml", PODS), ("policies.yaml", POLICIES), ("bad.yaml", MISSPELT)];
    let folder = folder(&files);
    let output = run(&folder, &["explain", "--manifests", ".", "--pod", "shop/pay-0"]);
    assert_eq!(code(&output), 0);
    assert!(
        stdout(&output).contains("all   STRICT  mesh policy istio-system/default"),
        "{}",
        stdout(&output)
    );
    assert!(
        stderr(&output).starts_with("warning: ./bad.yaml, document 1: PeerAuthentication shop/pay: spec.selector.matchLables: unknown field"),
        "{}",
        stderr(&output)
    );
    // A refused document elsewhere is not this pod's business.
    let output = run(&folder, &["explain", "--manifests", ".", "--namespace", "other"]);
    assert_eq!(stderr(&output), "");
}

#[test]
fn explain_names_pods_that_come_close() {
    let folder = folder(&[("pods.yaml", PODS), ("broken.yaml", "a: [")]);
    let output = run(&folder, &["explain", "--manifests", "pods.yaml", "--pod", "shop/crat-0"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (2, ""));
    assert!(stderr(&output).contains("did you mean shop/cart-0"), "{}", stderr(&output));
    for args in [
        &["explain", "--manifests", "broken.yaml", "--namespace", "shop"][..],
        &["explain", "--manifests", "absent.yaml", "--namespace", "shop"],
        &["explain", "--manifests", "pods.yaml", "--pod", "cart-0"],
        &["explain", "--manifests", "pods.yaml"],
        &["lint", "--manifests", "absent.yaml"],
        &["diff", "pods.yaml", "absent.yaml"],
    ] {
        let output = run(&folder, args);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(stderr(&output).starts_with("error: "), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn lint_speaks_to_people_and_pipelines() {
    let files = [("pods.yaml", PODS), ("policies.yaml", POLICIES), ("bad.yaml", MISSPELT)];
    let folder = folder(&files);
    let output = run(&folder, &["lint", "--manifests", ".", "-o", "json"]);
    assert_eq!(code(&output), 1);
    let error = &answer(&output)["errors"][0];
    assert_eq!(error["field"], "spec.selector.matchLables");
    assert_eq!(error["rule"], "unknown-field");
    let output = run(&folder, &["lint", "--manifests", ".", "-o", "github"]);
    assert_eq!(code(&output), 1);
    assert!(
        stdout(&output)
            .starts_with("::error title=unknown-field,file=bad.yaml,line=2::PeerAuthentication shop/pay: "),
        "{}",
        stdout(&output)
    );
    let output = run(&folder, &["lint", "--manifests", ".", "-o", "sarif"]);
    let sarif = answer(&output);
    let result = &sarif["runs"][0]["results"][0];
    assert_eq!((&sarif["version"], &result["ruleId"]), (&json!("2.1.0"), &json!("unknown-field")));
    let place = &result["locations"][0]["physicalLocation"];
    assert_eq!(place["region"]["startLine"], 2);
    let output = run(&folder, &["lint", "--manifests", "policies.yaml", "pods.yaml"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (0, "0 errors, 0 warnings\n"));
}

#[test]
fn lint_is_strict_on_request() {
    let older = POLICIES.replace("name: cart", "name: older").replace("2024", "2023");
    let folder = folder(&[("policies.yaml", POLICIES), ("older.yaml", &older)]);
    assert_eq!(code(&run(&folder, &["lint", "--manifests", "."])), 0);
    let output = run(&folder, &["lint", "--manifests", ".", "--strict"]);
    assert_eq!(code(&output), 1);
    assert!(
        stdout(&output).contains("shop/older matches every pod that it matches and is older"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn diff_shows_what_a_change_does() {
    let folder = folder(&[("pods.yaml", PODS), ("old.yaml", POLICIES), ("new.yaml", MISSPELT)]);
    let output = run(&folder, &["diff", "old.yaml", "new.yaml", "--manifests", "pods.yaml", "-o", "json"]);
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    let mut cart = json!({"pod": "shop/cart-0", "namespace": "shop", "port": null, "old": "STRICT", "new": "PERMISSIVE",
        "old_policy": "istio-system/default", "new_policy": null});
    let mut pay = cart.clone();
    pay["pod"] = json!("shop/pay-0");
    // Its port 8080 was PERMISSIVE before.
    cart["except"] = json!([8080]);
    // The misspelt policy is refused: what else changes is told nevertheless.
    let found = answer(&output);
    assert_eq!((&found["changes"], &found["pods"]), (&json!([cart, pay]), &json!(2)));
    assert_eq!(found["refused"][0]["rule"], "unknown-field");
    assert!(stderr(&output).contains("refused: new.yaml, document 1: PeerAuthentication shop/pay: "));
    assert_eq!(code(&run(&folder, &["diff", "old.yaml", "pods.yaml", "--exit-code"])), 1);
    assert_eq!(code(&run(&folder, &["diff", "old.yaml", "pods.yaml"])), 0);
    let output = run(&folder, &["diff", "old.yaml", "old.yaml", "--exit-code", "--manifests", "pods.yaml"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (0, "no mode changes; 2 pods compared\n"));
}

/// Without any policy Istio's default is the answer, not an error.
#[test]
fn explain_answers_without_any_policy() {
    let folder = folder(&[("empty.yaml", ""), ("marker.yaml", "---\n"), ("comment.yaml", "# later\n")]);
    let expected = json!({"pod": null, "default": "PERMISSIVE", "ports": {}, "decided_by": []});
    for file in ["empty.yaml", "marker.yaml", "comment.yaml", "."] {
        let words = ["explain", "--manifests", file, "--namespace", "a", "--labels", "app=x", "-o", "json"];
        let output = run(&folder, &words);
        assert_eq!((code(&output), answer(&output)), (0, expected.clone()), "{file}: {}", stderr(&output));
    }
    let output = run(&folder, &["lint", "--manifests", "comment.yaml", "-o", "json"]);
    assert_eq!((code(&output), &answer(&output)["errors"]), (0, &json!([])));
    assert_eq!(answer(&output)["warnings"][0]["rule"], "empty");
    assert_eq!(code(&run(&folder, &["diff", "empty.yaml", "marker.yaml"])), 0);
}

/// Port entries on a policy without selector are refused by admission and ignored by the composition, whatever its age.
#[test]
fn explain_ignores_port_entries_that_bypassed_validation() {
    let spec = "spec: {mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}";
    for namespace in ["istio-system", "shop"] {
        for created in ["", ", creationTimestamp: '2024-01-01T00:00:00Z'"] {
            let policy = format!(
                "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: {namespace}{created}}}\n{spec}\n"
            );
            let folder = folder(&[("p.yaml", &policy)]);
            let output = run(&folder, &["explain", "--manifests", ".", "--namespace", "shop", "-o", "json"]);
            let found = answer(&output);
            assert_eq!((&found["default"], &found["ports"]), (&json!("STRICT"), &json!({})), "{policy}");
            assert!(
                stderr(&output).contains("is refused by admission; the answer shows"),
                "{}",
                stderr(&output)
            );
            assert_eq!(code(&run(&folder, &["lint", "--manifests", "."])), 1);
        }
    }
}

/// What cannot be read might change the answer.
#[test]
fn explain_and_diff_answer_only_when_everything_was_read() {
    let folder = folder(&[("pods.yaml", PODS), ("good.yaml", POLICIES), ("broken.yaml", "a: [")]);
    for args in [
        &["explain", "--namespace", "shop", "--manifests", "good.yaml", "absent.yaml"][..],
        &["explain", "--namespace", "shop", "--manifests", "good.yaml", "broken.yaml"],
        &["explain", "--namespace", "shop", "--manifests", "."],
        &["diff", "good.yaml", "broken.yaml", "--manifests", "pods.yaml"],
        &["diff", "broken.yaml", "good.yaml"],
        &["diff", "good.yaml", "good.yaml", "--manifests", "broken.yaml"],
    ] {
        let output = run(&folder, args);
        assert_eq!((code(&output), stdout(&output).as_str()), (2, ""), "{args:?}");
        assert!(stderr(&output).starts_with("error: "), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn explain_for_one_port_says_who_decides_it() {
    let folder = folder(&[("pods.yaml", PODS), ("policies.yaml", POLICIES)]);
    let explain = |more: &[&str]| {
        stdout(&run(&folder, &[&["explain", "--manifests", ".", "--pod", "shop/cart-0"], more].concat()))
    };
    let one = explain(&["--port", "8080"]);
    assert!(one.contains("says STRICT, but for port 8080 the entry of shop/cart decides"), "{one}");
    assert!(one.contains("decides port 8080: PERMISSIVE"), "{one}");
    let other = explain(&["--port", "9090"]);
    assert!(other.contains("decides: STRICT") && other.contains("sets no mode"), "{other}");
    let all = explain(&[]);
    assert!(all.contains("the wider scope passes through; decides port 8080"), "{all}");
}

#[test]
fn explain_tells_of_ports_that_the_sidecar_does_not_capture() {
    let pod = |annotation: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: a, namespace: shop, annotations: {{sidecar.istio.io/status: '{{}}', \
             traffic.sidecar.istio.io/{annotation}}}}}}}"
        )
    };
    for (annotation, said) in [
        (
            "excludeInboundPorts: '9090, 9091'",
            "keep these ports from the mesh, so that no mode is held there: 9090, 9091.",
        ),
        (
            "includeInboundPorts: '8080'",
            "give these ports alone to the mesh, so that no mode is held at others: 8080.",
        ),
        ("includeInboundPorts: ''", "keep every port from the mesh"),
    ] {
        let folder = folder(&[("pod.yaml", &pod(annotation))]);
        let output = stdout(&run(&folder, &["explain", "--manifests", ".", "--pod", "shop/a"]));
        assert!(output.contains(said), "{annotation}: {output}");
    }
}

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: NAME, namespace: shop TIME}
spec: {mtls: {mode: MODE}}
---
";

fn policy(name: &str, time: Option<u8>, mode: &str) -> String {
    let time =
        time.map_or_else(String::new, |day| format!(", creationTimestamp: '2024-01-0{day}T00:00:00Z'"));
    POLICY.replace("NAME", name).replace(" TIME", &time).replace("MODE", mode)
}

#[test]
fn diff_dates_what_has_no_time_as_a_cluster_would() {
    let cluster = policy("b", Some(1), "STRICT") + PODS;
    let changes = |files: &[(&str, &str)], more: &[&str]| {
        let folder = folder(files);
        let output = run(&folder, &[&["diff", "old", "new", "-o", "json"], more].concat());
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        answer(&output)["changes"].as_array().expect("a list").len()
    };
    // A new policy is younger than the one there is, so nothing changes; without a time it would count as the oldest.
    let with_new = format!("{cluster}---\n{}", policy("a", None, "DISABLE"));
    assert_eq!(changes(&[("old", &cluster), ("new", &with_new)], &[]), 0);
    // The one there is is changed: it keeps its time, and wins still.
    let both = policy("a", Some(2), "DISABLE") + &cluster;
    let edited = policy("b", None, "PERMISSIVE");
    let words = ["--manifests", "cluster"];
    assert_eq!(changes(&[("cluster", &both), ("old", ""), ("new", &edited)], &words), 3);
    // Two sides without any time compare by name, as ever.
    let undated = [policy("b", None, "STRICT"), policy("a", None, "DISABLE") + &policy("b", None, "STRICT")];
    assert_ne!(changes(&[("old", &undated[0]), ("new", &undated[1])], &[]), 0);
}

#[test]
fn diff_does_not_take_a_refused_document_for_a_deletion() {
    let old = policy("a", None, "STRICT");
    for refused in [
        old.replace("STRICT", "strict"),
        old.replace("name: a", "nam: a"),
        old.replace("kind: Peer", "kind: Pear"),
        old.replace("spec: {", "spec: {selector: null, "),
    ] {
        let folder = folder(&[("pods.yaml", PODS), ("old", &old), ("new", &refused)]);
        let output = run(&folder, &["diff", "old", "new", "--manifests", "pods.yaml", "-o", "json"]);
        let found = answer(&output);
        assert_eq!((code(&output), &found["changes"]), (1, &json!([])), "{refused}");
        assert!(found["refused"].as_array().is_some_and(|list| !list.is_empty()), "{refused}: {found}");
    }
}

#[test]
fn diff_shows_pods_that_leave_the_mesh() {
    let namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n---\n";
    let pod = |label: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: a, namespace: shop, labels: {{{label}}}}}}}\n---\n"
        )
    };
    let all = |label: &str| namespace.to_owned() + &pod(label) + &policy("p", None, "STRICT");
    let folder = folder(&[("old", &all("security.istio.io/tlsMode: istio")), ("new", &all("app: a"))]);
    let output = run(&folder, &["diff", "old", "new", "-o", "json"]);
    let change = &answer(&output)["changes"][0];
    assert_eq!(
        (&change["old"], &change["new"], &change["old_policy"]),
        (&json!("STRICT"), &json!(null), &json!("shop/p"))
    );
    let table = stdout(&run(&folder, &["diff", "old", "new"]));
    assert!(table.contains("not held") && table.contains("1 pod compared"), "{table}");
    let table = stdout(&run(&folder, &["diff", "new", "new"]));
    assert_eq!(table, "no mode changes; 0 pods compared, 1 left out where no policy is held\n");
}

#[test]
fn lint_ranks_a_new_policy_behind_those_of_the_cluster() {
    let folder = folder(&[
        ("git.yaml", &policy("a", None, "STRICT")),
        ("cluster.yaml", &policy("b", Some(1), "STRICT")),
    ]);
    let output = run(&folder, &["lint", "--manifests", "git.yaml", "cluster.yaml", "-o", "json"]);
    let warning = &answer(&output)["warnings"][0];
    assert_eq!(
        (&warning["rule"], &warning["object"]),
        (&json!("shadowed"), &json!("PeerAuthentication shop/a"))
    );
    let message = warning["message"].as_str().expect("a message");
    assert!(message.contains("shop/b is older, as it exists"), "{message}");
}

#[test]
fn lint_leaves_out_what_is_not_wanted() {
    let both = policy("a", Some(1), "STRICT") + &policy("b", Some(2), "STRICT");
    let folder = folder(&[("p.yaml", &both)]);
    let lint = |more: &[&str]| run(&folder, &[&["lint", "--strict", "--manifests", "p.yaml"], more].concat());
    assert_eq!(code(&lint(&[])), 1);
    assert_eq!(code(&lint(&["--ignore", "shadowed"])), 0);
    assert_eq!(code(&lint(&["--ignore", "shadowed,port-reserved"])), 0);
    for (rule, why) in [("shadow", "no such rule"), ("syntax", "cannot be ignored")] {
        let output = lint(&["--ignore", rule]);
        assert_eq!(code(&output), 2);
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
    }
}

/// A repository holds what others read.
#[test]
fn lint_says_nothing_of_kinds_of_others() {
    let folder =
        folder(&[("issuer.yaml", "{apiVersion: cert-manager.io/v1, kind: Issuer, metadata: {name: a}}\n")]);
    let output = run(&folder, &["lint", "--strict", "--manifests", "issuer.yaml"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (0, "0 errors, 0 warnings\n"));
}

#[test]
fn lint_reads_the_revision_from_the_environment() {
    let canary = policy("a", None, "STRICT")
        .replace("namespace: shop", "namespace: shop, labels: {istio.io/rev: canary}");
    let folder = folder(&[("p.yaml", &canary)]);
    let output = Command::new(env!("CARGO_BIN_EXE_enforcer"))
        .args(["policy", "lint", "--manifests", "p.yaml", "-o", "json"])
        .env("ENFORCER_REVISION", "stable")
        .current_dir(folder.path())
        .output()
        .expect("the binary starts");
    assert_eq!(answer(&output)["warnings"][0]["rule"], "other-revision");
}

#[test]
fn lint_points_into_lists_and_describes_its_rules() {
    let list = "kind: List\napiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n\
        - apiVersion: security.istio.io/v1\n  kind: PeerAuthentication\n  metadata: {name: a, namespace: shop}\n  spec: {mtls: {mode: no}}\n";
    let folder = folder(&[("list.yaml", list)]);
    let path = folder.path().canonicalize().expect("a folder").join("list.yaml");
    let output = run(&folder, &["lint", "-o", "sarif", "--manifests", path.to_str().expect("UTF-8")]);
    let found = &answer(&output)["runs"][0];
    let place = &found["results"][0]["locations"][0]["physicalLocation"];
    assert_eq!(
        (&place["artifactLocation"]["uri"], &place["region"]["startLine"]),
        (&json!("list.yaml"), &json!(7))
    );
    let rule = &found["tool"]["driver"]["rules"][0];
    assert_eq!(
        (&rule["id"], &rule["defaultConfiguration"]["level"]),
        (&found["results"][0]["ruleId"], &json!("error"))
    );
    assert!(rule["shortDescription"]["text"].as_str().is_some_and(|text| text.ends_with('.')));
    let output = run(&folder, &["lint", "-o", "github", "--manifests", "./list.yaml"]);
    assert!(stdout(&output).contains("file=list.yaml,line=7::"), "{}", stdout(&output));
}
