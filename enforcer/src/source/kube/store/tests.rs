use enforcer_common::Mode;
use jiff::Timestamp;

use super::{Change, Entry, Store};
use crate::object::{Namespace, ObjectName, Origin, PeerAuthentication, Pod};
use crate::policy::problem::Problem;
use crate::source::document::Object;
use crate::source::kube::{Failure, Kind};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn policy(name: &str, mode: Mode) -> (String, Entry) {
    let object = Object::Policy(Box::new(PeerAuthentication {
        name: ObjectName::new("ns", name),
        created: None,
        labels: [].into(),
        selector: [].into(),
        mode: Some(mode),
        ports: [].into(),
        origin: Origin::default(),
    }));
    (object.key(), Entry { object: Some(object), ..Entry::default() })
}

fn refused(name: &str) -> (String, Entry) {
    let problem = Problem::new(&Origin::default(), name, "spec", "mode-unknown", "is wrong: correct it");
    (format!("PeerAuthentication ns/{name}"), Entry { problems: vec![problem], ..Entry::default() })
}

fn pod(name: &str, uid: &str, address: &str) -> (String, Entry) {
    let pod = Pod {
        name: ObjectName::new("ns", name),
        uid: uid.to_owned(),
        addresses: vec![address.parse().expect("an address")],
        ..Pod::default()
    };
    let object = Object::Pod(Box::new(pod), Origin::default());
    (object.key(), Entry { object: Some(object), ..Entry::default() })
}

fn list(store: &mut Store, kind: Kind, entries: Vec<(String, Entry)>) -> bool {
    assert!(!store.apply(kind, Change::Listing, at(1)));
    for entry in entries {
        assert!(!store.apply(kind, Change::Listed(entry), at(1)), "half a list is nothing to tell");
    }
    store.apply(kind, Change::Complete("v1"), at(1))
}

/// A store in which every kind was listed.
fn listed() -> Store {
    let mut store = Store::default();
    for kind in Kind::ALL {
        list(&mut store, kind, Vec::new());
    }
    store
}

fn modes(store: &Store) -> Vec<(String, Option<Mode>)> {
    store.objects().policies.into_values().map(|policy| (policy.name.name, policy.mode)).collect()
}

#[test]
fn nothing_is_told_before_every_kind_was_listed() {
    let mut store = Store::default();
    for kind in Kind::ALL {
        assert!(store.update(false).objects.is_none(), "{kind:?} is missing");
        assert!(list(&mut store, kind, Vec::new()));
    }
    assert!(store.update(false).objects.is_some());
}

#[test]
fn kinds_that_only_help_are_not_waited_for_for_ever() {
    for missing in Kind::ALL {
        let mut store = Store::default();
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != missing) {
            list(&mut store, kind, Vec::new());
        }
        assert!(store.update(false).objects.is_none());
        let update = store.update(true);
        assert_eq!(update.objects.is_none(), missing.is_essential(), "{missing:?}");
        assert!(update.problems.iter().any(|problem| problem.starts_with(missing.plural())), "{update:?}");
        // Once begun, it goes on.
        assert!(store.update(false).objects.is_none() == missing.is_essential());
    }
}

#[test]
fn without_the_definition_there_are_no_policies_unless_some_are_remembered() {
    let absent = |store: &mut Store| {
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Policies) {
            list(store, kind, Vec::new());
        }
        store.apply(Kind::Policies, Change::Failed(Failure::NotServed(Kind::Policies)), at(1));
    };
    let mut fresh = Store::default();
    absent(&mut fresh);
    assert!(fresh.update(false).objects.is_none());
    assert_eq!(fresh.update(true).objects.expect("it goes on").policies.len(), 0);

    let mut heir = Store::default();
    heir.remember(Kind::Policies, policy("a", Mode::STRICT).1.object);
    absent(&mut heir);
    assert!(heir.update(false).objects.is_none());
    assert_eq!(heir.update(true).objects.expect("it goes on").policies.len(), 1);

    // Denied is not absent.
    let mut denied = Store::default();
    absent(&mut denied);
    denied.apply(Kind::Policies, Change::Failed(Failure::Denied(Kind::Policies)), at(2));
    assert!(denied.update(true).objects.is_none());
}

