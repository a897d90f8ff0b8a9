//! Which programs of Kubernetes there are, and where: built and unpacked once, into the cache outside the work tree.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::recipe;
use crate::setup::{cache, report};

/// A set of programs that is needed together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// What answers the API: etcd, kube-apiserver, and kubectl to ask it.
    ControlPlane,
    /// What makes a node of this machine: controllers, scheduler, kubelet, container runtime, network plug-ins.
    Node,
}

impl Part {
    /// Its programs, as paths below the folder of programs.
    pub(crate) const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::ControlPlane => &["etcd", "kube-apiserver", "kubectl"],
            Self::Node => &[
                "kube-controller-manager",
                "kube-scheduler",
                "kubelet",
                "containerd",
                "containerd-shim-runc-v2",
                "ctr",
                "runc",
                "busybox",
                "cni/bridge",
                "cni/host-local",
                "cni/loopback",
                "cni/ptp",
            ],
        }
    }
}

/// The folder of the programs. What is missing of `parts` is made first, which takes three to four minutes, once.
pub(crate) fn ensure(parts: &[Part]) -> Result<PathBuf> {
    let home = cache::directory()?.join(format!("kube-{}", recipe::VERSION));
    let folder = home.join("bin");
    let missing = || -> Vec<Part> {
        let whole = |part: &Part| part.programs().iter().all(|program| folder.join(program).is_file());
        parts.iter().copied().filter(|part| !whole(part)).collect()
    };
    if missing().is_empty() {
        return Ok(folder);
    }
    let _lock = cache::lock()?;
    // Another process may have made it while this one waited.
    let missing = missing();
    if missing.is_empty() {
        return Ok(folder);
    }
    report("kubernetes", format_args!("building {} from Debian's source, once", recipe::VERSION));
    let work = home.join("work");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    recipe::make(&missing, &work, &folder)?;
    // Two gigabytes that nobody needs again.
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    report("kubernetes", format_args!("programs are in {}", folder.display()));
    Ok(folder)
}
