//! Manifest files and folders: multi-document YAML or JSON, and what `kubectl get … -o yaml` prints.
//!
//! A folder means its own `*.yaml`, `*.yml` and `*.json` files in name order, not its subfolders, as with
//! `kubectl apply -f`. Of two documents for one object the later one wins, also across files, and a warning says so.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::object::{Objects, Origin};
use crate::source::document::{Object, read};
use crate::source::text::documents;

pub use crate::policy::problem::Problem;

/// Files beyond this size are refused: a cluster with tens of thousands of pods stays below it.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

/// What one file holds.
#[derive(Clone, Debug, Default)]
pub struct FileContent {
    /// The objects that can be in force, in document order.
    pub objects: Vec<Object>,
    /// Refused documents; when [`Self::unreadable`] is set, why the file as a whole could not be read.
    pub problems: Vec<Problem>,
    /// What is accepted but deserves a look.
    pub warnings: Vec<Problem>,
    /// Objects whose document was refused: their last good version stays in force.
    pub refused: Vec<String>,
    /// The file could not be parsed at all: its whole last good content stays in force.
    pub unreadable: bool,
}

impl FileContent {
    /// The content that is in force after this one was read over `last`, the content in force before: everything of
    /// `last` when the file does not parse, else the new objects plus the last good version of each refused one.
    #[must_use]
    pub fn over(mut self, last: &Self) -> Self {
        for object in &last.objects {
            let key = object.key();
            let kept = self.unreadable
                || (self.refused.contains(&key) && !self.objects.iter().any(|new| new.key() == key));
            if kept {
                self.objects.push(object.clone());
            }
        }
        self
    }
}

/// Everything read from a set of paths.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The objects in force.
    pub objects: Objects,
    /// What was refused, in order of files and documents.
    pub problems: Vec<Problem>,
    /// What was accepted but deserves a look.
    pub warnings: Vec<Problem>,
    /// The files that were read or tried.
    pub files: Vec<PathBuf>,
    /// A path or file could not be read or parsed: the picture is not whole.
    pub incomplete: bool,
}

fn whole_file(path: &Path, rule: &'static str, message: impl Into<String>) -> FileContent {
    let origin = Origin { file: Some(path.to_owned()), document: 0 };
    let problem = Problem::new(&origin, "", "", rule, message);
    FileContent { problems: vec![problem], unreadable: true, ..FileContent::default() }
}

/// The manifest files that a path stands for: itself, or the folder's own `*.yaml`, `*.yml` and `*.json`, sorted.
///
/// # Errors
/// When the path does not exist or the folder cannot be listed.
pub fn files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let manifest =
            file.extension().is_some_and(|ending| ending == "yaml" || ending == "yml" || ending == "json");
        // A dangling link counts as a file: reading it reports it.
        if manifest && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads and parses one file.
#[must_use]
pub fn load_file(path: &Path) -> FileContent {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        return whole_file(
            path,
            "file",
            format!("cannot be read: {error}; check the path and its permissions"),
        );
    }
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return whole_file(
            path,
            "file-size",
            format!("is larger than {} MiB: split it", MAX_FILE_BYTES >> 20),
        );
    }
    match String::from_utf8(bytes) {
        Ok(text) => parse_file(path, &text),
        Err(_) => whole_file(path, "encoding", "is not UTF-8 text: save it as UTF-8"),
    }
}

/// Parses the text of one file. Bounded in memory: aliases cannot multiply without end.
#[must_use]
pub fn parse_file(path: &Path, text: &str) -> FileContent {
    let documents = match documents(text) {
        Ok(documents) => documents,
        Err(message) => {
            return whole_file(path, "syntax", format!("is not valid YAML or JSON: {message}; correct it"));
        }
    };
    if documents.iter().all(Value::is_null) {
        // An editor or a full disk empties files; who wants the objects gone removes the file.
        return whole_file(
            path,
            "empty",
            "holds no document: write one, or remove the file to take its objects back",
        );
    }
    let mut content = FileContent::default();
    let mut number = 0;
    for document in &documents {
        number += 1;
        if !document.is_null() {
            document_or_list(document, path, &mut number, &mut content);
        }
    }
    content
}

/// Reads a document, or each item of a list, lists in lists included; `number` becomes that of the last one.
fn document_or_list(document: &Value, path: &Path, number: &mut usize, content: &mut FileContent) {
    let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default();
    let Some(items) = document.get("items").and_then(Value::as_array).filter(|_| kind.ends_with("List"))
    else {
        read(document, &Origin { file: Some(path.to_owned()), document: *number }, content);
        return;
    };
    // A `PodList` of the raw API leaves out the kind of its items.
    let item_kind = kind.strip_suffix("List").filter(|kind| !kind.is_empty());
    let version = document.get("apiVersion");
    for (index, item) in items.iter().enumerate() {
        *number += usize::from(index > 0);
        let mut item = item.clone();
        if let (Some(kind), Value::Object(fields)) = (item_kind, &mut item) {
            fields.entry("kind").or_insert_with(|| kind.into());
            if let Some(version) = version {
                fields.entry("apiVersion").or_insert_with(|| version.clone());
            }
        }
        document_or_list(&item, path, number, content);
    }
}

/// Merges file contents, in order, into one set of objects; later documents win.
pub fn merge<'a>(contents: impl IntoIterator<Item = &'a FileContent>) -> Loaded {
    let mut loaded = Loaded::default();
    let mut seen: BTreeMap<String, &Origin> = BTreeMap::new();
    for content in contents {
        loaded.incomplete |= content.unreadable;
        loaded.problems.extend(content.problems.iter().cloned());
        loaded.warnings.extend(content.warnings.iter().cloned());
        for object in &content.objects {
            let key = object.key();
            if let Some(first) = seen.insert(key.clone(), object.origin()) {
                let file = first.file.as_deref().unwrap_or(Path::new("")).display();
                let message =
                    format!("replaces the one in {file}, document {}: keep one of the two", first.document);
                loaded.warnings.push(Problem::new(object.origin(), key, "", "duplicate", message));
            }
            object.insert(&mut loaded.objects);
        }
    }
    loaded
}

/// Reads files and folders.
#[must_use]
pub fn load_paths(paths: &[PathBuf]) -> Loaded {
    let mut contents = Vec::new();
    let mut tried = Vec::new();
    for path in paths {
        match files(path) {
            Ok(files) => {
                for file in files.into_iter().filter(|file| !tried.contains(file)).collect::<Vec<_>>() {
                    contents.push(load_file(&file));
                    tried.push(file);
                }
            }
            Err(error) => {
                contents.push(whole_file(
                    path,
                    "file",
                    format!("cannot be read: {error}; check the path and its permissions"),
                ));
            }
        }
    }
    let mut loaded = merge(&contents);
    loaded.files = tried;
    loaded
}

#[cfg(test)]
mod tests;
