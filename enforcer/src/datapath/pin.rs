//! Where everything is pinned:
//!
//! ```text
//! DIR/links/<namespace cookie>-<ifindex>-to_pod      a TCX link; these outlive layouts, so that an upgrade replaces
//!                                                    the program behind a link instead of making a second link
//! DIR/links/<namespace cookie>-<ifindex>-in-to_pod   the same on a pod's own device, in the pod's namespace
//! DIR/links/<namespace cookie>-<ifindex>-clsact[-made]  a folder: filters are on this interface (and we made the qdisc)
//! DIR/v<layout>/maps/<NAME>
//! DIR/v<layout>/programs/<name>
//! ```
//!
//! The kernel refuses dots in names here, so interface names, which may hold dots and may change, are no part of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use enforcer_common::map::LAYOUT_VERSION;

use super::attach::Way;

/// The default folder.
pub const DEFAULT_DIR: &str = "/sys/fs/bpf/enforcer";

/// The folder's parts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pins {
    dir: PathBuf,
}

/// The name of a link pin or clsact marker, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkName {
    /// Cookie of the network namespace that the interface lives in.
    pub cookie: u64,
    /// Interface index there.
    pub ifindex: u32,
    /// What stands behind it.
    pub kind: LinkKind,
}

/// What a name in the links folder stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkKind {
    /// A TCX link.
    Tcx(Way),
    /// A TCX link on a pod's own device.
    Inside(Way),
    /// Our filters are on the interface; `made`: the clsact qdisc is ours as well.
    Clsact {
        /// True when the qdisc was made for our filters.
        made: bool,
    },
}

impl LinkName {
    /// Reads a name; `None` when it is not one of ours.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.splitn(3, '-');
        let cookie = u64::from_str_radix(parts.next()?, 16).ok()?;
        let ifindex = parts.next()?.parse().ok()?;
        let kind = match parts.next()? {
            "to_pod" => LinkKind::Tcx(Way::ToPod),
            "from_pod" => LinkKind::Tcx(Way::FromPod),
            "in-to_pod" => LinkKind::Inside(Way::ToPod),
            "in-from_pod" => LinkKind::Inside(Way::FromPod),
            "clsact" => LinkKind::Clsact { made: false },
            "clsact-made" => LinkKind::Clsact { made: true },
            _ => return None,
        };
        Some(Self { cookie, ifindex, kind })
    }

    fn file_name(self) -> String {
        let kind = match self.kind {
            LinkKind::Tcx(way) => way.program(),
            LinkKind::Inside(Way::ToPod) => "in-to_pod",
            LinkKind::Inside(Way::FromPod) => "in-from_pod",
            LinkKind::Clsact { made: false } => "clsact",
            LinkKind::Clsact { made: true } => "clsact-made",
        };
        format!("{:x}-{}-{kind}", self.cookie, self.ifindex)
    }
}

impl Pins {
    /// For this folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The folder itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `links/`.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.dir.join("links")
    }

    /// `v<layout>/` of the layout that this binary was built with.
    #[must_use]
    pub fn version(&self) -> PathBuf {
        self.dir.join(format!("v{LAYOUT_VERSION}"))
    }

    /// `v<layout>/maps/`.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    /// `v<layout>/programs/`.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.version().join("programs")
    }

    /// The path of a link or marker.
    #[must_use]
    pub fn link(&self, name: LinkName) -> PathBuf {
        self.links().join(name.file_name())
    }

    /// Makes the folders.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn create(&self) -> io::Result<()> {
        for dir in [self.links(), self.maps(), self.programs()] {
            fs::create_dir_all(dir)?;
        }
        Ok(())
    }

    /// Every link and marker, by name; empty when there is no folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list_links(&self) -> io::Result<Vec<LinkName>> {
        Ok(names(&self.links())?.iter().filter_map(|name| LinkName::parse(name)).collect())
    }

    /// Version folders of other layouts than this binary's.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn other_versions(&self) -> io::Result<Vec<PathBuf>> {
        let own = self.version();
        Ok(self.versions()?.into_iter().filter(|path| *path != own).collect())
    }

    /// Every version folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn versions(&self) -> io::Result<Vec<PathBuf>> {
        let is_version = |name: &String| name.strip_prefix('v').is_some_and(|n| n.parse::<u32>().is_ok());
        Ok(names(&self.dir)?.into_iter().filter(is_version).map(|name| self.dir.join(name)).collect())
    }
}

/// Names in a folder, sorted; none when it does not exist.
pub(super) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut all = Vec::new();
    match fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                all.push(entry?.file_name().to_string_lossy().into_owned());
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    all.sort_unstable();
    Ok(all)
}

/// Removes a pin or nothing.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_as_written() {
        for kind in [
            LinkKind::Tcx(Way::ToPod),
            LinkKind::Tcx(Way::FromPod),
            LinkKind::Inside(Way::ToPod),
            LinkKind::Inside(Way::FromPod),
            LinkKind::Clsact { made: false },
            LinkKind::Clsact { made: true },
        ] {
            let name = LinkName { cookie: 0xabc, ifindex: 17, kind };
            assert_eq!(LinkName::parse(&name.file_name()), Some(name));
            assert!(!name.file_name().contains('.'), "bpffs refuses dots");
        }
        for foreign in ["", "1-2", "x-2-to_pod", "1-x-to_pod", "1-2-other"] {
            assert_eq!(LinkName::parse(foreign), None, "{foreign}");
        }
    }
}
