//! Manifest files and folders: multi-document YAML or JSON, and what `kubectl get … -o yaml` prints.
//!
//! A folder means its own `*.yaml`, `*.yml` and `*.json` files in name order, not its subfolders, as with
//! `kubectl apply -f`; a warning names subfolders that hold such files. Of two documents for one object the later one wins,
//! also across files, and a warning says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::Value;

use crate::object::{ObjectName, Objects, Origin, PeerAuthentication};
use crate::policy::validate::type_name;
use crate::source::document::{Object, read};
use crate::source::text::documents;

pub use crate::policy::problem::Problem;

/// Files beyond this size are refused: a cluster with tens of thousands of pods stays below it.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

/// A policy that admission refuses, as Istio's composition reads it where it got in nevertheless.
#[derive(Clone, PartialEq, Debug)]
pub struct Bypassed {
    /// The policy.
    pub policy: PeerAuthentication,
    /// An API server holds it (see [`crate::policy::validate::Validated::held`]): it is in force, unless a good version of
    /// it was.
    pub held: bool,
}

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
    /// Refused policies whose reading is certain.
    pub bypassed: Vec<Bypassed>,
    /// A refused document does not say which object it is: every object that the file held last and does not name now
    /// stays in force.
    pub nameless: bool,
    /// The file holds no document: its whole last good content stays in force.
    pub emptied: bool,
    /// The file could not be parsed at all: its whole last good content stays in force.
    pub unreadable: bool,
}

impl FileContent {
    /// The content that is in force after this one was read over `last`, the content in force before: everything of
    /// `last` when the file does not parse or holds nothing, else the new objects plus the last good version of each
    /// refused one. A refused policy that an API server holds is in force where there is no such version.
    #[must_use]
    pub fn over(mut self, last: &Self) -> Self {
        if self.emptied && !last.objects.is_empty() {
            // An editor or a full disk empties files; who wants the objects gone removes the file.
            for mut warning in self.warnings.drain(..) {
                warning.message.push_str("; what it held last stays in force");
                self.problems.push(warning);
            }
        }
        for object in &last.objects {
            let key = object.key();
            let kept = self.unreadable
                || self.emptied
                || ((self.nameless || self.refused.contains(&key))
                    && !self.objects.iter().any(|new| new.key() == key));
            if kept {
                self.objects.push(object.clone());
            }
        }
        for held in self.bypassed.iter().filter(|bypassed| bypassed.held) {
            let object = Object::Policy(Box::new(held.policy.clone()));
            if !self.objects.iter().any(|other| other.key() == object.key()) {
                self.objects.push(object);
            }
        }
        self
    }

