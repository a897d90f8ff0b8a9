//! A container image with one layer, as an OCI layout in a tar that is a docker archive as well: `ctr images import`,
//! `podman load`, `docker load` and `skopeo copy oci-archive:` read it.
//!
//! Everything is sorted, dated 1970 and owned by root: the same entries give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// Something in the image's file system.
pub(crate) struct Entry {
    path: String,
    mode: u32,
    content: Content,
}

enum Content {
    Directory,
    File(Vec<u8>),
    Link(String),
}

impl Entry {
    /// An empty directory; parents come by themselves.
    pub(crate) fn directory(path: &str) -> Self {
        Self { path: path.to_owned(), mode: 0o755, content: Content::Directory }
    }

    /// A regular file.
    pub(crate) fn file(path: &str, mode: u32, content: Vec<u8>) -> Self {
        Self { path: path.to_owned(), mode, content: Content::File(content) }
    }

    /// A symbolic link.
    pub(crate) fn link(path: &str, target: &str) -> Self {
        Self { path: path.to_owned(), mode: 0o777, content: Content::Link(target.to_owned()) }
    }
}

/// What the image says of itself.
pub(crate) struct Image<'a> {
    /// Name with tag.
    pub(crate) name: &'a str,
    pub(crate) title: &'a str,
    pub(crate) entrypoint: &'a [&'a str],
    pub(crate) command: &'a [&'a str],
    /// `PATH` in the container.
    pub(crate) path: &'a str,
    /// Of the layer; tests have no use for small images.
    pub(crate) compression: Compression,
}

/// A finished image.
pub(crate) struct Archived {
    /// The tar.
    pub(crate) archive: Vec<u8>,
    /// Digest of the manifest: what registries and `image@sha256:` call the image.
    pub(crate) manifest: String,
    /// Bytes that a registry stores.
    pub(crate) compressed: usize,
}

/// `sha256:` and the hexadecimal digest.
pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::from("sha256:"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Image<'_> {
    /// Packs the entries.
    pub(crate) fn write(&self, entries: Vec<Entry>) -> Result<Archived> {
        let layer = tar(entries)?;
        let config = bytes(&json!({
            "architecture": "amd64",
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "Env": [format!("PATH={}", self.path)],
                "Labels": {
                    "org.opencontainers.image.title": self.title,
                    "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                    "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
                },
            },
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image"}],
        }))?;
        let layer = gzip(&layer, self.compression)?;
        let descriptor = |kind: &str, blob: &[u8]| {
            json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": digest(blob),
                "size": blob.len(),
            })
        };
        let manifest = bytes(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &config),
            "layers": [descriptor("layer.v1.tar+gzip", &layer)],
        }))?;
        let mut listed = descriptor("manifest.v1+json", &manifest);
        let tag = self.name.rsplit(':').next().unwrap_or_default();
        listed["annotations"] =
            json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag});
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [listed],
        });
        let docker = json!([{
            "Config": blob_path(&config),
            "RepoTags": [self.name],
            "Layers": [blob_path(&layer)],
        }]);
        let (name, compressed) = (digest(&manifest), config.len() + layer.len() + manifest.len());
        let mut files = vec![
            Entry::file("oci-layout", 0o644, bytes(&json!({"imageLayoutVersion": "1.0.0"}))?),
            Entry::file("index.json", 0o644, bytes(&index)?),
            Entry::file("manifest.json", 0o644, bytes(&docker)?),
        ];
        for blob in [config, layer, manifest] {
            files.push(Entry::file(&blob_path(&blob), 0o644, blob));
        }
        Ok(Archived { archive: tar(files)?, manifest: name, compressed })
    }
}

fn blob_path(blob: &[u8]) -> String {
    format!("blobs/{}", digest(blob).replace(':', "/"))
}

fn bytes(value: &Value) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(value)?)
}

/// Without a name and a time in the header.
fn gzip(bytes: &[u8], compression: Compression) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), compression);
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// A tar of the entries and their parent directories, sorted by path.
fn tar(entries: Vec<Entry>) -> Result<Vec<u8>> {
    let parents: BTreeSet<String> = entries.iter().flat_map(|entry| parents(&entry.path)).collect();
    let mut sorted: BTreeMap<String, Entry> =
        parents.into_iter().map(|path| (path.clone(), Entry::directory(&path))).collect();
    sorted.extend(entries.into_iter().map(|entry| (entry.path.clone(), entry)));
    let mut builder = Builder::new(Vec::new());
    for Entry { path, mode, content } in sorted.into_values() {
        let mut header = Header::new_ustar();
        header.set_mode(mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        let added = match content {
            Content::Directory => {
                header.set_entry_type(EntryType::Directory);
                builder.append_data(&mut header, format!("{path}/"), &[][..])
            }
            Content::File(content) => {
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, &path, content.as_slice())
            }
            Content::Link(target) => {
                header.set_entry_type(EntryType::Symlink);
                builder.append_link(&mut header, &path, target)
            }
        };
        added.with_context(|| format!("cannot put {path} into the image"))?;
    }
    Ok(builder.into_inner()?)
}

/// The directories above a path.
fn parents(path: &str) -> Vec<String> {
    let above = Path::new(path).ancestors().skip(1);
    above.map(|part| part.to_string_lossy().into_owned()).filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests;
