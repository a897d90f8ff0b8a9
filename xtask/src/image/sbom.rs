//! The bill of materials: what is linked into the program, as `CycloneDX` 1.5.
//!
//! It says neither when nor where it was made: the same lock files give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::shell::{cargo, command, ebpf_cargo, ebpf_crate, output, root};

/// The bill for the program with this digest (`sha256:…`).
pub(super) fn bill(program: &str) -> Result<Vec<u8>> {
    let arguments = ["metadata", "--locked", "--format-version", "1", "--filter-platform"];
    let agent = output(cargo(arguments).arg("x86_64-unknown-linux-gnu"))?;
    // The eBPF target is no target of crates.io's crates; its dependencies do not depend on the platform.
    let kernel = output(&mut ebpf_cargo(["metadata", "--locked", "--format-version", "1"]))?;
    let mut parts = Parts::default();
    parts.add(&serde_json::from_str(&agent)?, "enforcer", &checksums(&root().join("Cargo.lock"))?)?;
    parts.add(
        &serde_json::from_str(&kernel)?,
        "enforcer-ebpf",
        &checksums(&ebpf_crate().join("Cargo.lock"))?,
    )?;
    parts.link("enforcer", "enforcer-ebpf");
    parts.add_other("rust-std", &rust_version()?, "MIT OR Apache-2.0", "generic/rust-std");
    parts.add_other("glibc", &glibc_version()?, "LGPL-2.1-or-later", "generic/glibc");
    let mut text = serde_json::to_vec_pretty(&parts.document(program))?;
    text.push(b'\n');
    Ok(text)
}

fn rust_version() -> Result<String> {
    let text = output(command("rustc").arg("--version"))?;
    text.split_whitespace().nth(1).map(str::to_owned).context("rustc does not say its version")
}

/// Of the static library, which is the same package as the running one.
fn glibc_version() -> Result<String> {
    let text = output(command("getconf").arg("GNU_LIBC_VERSION"))?;
    text.split_whitespace().nth(1).map(str::to_owned).context("getconf does not say glibc's version")
}

/// Digest of each crate by name and version.
fn checksums(lock: &std::path::Path) -> Result<BTreeMap<(String, String), String>> {
    let text = fs::read_to_string(lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let field = |block: &str, name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?;
        Some(line.trim_matches('"').to_owned())
    };
    let blocks = text.split("[[package]]");
    Ok(blocks
        .filter_map(|block| {
            let id = (field(block, "name")?, field(block, "version")?);
            Some((id, field(block, "checksum")?))
        })
        .collect())
}

/// What is known so far, by reference.
#[derive(Default)]
struct Parts {
    components: BTreeMap<String, Value>,
    depends: BTreeMap<String, BTreeSet<String>>,
    /// References of the project's own crates by name.
    own: BTreeMap<String, String>,
}

impl Parts {
    /// Adds what the package `from` links, from the output of `cargo metadata`.
    fn add(
        &mut self,
        metadata: &Value,
        from: &str,
        checksums: &BTreeMap<(String, String), String>,
    ) -> Result<()> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let packages: BTreeMap<String, Value> =
            list(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
        let nodes: BTreeMap<String, Value> =
            list(&metadata["resolve"]["nodes"]).into_iter().map(|node| (text(&node["id"]), node)).collect();
        let is_macro = |package: &Value| {
            list(&package["targets"])
                .iter()
                .any(|target| list(&target["kind"]).contains(&json!("proc-macro")))
        };
        let start = packages
            .iter()
            .find(|(_, package)| package["name"] == from)
            .map(|(id, _)| id.clone())
            .with_context(|| format!("cargo metadata does not know {from}"))?;
        let mut open = vec![start];
        let mut seen = BTreeSet::new();
        while let Some(id) = open.pop() {
            if !seen.insert(id.clone()) {
                continue;
            }
            let package = packages.get(&id).with_context(|| format!("no package {id}"))?;
            let reference = self.component(package, checksums);
            let mut depends = BTreeSet::new();
            for dependency in nodes.get(&id).map(|node| list(&node["deps"])).unwrap_or_default() {
                // Those of build scripts, tests and compile time are not in the program.
                let normal = list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
                let Some(target) = packages.get(&text(&dependency["pkg"])) else { continue };
                if normal && !is_macro(target) {
                    depends.insert(reference_of(target));
                    open.push(text(&dependency["pkg"]));
                }
            }
            self.depends.entry(reference).or_default().extend(depends);
        }
        Ok(())
    }

    /// Adds one crate and gives its reference.
    fn component(&mut self, package: &Value, checksums: &BTreeMap<(String, String), String>) -> String {
        let reference = reference_of(package);
        let (name, version) = name_and_version(package);
        let mut component = json!({
            "type": "library",
            "bom-ref": reference,
            "name": name,
            "version": version,
            "purl": reference,
        });
        if let Some(licence) = package["license"].as_str() {
            // The old form of an expression.
            component["licenses"] = json!([{"expression": licence.replace('/', " OR ")}]);
        }
        match checksums.get(&(name.clone(), version)) {
            Some(sum) => component["hashes"] = json!([{"alg": "SHA-256", "content": sum}]),
            None => {
                self.own.insert(name, reference.clone());
            }
        }
        self.components.insert(reference.clone(), component);
        reference
    }

    /// Something that is no crate; the program depends on it.
    fn add_other(&mut self, name: &str, version: &str, licence: &str, path: &str) {
        let reference = format!("pkg:{path}@{version}");
        let component = json!({
            "type": "library",
            "bom-ref": reference,
            "name": name,
            "version": version,
            "purl": reference,
            "licenses": [{"expression": licence}],
        });
        self.components.insert(reference.clone(), component);
        self.depends.entry(reference.clone()).or_default();
        if let Some(main) = self.own.get("enforcer") {
            self.depends.entry(main.clone()).or_default().insert(reference);
        }
    }

    /// One of the project's crates carries another.
    fn link(&mut self, from: &str, to: &str) {
        if let (Some(from), Some(to)) = (self.own.get(from), self.own.get(to)) {
            self.depends.entry(from.clone()).or_default().insert(to.clone());
        }
    }

    fn document(mut self, program: &str) -> Value {
        let main = self.own.get("enforcer").and_then(|reference| self.components.remove(reference));
        let mut main = main.unwrap_or_default();
        main["type"] = json!("application");
        let content = program.trim_start_matches("sha256:");
        main["hashes"] = json!([{"alg": "SHA-256", "content": content}]);
        let depends: Vec<Value> = self
            .depends
            .iter()
            .map(|(reference, depends)| json!({"ref": reference, "dependsOn": depends}))
            .collect();
        json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": {"component": main},
            "components": self.components.into_values().collect::<Vec<_>>(),
            "dependencies": depends,
        })
    }
}

fn name_and_version(package: &Value) -> (String, String) {
    let text = |field: &str| package[field].as_str().unwrap_or_default().to_owned();
    (text("name"), text("version"))
}

fn reference_of(package: &Value) -> String {
    let (name, version) = name_and_version(package);
    format!("pkg:cargo/{name}@{version}")
}
