//! Attach, replace and detach on real interfaces. Needs root.

#[path = "support/datapath.rs"]
mod support;

use std::thread;
use std::time::{Duration, Instant};

use enforcer::datapath::attach::{AttachError, Side, Way, hooked_programs, hooked_programs_at};
use enforcer::datapath::detach::{detach, remove_all};
use enforcer::datapath::interface::{self, Interface};
use enforcer::datapath::netns::Namespaces;
use enforcer::datapath::{Datapath, Hook, OpenOptions, Pinned};
use support::{Lab, in_namespace, shell};

fn veth(name: &str) -> Interface {
    interface::list().expect("interfaces").into_iter().find(|i| i.name == name).expect("the interface")
}

fn ids(interface: &Interface) -> Vec<(Way, u32)> {
    let all = hooked_programs(interface.index).expect("the hooks");
    assert!(all.iter().all(|p| p.name == p.way.program()), "{all:?}");
    all.into_iter().map(|p| (p.way, p.program)).collect()
}

#[test]
fn a_restart_replaces_in_place_and_a_detach_leaves_nothing() {
    in_namespace("da1", |lab: &Lab| {
        let options = OpenOptions { bpffs: lab.bpffs.clone(), hook: Hook::Tcx, ..OpenOptions::default() };
        let host = veth("host0");
        let first = Datapath::open(&options).expect("opened");
        assert!(!first.attach(&host).expect("attached").replaced);
        let before = ids(&host);
        assert_eq!(before.iter().map(|(way, _)| *way).collect::<Vec<_>>(), Way::BOTH);
        drop(first);
        assert_eq!(ids(&host), before, "pinned links outlive the agent");

        let programs = Pinned::open(&lab.bpffs).expect("pins").programs().expect("programs");
        assert_eq!(programs.len(), 2);
        let again = Datapath::open(&options).expect("opened again");
        assert!(again.warnings().is_empty(), "{:?}", again.warnings());
        assert!(again.attach(&host).expect("attached again").replaced);
        let after = ids(&host);
        assert_eq!(after.len(), 2, "one program a direction");
        assert!(after.iter().zip(&before).all(|(new, old)| new.0 == old.0 && new.1 != old.1));

        let refused = detach(&lab.bpffs, false).expect_err("an agent holds the folder").to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        let refused = Datapath::open(&options).expect_err("a second agent").to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        drop(again);
        let removed = detach(&lab.bpffs, false).expect("detached");
        assert_eq!(
            (removed.links.len(), removed.programs.len(), removed.left.len()),
            (2, 2, 0),
            "{removed:?}"
        );
        assert_eq!(ids(&host), []);
        assert!(!lab.bpffs.exists());
        assert!(detach(&lab.bpffs, false).expect("again").is_empty());
        // The kernel frees a program once no processor can be in it any more, which takes its time under load.
        let start = Instant::now();
        for (_, id) in before.iter().chain(&after) {
            while shell(&format!("bpftool prog show id {id} 2>&1")).contains("sched_cls") {
                assert!(start.elapsed() < Duration::from_secs(20), "program {id} stays");
                thread::sleep(Duration::from_millis(50));
            }
        }
    });
}

#[test]
fn a_severed_link_and_a_reused_index_are_attached_anew() {
    in_namespace("da2", |lab: &Lab| {
        let options = OpenOptions { bpffs: lab.bpffs.clone(), hook: Hook::Tcx, ..OpenOptions::default() };
        let datapath = Datapath::open(&options).expect("opened");
        let host = veth("host0");
        datapath.attach(&host).expect("attached");
        shell("ip link del host0");
        shell(&format!("ip link add other0 index {} type veth peer name other1", host.index));
        let other = veth("other0");
        assert_eq!(other.index, host.index);
        assert_eq!(ids(&other), []);
        assert!(!datapath.attach(&other).expect("attached").replaced);
        assert_eq!(ids(&other).len(), 2);
        shell("ip link del other0");
        assert_eq!(datapath.forget_others(&[]).expect("cleaned"), [host.index]);
        assert_eq!(datapath.pins().list_links().expect("links"), []);
        assert!(datapath.attach(&other).expect_err("gone").to_string().contains("is gone"));
    });
}

#[test]
fn a_neighbour_before_us_is_told() {
    in_namespace("da3", |lab: &Lab| {
        let host = veth("host0");
        let other = OpenOptions { bpffs: lab.bpffs.join("other"), hook: Hook::Tcx, ..OpenOptions::default() };
        let own = OpenOptions { bpffs: lab.bpffs.join("own"), hook: Hook::Tcx, ..OpenOptions::default() };
        let (other, own) = (Datapath::open(&other).expect("opened"), Datapath::open(&own).expect("opened"));
        own.attach(&host).expect("attached");
        other.attach(&host).expect("attached");
        let seen = own.attach(&host).expect("attached");
        assert!(seen.neighbours.iter().all(|n| n.before && n.on_hook.name == n.way.program()), "{seen:?}");
        assert_eq!(seen.neighbours.len(), 2);
        assert_eq!(seen.warnings.len(), 2, "{:?}", seen.warnings);
        assert_eq!(remove_all(other.pins()).expect("removed").links.len(), 2);
        assert!(own.attach(&host).expect("attached").warnings.is_empty());
    });
}

