//! The static program of the image.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::shell::{command, output, run};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "image";

/// Builds the agent from the work tree at `source`, linked with glibc's static library: the image has nothing but it.
pub(super) fn build(source: &Path) -> Result<PathBuf> {
    let target = source.join("target/image-build");
    let mut cargo = command("cargo");
    cargo.current_dir(source).args(["build", "--locked", "--package", "enforcer", "--bin", "enforcer"]);
    cargo.args(["--profile", PROFILE, "--target", TARGET, "--target-dir"]).arg(&target);
    // With --target, build scripts and procedural macros do not get these.
    cargo.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags(source)?.join("\u{1f}"));
    run(&mut cargo)?;
    let program = target.join(TARGET).join(PROFILE).join("enforcer");
    let headers = output(command("readelf").arg("--program-headers").arg(&program))?;
    ensure!(!headers.contains("INTERP"), "{} asks for a dynamic linker: it is not static", program.display());
    Ok(program)
}

/// Static, and without a path of this machine: panic messages name source files.
fn flags(source: &Path) -> Result<Vec<String>> {
    let sysroot = output(command("rustc").current_dir(source).args(["--print", "sysroot"]))?;
    let home = |variable, below: &str| {
        std::env::var_os(variable)
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(below)))
            .with_context(|| format!("neither {variable} nor HOME is set"))
    };
    let cargo = home("CARGO_HOME", ".cargo")?;
    let mut flags = vec![String::from("-Ctarget-feature=+crt-static")];
    for (from, to) in [
        (PathBuf::from(sysroot.trim()).join("lib/rustlib/src/rust"), "/rust"),
        (cargo.join("registry/src"), "/registry"),
        (cargo, "/cargo"),
        (source.to_owned(), "/enforcer"),
    ] {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    Ok(flags)
}
