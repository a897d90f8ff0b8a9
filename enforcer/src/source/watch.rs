//! Manifests that are watched: a change of a file or folder is read again, and what cannot be read keeps its last good
//! content.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::manifest::{self, FileContent, Loaded};
use crate::object::Origin;
use crate::policy::problem::Problem;

/// Changes that come this close together are read once.
const SETTLE: Duration = Duration::from_millis(50);
/// Even without a notification everything is looked at this often: folders come back, and some file systems stay silent.
const RESCAN: Duration = Duration::from_millis(700);

/// The last good content of every file.
#[derive(Debug, Default)]
pub struct Store {
    paths: Vec<PathBuf>,
    contents: BTreeMap<PathBuf, FileContent>,
    stamps: BTreeMap<PathBuf, Stamp>,
}

/// What tells that a file changed without reading it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Stamp(u64, u64, std::time::SystemTime, std::time::SystemTime);

fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(path).ok()?;
    let changed = std::time::UNIX_EPOCH
        + Duration::new(meta.ctime().try_into().unwrap_or(0), meta.ctime_nsec().try_into().unwrap_or(0));
    Some(Stamp(meta.ino(), meta.len(), meta.modified().ok()?, changed))
}

impl Store {
    /// A store of these files and folders, not read yet.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, ..Self::default() }
    }

    /// Reads what changed. `None` when nothing did. A file that is gone takes its objects along; a folder that cannot be
    /// read keeps the files that it had.
    pub fn reload(&mut self) -> Option<Loaded> {
        let mut problems = Vec::new();
        let mut files = Vec::new();
        for path in &self.paths {
            match manifest::files(path) {
                Ok(found) => files.extend(found),
                Err(error) => {
                    files.extend(self.contents.keys().filter(|file| file.starts_with(path)).cloned());
                    let message = format!(
                        "{} cannot be read ({error}); what it held last stays in force: put it back, or start the agent with another --manifests",
                        path.display()
                    );
                    let origin = Origin { file: Some(path.clone()), document: 0 };
                    problems.push(Problem::new(&origin, "", "", "unreadable", message));
                }
            }
        }
        let mut changed = self.contents.len() != files.len();
        let mut contents = BTreeMap::new();
        let mut stamps = BTreeMap::new();
        for file in files {
            let now = stamp(&file);
            let last = self.contents.remove(&file);
            let content = match (last, self.stamps.get(&file)) {
                (Some(last), Some(old)) if Some(old) == now.as_ref() => last,
                // Gone between the listing and now, or in a folder that cannot be read.
                (Some(last), _) if now.is_none() => last,
                (last, _) => {
                    changed = true;
                    let read = manifest::load_file(&file);
                    match &last {
                        Some(last) => read.over(last),
                        None => read,
                    }
                }
            };
            stamps.extend(now.map(|stamp| (file.clone(), stamp)));
            contents.insert(file, content);
        }
        self.contents = contents;
        self.stamps = stamps;
        let mut loaded = manifest::merge(self.contents.values());
        changed |= !problems.is_empty();
        loaded.problems.extend(problems);
        changed.then_some(loaded)
    }
}

/// Tells when it is worth calling [`Store::reload`].
pub struct Watch {
    _watcher: Option<RecommendedWatcher>,
    events: mpsc::Receiver<()>,
}

impl Watch {
    /// Watches files and folders. Where the kernel gives no notifications, the periodic look has to do.
    #[must_use]
    pub fn open(paths: &[PathBuf]) -> Self {
        let (sender, events) = mpsc::channel(1);
        let handler = move |_: notify::Result<notify::Event>| {
            // Full means that the reader knows already.
            let _ = sender.try_send(());
        };
        let watcher = notify::recommended_watcher(handler).ok().map(|mut watcher| {
            for path in paths {
                // A file is watched through its folder: editors and ConfigMaps replace it by a new one.
                let folder = if path.is_dir() { Some(path.as_path()) } else { path.parent() };
                if let Some(folder) = folder {
                    let _ = watcher.watch(folder, RecursiveMode::NonRecursive);
                }
            }
            watcher
        });
        Self { _watcher: watcher, events }
    }

    /// Waits until something may have changed.
    pub async fn changed(&mut self) {
        // A closed channel (no watcher) leaves the periodic look.
        if let Ok(Some(())) = tokio::time::timeout(RESCAN, self.events.recv()).await {
            tokio::time::sleep(SETTLE).await;
            while self.events.try_recv().is_ok() {}
        } else if self.events.is_closed() {
            tokio::time::sleep(RESCAN).await;
        }
    }
}
