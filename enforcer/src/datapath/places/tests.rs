use proptest::prelude::*;

use super::*;

const X: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 5));
const Y: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 6));

fn pod(name: &str, uid: &str) -> Pod {
    Pod { name: ObjectName::new("a", name), uid: uid.into(), addresses: vec![X], ..Pod::default() }
}

fn ifindex(places: &Places, pod: &Pod, leaving: bool) -> Option<u32> {
    places.claim(pod, leaving, &X).map(|place| place.ifindex)
}

fn nothing(_: &Pod) -> Option<u32> {
    None
}

#[test]
fn an_address_behind_two_interfaces_counts_on_every_one_whichever_was_seen_first() {
    for order in [[7, 9], [9, 7]] {
        let mut places = Places::default();
        for (number, interface) in order.into_iter().enumerate() {
            places.appeared(interface);
            assert!(places.saw(interface, interface.cast_signed(), [X]), "{order:?}");
            let expected = if number == 0 { interface } else { 0 };
            assert_eq!(ifindex(&places, &pod("p", "1"), false), Some(expected), "{order:?}");
        }
        assert_eq!(places.shared(), BTreeMap::from([(X, vec![7, 9])]));
        // Nothing flaps: the same sight changes nothing.
        assert!(!places.saw(7, 7, [X]) && !places.saw(9, 9, [X]));
        places.gone(7);
        assert_eq!(ifindex(&places, &pod("p", "1"), false), Some(9));
        assert!(places.shared().is_empty());
    }
}

#[test]
fn what_every_namespace_has_is_no_place() {
    let mut places = Places::default();
    places.appeared(7);
    let local = ["127.0.0.1", "::1", "fe80::1", "169.254.1.1"].map(|text| text.parse().expect("an address"));
    places.saw(7, 1, local);
    assert!(!places.is_known(7) && places.known().is_empty());
    assert!(places.saw(7, 1, local.into_iter().chain([X])));
    assert!(places.is_known(7));
    assert!(places.saw(7, 1, [X, Y]), "a second address later");
    assert_eq!(places.of(&Y), [7]);
    assert!(places.saw(7, 1, [Y]), "the first one is gone");
    assert_eq!(ifindex(&places, &pod("p", "1"), false), Some(0), "seen nowhere: it counts everywhere");
}

#[test]
fn a_leaving_pod_never_moves_to_the_interface_of_the_next() {
    let mut places = Places::default();
    let old = pod("old", "1");
    places.appeared(7);
    places.saw(7, 1, [X]);
    places.settle([(&old, false)], nothing);
    // Being deleted, with its interface: where it was.
    places.settle([(&old, true)], nothing);
    assert_eq!(ifindex(&places, &old, true), Some(7));
    // The address is given away while the old interface still stands, then when it is gone.
    places.appeared(9);
    places.saw(9, 2, [X]);
    places.settle([(&old, true)], nothing);
    assert_eq!(ifindex(&places, &old, true), Some(7));
    places.gone(7);
    places.settle([(&old, true)], nothing);
    assert_eq!(ifindex(&places, &old, true), None);
    // Not even when the index is used again, or nothing is seen yet behind the new interface.
    places.gone(9);
    places.appeared(7);
    places.settle([(&old, true)], nothing);
    assert_eq!(ifindex(&places, &old, true), None);
    places.saw(7, 3, [X]);
    places.settle([(&old, true)], nothing);
    assert_eq!(ifindex(&places, &old, true), None);
    // The new pod, and one that lives on in a new sandbox, follow the address.
    let new = pod("old", "2");
    places.settle([(&old, true), (&new, false)], nothing);
    assert_eq!(ifindex(&places, &new, false), Some(7));
    assert_eq!(ifindex(&places, &old, true), None);
}

#[test]
fn the_agent_before_may_know_where_a_leaving_pod_was() {
    let old = pod("old", "1");
    let mut places = Places::default();
    places.appeared(9);
    places.saw(9, 2, [X]);
    let mut there = places.clone();
    places.settle([(&old, true)], |_| Some(7));
    assert_eq!(ifindex(&places, &old, true), None, "interface 7 is gone");
    there.settle([(&old, true)], |_| Some(9));
    assert_eq!(ifindex(&there, &old, true), Some(9));
    // Nobody knows: where it is seen.
    let mut unknown = Places { homes: BTreeMap::new(), ..there };
    unknown.settle([(&old, true)], nothing);
    assert_eq!(unknown.home(&old), Some(9));
}

