//! `docs/schemas/` is generated from the types that are printed (`UPDATE_DOCS=1` writes it anew), and what is printed
//! without an agent agrees with it. The lab checks the rest.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schemas")
}

#[test]
fn the_files_are_the_types() {
    let mut names = BTreeSet::new();
    for (name, schema) in enforcer::cli::schemas::all() {
        let text = serde_json::to_string_pretty(&schema).expect("json") + "\n";
        let path = folder().join(format!("{name}.json"));
        if std::env::var_os("UPDATE_DOCS").is_some() {
            fs::create_dir_all(folder()).expect("the folder can be made");
            fs::write(&path, &text).expect("the schema can be written");
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            found, text,
            "{name}.json differs from what is printed: run UPDATE_DOCS=1 cargo test -p enforcer --test schemas"
        );
        assert!(jsonschema::meta::is_valid(&schema), "{name}.json is no schema");
        names.insert(format!("{name}.json"));
    }
    let files = fs::read_dir(folder()).expect("docs/schemas");
    let files: BTreeSet<_> =
        files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(files, names, "a schema of nothing lies in docs/schemas");
}

fn print(words: &[&str]) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new(env!("CARGO_BIN_EXE_enforcer")).args(words).current_dir(root).output();
    let output = output.expect("the binary starts");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{words:?}: {output:?}"))
}

/// The answer agrees with the schema; without any one of its fields it does not.
fn check(name: &str, answer: &Value) {
    let text = fs::read_to_string(folder().join(format!("{name}.json"))).expect("the schema");
    let schema: Value = serde_json::from_str(&text).expect("json");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let problems: Vec<_> = validator.iter_errors(answer).map(|error| error.to_string()).collect();
    assert!(problems.is_empty(), "{name}: {problems:#?} in {answer:#}");
    for field in answer.as_object().into_iter().flat_map(serde_json::Map::keys) {
        let mut less = answer.clone();
        less.as_object_mut().expect("an object").remove(field);
        assert!(!validator.is_valid(&less), "{name} does not miss {field}");
    }
}

#[test]
fn what_is_printed_offline_agrees() {
    let manifests = ["--manifests", "demo", "demo/policies"];
    let pod = ["--pod", "hipstershopv1v2/frontend", "-o", "json"];
    check("policy-explain", &print(&[&["policy", "explain"][..], &manifests, &pod].concat()));
    check("policy-lint", &print(&[&["policy", "lint"][..], &manifests, &["-o", "json"]].concat()));
    let diff = ["policy", "diff", "demo", "demo/policies", "-o", "json"];
    check("policy-diff", &print(&diff));
    check("doctor", &print(&["doctor", "-o", "json"]));
}
