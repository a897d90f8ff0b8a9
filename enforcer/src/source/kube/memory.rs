//! The last known policies and namespaces, kept over a restart of the agent: one that starts while the API server is
//! away must not be without the policy that its predecessor had in force.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tracing::warn;

use crate::object::{Objects, Origin, PeerAuthentication};
use crate::source::document::{self, Object};
use crate::source::manifest::FileContent;

/// A file with a Kubernetes `List`.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    /// What it holds: a hash is enough to see that nothing changed.
    written: Option<Vec<u8>>,
}

impl Memory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, written: None }
    }

    /// Keeps the policies and namespaces.
    pub(super) fn keep(&mut self, objects: &Objects) {
        let policies = objects.policies.values().map(policy);
        let namespaces = objects.namespaces.values().map(|namespace| {
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace.name, "labels": namespace.labels}})
        });
        let items: Vec<Value> = policies.chain(namespaces).collect();
        let text = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref().to_vec();
        if self.written.as_ref() == Some(&digest) {
            return;
        }
        match write(&self.path, text.as_bytes()) {
            Ok(()) => self.written = Some(digest),
            Err(error) => warn!(
                "{} cannot be written ({error}): an agent that starts while the API server is away has no policy",
                self.path.display()
            ),
        }
    }

    /// What was kept; nothing when there is none.
    pub(super) fn recall(&self) -> Vec<Object> {
        let Ok(text) = fs::read(&self.path) else { return Vec::new() };
        let Ok(list) = serde_json::from_slice::<Value>(&text) else {
            warn!("{} is damaged: what the agent before knew is lost", self.path.display());
            return Vec::new();
        };
        let mut content = FileContent::default();
        for item in list["items"].as_array().into_iter().flatten() {
            document::read(item, &Origin::default(), &mut content);
        }
        content.objects
    }
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    io::Write::write_all(&mut file, text)?;
    fs::rename(&new, path)
}

/// The policy as a document that reads back as the same.
fn policy(policy: &PeerAuthentication) -> Value {
    let mode = |mode: Option<enforcer_common::Mode>| {
        mode.map_or_else(|| "UNSET".to_owned(), |mode| mode.to_string())
    };
    let mut metadata =
        json!({"namespace": policy.name.namespace, "name": policy.name.name, "labels": policy.labels});
    if let Some(created) = policy.created {
        metadata["creationTimestamp"] = created.to_string().into();
    }
    let mut spec = json!({"mtls": {"mode": mode(policy.mode)}});
    if !policy.selector.is_empty() {
        spec["selector"] = json!({"matchLabels": policy.selector});
    }
    if !policy.ports.is_empty() {
        let ports = policy.ports.iter().map(|(port, own)| (port.to_string(), json!({"mode": mode(*own)})));
        spec["portLevelMtls"] = Value::Object(ports.collect());
    }
    json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": metadata, "spec": spec})
}

#[cfg(test)]
mod tests;