#[test]
fn a_pod_that_takes_another_ones_address_moves_it_nowhere() {
    let mut places = Places::default();
    let (victim, thief) = (pod("victim", "1"), Pod { addresses: vec![Y], ..pod("thief", "2") });
    for (interface, address) in [(7, X), (9, Y)] {
        places.appeared(interface);
        places.saw(interface, interface.cast_signed(), [address]);
    }
    places.settle([(&victim, false), (&thief, false)], nothing);
    places.saw(9, 9, [X, Y]);
    places.settle([(&victim, false), (&thief, false)], nothing);
    assert_eq!(ifindex(&places, &victim, false), Some(0));
    assert_eq!(places.home(&victim), Some(7), "its own interface is still known");
    places.settle([(&victim, true), (&thief, false)], nothing);
    assert_eq!(ifindex(&places, &victim, true), Some(7));
    // The thief leaves: the address is the victim's alone again.
    places.gone(9);
    assert_eq!(ifindex(&places, &victim, false), Some(7));
}

#[test]
fn a_pod_with_several_interfaces_is_behind_all_of_them() {
    let mut places = Places::default();
    let pod = pod("p", "1");
    for (interface, address) in [(7, X), (9, Y)] {
        places.appeared(interface);
        places.saw(interface, 3, [address]);
    }
    assert_eq!(places.claim(&pod, false, &X), Some(Place { ifindex: 0, netns_id: 3 }));
    assert_eq!(places.interfaces(&X), BTreeSet::from([7, 9]));
    assert!(places.shared().is_empty(), "and nobody took anything");
    // Whose namespace is not known is nobody's sibling.
    places.saw(9, -1, [Y]);
    places.saw(7, -1, [X]);
    assert_eq!((ifindex(&places, &pod, false), places.interfaces(&X)), (Some(7), BTreeSet::from([7])));
}

/// What happens to interfaces and pods, in any order.
#[derive(Clone, Debug)]
enum Step {
    Appeared(u32),
    Gone(u32),
    Saw(u32, bool),
    Leave(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let ifindex = 1_u32..4;
    prop_oneof![
        ifindex.clone().prop_map(Step::Appeared),
        ifindex.clone().prop_map(Step::Gone),
        (ifindex, any::<bool>()).prop_map(|(ifindex, has)| Step::Saw(ifindex, has)),
        (0_usize..3).prop_map(Step::Leave),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Rapid churn: pods with one address come and go on few interfaces whose numbers are used again.
    #[test]
    fn no_leaving_pod_is_ever_where_it_was_not(steps in prop::collection::vec(step(), 1..40)) {
        let pods = ["1", "2", "3"].map(|uid| pod(uid, uid));
        let mut leaving = [false; 3];
        // Where each was when it left, until that interface goes.
        let mut allowed: [Option<Option<u32>>; 3] = [None; 3];
        let mut places = Places::default();
        for step in steps {
            match step {
                Step::Appeared(ifindex) => {
                    places.appeared(ifindex);
                    allowed.iter_mut().flatten().filter(|home| **home == Some(ifindex)).for_each(|home| *home = None);
                }
                Step::Gone(ifindex) => {
                    places.gone(ifindex);
                    allowed.iter_mut().flatten().filter(|home| **home == Some(ifindex)).for_each(|home| *home = None);
                }
                Step::Saw(ifindex, has) => drop(places.saw(ifindex, ifindex.cast_signed(), has.then_some(X))),
                Step::Leave(number) if !leaving[number] => {
                    leaving[number] = true;
                    allowed[number] = places.home(&pods[number]).map(Some);
                }
                Step::Leave(_) => {}
            }
            places.settle(pods.iter().zip(leaving), nothing);
            for (pod, home) in pods.iter().zip(allowed) {
                let Some(home) = home else { continue };
                let found = ifindex(&places, pod, true);
                prop_assert!(found.is_none() || found == home, "{found:?}, not {home:?}");
            }
        }
    }
}
