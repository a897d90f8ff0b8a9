//! The plain manifests: the chart with its default values, for those who want no helm.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::render;
use crate::shell::root;

/// The namespace that the manifests install into.
pub(super) const NAMESPACE: &str = "enforcer-system";

const HEADER: &str = "# Rendered from deploy/helm/enforcer by `cargo xtask chart render`; change it there.\n";

/// Manifest and the templates that it is made of. What is applied together is in one file.
const FILES: [(&str, &[&str]); 4] = [
    ("enforcer.yaml", &["rbac.yaml", "daemonset.yaml"]),
    ("uninstall.yaml", &["uninstall.yaml"]),
    ("podmonitor.yaml", &["podmonitor.yaml"]),
    ("admission-policy.yaml", &["admission.yaml"]),
];

/// Root, host folders and the host's network are beyond what the restricted levels of pod security allow.
const NAMESPACE_DOCUMENT: &str = "apiVersion: v1
kind: Namespace
metadata:
  name: enforcer-system
  labels:
    pod-security.kubernetes.io/enforce: privileged
";

fn folder() -> PathBuf {
    root().join("deploy/manifests")
}

/// The manifests as they must be, by file name.
fn wanted() -> Result<Vec<(&'static str, String)>> {
    let all = json!({"podMonitor": {"enabled": true}, "admissionPolicy": {"enabled": true}});
    let rendered = render(&all)?;
    let mut files = Vec::new();
    for (file, templates) in FILES {
        let mut documents = Vec::new();
        if file == "enforcer.yaml" {
            documents.push(NAMESPACE_DOCUMENT.trim().to_owned());
        }
        for template in templates {
            let found = rendered.iter().find(|(name, _)| name == template);
            documents.push(plain(&found.with_context(|| format!("the chart has no {template}"))?.1));
        }
        files.push((file, format!("{HEADER}{}\n", documents.join("\n---\n"))));
    }
    Ok(files)
}

/// Without what means something to helm alone.
fn plain(text: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines() {
        let word = line.trim_start();
        if word.starts_with("helm.sh/") || word == "app.kubernetes.io/managed-by: Helm" {
            continue;
        }
        lines.push(line.trim_end());
    }
    let mut kept: Vec<&str> = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let indent = |text: &str| text.len() - text.trim_start().len();
        let empty = line.trim() == "annotations:"
            && lines.get(index + 1).is_none_or(|next| indent(next) <= indent(line));
        if !empty {
            kept.push(line);
        }
    }
    kept.join("\n")
}

/// Writes them.
pub(super) fn write() -> Result<()> {
    fs::create_dir_all(folder())?;
    for (file, text) in wanted()? {
        let path = folder().join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("  {}", path.display());
    }
    Ok(())
}

/// They are what the chart gives.
pub(super) fn compare() -> Result<()> {
    for (file, text) in wanted()? {
        let path = folder().join(file);
        let found = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            found == text,
            "{} is not what the chart gives: run `cargo xtask chart render`",
            path.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn what_only_helm_reads_is_left_out() {
        let text = "metadata:\n  labels:\n    app.kubernetes.io/managed-by: Helm\n    a: b\n  annotations:\n    \
                    helm.sh/hook: pre-delete\nspec:\n  annotations:\n    c: d\n";
        assert_eq!(plain(text), "metadata:\n  labels:\n    a: b\nspec:\n  annotations:\n    c: d");
    }
}
