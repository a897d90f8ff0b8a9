//! Facts into checks: what each means for the agent, and what to do. Pure.

use super::facts::{Facts, PodInterface, Trial};
use super::{Check, Outcome};
use crate::datapath::attach::Way;
use crate::datapath::chain::OnHook;

const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const SYS_ADMIN: u32 = 21;
const SYSLOG: u32 = 34;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// The oldest kernel with everything that the programs use besides TCX (ring buffer 5.8, `CAP_BPF` 5.8, bounded loops and
/// BTF-defined maps before).
const OLDEST: (u32, u32) = (5, 10);
/// The first kernel with TCX.
const FIRST_TCX: (u32, u32) = (6, 6);
/// Since then the memory of maps is charged to the cgroup, not to `RLIMIT_MEMLOCK`.
const NO_MEMLOCK: (u32, u32) = (5, 11);

/// All checks.
pub(super) fn judge(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![
        kernel(facts),
        capabilities(facts),
        programs(facts),
        maps(facts),
        tcx(facts),
        btf(facts),
        jit(facts),
        unprivileged(facts),
        lockdown(facts),
        memlock(facts),
        bpffs(facts),
        layout(facts),
        cgroup(facts),
        state(facts),
    ];
    checks.extend(interfaces(facts));
    checks
}

fn check(name: &'static str, outcome: Outcome, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, outcome, found: found.into(), remedy: remedy.into() }
}

fn fine(name: &'static str, found: impl Into<String>) -> Check {
    check(name, Outcome::Ok, found, "")
}

const AS_ROOT: &str = "run enforcer doctor as root to see it";

fn unseen(name: &'static str) -> Check {
    check(name, Outcome::Unseen, "not permitted to look", AS_ROOT)
}

/// `6.18.5-amd64` as (6, 18).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel(facts: &Facts) -> Check {
    const NAME: &str = "kernel";
    match version(&facts.release) {
        Some(found) if found < OLDEST => check(
            NAME,
            Outcome::Fail,
            &*facts.release,
            format!("use a kernel of version {}.{} or later", OLDEST.0, OLDEST.1),
        ),
        Some(_) => fine(NAME, &*facts.release),
        None => check(
            NAME,
            Outcome::Warn,
            format!("release {:?}", facts.release),
            "its version cannot be read: go by the trials below",
        ),
    }
}

/// What the agent runs without, and what that costs.
const OPTIONAL: [(u32, &str, &str); 3] = [
    (
        SYS_ADMIN,
        "CAP_SYS_ADMIN",
        "it cannot look into pods (connections that are open when a pod is hooked first are taken for unknown ones, and a pod's address \
         is not bound to its interface), nor name the programs of others",
    ),
    (
        NET_RAW,
        "CAP_NET_RAW",
        "clients that fall silent after 1 to 5 bytes are judged at their next packet only",
    ),
    (
        SYSLOG,
        "CAP_SYSLOG",
        "it cannot tell whether programs of others redirect, unless kernel.kptr_restrict is 0",
    ),
];

