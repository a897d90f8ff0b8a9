//! A package of another Debian suite, without touching the machine's apt configuration: apt runs with lists and
//! sources of its own in a temporary directory, and with the mirror, keys and proxies of the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::sources::{Source, configured};
use crate::shell::{command, find, output};

/// Suites that may carry a version, the likeliest first.
const SUITES: [&str; 3] = ["trixie-backports", "testing", "unstable"];

/// Downloads `package` of the upstream version `version` into `directory` and returns the file.
pub(super) fn download(package: &str, version: &str, directory: &Path) -> Result<PathBuf> {
    if find("apt-get").is_none() || find("dpkg-deb").is_none() {
        bail!("this is no Debian system");
    }
    let sources = configured();
    if sources.is_empty() {
        bail!("apt has no configured source that serves the component main");
    }
    let mut problem = None;
    for suite in SUITES {
        for source in &sources {
            match (Archive { source, suite, directory }).download(package, version) {
                Ok(file) => return Ok(file),
                Err(error) => problem = problem.or(Some(error)),
            }
        }
    }
    Err(problem.context("no source was tried")?)
        .with_context(|| format!("no suite of {} has {package} {version}", SUITES.join(", ")))
}

/// One suite of one mirror, and the directory that apt works in.
struct Archive<'a> {
    source: &'a Source,
    suite: &'a str,
    directory: &'a Path,
}

impl Archive<'_> {
    fn download(&self, package: &str, version: &str) -> Result<PathBuf> {
        prepare(self.directory, &self.source.stanza("deb", self.suite))?;
        output(self.apt("apt-get").args(["-qq", "update"]))?;
        let table = output(self.apt("apt-cache").args(["madison", package]))?;
        let full = pick(&table, version)
            .with_context(|| format!("{package} {version} is not in the suite {}", self.suite))?;
        output(self.apt("apt-get").args(["-qq", "download"]).arg(format!("{package}={full}")))?;
        fs::read_dir(self.directory)
            .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
            .with_context(|| format!("cannot read {}", self.directory.display()))?
            .into_iter()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get downloaded {package} but left no file"))
    }

    fn apt(&self, program: &str) -> Command {
        isolated(program, self.directory)
    }
}

/// Makes what [`isolated`] needs: the folders, and `stanzas` as the only sources.
pub(crate) fn prepare(directory: &Path, stanzas: &str) -> Result<()> {
    for part in ["state/lists/partial", "cache/archives/partial", "sources"] {
        let path = directory.join(part);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    let path = directory.join("sources/suite.sources");
    fs::write(&path, stanzas).with_context(|| format!("cannot write {}", path.display()))
}

/// An apt program that sees the archives of `directory/sources` alone, and keeps its lists and files in `directory`.
pub(crate) fn isolated(program: &str, directory: &Path) -> Command {
    let mut apt = command(program);
    apt.current_dir(directory);
    for (option, path) in
        [("Dir::State", "state"), ("Dir::Cache", "cache"), ("Dir::Etc::sourceparts", "sources")]
    {
        apt.arg("-o").arg(format!("{option}={}", directory.join(path).display()));
    }
    for option in [
        "Dir::Etc::sourcelist=/dev/null",
        "Acquire::Languages=none",
        "Acquire::Retries=1",
        "Acquire::http::Timeout=20",
        "Acquire::https::Timeout=20",
        // Else an archive that cannot be read is a warning, and update "succeeds".
        "APT::Update::Error-Mode=any",
    ] {
        apt.args(["-o", option]);
    }
    if crate::shell::is_root() {
        // apt's own user cannot write below root's home, where the cache lies.
        apt.args(["-o", "APT::Sandbox::User=root"]);
    }
    apt
}

/// The Debian version of the upstream version `version` in the table that `apt-cache madison` prints.
fn pick<'a>(table: &'a str, version: &str) -> Option<&'a str> {
    table.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim).find(|full| {
        full.strip_prefix(version).is_some_and(|rest| rest.starts_with(['+', '-', '~']) || rest.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::pick;

    #[test]
    fn the_upstream_version_matches_whole() {
        let table = " rust-src | 1.95.01-1 | x Packages\n rust-src | 1.96.1+dfsg1-2 | x Packages\n \
                     rust-src | 1.95.0+dfsg1-2~bpo13+1 | x Packages\n";
        assert_eq!(pick(table, "1.95.0"), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(pick(table, "1.9"), None);
        assert_eq!(pick("", "1.95.0"), None);
    }
}
