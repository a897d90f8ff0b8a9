//! The directory that outlives the work tree: what was fetched once is not fetched again for the next clone.

use std::env;
use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result};

/// `$XDG_CACHE_HOME/enforcer`, else `~/.cache/enforcer`; it exists.
pub(crate) fn directory() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: set one of them to a directory for downloads")?;
    let directory = base.join("enforcer");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create the cache directory {}", directory.display()))?;
    Ok(directory)
}

/// Waits until no other set-up runs, and keeps others out until the file is dropped.
pub(crate) fn lock() -> Result<File> {
    let path = directory()?.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        println!("  waiting for another set-up to end");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}
