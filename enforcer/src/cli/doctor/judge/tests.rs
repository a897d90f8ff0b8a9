use super::*;
use crate::datapath::attach::Hook;

/// A machine as it should be.
fn good() -> Facts {
    Facts {
        release: "6.18.5-amd64".into(),
        root: true,
        capabilities: Some(u64::MAX),
        btf: true,
        jit: Some(1),
        unprivileged: Some(2),
        lockdown: None,
        memlock: None,
        maps: [("hash", Trial::Yes), ("ring buffer", Trial::Yes)].into(),
        tcx: Trial::Yes,
        programs: Trial::Yes,
        bpffs: "/sys/fs/bpf/enforcer".into(),
        on_bpffs: Some(true),
        other_layouts: Vec::new(),
        agent: None,
        cgroup2: Some("/sys/fs/cgroup".into()),
        state_dir: "/var/lib/enforcer".into(),
        state_writable: true,
        forwarding: Some(1),
        interfaces: Ok(vec![pod("veth", Vec::new())]),
    }
}

fn pod(kind: &str, programs: Vec<&str>) -> PodInterface {
    let hooked =
        |name: &str| OnHook { way: Way::ToPod, hook: Hook::Tcx, program: Some(7), name: name.into() };
    PodInterface {
        name: "veth1".into(),
        kind: kind.into(),
        programs: Some(programs.into_iter().map(hooked).collect()),
    }
}

/// The one check that is not ok.
fn bad(change: impl FnOnce(&mut Facts)) -> (&'static str, Outcome) {
    let mut facts = good();
    change(&mut facts);
    let bad: Vec<_> = judge(&facts).into_iter().filter(|check| check.outcome != Outcome::Ok).collect();
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert!(!bad[0].remedy.is_empty(), "{bad:?}");
    (bad[0].name, bad[0].outcome)
}

#[test]
fn a_good_machine_has_nothing_to_remedy() {
    for check in judge(&good()) {
        assert_eq!((check.outcome, check.remedy.as_str()), (Outcome::Ok, ""), "{}", check.name);
        assert!(!check.found.is_empty());
    }
}

#[test]
fn each_fault_is_one_check() {
    use Outcome::{Fail, Unseen, Warn};
    let refused = || Trial::No("invalid argument".into());
    assert_eq!(bad(|f| f.release = "5.4.0".into()), ("kernel", Fail));
    assert_eq!(bad(|f| f.release = "unknown".into()), ("kernel", Warn));
    assert_eq!(bad(|f| f.capabilities = Some(1 << NET_ADMIN)), ("capabilities", Fail));
    let younger = (1 << NET_ADMIN) | (1 << PERFMON) | (1 << BPF);
    assert_eq!(bad(|f| f.capabilities = Some(younger)), ("capabilities", Warn));
    assert_eq!(bad(|f| f.programs = refused()), ("programs", Fail));
    assert_eq!(bad(|f| f.programs = Trial::Unseen), ("programs", Unseen));
    assert_eq!(bad(|f| drop(f.maps.insert("ring buffer", refused()))), ("maps", Fail));
    assert_eq!(bad(|f| drop(f.maps.insert("ring buffer", Trial::Unseen))), ("maps", Unseen));
    assert_eq!(bad(|f| f.tcx = refused()), ("tcx", Warn));
    assert_eq!(bad(|f| f.tcx = Trial::Unseen), ("tcx", Unseen));
    assert_eq!(bad(|f| f.btf = false), ("btf", Warn));
    assert_eq!(bad(|f| f.jit = Some(0)), ("jit", Warn));
    assert_eq!(bad(|f| f.jit = None), ("jit", Unseen));
    assert_eq!(bad(|f| f.unprivileged = Some(0)), ("unprivileged bpf", Warn));
    assert_eq!(bad(|f| f.lockdown = Some("confidentiality".into())), ("lockdown", Warn));
    assert_eq!(bad(|f| f.on_bpffs = Some(false)), ("bpffs", Warn));
    assert_eq!(bad(|f| f.on_bpffs = None), ("bpffs", Unseen));
    assert_eq!(bad(|f| f.other_layouts = vec!["v7".into()]), ("pins", Warn));
    assert_eq!(bad(|f| f.cgroup2 = None), ("cgroup v2", Warn));
    assert_eq!(bad(|f| f.state_writable = false), ("state", Warn));
    assert_eq!(bad(|f| f.forwarding = Some(0)), ("forwarding", Warn));
    assert_eq!(bad(|f| f.interfaces = Err("no".into())), ("interfaces", Warn));
    assert_eq!(bad(|f| f.interfaces = Ok(vec![pod("netkit", Vec::new())])), ("interfaces", Fail));
    let foreign = |f: &mut Facts| f.interfaces = Ok(vec![pod("veth", vec!["to_pod", "cil_to_container"])]);
    assert_eq!(bad(foreign), ("other programs", Warn));
    assert_eq!(
        bad(|f| f.interfaces = Ok(vec![PodInterface { programs: None, ..pod("veth", Vec::new()) }])),
        ("other programs", Unseen)
    );
}

