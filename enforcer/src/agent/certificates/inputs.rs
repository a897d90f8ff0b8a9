//! Trust bundle, revocation lists and the agent's own mesh certificate: read again when they change.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::sign::CertifiedKey;

use super::CertificateOptions;
use crate::certificate::bundle::{
    BundleError, CRL_CONFIG_MAP_KEY, DEFAULT_CONFIG_MAP_KEY, MAX_BYTES, TrustBundle,
};
use crate::certificate::client;
use crate::object::{ObjectName, Objects};

/// What cannot be used is reported when it has stayed so for this long: files of a pair are not replaced at one moment, and
/// one that is being written is not whole.
const SETTLE: Duration = Duration::from_secs(1);

/// What tells two contents of a file apart without reading it: a write changes the time of change, a replacement (as of a
/// mounted config map) the inode.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Stamp {
    Missing(String),
    File { device: u64, inode: u64, size: u64, changed: (i64, i64) },
}

impl Stamp {
    fn of(path: &Path) -> Self {
        match fs::metadata(path) {
            Ok(meta) => Self::File {
                device: meta.dev(),
                inode: meta.ino(),
                size: meta.size(),
                changed: (meta.ctime(), meta.ctime_nsec()),
            },
            Err(error) => Self::Missing(error.to_string()),
        }
    }
}

/// One text as it was seen last.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Seen {
    File(Stamp),
    Text(String),
    Nothing,
}

/// Where one text comes from.
#[derive(Clone, Debug)]
enum Place {
    File(PathBuf),
    ConfigMap { name: String, key: &'static str },
}

impl Place {
    fn new(file: Option<&PathBuf>, config_map: &str, key: &'static str) -> Self {
        match file {
            Some(path) => Self::File(path.clone()),
            None => Self::ConfigMap { name: config_map.to_owned(), key },
        }
    }

    fn look(&self, objects: &Objects, root_namespace: &str) -> Seen {
        match self {
            Self::File(path) => Seen::File(Stamp::of(path)),
            Self::ConfigMap { name, key } => {
                config_map(objects, name, key, root_namespace).map_or(Seen::Nothing, Seen::Text)
            }
        }
    }
}

/// The text of the mesh's config map: that of the root namespace, which istiod looks after first of all, else that of the
/// first namespace in order that has one; they are all the same but for those that nobody keeps up to date any more.
fn config_map(objects: &Objects, name: &str, key: &str, root_namespace: &str) -> Option<String> {
    let root = objects.config_maps.get(&ObjectName::new(root_namespace, name));
    let others = objects.config_maps.values().filter(|map| map.name.name == name);
    let text = root.into_iter().chain(others).find_map(|map| map.data.get(key));
    text.filter(|text| !text.trim().is_empty()).cloned()
}

/// What was handed on, and what is waited for.
#[derive(Debug)]
struct Watched<S> {
    taken: Option<S>,
    doubtful: Option<(S, Instant)>,
}

impl<S> Default for Watched<S> {
    fn default() -> Self {
        Self { taken: None, doubtful: None }
    }
}

impl<S: PartialEq + Clone> Watched<S> {
    /// Whether what was made of `seen` is to be handed on now.
    fn take(&mut self, seen: S, good: bool, now: Instant) -> bool {
        if !good {
            match &self.doubtful {
                Some((earlier, since)) if *earlier == seen => {
                    if now.saturating_duration_since(*since) < SETTLE {
                        return false;
                    }
                }
                _ => {
                    self.doubtful = Some((seen, now));
                    return false;
                }
            }
        }
        self.doubtful = None;
        self.taken = Some(seen);
        true
    }
}

/// The inputs of the checks.
pub(super) struct Inputs {
    root_namespace: String,
    bundle: Place,
    lists: Place,
    client: Option<(PathBuf, PathBuf)>,
    /// What bundle and lists were read from.
    has_bundle: bool,
    watched: Watched<(Seen, Seen)>,
    watched_client: Watched<(Stamp, Stamp)>,
}

impl Inputs {
    pub(super) fn new(options: &CertificateOptions) -> Self {
        Self {
            root_namespace: options.root_namespace.clone(),
            bundle: Place::new(options.trust_bundle.as_ref(), &options.config_map, DEFAULT_CONFIG_MAP_KEY),
            lists: Place::new(options.crl.as_ref(), &options.crl_config_map, CRL_CONFIG_MAP_KEY),
            client: options.client.clone(),
            has_bundle: false,
            watched: Watched::default(),
            watched_client: Watched::default(),
        }
    }

    /// Whether a bundle is or was there, or must be there because a file is named.
    pub(super) fn has_bundle(&self) -> bool {
        self.has_bundle
    }

    /// The bundle, when it or its revocation lists have changed since the last call. `None` too while there never was one.
    pub(super) fn bundle(
        &mut self,
        objects: &Objects,
        now: Instant,
    ) -> Option<Result<TrustBundle, BundleError>> {
        let seen =
            (self.bundle.look(objects, &self.root_namespace), self.lists.look(objects, &self.root_namespace));
        if self.watched.taken.as_ref() == Some(&seen) || (seen.0 == Seen::Nothing && !self.has_bundle) {
            return None;
        }
        // One that goes again stays one that was there: its loss is a problem, not the end of the checks.
        self.has_bundle = true;
        let loaded = self.load(&seen);
        self.watched.take(seen, loaded.is_ok(), now).then_some(loaded)
    }

    fn load(&self, (bundle, lists): &(Seen, Seen)) -> Result<TrustBundle, BundleError> {
        let bundle = match (&self.bundle, bundle) {
            (Place::File(path), _) => TrustBundle::from_file(path)?,
            (_, Seen::Text(text)) => TrustBundle::from_pem(text.as_bytes())?,
            (Place::ConfigMap { name, key }, _) => {
                return Err(BundleError::Missing(format!("config map {name} with key {key} is gone")));
            }
        };
        match (&self.lists, lists) {
            (Place::File(path), _) => bundle.with_revocation_lists(&read(path)?),
            (_, Seen::Text(text)) => bundle.with_revocation_lists(text.as_bytes()),
            // A mesh need not have revocation lists.
            _ => Ok(bundle),
        }
    }

    /// The agent's own certificate, when one of its files has changed since the last call.
    pub(super) fn client(&mut self, now: Instant) -> Option<Result<Arc<CertifiedKey>, String>> {
        let (certificate, key) = self.client.as_ref()?;
        let seen = (Stamp::of(certificate), Stamp::of(key));
        if self.watched_client.taken.as_ref() == Some(&seen) {
            return None;
        }
        let loaded = client::load(certificate, key).map_err(|error| error.to_string());
        self.watched_client.take(seen, loaded.is_ok(), now).then_some(loaded)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    fs::File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|error| BundleError::UnreadableLists { path: path.to_owned(), reason: error.to_string() })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
