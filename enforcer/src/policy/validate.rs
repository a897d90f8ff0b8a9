//! Reading and validating one `PeerAuthentication` document: what Istio's webhook or its custom resource definition
//! refuses is refused here, and unknown fields too, because pruning one can widen a policy to its whole namespace.

use std::collections::BTreeMap;

use enforcer_common::Mode;
use serde_json::{Map as Json, Value};

use crate::object::{Map, ObjectName, Origin, PeerAuthentication};
use crate::policy::problem::Problem;

mod metadata;

/// API versions that are read; both have one schema.
pub const API_VERSIONS: [&str; 2] = ["security.istio.io/v1", "security.istio.io/v1beta1"];

const METADATA: &[&str] = &[
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
    "clusterName",
];

const REFUSED_ANNOTATIONS: &[&str] = &[
    "istio.io/dry-run",
    "internal.istio.io/parents",
    "internal.istio.io/parent-namespace",
    "internal.istio.io/webhook-always-reject",
];

/// The outcome for one document.
#[derive(Debug, Default)]
pub struct Validated {
    /// The policy as Istio's composition reads it: of a document without errors, and of one that admission refuses where
    /// that reading is certain. `None` where a field could not be decoded.
    pub policy: Option<PeerAuthentication>,
    /// Of a refused document: an API server holds it nevertheless (it has a `creationTimestamp`), and no null in its
    /// selector made it wider than it may have been meant.
    pub held: bool,
    /// The document does not say for certain which object it is.
    pub nameless: bool,
    /// What admission refuses.
    pub errors: Vec<Problem>,
    /// What admission warns of.
    pub warnings: Vec<Problem>,
}

struct Reader<'a> {
    origin: &'a Origin,
    object: String,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
    /// A field could not be decoded, so that Istio's reading is not certain.
    undecodable: bool,
    /// The selector, or its labels, are null.
    null_selector: bool,
}

/// Reads and validates a document whose `kind` is `PeerAuthentication`.
#[must_use]
pub fn validate(document: &Value, origin: &Origin) -> Validated {
    let mut reader = Reader {
        origin,
        object: "PeerAuthentication".to_owned(),
        errors: Vec::new(),
        warnings: Vec::new(),
        undecodable: false,
        null_selector: false,
    };
    let policy = reader.document(document).filter(|_| !reader.undecodable);
    let dated = policy.as_ref().is_some_and(|policy| policy.created.is_some());
    let named = |field: &str| {
        let below = field.strip_prefix("metadata.").unwrap_or(field);
        field.starts_with("metadata.") && !METADATA.contains(&below.split('.').next().unwrap_or(below))
            || matches!(field, "" | "metadata" | "metadata.name" | "metadata.namespace")
    };
    Validated {
        policy,
        held: dated && !reader.null_selector,
        nameless: reader.errors.iter().any(|error| named(&error.field)),
        errors: reader.errors,
        warnings: reader.warnings,
    }
}

/// What a JSON value is, in words.
#[must_use]
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

