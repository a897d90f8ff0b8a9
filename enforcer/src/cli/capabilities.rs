//! What the agent must be allowed to do. Not root as such: a service manager or a container may give just these.

use std::fs;

use anyhow::{Context as _, bail};

/// A capability: its bit (`linux/capability.h`), its name, and what the agent cannot do without it.
struct Capability {
    bit: u32,
    name: &'static str,
    purpose: &'static str,
}

const SYS_ADMIN: u32 = 21;

/// All of them are needed. `CAP_SYS_ADMIN` stands for the last two, which were split off it in Linux 5.8.
const NEEDED: [Capability; 3] = [
    Capability { bit: 12, name: "CAP_NET_ADMIN", purpose: "hook interfaces" },
    Capability { bit: 38, name: "CAP_PERFMON", purpose: "load programs that read packets directly" },
    Capability { bit: 39, name: "CAP_BPF", purpose: "load programs and make maps" },
];

/// Checks this process. Returns a warning where the agent can run, but sees less.
///
/// # Errors
/// Says what is missing and how to give it.
pub(super) fn check() -> anyhow::Result<Option<&'static str>> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let effective = effective(&status).context("/proc/self/status has no line CapEff")?;
    let missing = missing(effective);
    if !missing.is_empty() {
        let list: Vec<String> =
            missing.iter().map(|needed| format!("{} (to {})", needed.name, needed.purpose)).collect();
        bail!(
            "the agent lacks {}: run it as root (sudo), or give the container or service these capabilities",
            list.join(", ")
        );
    }
    Ok((!has(effective, SYS_ADMIN)).then_some(
        "without CAP_SYS_ADMIN the agent cannot look into pods: connections that are open when a pod is hooked for the \
         first time are taken for unknown ones, and a pod's address is not bound to its interface",
    ))
}

fn missing(effective: u64) -> Vec<&'static Capability> {
    let implied = |bit| bit >= 38 && has(effective, SYS_ADMIN);
    NEEDED.iter().filter(|needed| !has(effective, needed.bit) && !implied(needed.bit)).collect()
}

fn has(effective: u64, bit: u32) -> bool {
    effective >> bit & 1 == 1
}

/// The effective set in `/proc/PID/status`.
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(effective: u64) -> Vec<&'static str> {
        missing(effective).iter().map(|needed| needed.name).collect()
    }

    #[test]
    fn the_effective_set_is_read() {
        let status = "Name:\tenforcer\nCapPrm:\t00000000ffffffff\nCapEff:\t000000c000001000\nCapBnd:\t0\n";
        assert_eq!(effective(status), Some(0xc0_0000_1000));
        assert_eq!(effective("Name:\tenforcer\n"), None);
    }

    #[test]
    fn each_missing_one_is_named() {
        assert_eq!(names(0), ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]);
        assert_eq!(names(1 << 12 | 1 << 39), ["CAP_PERFMON"]);
        assert_eq!(names(1 << 12 | 1 << 38 | 1 << 39), [""; 0]);
    }

    #[test]
    fn sys_admin_stands_for_what_was_split_off_it_and_no_more() {
        assert_eq!(names(1 << 21), ["CAP_NET_ADMIN"]);
        assert_eq!(names(1 << 21 | 1 << 12), [""; 0]);
    }
}
