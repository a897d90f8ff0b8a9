//! What every object has: version, name, labels, annotations, creation time.

use jiff::Timestamp;
use serde_json::{Map as Json, Value};

use super::{API_VERSIONS, Reader, type_name};
use crate::object::{Map, ObjectName};
use crate::policy::instant::creation_time;

/// A label of RFC 1123, whatever its length.
fn is_label(text: &str) -> bool {
    let ends =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = text.as_bytes();
    ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
}

/// A subdomain of RFC 1123, as Kubernetes wants the names of objects.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

impl Reader<'_> {
    pub(super) fn api_version(&mut self, top: &Json<String, Value>) {
        let version = top.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
        if !API_VERSIONS.contains(&version) {
            let message = format!(
                "`{version}` is not an API version of PeerAuthentication: write security.istio.io/v1 (or v1beta1)"
            );
            self.undecodable("apiVersion", "api-version", message);
        }
    }

    /// Checks the object's name. `generated`: it is but the beginning of one, `metadata.generateName`.
    pub(super) fn name(&mut self, name: &ObjectName, generated: bool) {
        if name.name.is_empty() {
            self.undecodable(
                "metadata.name",
                "name",
                "the object has no name: add one (by habit `default` for policies without selector)",
            );
        } else if generated {
            // The API server adds five letters or digits.
            if !is_subdomain(&format!("{}x", name.name)) {
                let message = format!(
                    "`{}` is no beginning of an object name: use lower case letters, digits, `-` and `.`",
                    name.name
                );
                self.undecodable("metadata.generateName", "name", message);
            }
            let message = "the API server completes this name, and names decide between policies of one age: write metadata.name";
            self.warn("metadata.generateName", "name-generated", message);
        } else if !is_subdomain(&name.name) {
            self.undecodable(
                "metadata.name",
                "name",
                format!(
                    "`{}` is no object name: use lower case letters, digits, `-` and single `.`, letters or digits at both ends",
                    name.name
                ),
            );
        }
        if name.namespace.len() > 63 || !is_label(&name.namespace) {
            self.undecodable(
                "metadata.namespace",
                "name",
                format!("`{}` is no namespace name: use lower case letters, digits and `-`", name.namespace),
            );
        }
    }

    /// Warns of a policy in a file that does not say where it belongs.
    pub(super) fn place(&mut self, given: bool) {
        if !given && self.origin.file.is_some() {
            let message = "names no namespace, so it is read for `default`, and lands wherever it is applied to: write the namespace, the root namespace if the whole mesh is meant";
            self.warn("metadata.namespace", "namespace-absent", message);
        }
    }

    pub(super) fn strings(&mut self, metadata: &Json<String, Value>, key: &str) -> Map {
        let mut strings = Map::new();
        let path = format!("metadata.{key}");
        match metadata.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::Object(fields)) => {
                for (key, value) in fields {
                    if let Value::String(value) = value {
                        strings.insert(key.clone(), value.clone());
                    } else {
                        self.undecodable(
                            format!("{path}.{key}"),
                            "type",
                            format!("must be a string, not {}: put the value in quotes", type_name(value)),
                        );
                    }
                }
            }
            Some(other) => {
                self.undecodable(path, "type", format!("must be a mapping, not {}", type_name(other)));
            }
        }
        strings
    }

    pub(super) fn created(&mut self, metadata: &Json<String, Value>) -> Option<Timestamp> {
        let path = "metadata.creationTimestamp";
        match metadata.get("creationTimestamp")? {
            Value::Null => None,
            Value::String(text) => {
                if let Ok(instant) = creation_time(text) {
                    instant
                } else {
                    self.undecodable(path, "timestamp", format!("`{text}` is no RFC 3339 time such as 2024-01-01T00:00:00Z: correct it or remove it"));
                    None
                }
            }
            other => {
                self.undecodable(
                    path,
                    "timestamp",
                    format!("must be an RFC 3339 time, not {}", type_name(other)),
                );
                None
            }
        }
    }
}
