//! The system tools that the lab uses.

use anyhow::{Result, bail};

use super::report;
use crate::shell::{command, find, is_root, run};

/// Program and the Debian package that brings it.
const TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("bpftool", "bpftool"),
    ("ethtool", "ethtool"),
    ("tcpdump", "tcpdump"),
    ("nft", "nftables"),
    ("python3", "python3"),
    ("pip3", "python3-pip"),
    ("nginx", "nginx-light"),
    ("stunnel4", "stunnel4"),
    ("nft", "nftables"),
    ("gnutls-cli", "gnutls-bin"),
    ("jq", "jq"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("tmux", "tmux"),
];

/// Every tool is there, or gets installed.
pub(super) fn ensure() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        report(
            "tools",
            format_args!(
                "found {}",
                TOOLS.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", ")
            ),
        );
        return Ok(());
    }
    let list = missing.join(" ");
    if find("apt-get").is_none() {
        bail!("these tools are missing: install what your system calls {list}");
    }
    if !is_root() {
        bail!("these packages are missing: install them (`sudo apt-get install {list}`)");
    }
    report("tools", format_args!("installing {list}"));
    run(command("apt-get").args(["-q", "update"]))?;
    run(command("apt-get")
        .args(["-q", "install", "--yes", "--no-install-recommends"])
        .args(&missing)
        // Nobody answers questions, and the packages' daemons are not wanted on this machine (as in run level 1).
        .envs([("DEBIAN_FRONTEND", "noninteractive"), ("RUNLEVEL", "1")]))?;
    let missing = self::missing();
    if !missing.is_empty() {
        bail!("the packages were installed but their programs are not to be found: {}", missing.join(" "));
    }
    Ok(())
}

/// The packages of the tools that are not there.
fn missing() -> Vec<&'static str> {
    let mut packages: Vec<_> =
        TOOLS.iter().filter(|(program, _)| find(program).is_none()).map(|(_, package)| *package).collect();
    packages.dedup();
    packages
}
