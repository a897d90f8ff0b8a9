//! What is wrong with a document: where, which rule, and what to do.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::object::Origin;
use crate::policy::rules;

/// One finding. Its `Display` is one sentence: where, what, what to do.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, schemars::JsonSchema)]
pub struct Problem {
    /// The manifest file; absent for objects of the API server.
    pub file: Option<PathBuf>,
    /// Number of the document in the file, from 1; 0 when the whole file is meant.
    pub document: usize,
    /// `Kind namespace/name`, as far as known.
    pub object: String,
    /// Path of the field, such as `spec.selector.matchLabels.app`; empty for the whole document.
    pub field: String,
    /// Identifier of the rule, such as `mode-unknown`.
    pub rule: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    /// A finding about a field of an object.
    #[must_use]
    pub fn new(
        origin: &Origin,
        object: impl Into<String>,
        field: impl Into<String>,
        rule: &'static str,
        message: impl Into<String>,
    ) -> Self {
        debug_assert!(rules::find(rule).is_some(), "{rule} is not in the table of rules");
        Self {
            file: origin.file.clone(),
            document: origin.document,
            object: object.into(),
            field: field.into(),
            rule,
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            if self.document > 0 {
                write!(f, ", document {}", self.document)?;
            }
            f.write_str(": ")?;
        }
        if !self.object.is_empty() {
            write!(f, "{}: ", self.object)?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{} [{}]", self.message, self.rule)
    }
}
