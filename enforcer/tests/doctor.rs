//! `enforcer doctor` on this machine, as root and as somebody who may see little.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tempfile::TempDir;

const NOBODY: u32 = 65534;

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no json: {output:?}"))
}

/// A folder that the binary can be started from by anybody, and that is empty otherwise. One at a time: a process that another
/// test starts while the copy is written would hold it open, and then it cannot be executed.
fn open_folder() -> (TempDir, MutexGuard<'static, ()>) {
    static COPYING: Mutex<()> = Mutex::new(());
    let alone = COPYING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = TempDir::new().expect("a temporary folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    std::fs::copy(env!("CARGO_BIN_EXE_enforcer"), folder.path().join("enforcer")).expect("a copy");
    (folder, alone)
}

fn doctor(folder: &TempDir) -> Command {
    let mut command = Command::new(folder.path().join("enforcer"));
    let state = folder.path().join("state");
    command.args(["doctor", "-o", "json", "--bpffs", "/sys/fs/bpf/enforcer-doctor-test"]);
    command.arg("--state-dir").arg(state);
    command
}

#[test]
fn root_sees_that_the_kernel_takes_the_programs() {
    let (folder, _alone) = open_folder();
    let output = doctor(&folder).output().expect("it starts");
    let report = json(&output);
    for name in ["kernel", "capabilities", "programs", "maps", "state"] {
        assert_eq!(check(&report, name)["outcome"], "ok", "{report}");
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    assert_eq!(check(&report, "kernel")["found"], release.trim());
    // Agrees with the machine, whatever that is.
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let cgroup2 = mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2"));
    assert_eq!(check(&report, "cgroup v2")["outcome"] == "ok", cgroup2, "{report}");
    let btf = std::path::Path::new("/sys/kernel/btf/vmlinux").exists();
    assert_eq!(check(&report, "btf")["outcome"] == "ok", btf, "{report}");
    assert_eq!(output.status.code(), Some(i32::from(report["verdict"] == "fail")), "{report}");
    assert!(!folder.path().join("state").exists(), "it changes nothing");
}

#[test]
fn nobody_is_told_what_was_not_seen() {
    let (folder, _alone) = open_folder();
    let output = doctor(&folder).uid(NOBODY).gid(NOBODY).output().expect("it starts");
    let report = json(&output);
    for name in ["capabilities", "programs", "maps"] {
        let check = check(&report, name);
        assert_eq!(check["outcome"], "unseen", "{report}");
        assert!(check["remedy"].as_str().expect("a remedy").contains("root"), "{report}");
    }
    assert_eq!(check(&report, "kernel")["outcome"], "ok", "{report}");
    assert_eq!(report["verdict"], "warn", "{report}");
    assert_eq!(output.status.code(), Some(0), "{report}");
}

#[test]
fn the_table_says_the_same_and_ends_with_a_sentence() {
    let (folder, _alone) = open_folder();
    let output = Command::new(folder.path().join("enforcer")).arg("doctor").output().expect("it starts");
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.starts_with("CHECK"), "{table}");
    for name in ["kernel", "programs", "tcx", "cgroup v2", "other programs"] {
        assert!(table.lines().any(|line| line.starts_with(name)), "no {name} in {table}");
    }
    assert!(table.lines().next_back().is_some_and(|line| line.starts_with("the agent ")), "{table}");
}
