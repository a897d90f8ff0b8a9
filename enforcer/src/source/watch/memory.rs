//! The last good text of manifest files, kept over a restart of the agent.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::source::manifest::{self, FileContent};

/// A folder with one file per manifest file, named by the hash of its path.
#[derive(Debug)]
pub(super) struct Memory {
    folder: PathBuf,
}

impl Memory {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn slot(&self, file: &Path) -> PathBuf {
        let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        // FNV-1a, 64 bits: the same in every version of the agent.
        let hash = absolute.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        self.folder.join(format!("{hash:016x}.yaml"))
    }

    /// Keeps the text that the file has now.
    pub(super) fn keep(&self, file: &Path) {
        if let Err(error) = self.copy(file) {
            warn!(
                "{} cannot be kept in {} ({error}): if it is broken when the agent starts next, its policy is lost",
                file.display(),
                self.folder.display()
            );
        }
    }

    fn copy(&self, file: &Path) -> io::Result<()> {
        // Manifests may hold what is not everybody's business.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let slot = self.slot(file);
        let new = slot.with_extension("new");
        let mut to = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        io::copy(&mut fs::File::open(file)?, &mut to)?;
        fs::rename(&new, &slot)
    }

    /// What the file held when it was last good; `None` when it never was.
    pub(super) fn recall(&self, file: &Path) -> Option<FileContent> {
        let text = fs::read_to_string(self.slot(file)).ok()?;
        let content = manifest::parse_file(file, &text);
        if !content.objects.is_empty() {
            warn!("{} is broken: what it held before the agent started stays in force", file.display());
        }
        Some(content)
    }

    /// Drops what belongs to files that are gone.
    pub(super) fn forget_others<'a>(&self, files: impl Iterator<Item = &'a PathBuf>) {
        let keep: BTreeSet<PathBuf> = files.map(|file| self.slot(file)).collect();
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| !keep.contains(path)) {
            // What cannot be removed is never asked for again.
            let _ = fs::remove_file(path);
        }
    }
}