fn capabilities(facts: &Facts) -> Check {
    const NAME: &str = "capabilities";
    let Some(held) = facts.capabilities else { return unseen(NAME) };
    let has = |bit: u32| held & (1 << bit) != 0;
    let lacks: Vec<_> = [(NET_ADMIN, "CAP_NET_ADMIN"), (PERFMON, "CAP_PERFMON"), (BPF, "CAP_BPF")]
        .into_iter()
        .filter(|(bit, _)| !(has(*bit) || has(SYS_ADMIN) && matches!(*bit, BPF | PERFMON)))
        .map(|(_, name)| name)
        .collect();
    let without: Vec<_> = OPTIONAL.into_iter().filter(|(bit, ..)| !has(*bit)).collect();
    let names = |more: &[(u32, &'static str, &str)]| {
        lacks.iter().copied().chain(more.iter().map(|(_, name, _)| *name)).collect::<Vec<_>>().join(", ")
    };
    if lacks.is_empty() {
        if without.is_empty() {
            return fine(NAME, "all that the agent can use");
        }
        let costs: Vec<_> = without.iter().map(|(_, name, cost)| format!("without {name} {cost}")).collect();
        let found = format!("without {}", names(&without));
        return check(
            NAME,
            Outcome::Warn,
            found,
            format!("the agent runs, but {}; give it these as well", costs.join("; ")),
        );
    }
    let found = format!("without {}", names(&without));
    if facts.root {
        return check(
            NAME,
            Outcome::Fail,
            found,
            format!(
                "the agent does not start without {}: give the container or service these capabilities, or run it privileged",
                lacks.join(", ")
            ),
        );
    }
    let remedy = "the agent needs them; run enforcer doctor as root to see everything";
    check(NAME, Outcome::Unseen, format!("not root, {found}"), remedy)
}

fn programs(facts: &Facts) -> Check {
    const NAME: &str = "programs";
    match &facts.programs {
        Trial::Yes => fine(NAME, "the kernel takes the programs of this build"),
        Trial::Unseen => unseen(NAME),
        Trial::No(why) => check(
            NAME,
            Outcome::Fail,
            format!("refused: {why}"),
            "the agent cannot start: use a newer kernel, and report the kernel's version with this line",
        ),
    }
}

fn maps(facts: &Facts) -> Check {
    const NAME: &str = "maps";
    let missing: Vec<_> = facts
        .maps
        .iter()
        .filter(|(_, answer)| matches!(answer, Trial::No(_)))
        .map(|(kind, _)| *kind)
        .collect();
    if !missing.is_empty() {
        let found = format!("the kernel has no {}", missing.join(", "));
        return check(
            NAME,
            Outcome::Fail,
            found,
            "use a kernel with these kinds of BPF maps (5.8 and later have all)",
        );
    }
    if facts.maps.values().any(|answer| *answer == Trial::Unseen) {
        return unseen(NAME);
    }
    fine(NAME, facts.maps.keys().copied().collect::<Vec<_>>().join(", "))
}

fn tcx(facts: &Facts) -> Check {
    const NAME: &str = "tcx";
    const REMEDY: &str = "clsact is used instead: enforcement is the same, but other tools can remove its filters; a kernel of version 6.6 or later has TCX";
    match &facts.tcx {
        Trial::Yes => fine(NAME, "hooks for links with an order"),
        Trial::No(why) => check(NAME, Outcome::Warn, format!("none ({why})"), REMEDY),
        Trial::Unseen => match version(&facts.release) {
            Some(found) if found >= FIRST_TCX => {
                check(NAME, Outcome::Unseen, "likely, by the kernel's version", AS_ROOT)
            }
            _ => unseen(NAME),
        },
    }
}

fn btf(facts: &Facts) -> Check {
    if facts.btf {
        return fine("btf", "/sys/kernel/btf/vmlinux");
    }
    check(
        "btf",
        Outcome::Warn,
        "the kernel shows no type information",
        "bpftool may not print names of fields; use a kernel built with CONFIG_DEBUG_INFO_BTF",
    )
}

fn jit(facts: &Facts) -> Check {
    const NAME: &str = "jit";
    match facts.jit {
        Some(0) => check(
            NAME,
            Outcome::Warn,
            "net.core.bpf_jit_enable is 0: programs are interpreted",
            "run sysctl net.core.bpf_jit_enable=1 before the agent starts; packets cost several times more without",
        ),
        Some(value) => fine(NAME, format!("net.core.bpf_jit_enable is {value}")),
        None => check(
            NAME,
            Outcome::Unseen,
            "not shown here (another network namespace than the machine's first, or no sysctl)",
            "look at sysctl net.core.bpf_jit_enable on the host: it should be 1",
        ),
    }
}

fn unprivileged(facts: &Facts) -> Check {
    const NAME: &str = "unprivileged bpf";
    match facts.unprivileged {
        Some(0) => check(
            NAME,
            Outcome::Warn,
            "kernel.unprivileged_bpf_disabled is 0: every user may load programs",
            "run sysctl kernel.unprivileged_bpf_disabled=2, unless something on this node needs it",
        ),
        Some(value) => fine(NAME, format!("off (kernel.unprivileged_bpf_disabled is {value})")),
        None => fine(NAME, "no such sysctl"),
    }
}

fn lockdown(facts: &Facts) -> Check {
    const NAME: &str = "lockdown";
    match facts.lockdown.as_deref() {
        Some("confidentiality") => check(
            NAME,
            Outcome::Warn,
            "confidentiality",
            "bpftool and kernel tracing see less; the agent's programs read packets only and are not affected",
        ),
        Some(mode) => fine(NAME, mode),
        None => fine(NAME, "none"),
    }
}

fn memlock(facts: &Facts) -> Check {
    const NAME: &str = "memlock";
    let old = version(&facts.release).is_some_and(|found| found < NO_MEMLOCK);
    match facts.memlock {
        Some(bytes) if old => check(
            NAME,
            Outcome::Fail,
            format!("limited to {} KiB, and this kernel charges maps to it", bytes >> 10),
            "run the agent with ulimit -l unlimited (LimitMEMLOCK=infinity in a systemd unit)",
        ),
        Some(_) => fine(
            NAME,
            "limited, but this kernel charges maps to the cgroup: mind the container's memory limit",
        ),
        None => fine(NAME, "unlimited"),
    }
}

fn bpffs(facts: &Facts) -> Check {
    const NAME: &str = "bpffs";
    let dir = facts.bpffs.display();
    match facts.on_bpffs {
        Some(true) => fine(NAME, format!("{dir} lies on one")),
        Some(false) => check(
            NAME,
            Outcome::Warn,
            format!("none at {dir}"),
            "the agent mounts it when it may; in a container mount the host's /sys/fs/bpf with Bidirectional propagation, or pins go with the container",
        ),
        None => unseen(NAME),
    }
}

fn layout(facts: &Facts) -> Check {
    const NAME: &str = "pins";
    let agent = match facts.agent {
        Some(true) => "an agent of this layout runs",
        Some(false) => "an agent of this layout ran, and does not run now",
        None => "no agent of this layout has run here",
    };
    if facts.other_layouts.is_empty() {
        return fine(NAME, agent);
    }
    check(
        NAME,
        Outcome::Warn,
        format!("{agent}; there are pins of {}", facts.other_layouts.join(", ")),
        "what they enforce goes on until the agent of this version attaches its own; if it runs already, they are left over: see enforcer status",
    )
}

fn cgroup(facts: &Facts) -> Check {
    match &facts.cgroup2 {
        Some(path) => fine("cgroup v2", path.display().to_string()),
        None => check(
            "cgroup v2",
            Outcome::Warn,
            "not mounted",
            "the ends of connections are not seen, their entries go when the table needs the room; mount it (mount -t cgroup2 none /sys/fs/cgroup/unified)",
        ),
    }
}

fn state(facts: &Facts) -> Check {
    let dir = facts.state_dir.display();
    if facts.state_writable {
        return fine("state", format!("{dir} can be written"));
    }
    if !facts.root {
        return unseen("state");
    }
    check(
        "state",
        Outcome::Warn,
        format!("{dir} cannot be written"),
        "give --state-dir a folder that is kept: without it names, readiness and manifests of the last run are lost at a restart",
    )
}

fn interfaces(facts: &Facts) -> Vec<Check> {
    const NAME: &str = "interfaces";
    let pods = match &facts.interfaces {
        Ok(pods) => pods,
        Err(why) => {
            return vec![check(NAME, Outcome::Warn, format!("cannot be listed: {why}"), AS_ROOT)];
        }
    };
    let of = |kind: &str| pods.iter().filter(|pod| pod.kind == kind).count();
    let (veth, netkit) = (of("veth"), of("netkit"));
    let found = format!("{veth} of pods (veth), {netkit} netkit");
    let mut checks = vec![if netkit > 0 {
        let remedy = "netkit links cannot be hooked: their pods are not enforced; use veth data paths (Cilium: bpf.datapathMode=veth)";
        check(NAME, Outcome::Fail, found, remedy)
    } else if pods.is_empty() {
        let remedy =
            "nothing to enforce yet, or this is not the node's network namespace (hostNetwork: true)";
        check(NAME, Outcome::Warn, found, remedy)
    } else {
        fine(NAME, found)
    }];
    checks.push(neighbours(pods));
    if facts.forwarding == Some(0) && !pods.is_empty() {
        checks.push(check(
            "forwarding",
            Outcome::Warn,
            "net.ipv4.ip_forward is 0",
            "pods behind routed interfaces cannot be reached from other pods and nodes, and resets to such clients do not arrive; run sysctl net.ipv4.ip_forward=1 unless the pods are on a bridge",
        ));
    }
    checks
}

fn direction(on_hook: &OnHook) -> &'static str {
    match on_hook.way {
        Way::ToPod => "towards the pod",
        Way::FromPod => "from the pod",
    }
}

