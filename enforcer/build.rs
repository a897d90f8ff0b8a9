//! Builds the kernel side from source and leaves the object at `$OUT_DIR/enforcer-ebpf`, where the agent embeds it.
//!
//! The eBPF crate is a workspace of its own, for another target and with its own flags (its `.cargo/config.toml`),
//! so this runs a second cargo. That cargo has one target directory for every profile of the outer build
//! (`target/ebpf`): `build`, `clippy` and `test` share one compilation of `core`, and nothing is rebuilt when
//! nothing changed.

#[path = "build/strip.rs"]
mod strip;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs};

const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "enforcer-ebpf";

/// Why there is no object.
enum Failure {
    /// One sentence for the person at the terminal.
    Sentence(String),
    /// The compiler said it, on this script's stderr; cargo shows that when the script fails.
    Compiler,
}

impl From<String> for Failure {
    fn from(sentence: String) -> Self {
        Self::Sentence(sentence)
    }
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    let source = root.join("enforcer-ebpf");
    for input in [
        source.join("src"),
        source.join("Cargo.toml"),
        source.join("Cargo.lock"),
        source.join(".cargo/config.toml"),
        root.join("enforcer-common/src"),
        root.join("enforcer-common/Cargo.toml"),
    ] {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    match build(&source) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Sentence(sentence)) => {
            // cargo prints this as one line and stops; a failing exit code would add the whole output to it.
            println!("cargo::error={sentence}");
            ExitCode::SUCCESS
        }
        Err(Failure::Compiler) => ExitCode::FAILURE,
    }
}

/// Compiles the crate in `source` and copies the object to `OUT_DIR`.
fn build(source: &Path) -> Result<(), Failure> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let libraries = check_tools()?;
    // OUT_DIR is <target>/<profile>/build/<package>-<hash>/out.
    let target = out
        .ancestors()
        .nth(4)
        .ok_or_else(|| String::from("OUT_DIR is not inside a target directory"))?
        .join("ebpf");

    let mut cargo = Command::new(variable("CARGO")?);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(disturbs) {
            cargo.env_remove(&name);
        }
    }
    let status = cargo
        .current_dir(source)
        .args(["build", "--release", "--target-dir"])
        .arg(&target)
        .args(remapped())
        .env("RUSTC_BOOTSTRAP", "1")
        .env("LD_LIBRARY_PATH", libraries)
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("cannot run cargo for the eBPF crate: {error}"))?;
    if !status.success() {
        return Err(Failure::Compiler);
    }

    let object = target.join(TARGET).join("release").join(OBJECT);
    let content = fs::read(&object)
        .map_err(|error| format!("cannot read the eBPF object {}: {error}", object.display()))?;
    let stripped = strip::strip(&content).ok_or_else(|| {
        format!("{} is not the ELF object that bpf-linker should have made", object.display())
    })?;
    let copy = out.join(OBJECT);
    fs::write(&copy, stripped).map_err(|error| format!("cannot write {}: {error}", copy.display()))?;
    Ok(())
}

/// Paths that the outer build keeps out of the program are kept out of the object, too, whose BTF names source files.
fn remapped() -> Vec<String> {
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let flags: Vec<String> = flags
        .split('\u{1f}')
        .filter(|flag| flag.starts_with("--remap-path-prefix="))
        .map(|flag| format!("{flag:?}"))
        .collect();
    if flags.is_empty() {
        return Vec::new();
    }
    // Added to what its `.cargo/config.toml` says; an environment variable would take the place of that.
    vec!["--config".to_owned(), format!("target.{TARGET}.rustflags=[{}]", flags.join(","))]
}

/// True for a variable of the outer cargo that must not reach the inner one: the wrapper that makes every rustc a
/// clippy, flags, profiles and targets of the host build.
fn disturbs(name: &str) -> bool {
    const PREFIXES: [&str; 5] =
        ["CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_TARGET_", "CARGO_UNSTABLE_", "RUSTC"];
    const NAMES: [&str; 6] = [
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_INCREMENTAL",
        "CARGO_MAKEFLAGS",
        "MAKEFLAGS",
        "RUSTDOC",
        "RUSTFLAGS",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Makes sure that what the inner build needs is there. Returns the library path for bpf-linker, which loads the
/// LLVM of the compiler at run time.
fn check_tools() -> Result<std::ffi::OsString, String> {
    let rustc = variable("RUSTC")?;
    let output = Command::new(&rustc)
        .args(["--print", "sysroot"])
        .output()
        .map_err(|error| format!("cannot run {rustc}: {error}"))?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());

    if !sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").is_file() {
        return Err("rust-src, the source of `core` that the eBPF programs are built from, is missing: \
                    run `cargo xtask setup`"
            .into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    if !env::split_paths(&path).any(|directory| directory.join("bpf-linker").is_file()) {
        return Err("bpf-linker, which links the eBPF programs, is missing: run `cargo xtask setup`".into());
    }

    let inherited = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    env::join_paths(std::iter::once(sysroot.join("lib")).chain(env::split_paths(&inherited)))
        .map_err(|error| format!("cannot put the compiler's libraries on LD_LIBRARY_PATH: {error}"))
}

/// A variable that cargo sets for build scripts.
fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("this is a cargo build script, but {name} is not usable: {error}"))
}
