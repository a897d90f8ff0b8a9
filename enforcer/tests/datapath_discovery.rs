//! Pod interfaces as they come and go, what is inside a pod, and what is pinned. Needs root.

#[path = "support/datapath.rs"]
mod support;

use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use enforcer::datapath::interface::{self, InterfaceEvent, LinkWatch, Selector};
use enforcer::datapath::{Datapath, OpenOptions, netns};
use support::{Lab, in_namespace, shell};

async fn next(watch: &mut LinkWatch) -> InterfaceEvent {
    tokio::time::timeout(Duration::from_secs(5), watch.next())
        .await
        .expect("an event in time")
        .expect("netlink works")
}

#[test]
fn interfaces_are_told_when_they_become_a_pods() {
    in_namespace("dd1", |lab: &Lab| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut watch = LinkWatch::open(Selector::default()).expect("a watch");
            assert!(matches!(next(&mut watch).await, InterfaceEvent::Appeared(i) if i.name == "host0"));
            // Created here, the peer moved later.
            shell("ip link add host1 type veth peer name eth1");
            let quiet = tokio::time::timeout(Duration::from_millis(200), watch.next()).await;
            assert!(quiet.is_err(), "its peer is still here: {quiet:?}");
            shell(&format!("ip link set eth1 netns {}", lab.pod));
            assert!(matches!(next(&mut watch).await, InterfaceEvent::Appeared(i) if i.name == "host1"));
            // The same name again, made from inside the pod.
            shell("ip link del host1");
            assert!(matches!(next(&mut watch).await, InterfaceEvent::Gone(i) if i.name == "host1"));
            shell(&format!(
                "ip -n {0} link add eth1 type veth peer name host1; ip -n {0} link set host1 netns $$",
                lab.pod
            ));
            assert!(matches!(next(&mut watch).await, InterfaceEvent::Appeared(i) if i.name == "host1"));
        });
    });
}

#[test]
fn a_pod_is_looked_into_from_outside() {
    in_namespace("dd2", |_: &Lab| {
        let listener = TcpListener::bind("10.77.0.1:7000").expect("a listener");
        let host =
            interface::list().expect("interfaces").into_iter().find(|i| i.name == "host0").expect("host0");
        let pod = netns::inspect(&host).expect("the pod's namespace is visible");
        let address: IpAddr = "10.77.0.2".parse().expect("an address");
        assert!(
            pod.addresses.iter().any(|a| a.address == address && Some(a.ifindex) == host.peer_index),
            "{pod:?}"
        );
        assert!(pod.sockets.established.is_empty() && pod.sockets.listening_ports.is_empty(), "{pod:?}");
        // The node's own sockets are none of the pod's.
        let _client = TcpStream::connect(listener.local_addr().expect("its address")).expect("connected");
        assert!(netns::inspect(&host).expect("again").sockets.established.is_empty());
    });
}

#[test]
fn a_pinned_map_of_another_shape_is_refused_and_left() {
    in_namespace("dd3", |lab: &Lab| {
        let options = OpenOptions { bpffs: lab.bpffs.clone(), ..OpenOptions::default() };
        drop(Datapath::open(&options).expect("opened"));
        let pin = lab.bpffs.join(format!("v{}/maps/PORT_MODES", enforcer_common::map::LAYOUT_VERSION));
        let made = shell(&format!(
            "rm {0} && bpftool map create {0} type hash key 8 value 64 entries 16 name PORT_MODES",
            pin.display()
        ));
        assert_eq!(made, "");
        let refused = Datapath::open(&options).expect_err("another value size").to_string();
        assert!(refused.contains("PORT_MODES") && refused.contains("value size 64"), "{refused}");
        assert!(refused.contains("enforcer detach"), "{refused}");
        assert!(pin.exists());
    });
}

#[test]
fn sizes_are_kept_with_a_warning_or_refused() {
    in_namespace("dd4", |lab: &Lab| {
        let sized = |entries, strict_sizes| OpenOptions {
            bpffs: lab.bpffs.clone(),
            sizes: [("ENDPOINTS".to_owned(), entries)].into(),
            strict_sizes,
            ..OpenOptions::default()
        };
        assert!(Datapath::open(&sized(128, false)).expect("opened").warnings().is_empty());
        assert!(Datapath::open(&sized(128, true)).expect("the same").warnings().is_empty());
        let other = Datapath::open(&sized(256, false)).expect("opened");
        assert!(
            matches!(other.warnings(), [one] if one.contains("keeps its 128 entries")),
            "{:?}",
            other.warnings()
        );
        drop(other);
        let refused = Datapath::open(&sized(256, true)).expect_err("strict").to_string();
        assert!(refused.contains("max_entries 128"), "{refused}");
    });
}