fn neighbours(pods: &[PodInterface]) -> Check {
    const NAME: &str = "other programs";
    if pods.iter().any(|pod| pod.programs.is_none()) {
        return unseen(NAME);
    }
    let foreign: Vec<_> = pods
        .iter()
        .flat_map(|pod| {
            pod.foreign().into_iter().map(|other| format!("{other} on {}, {}", pod.name, direction(other)))
        })
        .collect();
    if foreign.is_empty() {
        return fine(NAME, "none on the pods' interfaces (TCX and clsact)");
    }
    let mut shown: Vec<_> = foreign.iter().take(4).cloned().collect();
    if foreign.len() > shown.len() {
        shown.push(format!("{} more", foreign.len() - shown.len()));
    }
    // Data paths with host routing redirect into the pod without passing the hook on its host side.
    let redirects = foreign.iter().any(|name| name.starts_with("cil_"));
    let remedy = if redirects {
        "the enforcer goes first and leaves them in place; Cilium with BPF host routing delivers past this hook: set bpf.hostLegacyRouting=true, and see that enforcer endpoints counts the pods' connections"
    } else {
        "the enforcer goes first and leaves them in place; a program that delivers past the hook (bpf_redirect_peer) would hide connections: see that enforcer endpoints counts them"
    };
    check(NAME, Outcome::Warn, shown.join(", "), remedy)
}

#[cfg(test)]
mod tests;
