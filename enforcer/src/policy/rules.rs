//! Every rule that a finding can name.

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// The document or file is refused.
    Error,
    /// It is accepted, but hardly does what was meant.
    Warning,
}

impl Severity {
    /// The word in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Its identifier, stable.
    pub id: &'static str,
    /// What it finds. `unknown-field` alone is a warning for objects of the API server.
    pub severity: Severity,
    /// What it is about, in one sentence.
    pub text: &'static str,
}

const fn error(id: &'static str, text: &'static str) -> Rule {
    Rule { id, severity: Severity::Error, text }
}

const fn warning(id: &'static str, text: &'static str) -> Rule {
    Rule { id, severity: Severity::Warning, text }
}

/// All rules, errors first.
pub const RULES: &[Rule] = &[
    error("file", "The file cannot be read."),
    error("file-size", "The file is too large."),
    error("encoding", "The file is not UTF-8 text."),
    error("syntax", "The file is neither YAML nor JSON, or a key comes twice in one mapping."),
    error("unreadable", "A folder cannot be read."),
    error("list", "A list without items."),
    error("kind", "A document without a kind, or with a misspelt PeerAuthentication."),
    error("api-version", "An API version that PeerAuthentication does not have."),
    error("name", "A missing or impossible name or namespace."),
    error("type", "A value of the wrong type."),
    error("null", "A field that is null."),
    error("timestamp", "A creation time that Kubernetes does not take."),
    error("unknown-field", "A field that PeerAuthentication does not have."),
    error("mode-unknown", "A mode other than UNSET, DISABLE, PERMISSIVE and STRICT."),
    error("mode-type", "A mode that is not a word."),
    error("ports-without-selector", "Port entries on a policy without selector labels."),
    error("ports-empty", "An empty mapping of port entries."),
    error("port-range", "A port that is no number from 1 to 65535."),
    error("selector-key-empty", "An empty label key in a selector."),
    error("selector-wildcard", "A wildcard in a selector."),
    error("selector-value-length", "A label value of more than 63 characters in a selector."),
    error("selector-size", "A selector of more than 4096 labels."),
    error("annotation", "An annotation that Istio's webhook refuses."),
    warning("empty", "A file without any document."),
    warning("folder-skipped", "A subfolder with manifests that is not read."),
    warning("duplicate", "Two documents that are the same object."),
    warning("kind-unknown", "A kind that Kubernetes does not have."),
    warning("kind-foreign", "A kind of others, which is passed over; the agent tells, lint does not."),
    warning("kind-legacy", "A policy of Istio before 1.6, which has no effect any more."),
    warning("name-generated", "A name that the API server completes."),
    warning("namespace-absent", "A policy that names no namespace."),
    warning("selector-empty", "A selector that is present but has no labels."),
    warning("shadowed", "A policy without effect, because another one wins wherever it could hold."),
    warning("shadowed-partly", "A policy without effect on some of its pods."),
    warning("selector-in-root", "A policy with a selector in the root namespace, where it has no effect."),
    warning("selector-matches-nothing", "A selector that matches no pod."),
    warning("mesh-policy-outside-root", "A policy that looks meant for the mesh outside the root namespace."),
    warning("other-revision", "A policy of another control plane revision."),
    warning("port-of-service", "A port entry for a Service's port in place of the container's."),
    warning("port-not-declared", "A port entry for a port that no selected pod declares."),
    warning("port-reserved", "A port entry for a port of the mesh itself."),
    warning("port-excluded", "A port entry for a port that the sidecar does not capture."),
    warning("api-server-locked-out", "A STRICT port that the API server calls without a mesh certificate."),
    warning("pod-without-data-plane", "A pod of the mesh that no data plane holds."),
    warning("ambient-differs", "A policy that ambient reads otherwise."),
];

/// The rule of an identifier.
#[must_use]
pub fn find(id: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.id == id)
}
