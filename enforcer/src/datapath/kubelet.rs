//! The kubelet's cgroup: whose sockets may probe pods in plaintext.
//!
//! A probe is told by the socket that its packets carry. Where the kubelet's cgroup is known, other processes of the node are
//! no kubelet; where it is not, every process of the node may probe the ports that a pod names for probes.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use super::sockets;

/// Where service managers put it, relative to the root of the hierarchy.
const USUAL: [&str; 8] = [
    "system.slice/kubelet.service",
    "system.slice/k3s.service",
    "system.slice/k3s-agent.service",
    "system.slice/rke2-server.service",
    "system.slice/rke2-agent.service",
    "system.slice/k0scontroller.service",
    "system.slice/k0sworker.service",
    "system.slice/snap.microk8s.daemon-kubelite.service",
];

/// Which cgroup.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum KubeletCgroup {
    /// The first usual place with a process in it, else any.
    #[default]
    Auto,
    /// Every process of the node may probe.
    Any,
    /// This one, relative to the root of the hierarchy.
    At(PathBuf),
}

impl FromStr for KubeletCgroup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "any" => Ok(Self::Any),
            path => {
                let path = Path::new(path.trim_start_matches('/'));
                let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
                if path.as_os_str().is_empty() || !inside {
                    return Err(
                        "give auto, any, or a path below the root of the cgroup v2 hierarchy, such as system.slice/kubelet.service"
                            .into(),
                    );
                }
                Ok(Self::At(path.to_owned()))
            }
        }
    }
}

/// What the kernel side is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probers {
    /// Id of the cgroup; 0: every process of the node.
    pub cgroup: u64,
    /// The cgroup that was asked for is not there: nobody may probe until it is.
    pub missing: bool,
}

/// No cgroup has this id.
const NOBODY: u64 = u64::MAX;

impl KubeletCgroup {
    /// Looks for it. To be called again from time to time: a service that is restarted gets a new cgroup.
    #[must_use]
    pub fn find(&self) -> Probers {
        let any = Probers { cgroup: 0, missing: false };
        match self {
            Self::Any => any,
            Self::Auto => root()
                .and_then(|root| USUAL.iter().find_map(|path| populated(&root.join(path))))
                .map_or(any, |cgroup| Probers { cgroup, missing: false }),
            Self::At(path) => match root().and_then(|root| fs::metadata(root.join(path)).ok()) {
                Some(found) => Probers { cgroup: found.ino(), missing: false },
                None => Probers { cgroup: NOBODY, missing: true },
            },
        }
    }
}

/// The root of the hierarchy, which may be mounted nowhere that this process sees.
fn root() -> Option<PathBuf> {
    static ROOT: OnceLock<Option<File>> = OnceLock::new();
    let root = ROOT.get_or_init(|| sockets::root().ok()).as_ref()?;
    Some(PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd())))
}

/// The id of a cgroup with a process in it: the number of its folder (kernel commit 67c0496e87d1, 5.5).
fn populated(at: &Path) -> Option<u64> {
    let events = fs::read_to_string(at.join("cgroup.events")).ok()?;
    events
        .lines()
        .any(|line| line == "populated 1")
        .then(|| fs::metadata(at).ok().map(|found| found.ino()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_below_the_root() {
        assert_eq!("auto".parse(), Ok(KubeletCgroup::Auto));
        assert_eq!("any".parse(), Ok(KubeletCgroup::Any));
        assert_eq!("/a/b.service".parse(), Ok(KubeletCgroup::At("a/b.service".into())));
        for wrong in ["", "/", "..", "a/../../b"] {
            assert!(wrong.parse::<KubeletCgroup>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_cgroup_that_is_asked_for_and_missing_lets_nobody_probe() {
        let missing = KubeletCgroup::At("no/such.service".into()).find();
        assert!(missing.missing && missing.cgroup != 0);
        assert_eq!(KubeletCgroup::Any.find().cgroup, 0);
    }
}
