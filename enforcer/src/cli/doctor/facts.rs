//! What this machine is like. Every fact is a reading or the reason why there is none; nothing is changed.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapType;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::{AccessFlags, access, geteuid};

use crate::datapath::chain::{OnHook, chain};
use crate::datapath::load::Pinned;
use crate::datapath::pin::Pins;
use crate::datapath::{interface, trial};

/// The answer of a trial.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Trial {
    /// The kernel takes it.
    Yes,
    /// The kernel does not know it, or refuses it, with its words.
    No(String),
    /// It cannot be tried without privileges.
    Unseen,
}

/// An interface that is a pod's, as far as that can be seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PodInterface {
    pub(super) name: String,
    /// `veth` or `netkit`.
    pub(super) kind: String,
    /// What is on its hooks, TCX and clsact; `None` when that cannot be seen.
    pub(super) programs: Option<Vec<OnHook>>,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Facts {
    /// `uname -r`.
    pub(super) release: String,
    /// Effective user id 0.
    pub(super) root: bool,
    /// Effective capabilities, a bit each.
    pub(super) capabilities: Option<u64>,
    /// `/sys/kernel/btf/vmlinux` is there.
    pub(super) btf: bool,
    /// `net.core.bpf_jit_enable`; `None` where it is not shown (other network namespaces than the first).
    pub(super) jit: Option<u8>,
    /// `kernel.unprivileged_bpf_disabled`.
    pub(super) unprivileged: Option<u8>,
    /// The lockdown in force; `None` without that module.
    pub(super) lockdown: Option<String>,
    /// `RLIMIT_MEMLOCK`, `None` for unlimited.
    pub(super) memlock: Option<u64>,
    /// Kinds of maps by name.
    pub(super) maps: BTreeMap<&'static str, Trial>,
    /// TCX hooks.
    pub(super) tcx: Trial,
    /// This build's programs pass the verifier.
    pub(super) programs: Trial,
    /// The pin folder.
    pub(super) bpffs: PathBuf,
    /// It lies on a bpffs; `None` when it may not be looked at.
    pub(super) on_bpffs: Option<bool>,
    /// Versions of layouts that are pinned there, other than this build's.
    pub(super) other_layouts: Vec<String>,
    /// This build's layout is pinned there, and whether its agent lives.
    pub(super) agent: Option<bool>,
    /// Where cgroup v2 is mounted.
    pub(super) cgroup2: Option<PathBuf>,
    /// The state folder.
    pub(super) state_dir: PathBuf,
    /// Files can be made in it or its nearest ancestor that exists.
    pub(super) state_writable: bool,
    /// `net.ipv4.ip_forward`.
    pub(super) forwarding: Option<u8>,
    /// The pods' interfaces.
    pub(super) interfaces: Result<Vec<PodInterface>, String>,
}

/// Looks around.
pub(super) fn collect(bpffs: &Path, state_dir: &Path) -> Facts {
    let uname = nix::sys::utsname::uname();
    let release = uname.map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned());
    Facts {
        release,
        root: geteuid().is_root(),
        capabilities: capabilities(&text("/proc/self/status")),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        jit: number("/proc/sys/net/core/bpf_jit_enable"),
        unprivileged: number("/proc/sys/kernel/unprivileged_bpf_disabled"),
        lockdown: lockdown(&text("/sys/kernel/security/lockdown")),
        memlock: getrlimit(Resource::RLIMIT_MEMLOCK)
            .ok()
            .map(|(soft, _)| soft)
            .filter(|soft| *soft != libc::RLIM_INFINITY),
        maps: map_kinds(),
        programs: trial(trial::load()),
        on_bpffs: on_bpffs(bpffs),
        other_layouts: other_layouts(bpffs),
        agent: Pinned::open(bpffs).ok().map(|pinned| pinned.agent().is_some()),
        bpffs: bpffs.to_owned(),
        cgroup2: cgroup2(&text("/proc/self/mountinfo")),
        state_dir: state_dir.to_owned(),
        state_writable: state_dir
            .ancestors()
            .find(|part| part.exists())
            .is_some_and(|part| access(part, AccessFlags::W_OK).is_ok()),
        forwarding: number("/proc/sys/net/ipv4/ip_forward"),
        interfaces: interfaces(),
        tcx: trial(trial::tcx()),
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn number(path: &str) -> Option<u8> {
    text(path).trim().parse().ok()
}

/// Tells "not permitted" from "refused" anywhere in the chain of causes.
fn trial<E: Error + 'static>(result: Result<(), E>) -> Trial {
    let Err(error) = result else { return Trial::Yes };
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    let mut text = String::new();
    while let Some(found) = cause {
        let io = found.downcast_ref::<io::Error>();
        if io.is_some_and(|io| io.kind() == io::ErrorKind::PermissionDenied) {
            return Trial::Unseen;
        }
        text = found.to_string();
        cause = found.source();
    }
    // The verifier's last words are the useful ones.
    Trial::No(text.lines().next_back().unwrap_or_default().to_owned())
}

