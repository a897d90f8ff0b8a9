//! Facts restated from Istio's own test tables, asked of the real binary.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

fn table() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/peerauthentication.yaml");
    let text = fs::read_to_string(path).expect("the table is there");
    serde_saphyr::from_str(&text).expect("the table is YAML")
}

fn list<'a>(table: &'a Value, key: &str) -> &'a [Value] {
    let list = table[key].as_array().expect("a list");
    assert!(!list.is_empty(), "{key} is empty");
    list
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect("a string")
}

fn enforcer(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_enforcer")).args(args).output().expect("the binary starts")
}

fn json(output: &Output, name: &str) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{name}: {error}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Writes documents as one multi-document file.
fn write(folder: &TempDir, file: &str, documents: &[Value]) {
    let documents: Vec<_> =
        documents.iter().map(|document| serde_saphyr::to_string(document).expect("can be written")).collect();
    fs::write(folder.path().join(file), documents.join("---\n")).expect("the folder takes files");
}

fn check(case: &Value, answer: &Value) {
    let (name, expect) = (text(case, "name"), &case["expect"]);
    assert_eq!(answer["default"], expect["default"], "{name}: default; {answer}");
    let ports = answer["ports"].as_object().expect("ports is a mapping");
    let expected = expect["ports"].as_object().expect("expected ports are a mapping");
    for (port, mode) in expected {
        assert_eq!(ports.get(port).unwrap_or(&answer["default"]), mode, "{name}: port {port}; {answer}");
    }
    for (port, mode) in ports {
        assert!(expected.contains_key(port), "{name}: port {port} is unexpected; {answer}");
        assert_ne!(mode, &answer["default"], "{name}: port {port} repeats the default");
    }
    // The chain leads to the result.
    let chain = answer["decided_by"].as_array().expect("decided_by is a list");
    let last = chain.iter().rfind(|entry| entry["level"] != "port");
    assert_eq!(
        last.map_or("PERMISSIVE", |entry| text(entry, "mode")),
        text(answer, "default"),
        "{name}: {answer}"
    );
}

#[test]
fn explain_answers_every_case() {
    let table = table();
    for case in list(&table, "cases") {
        let name = text(case, "name");
        let folder = TempDir::new().expect("a temporary folder");
        write(&folder, "policies.yaml", case["policies"].as_array().expect("a list"));
        let workload = &case["workload"];
        let namespace = text(workload, "namespace");
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "subject", "namespace": namespace, "labels": workload["labels"]},
        });
        write(&folder, "pod.yaml", &[pod]);
        let labels = workload["labels"].as_object().expect("labels are a mapping");
        let labels: Vec<_> = labels
            .iter()
            .map(|(key, value)| format!("{key}={}", value.as_str().expect("a string")))
            .collect();
        let manifests = folder.path().to_str().expect("UTF-8");
        let root = text(case, "root_namespace");
        let common = ["policy", "explain", "-o", "json", "--root-namespace", root, "--manifests", manifests];
        let named = format!("{namespace}/subject");
        for subject in [&["--pod", &named][..], &["--namespace", namespace, "--labels", &labels.join(",")]] {
            let output = enforcer(&[&common, subject].concat());
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            check(case, &json(&output, name));
        }
    }
}

fn lint(entry: &Value) -> (Option<i32>, Value) {
    let folder = TempDir::new().expect("a temporary folder");
    write(&folder, "policy.yaml", std::slice::from_ref(&entry["manifest"]));
    let manifests = folder.path().to_str().expect("UTF-8");
    let output = enforcer(&["policy", "lint", "-o", "json", "--manifests", manifests]);
    (output.status.code(), json(&output, text(entry, "name")))
}

#[test]
fn lint_refuses_what_admission_refuses() {
    let table = table();
    for entry in list(&table, "invalid") {
        let (code, answer) = lint(entry);
        assert_eq!(code, Some(1), "{}: {answer}", entry["name"]);
        let errors = answer["errors"].as_array().expect("a list");
        assert!(!errors.is_empty(), "{}", entry["name"]);
        for error in errors {
            for key in ["file", "object", "field", "rule", "message"] {
                assert!(
                    error[key].as_str().is_some_and(|text| !text.is_empty()),
                    "{}: {error}",
                    entry["name"]
                );
            }
            assert_eq!(error["document"], 1);
        }
    }
}

#[test]
fn lint_accepts_what_admission_accepts() {
    let table = table();
    for entry in list(&table, "valid") {
        let (code, answer) = lint(entry);
        assert_eq!(code, Some(0), "{}: {answer}", entry["name"]);
        assert_eq!(answer["errors"], serde_json::json!([]));
    }
}