#[test]
fn a_list_replaces_what_was_known_and_half_a_list_does_not() {
    let mut store = listed();
    store.remember(Kind::Namespaces, [Object::Namespace(Namespace::default(), Origin::default())]);
    assert!(list(&mut store, Kind::Policies, vec![policy("a", Mode::STRICT), policy("b", Mode::STRICT)]));
    store.apply(Kind::Policies, Change::Listing, at(2));
    store.apply(Kind::Policies, Change::Listed(policy("b", Mode::PERMISSIVE)), at(2));
    assert_eq!(modes(&store).len(), 2);
    assert!(store.apply(Kind::Policies, Change::Failed(Failure::Unauthenticated), at(3)));
    assert_eq!(modes(&store), [("a".to_owned(), Some(Mode::STRICT)), ("b".to_owned(), Some(Mode::STRICT))]);
    assert!(list(&mut store, Kind::Policies, vec![policy("b", Mode::STRICT)]));
    assert_eq!(modes(&store).len(), 1);
    assert!(!list(&mut store, Kind::Policies, vec![policy("b", Mode::STRICT)]), "nothing changed");
}

#[test]
fn a_refused_policy_keeps_its_last_good_form() {
    let mut store = listed();
    assert!(store.apply(Kind::Policies, Change::Applied(policy("a", Mode::STRICT)), at(2)));
    assert!(
        !store.apply(Kind::Policies, Change::Applied(policy("a", Mode::STRICT)), at(3)),
        "the same again"
    );
    assert!(store.apply(Kind::Policies, Change::Applied(refused("a")), at(4)));
    assert_eq!(modes(&store), [("a".to_owned(), Some(Mode::STRICT))]);
    assert_eq!(store.update(false).problems.len(), 1);
    // Through a new list as well.
    list(&mut store, Kind::Policies, vec![refused("a"), refused("new")]);
    assert_eq!(modes(&store), [("a".to_owned(), Some(Mode::STRICT))]);
    assert!(store.apply(Kind::Policies, Change::Deleted("PeerAuthentication ns/a".to_owned()), at(5)));
    assert!(modes(&store).is_empty());
}

#[test]
fn a_failure_is_told_once_and_its_age_counts_from_its_beginning() {
    let mut store = listed();
    let unreachable = || Change::Failed(Failure::Unreachable("refused".to_owned()));
    for kind in [Kind::Policies, Kind::Pods] {
        assert!(store.apply(kind, unreachable(), at(10)));
        assert!(!store.apply(kind, unreachable(), at(20)), "the same again is nothing to tell");
    }
    assert_eq!(store.update(false).problems.len(), 1, "one server, one sentence");
    let kinds = store.kinds();
    let policies = kinds.iter().find(|kind| kind.kind == "peerauthentications").expect("it is listed");
    assert_eq!(policies.age_seconds(at(25)), Some(15.0));
    list(&mut store, Kind::Policies, Vec::new());
    list(&mut store, Kind::Pods, Vec::new());
    assert!(store.update(false).problems.is_empty());
    assert_eq!(store.kinds()[0].age_seconds(at(99)), Some(0.0));
}

#[test]
fn an_address_that_is_new_at_a_pod_is_claimed_anew() {
    let mut store = listed();
    let mut claim = |name: &str, uid: &str, address: &str| {
        store.apply(Kind::Pods, Change::Applied(pod(name, uid, address)), at(2));
        store.objects().pods[&ObjectName::new("ns", name)].claim
    };
    let first = claim("a", "1", "10.0.0.1");
    assert_eq!(claim("a", "1", "10.0.0.1"), first, "it has it still");
    let other = claim("b", "2", "10.0.0.1");
    assert!(other > first);
    assert!(claim("a", "1", "10.0.0.2") > other);
    assert!(claim("b", "3", "10.0.0.1") > other, "another pod of the same name");
}