#[test]
fn clsact_filters_are_replaced_in_place_and_the_qdisc_goes_only_when_ours() {
    in_namespace("da4", |lab: &Lab| {
        let options = OpenOptions { bpffs: lab.bpffs.clone(), hook: Hook::Clsact, ..OpenOptions::default() };
        let host = veth("host0");
        let filters = || shell("tc filter show dev host0 egress; tc filter show dev host0 ingress");
        let datapath = Datapath::open(&options).expect("opened");
        assert!(!datapath.attach(&host).expect("attached").replaced);
        let before = filters();
        drop(datapath);
        assert_eq!(filters(), before, "filters outlive the agent");
        let datapath = Datapath::open(&options).expect("opened");
        assert!(datapath.attach(&host).expect("attached").replaced);
        let after = filters();
        assert_ne!(after, before, "another program");
        for name in ["enforcer_to_pod", "enforcer_from_pod"] {
            assert_eq!(after.matches(name).count(), 1, "{after}");
        }
        drop(datapath);
        let removed = detach(&lab.bpffs, false).expect("detached");
        assert_eq!((removed.filters, removed.qdiscs.as_slice()), (2, [host.index].as_slice()));
        assert_eq!(shell("tc qdisc show dev host0").matches("clsact").count(), 0);

        shell("tc qdisc add dev host0 clsact");
        Datapath::open(&options).expect("opened").attach(&host).expect("attached");
        // A change of the hook leaves nothing of the other kind.
        let tcx = OpenOptions { hook: Hook::Tcx, ..options };
        Datapath::open(&tcx).expect("opened").attach(&host).expect("attached");
        assert_eq!(filters(), "");
        assert_eq!(ids(&host).len(), 2);
        assert!(detach(&lab.bpffs, false).expect("detached").qdiscs.is_empty());
        assert_eq!(shell("tc qdisc show dev host0").matches("clsact").count(), 1, "not ours");

        shell("tc qdisc del dev host0 clsact; tc qdisc add dev host0 ingress");
        let options = OpenOptions { hook: Hook::Clsact, ..tcx };
        let refused =
            Datapath::open(&options).expect("opened").attach(&host).expect_err("no room").to_string();
        assert!(refused.contains("ingress qdisc"), "{refused}");
    });
}

/// The pod's own device: hooked, replaced in place, told when somebody takes the programs off, and left from outside.
#[test]
fn a_pods_own_device_is_hooked_and_left() {
    in_namespace("da5", |lab: &Lab| {
        let options = OpenOptions { bpffs: lab.bpffs.clone(), ..OpenOptions::default() };
        let host = veth("host0");
        let inside = |namespaces: &Namespaces| {
            let index = host.peer_index.expect("a peer");
            let programs = || hooked_programs_at(index, Side::Pod);
            let found = namespaces.enter(&host, programs).expect("the pod");
            found.into_iter().map(|p| (p.way, p.name, p.program)).collect::<Vec<_>>()
        };
        let namespaces = Namespaces::scan().expect("namespaces");
        let open = || {
            let mut datapath = Datapath::open(&options).expect("opened");
            assert!(matches!(datapath.attach_inside(&namespaces, &host), Err(AttachError::NotPrepared)));
            datapath.prepare_inside().expect("loaded");
            datapath.prepare_inside().expect("nothing to do");
            datapath
        };
        let first = open();
        assert_eq!(first.hooked_inside(&namespaces, &host), None);
        let attachment = first.attach_inside(&namespaces, &host).expect("attached");
        let device = attachment.device.clone().expect("a device");
        assert!(!attachment.replaced && attachment.neighbours.is_empty(), "{attachment:?}");
        assert_eq!(ids(&host), [], "nothing on the host side");
        let before = inside(&namespaces);
        assert_eq!(
            before.iter().map(|(way, name, _)| (*way, name.as_str())).collect::<Vec<_>>(),
            Way::BOTH.map(|way| (way, way.program()))
        );
        assert_eq!(
            device.programs(first.pins()).expect("pins").map(|ids| ids.to_vec()),
            Some(before.iter().map(|p| p.2).collect())
        );
        drop(first);
        let again = open();
        assert_eq!(again.hooked_inside(&namespaces, &host).map(|found| found.index), Some(device.index));
        assert!(again.attach_inside(&namespaces, &host).expect("attached again").replaced);
        assert_eq!(inside(&namespaces).len(), 2, "one program a direction");
        assert_eq!(
            again.forget_others(&[]).expect("cleaned"),
            Vec::<u32>::new(),
            "pods are none of its business"
        );
        assert_eq!(again.leave_others(&[], true).expect("cleaned"), 0, "the device is there");
        again.leave(&device).expect("left");
        assert_eq!(device.programs(again.pins()).expect("pins"), None);
        assert_eq!(inside(&namespaces), []);
        again.attach_inside(&namespaces, &host).expect("attached");
        drop(again);
        let removed = detach(&lab.bpffs, false).expect("detached");
        assert_eq!((removed.links.len(), removed.left.len()), (2, 0), "{removed:?}");
        assert_eq!(inside(&namespaces), []);
        assert!(!lab.bpffs.exists());

        let datapath = open();
        datapath.attach_inside(&namespaces, &host).expect("attached");
        shell("ip link del host0");
        assert_eq!(datapath.leave_others(&[], true).expect("cleaned"), 2, "the device is gone");
        assert_eq!(datapath.pins().list_links().expect("links"), []);
    });
}