impl Reader<'_> {
    fn refuse(&mut self, field: impl Into<String>, rule: &'static str, message: impl Into<String>) {
        self.errors.push(Problem::new(self.origin, &self.object, field, rule, message));
    }

    fn warn(&mut self, field: &str, rule: &'static str, message: &str) {
        self.warnings.push(Problem::new(self.origin, &self.object, field, rule, message));
    }

    /// Refuses what cannot be decoded at all.
    fn undecodable(&mut self, field: impl Into<String>, rule: &'static str, message: impl Into<String>) {
        self.undecodable = true;
        self.refuse(field, rule, message);
    }

    fn unknown(&mut self, fields: &Json<String, Value>, path: &str, known: &[&str], consequence: &str) {
        for key in fields.keys().filter(|key| !known.contains(&key.as_str())) {
            let field = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let message = format!(
                "unknown field: a lenient client drops it silently{consequence}; known here: {}; correct the spelling or remove it",
                known.join(", ")
            );
            // The API server keeps no field that its definition does not know: one of a later release, no misspelling.
            if self.origin.file.is_none() {
                let message = "unknown field, of a later release of Istio perhaps: it is passed over";
                self.warnings.push(Problem::new(self.origin, &self.object, field, "unknown-field", message));
            } else {
                self.undecodable(field, "unknown-field", message);
            }
        }
    }

    /// A mapping below `parent`: absent is `None`; null is refused but reads as absent.
    fn mapping<'v>(
        &mut self,
        parent: &'v Json<String, Value>,
        key: &str,
        path: &str,
    ) -> Option<&'v Json<String, Value>> {
        match parent.get(key)? {
            Value::Object(fields) => Some(fields),
            Value::Null => {
                self.null_selector |= path.starts_with("spec.selector");
                self.refuse(path, "null", "null is not allowed: remove the field, or give it a value");
                None
            }
            other => {
                self.undecodable(path, "type", format!("must be a mapping, not {}", type_name(other)));
                None
            }
        }
    }

    fn document(&mut self, document: &Value) -> Option<PeerAuthentication> {
        let Value::Object(top) = document else {
            self.undecodable("", "type", "the document must be a mapping");
            return None;
        };
        let empty = Json::new();
        let metadata = match top.get("metadata") {
            Some(Value::Object(metadata)) => metadata,
            _ => &empty,
        };
        let text = |key| metadata.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let generated = text("generateName");
        let name = ObjectName::new(
            text("namespace").unwrap_or("default"),
            text("name").or(generated).unwrap_or_default(),
        );
        self.object = format!("PeerAuthentication {name}");
        for key in ["name", "namespace"] {
            match metadata.get(key) {
                None | Some(Value::Null | Value::String(_)) => {}
                Some(other) => {
                    let message = format!("must be a string, not {}: put it in quotes", type_name(other));
                    self.undecodable(format!("metadata.{key}"), "type", message);
                }
            }
        }
        if let Some(other) =
            top.get("metadata").filter(|metadata| !metadata.is_object() && !metadata.is_null())
        {
            self.undecodable("metadata", "type", format!("must be a mapping, not {}", type_name(other)));
        }
        self.api_version(top);
        self.unknown(
            top,
            "",
            &["apiVersion", "kind", "metadata", "spec", "status"],
            " and the rest of the policy applies without it",
        );
        self.unknown(metadata, "metadata", METADATA, "");
        self.name(&name, text("name").is_none() && generated.is_some());
        self.place(text("namespace").is_some());
        let labels = self.strings(metadata, "labels");
        let annotations = self.strings(metadata, "annotations");
        for key in REFUSED_ANNOTATIONS.iter().filter(|key| annotations.contains_key(**key)) {
            self.refuse(
                format!("metadata.annotations.{key}"),
                "annotation",
                "this annotation is refused on a PeerAuthentication: remove it",
            );
        }
        let created = self.created(metadata);
        let spec = self.mapping(top, "spec", "spec").unwrap_or(&empty);
        self.unknown(
            spec,
            "spec",
            &["selector", "mtls", "portLevelMtls"],
            ", and what it was meant to limit applies to every pod of the namespace",
        );
        let selector = self.selector(spec);
        let mode = match self.mapping(spec, "mtls", "spec.mtls") {
            Some(mtls) => self.mode(mtls, "spec.mtls"),
            None => None,
        };
        let mut ports = self.ports(spec);
        if selector.is_empty() && spec.get("portLevelMtls").is_some_and(|ports| !ports.is_null()) {
            self.refuse(
                "spec.portLevelMtls",
                "ports-without-selector",
                "port entries need spec.selector.matchLabels with at least one label: add the labels of the workload, or remove the port entries",
            );
            // Istio ignores them on a policy that got in nevertheless.
            ports.clear();
        }
        Some(PeerAuthentication { name, created, labels, selector, mode, ports, origin: self.origin.clone() })
    }

    fn selector(&mut self, spec: &Json<String, Value>) -> Map {
        let mut labels = Map::new();
        let Some(selector) = self.mapping(spec, "selector", "spec.selector") else {
            return labels;
        };
        self.unknown(
            selector,
            "spec.selector",
            &["matchLabels"],
            ", and the policy would then hold for every pod of the namespace",
        );
        let path = "spec.selector.matchLabels";
        let pairs = self.mapping(selector, "matchLabels", path);
        // A misspelt `matchLabels` is reported as such.
        if pairs.is_none_or(Json::is_empty) && selector.keys().all(|key| key == "matchLabels") {
            let message = "the selector has no labels, so the policy holds for the whole namespace: add matchLabels, or remove the selector to say so";
            self.warn("spec.selector", "selector-empty", message);
        }
        for (key, value) in pairs.into_iter().flatten() {
            let field = format!("{path}.{key}");
            let Value::String(value) = value else {
                self.undecodable(
                    field,
                    "type",
                    format!("must be a string, not {}: put the value in quotes", type_name(value)),
                );
                continue;
            };
            if key.is_empty() {
                self.refuse(&field, "selector-key-empty", "a label key cannot be empty: name the label");
            }
            if key.contains('*') || value.contains('*') {
                self.refuse(
                    &field,
                    "selector-wildcard",
                    "`*` is not a wildcard here and is refused: write the exact label",
                );
            }
            if value.chars().count() > 63 {
                self.refuse(
                    &field,
                    "selector-value-length",
                    "a label value has at most 63 characters: shorten it",
                );
            }
            labels.insert(key.clone(), value.clone());
        }
        if labels.len() > 4096 {
            self.refuse(path, "selector-size", "a selector has at most 4096 labels: remove some");
        }
        labels
    }

    fn mode(&mut self, fields: &Json<String, Value>, path: &str) -> Option<Mode> {
        self.unknown(fields, path, &["mode"], ", and the mode is then inherited");
        let field = format!("{path}.mode");
        match fields.get("mode")? {
            Value::String(mode) => match mode.as_str() {
                "UNSET" => None,
                "DISABLE" => Some(Mode::DISABLE),
                "PERMISSIVE" => Some(Mode::PERMISSIVE),
                "STRICT" => Some(Mode::STRICT),
                other => {
                    let hint = match other.to_ascii_uppercase().as_str() {
                        upper @ ("UNSET" | "DISABLE" | "PERMISSIVE" | "STRICT") => {
                            format!("write {upper}, in capitals")
                        }
                        "MUTUAL" | "ISTIO_MUTUAL" | "SIMPLE" => {
                            "that is a client mode of DestinationRule; write STRICT to require mutual TLS"
                                .to_owned()
                        }
                        "DISABLED" => "write DISABLE".to_owned(),
                        _ => "write UNSET, DISABLE, PERMISSIVE or STRICT".to_owned(),
                    };
                    self.undecodable(field, "mode-unknown", format!("`{other}` is not a mode: {hint}"));
                    None
                }
            },
            Value::Null => {
                self.refuse(
                    field,
                    "null",
                    "null is not allowed: remove the field, or write UNSET, DISABLE, PERMISSIVE or STRICT",
                );
                None
            }
            other => {
                self.undecodable(
                    field,
                    "mode-type",
                    format!(
                        "must be one of the words UNSET, DISABLE, PERMISSIVE, STRICT, not {}",
                        type_name(other)
                    ),
                );
                None
            }
        }
    }

    fn ports(&mut self, spec: &Json<String, Value>) -> BTreeMap<u16, Option<Mode>> {
        let mut ports = BTreeMap::new();
        let path = "spec.portLevelMtls";
        let Some(entries) = self.mapping(spec, "portLevelMtls", path) else {
            return ports;
        };
        if entries.is_empty() {
            self.refuse(path, "ports-empty", "an empty mapping is refused: add a port, or remove the field");
        }
        for (key, value) in entries {
            let field = format!("{path}.{key}");
            let plain = key.bytes().all(|byte| byte.is_ascii_digit()) && !key.starts_with('0');
            let port = key.parse::<u16>().ok().filter(|_| plain);
            if port.is_none() {
                self.undecodable(
                    &field,
                    "port-range",
                    format!("`{key}` is not a port: write a number from 1 to 65535 (the container's port)"),
                );
            }
            let mode = match value {
                Value::Object(fields) => self.mode(fields, &field),
                Value::Null => {
                    self.refuse(&field, "null", "null is not allowed: write a mode, such as {mode: STRICT}");
                    None
                }
                other => {
                    self.undecodable(
                        &field,
                        "type",
                        format!("must be a mapping such as {{mode: STRICT}}, not {}", type_name(other)),
                    );
                    None
                }
            };
            ports.extend(port.map(|port| (port, mode)));
        }
        ports
    }
}