    /// The file was read to its last document, and nothing was refused.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.problems.is_empty() && !self.unreadable && !self.emptied
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
    /// Refused policies that are not in force, as Istio would read them had they got in.
    pub bypassed: Vec<PeerAuthentication>,
    /// Objects whose document was refused.
    pub refused: Vec<String>,
    /// A refused document does not say which object it is.
    pub nameless: bool,
    /// The creation time of every policy that has one in any document.
    pub dated: BTreeMap<ObjectName, Timestamp>,
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
    let mut content = FileContent::default();
    if documents.iter().all(Value::is_null) {
        let origin = Origin { file: Some(path.to_owned()), document: 0 };
        let message = "holds no document: write one, or remove the file to take its objects back";
        content.warnings.push(Problem::new(&origin, "", "", "empty", message));
        content.emptied = true;
    }
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
    if let Some(message) = no_list(document, kind) {
        let origin = Origin { file: Some(path.to_owned()), document: *number };
        content.problems.push(Problem::new(&origin, kind, "items", "list", message));
        content.nameless = true;
        return;
    }
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

/// Why a document that is meant as a list is none. Kinds of others may end in `List` as they like.
fn no_list(document: &Value, kind: &str) -> Option<String> {
    let known =
        ["List", "PeerAuthenticationList", "PodList", "NamespaceList", "ServiceList", "ConfigMapList"];
    let meant = known.iter().find(|known| known.eq_ignore_ascii_case(kind))?;
    if *meant != kind {
        return Some(format!("`{kind}` is no kind of Kubernetes: write {meant}, else nothing of it is read"));
    }
    match document.get("items") {
        Some(Value::Array(_) | Value::Null) => None,
        Some(other) => Some(format!("must be a list, not {}: put the objects below it", type_name(other))),
        None => {
            Some(format!("a {kind} has its objects below `items`, and this one has no such field: add it"))
        }
    }
}

/// Merges file contents, in order, into one set of objects; later documents win. A policy without a creation time keeps the
/// one of the document that it replaces, as it would in a cluster.
pub fn merge<'a>(contents: impl IntoIterator<Item = &'a FileContent>) -> Loaded {
    let mut loaded = Loaded::default();
    let mut seen: BTreeMap<String, &Origin> = BTreeMap::new();
    for content in contents {
        loaded.incomplete |= content.unreadable;
        loaded.nameless |= content.nameless;
        loaded.problems.extend(content.problems.iter().cloned());
        loaded.warnings.extend(content.warnings.iter().cloned());
        loaded.refused.extend(content.refused.iter().cloned());
        for object in &content.objects {
            let key = object.key();
            if let Some(first) = seen.insert(key.clone(), object.origin()) {
                let file = first.file.as_deref().unwrap_or(Path::new("")).display();
                let message =
                    format!("replaces the one in {file}, document {}: keep one of the two", first.document);
                loaded.warnings.push(Problem::new(object.origin(), key, "", "duplicate", message));
            }
            object.insert(&mut loaded.objects);
            if let Object::Policy(policy) = object
                && let Some(created) = policy.created
            {
                loaded.dated.insert(policy.name.clone(), created);
            }
        }
    }
    for (name, created) in &loaded.dated {
        if let Some(policy) = loaded.objects.policies.get_mut(name) {
            policy.created = policy.created.or(Some(*created));
        }
    }
    loaded
}

/// The policies that admission refuses and that are not in force.
fn bypassed<'a>(
    contents: impl IntoIterator<Item = &'a FileContent>,
    loaded: &Loaded,
) -> Vec<PeerAuthentication> {
    let all = contents.into_iter().flat_map(|content| &content.bypassed).map(|bypassed| &bypassed.policy);
    all.filter(|policy| !loaded.objects.policies.contains_key(&policy.name)).cloned().collect()
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
                    contents.push(load_file(&file).over(&FileContent::default()));
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
    loaded.bypassed = bypassed(&contents, &loaded);
    loaded.warnings.extend(skipped_folders(paths));
    loaded.files = tried;
    loaded
}

/// Warns of subfolders that hold manifests and are not among the paths: they are not read.
#[must_use]
pub fn skipped_folders(paths: &[PathBuf]) -> Vec<Problem> {
    let given: BTreeSet<PathBuf> = paths.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
    let mut warnings = Vec::new();
    for path in paths {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        // What begins with a dot is not for people: the volumes of Kubernetes keep their versions there.
        let mut folders: Vec<_> = entries
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
            .map(|entry| entry.path())
            .filter(|folder| folder.is_dir() && holds_manifests(folder, 3))
            .filter(|folder| fs::canonicalize(folder).is_ok_and(|folder| !given.contains(&folder)))
            .collect();
        folders.sort();
        for folder in folders {
            let message = "holds manifests and is not read: subfolders are not part of a folder; give it as a path of its own, or move its files";
            let origin = Origin { file: Some(folder), document: 0 };
            warnings.push(Problem::new(&origin, "", "", "folder-skipped", message));
        }
    }
    warnings
}

/// Looks `depth` folders down.
fn holds_manifests(folder: &Path, depth: usize) -> bool {
    let own = files(folder).is_ok_and(|files| !files.is_empty());
    let below = || fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    own || (depth > 0
        && below().any(|path| path.is_dir() && !path.is_symlink() && holds_manifests(&path, depth - 1)))
}

#[cfg(test)]
mod tests;