fn map_kinds() -> BTreeMap<&'static str, Trial> {
    [
        ("hash", MapType::Hash),
        ("LRU hash", MapType::LruHash),
        ("per-CPU hash", MapType::PerCpuHash),
        ("LPM trie", MapType::LpmTrie),
        ("ring buffer", MapType::RingBuf),
    ]
    .into_iter()
    .map(|(name, kind)| {
        let answer = match aya::sys::is_map_supported(kind) {
            Ok(true) => Trial::Yes,
            Ok(false) => Trial::No("the kernel does not know it".to_owned()),
            Err(error) => trial(Err(error)),
        };
        (name, answer)
    })
    .collect()
}

fn capabilities(status: &str) -> Option<u64> {
    let word = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(word.trim(), 16).ok()
}

/// `none [integrity] confidentiality`: the one in brackets.
fn lockdown(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// Mount point of the first cgroup v2 hierarchy in a `mountinfo`: `… - cgroup2 …` with the mount point fifth.
fn cgroup2(mountinfo: &str) -> Option<PathBuf> {
    let line = mountinfo.lines().find(|line| line.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(PathBuf::from)
}

fn on_bpffs(dir: &Path) -> Option<bool> {
    for part in dir.ancestors() {
        match statfs(part) {
            Ok(found) => return Some(found.filesystem_type() == BPF_FS_MAGIC),
            // The mode of a bpffs is 0700 by default: an ancestor tells as much.
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::EACCES) => {}
            Err(_) => return None,
        }
    }
    None
}

fn other_layouts(bpffs: &Path) -> Vec<String> {
    let paths = Pins::new(bpffs).other_versions().unwrap_or_default();
    paths.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect()
}

fn interfaces() -> Result<Vec<PodInterface>, String> {
    let all = interface::list().map_err(|error| error.to_string())?;
    let pods = all.into_iter().filter(|interface| {
        matches!(interface.kind.as_str(), "veth" | "netkit") && interface.peer_netns_id.is_some()
    });
    Ok(pods
        .map(|interface| PodInterface {
            programs: chain(interface.index).ok(),
            name: interface.name,
            kind: interface.kind,
        })
        .collect())
}

impl PodInterface {
    /// What others have put on its hooks.
    pub(super) fn foreign(&self) -> Vec<&OnHook> {
        self.programs.iter().flatten().filter(|on_hook| !on_hook.is_enforcer()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_kernel_are_read() {
        assert_eq!(capabilities("Name:\tx\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(capabilities("Name:\tx\n"), None);
        assert_eq!(lockdown("none [integrity] confidentiality\n").as_deref(), Some("integrity"));
        assert_eq!(lockdown(""), None);
        let mounts = "24 1 0:22 / /sys/fs/cgroup rw - tmpfs t rw\n35 24 0:30 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(cgroup2("24 1 0:22 / /sys rw - tmpfs t rw\n"), None);
    }

    #[test]
    fn a_refusal_and_a_lack_of_privileges_differ() {
        let errno = |number| Err::<(), _>(io::Error::from_raw_os_error(number));
        assert_eq!(trial(Ok::<(), io::Error>(())), Trial::Yes);
        assert_eq!(trial(errno(libc::EPERM)), Trial::Unseen);
        assert_eq!(trial(errno(libc::EACCES)), Trial::Unseen);
        assert!(matches!(trial(errno(libc::EINVAL)), Trial::No(_)));
        assert_eq!(trial(Err(io::Error::other("first\nlast"))), Trial::No("last".to_owned()));
    }
}