#[test]
fn memlock_matters_on_old_kernels_only() {
    assert_eq!(
        bad(|f| {
            f.release = "5.10.0".into();
            f.memlock = Some(65536);
        }),
        ("memlock", Outcome::Fail)
    );
    let new = Facts { memlock: Some(65536), ..good() };
    assert!(judge(&new).iter().all(|check| check.outcome == Outcome::Ok));
}

#[test]
fn without_root_nothing_fails_that_was_not_seen() {
    let facts = Facts {
        root: false,
        capabilities: Some(0),
        maps: [("hash", Trial::Unseen)].into(),
        tcx: Trial::Unseen,
        programs: Trial::Unseen,
        state_writable: false,
        interfaces: Ok(vec![PodInterface { programs: None, ..pod("veth", Vec::new()) }]),
        ..good()
    };
    let unseen: Vec<_> = judge(&facts).into_iter().filter(|check| check.outcome != Outcome::Ok).collect();
    assert!(unseen.iter().all(|check| check.outcome == Outcome::Unseen), "{unseen:?}");
    let names: Vec<_> = unseen.iter().map(|check| check.name).collect();
    assert_eq!(names, ["capabilities", "programs", "maps", "tcx", "state", "other programs"]);
}

#[test]
fn sys_admin_stands_for_the_younger_capabilities() {
    let held = (1 << NET_ADMIN) | (1 << SYS_ADMIN) | (1 << NET_RAW) | (1 << SYSLOG);
    let facts = Facts { capabilities: Some(held), ..good() };
    assert!(judge(&facts).iter().all(|check| check.outcome == Outcome::Ok));
}

#[test]
fn each_capability_that_is_missing_says_what_it_costs() {
    let all =
        (1 << NET_ADMIN) | (1 << PERFMON) | (1 << BPF) | (1 << SYS_ADMIN) | (1 << NET_RAW) | (1 << SYSLOG);
    for (bit, name, cost) in [
        (NET_RAW, "CAP_NET_RAW", "silent"),
        (SYS_ADMIN, "CAP_SYS_ADMIN", "look into pods"),
        (SYSLOG, "CAP_SYSLOG", "redirect"),
    ] {
        let check = capabilities(&Facts { capabilities: Some(all & !(1 << bit)), ..good() });
        assert_eq!((check.outcome, check.found), (Outcome::Warn, format!("without {name}")));
        assert!(check.remedy.contains(cost), "{}", check.remedy);
    }
    let check = capabilities(&Facts { capabilities: Some(all & !(1 << NET_ADMIN)), ..good() });
    assert_eq!(check.outcome, Outcome::Fail);
    assert!(check.remedy.contains("CAP_NET_ADMIN"), "{}", check.remedy);
}

#[test]
fn releases() {
    assert_eq!(version("6.18.5-amd64"), Some((6, 18)));
    assert_eq!(version("5.10"), Some((5, 10)));
    assert_eq!(version("6.1-rc1"), Some((6, 1)));
    assert_eq!(version(""), None);
}
