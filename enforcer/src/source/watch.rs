//! Manifests that are watched: a change of a file or folder is read again, and what cannot be read keeps its last good
//! content.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::manifest::{self, FileContent, Loaded};
use crate::object::Origin;
use crate::policy::problem::Problem;

/// Changes that come this close together are read once.
const SETTLE: Duration = Duration::from_millis(50);
/// Even without a notification everything is looked at this often: folders come back, and some file systems stay silent.
const RESCAN: Duration = Duration::from_millis(700);

mod memory;

use memory::Memory;

/// The last good content of every file.
#[derive(Debug, Default)]
pub struct Store {
    memory: Option<Memory>,
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

    /// Keeps each file's last good text in this folder as well, so that a file that is broken when the agent starts
    /// still has one: an agent that is started anew must not drop a policy that its predecessor had in force.
    #[must_use]
    pub fn with_memory(mut self, folder: PathBuf) -> Self {
        self.memory = Some(Memory::new(folder));
        self
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
                    match (&self.memory, last) {
                        (Some(memory), _) if read.is_good() => {
                            memory.keep(&file);
                            read
                        }
                        (Some(memory), None) => read.over(&memory.recall(&file).unwrap_or_default()),
                        (_, Some(last)) => read.over(&last),
                        (None, None) => read.over(&FileContent::default()),
                    }
                }
            };
            stamps.extend(now.map(|stamp| (file.clone(), stamp)));
            contents.insert(file, content);
        }
        if let Some(memory) = &self.memory {
            memory.forget_others(contents.keys());
        }
        adopt(&mut contents, std::mem::take(&mut self.contents).values());
        self.contents = contents;
        self.stamps = stamps;
        let mut loaded = manifest::merge(self.contents.values());
        changed |= !problems.is_empty();
        loaded.problems.extend(problems);
        changed.then(|| {
            loaded.warnings.extend(manifest::skipped_folders(&self.paths));
            loaded
        })
    }
}

/// Gives refused objects their last good version from files that are gone: a file that was renamed and broken at once is no
/// removal of its objects.
fn adopt<'a>(contents: &mut BTreeMap<PathBuf, FileContent>, gone: impl Iterator<Item = &'a FileContent>) {
    let refused: BTreeSet<String> = contents.values().flat_map(|content| &content.refused).cloned().collect();
    if refused.is_empty() {
        return;
    }
    let wanted = gone.flat_map(|content| &content.objects).map(|object| (object.key(), object));
    for (key, object) in wanted.filter(|(key, _)| refused.contains(key)) {
        let there = contents.values().flat_map(|content| &content.objects).any(|other| other.key() == key);
        let refusing = contents.values_mut().find(|content| content.refused.contains(&key));
        if let (false, Some(content)) = (there, refusing) {
            content.objects.push(object.clone());
        }
    }
}

/// Tells when it is worth calling [`Store::reload`].
pub struct Watch {
    paths: Vec<PathBuf>,
    watcher: Option<RecommendedWatcher>,
    /// Folders that the kernel tells about; one that was removed and made again needs a new watch.
    watched: BTreeSet<(PathBuf, u64)>,
    events: mpsc::Receiver<()>,
    /// When to look, once something was told.
    settled: Option<Instant>,
    /// When to look at the latest.
    rescan: Instant,
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
        let watcher = notify::recommended_watcher(handler).ok();
        let rescan = Instant::now() + RESCAN;
        let mut watch =
            Self { paths: paths.to_vec(), watcher, watched: BTreeSet::new(), events, settled: None, rescan };
        watch.watch_folders();
        watch
    }

    fn watch_folders(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        let mut there = BTreeSet::new();
        for path in &self.paths {
            // A file is watched through its folder: editors and ConfigMaps replace it by a new one.
            let folder = if path.is_dir() { Some(path.as_path()) } else { path.parent() };
            let folder =
                folder.map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
            if let Some(folder) = folder
                && let Ok(meta) = std::fs::metadata(folder)
            {
                let key = (folder.to_owned(), std::os::unix::fs::MetadataExt::ino(&meta));
                if self.watched.contains(&key) || watcher.watch(folder, RecursiveMode::NonRecursive).is_ok() {
                    there.insert(key);
                }
            }
        }
        self.watched = there;
    }

    /// Waits until something may have changed. Safe to cancel: what was told before is not forgotten, and the periodic
    /// look comes however often the caller is busy with something else.
    pub async fn changed(&mut self) {
        loop {
            let deadline = self.settled.map_or(self.rescan, |settled| settled.min(self.rescan));
            if Instant::now() >= deadline {
                break;
            }
            tokio::select! {
                told = self.events.recv(), if self.settled.is_none() && self.watcher.is_some() => match told {
                    Some(()) => self.settled = Some(Instant::now() + SETTLE),
                    None => self.watcher = None,
                },
                () = tokio::time::sleep_until(deadline.into()) => {}
            }
        }
        // Everything that was told until now is seen by the reload that follows.
        while self.events.try_recv().is_ok() {}
        self.settled = None;
        self.rescan = Instant::now() + RESCAN;
        self.watch_folders();
    }
}

#[cfg(test)]
mod tests;
