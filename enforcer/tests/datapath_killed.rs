//! What is left when the agent is killed, also when it was started by `ip netns exec`, which gives it a mount
//! namespace of its own that goes with it. Needs root.

#[path = "support/datapath.rs"]
mod support;

use enforcer::datapath::interface;
use enforcer::datapath::pin::Pins;
use enforcer::datapath::{Datapath, Hook, OpenOptions};
use nix::sys::signal::{Signal, raise};
use support::{in_namespace, shell};

const FOLDER: &str = "ENFORCER_TEST_BPFFS";

/// The agent that is killed: attaches to `eth0`, says whether it replaced anything, and never gets to clean up.
#[test]
fn attach_and_die() {
    // What the other test runs in a process of its own; there is nothing to check without it.
    let Some(bpffs) = std::env::var_os(FOLDER).map(Into::into) else { return };
    let options = OpenOptions { bpffs, hook: Hook::Tcx, ..OpenOptions::default() };
    let datapath = Datapath::open(&options).expect("opened");
    let eth0 = interface::list().expect("interfaces").into_iter().find(|i| i.name == "eth0").expect("eth0");
    println!("replaced: {}", datapath.attach(&eth0).expect("attached").replaced);
    raise(Signal::SIGKILL).expect("killed");
}

#[test]
fn pins_outlive_a_killed_agent_and_its_mount_namespace() {
    in_namespace("dk1", |lab| {
        let own = std::env::current_exe().expect("this program");
        let run = format!(
            "{FOLDER}={} ip netns exec {} {} --exact attach_and_die --nocapture",
            lab.bpffs.display(),
            lab.pod,
            own.display()
        );
        let first = shell(&run);
        assert!(first.contains("replaced: false"), "{first}");
        let links = Pins::new(&lab.bpffs).list_links().expect("the folder is seen from here");
        assert_eq!(links.len(), 2, "{links:?}");
        let second = shell(&run);
        assert!(second.contains("replaced: true"), "{second}");
        assert_eq!(Pins::new(&lab.bpffs).list_links().expect("links"), links);
    });
}
