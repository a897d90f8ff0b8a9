//! Running other programs, and where things are.

use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The root of the work tree.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

/// The crate of the kernel side, a workspace of its own.
pub(crate) fn ebpf_crate() -> PathBuf {
    root().join("enforcer-ebpf")
}

/// The directory of this build's binaries: the one that this binary lies in.
pub(crate) fn binaries() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot find out where this program lies")?;
    Ok(own.parent().context("this program lies in no directory")?.to_owned())
}

/// `program` in the root of the work tree, without standard input.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// `cargo` with these arguments, in the root of the work tree.
pub(crate) fn cargo<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut cargo = command("cargo");
    cargo.args(arguments);
    cargo
}

/// `cargo` with these arguments for the eBPF crate, whose target and flags its own configuration sets.
pub(crate) fn ebpf_cargo<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut cargo = cargo(arguments);
    cargo.current_dir(ebpf_crate()).env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTFLAGS");
    cargo
}

/// Runs with the terminal as output; an error when it cannot start or fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = display(command);
    println!("  $ {line}");
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Runs and returns its standard output; an error carries the last line of its standard error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = display(command);
    let output = command.output().with_context(|| format!("cannot run `{line}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        bail!("`{line}` failed ({}): {last}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs silently for at most `limit`; true when it ended well in that time. It is killed after that.
pub(crate) fn succeeds_within(command: &mut Command, limit: Duration) -> bool {
    let Ok(mut child) = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
        return false;
    };
    let start = Instant::now();
    while start.elapsed() < limit {
        match child.try_wait() {
            Ok(None) => thread::sleep(Duration::from_millis(50)),
            Ok(Some(status)) => return status.success(),
            Err(_) => break,
        }
    }
    // It may have ended meanwhile; then there is nothing to kill.
    let _ = child.kill();
    let _ = child.wait();
    false
}

/// The path of `program`, from PATH and the system directories that an ordinary user's PATH may lack.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// True when this process may do what the lab does.
pub(crate) fn is_root() -> bool {
    // Two lines of /proc instead of a dependency for one system call.
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| effective_uid(&status) == Some(0))
}

fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// An error with the way out for a task that needs root.
pub(crate) fn require_root(task: &str) -> Result<()> {
    if !is_root() {
        bail!(
            "`cargo xtask {task}` makes network namespaces and loads programs into the kernel: run it as root \
             (for example `sudo -E env PATH=\"$PATH\" cargo xtask {task}`)"
        );
    }
    Ok(())
}

fn display(command: &Command) -> String {
    let mut line =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let _ = write!(line, " {}", argument.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_uid_is_the_second_number() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t0\t1000\t1000\nGid:\t5\t6\t7\t8\n"), Some(0));
        assert_eq!(effective_uid("Name:\tx\n"), None);
    }

    #[test]
    fn a_slow_program_is_killed() {
        let start = Instant::now();
        assert!(!succeeds_within(command("sleep").arg("30"), Duration::from_millis(100)));
        assert!(start.elapsed() < Duration::from_secs(10));
        assert!(succeeds_within(&mut command("true"), Duration::from_secs(10)));
        assert!(!succeeds_within(&mut command("false"), Duration::from_secs(10)));
    }

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = output(command("sh").args(["-c", "echo first >&2; echo last >&2; exit 3"]));
        let error = error.expect_err("it exits 3").to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("last"), "{error}");
    }
}
