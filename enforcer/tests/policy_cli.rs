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
                {"level": "port", "policy": "shop/cart", "mode": "PERMISSIVE", "port": 8080},
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
    let output = run(&folder, &["explain", "--manifests", ".", "--pod", "shop/crat-0"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (2, ""));
    assert!(stderr(&output).contains("did you mean shop/cart-0"), "{}", stderr(&output));
    for args in [
        &["explain", "--manifests", "broken.yaml", "--namespace", "shop"][..],
        &["explain", "--manifests", "absent.yaml", "--namespace", "shop"],
        &["explain", "--manifests", ".", "--pod", "cart-0"],
        &["explain", "--manifests", "."],
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
            .starts_with("::error title=unknown-field,file=./bad.yaml,line=2::PeerAuthentication shop/pay: "),
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
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let mut cart = json!({"pod": "shop/cart-0", "namespace": "shop", "port": null, "old": "STRICT", "new": "PERMISSIVE",
        "old_policy": "istio-system/default", "new_policy": null});
    let mut pay = cart.clone();
    pay["pod"] = json!("shop/pay-0");
    // Its port 8080 was PERMISSIVE before.
    cart["except"] = json!([8080]);
    assert_eq!(answer(&output), json!({"changes": [cart, pay], "pods": 2}));
    assert_eq!(code(&run(&folder, &["diff", "old.yaml", "new.yaml", "--exit-code"])), 1);
    let output = run(&folder, &["diff", "old.yaml", "old.yaml", "--exit-code", "--manifests", "pods.yaml"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (0, "no mode changes; 2 pods compared\n"));
}
