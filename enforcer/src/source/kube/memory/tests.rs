use std::collections::BTreeMap;

use enforcer_common::Mode;

use super::Memory;
use crate::object::{Map, Namespace, ObjectName, Objects, Origin, PeerAuthentication};
use crate::source::document::Object;

#[test]
fn what_was_kept_reads_back_as_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("deep/cluster.json");
    let labels: Map = [("istio.io/rev".to_owned(), "a".to_owned())].into();
    let policy = |name: &str, mode, selector: Map, ports: BTreeMap<u16, Option<Mode>>| PeerAuthentication {
        name: ObjectName::new("ns", name),
        created: "2024-01-01T00:00:00Z".parse().ok(),
        labels: labels.clone(),
        selector,
        mode,
        ports,
        origin: Origin::default(),
    };
    let app: Map = [("app".to_owned(), "on".to_owned())].into();
    let ports = BTreeMap::from([(80, Some(Mode::DISABLE)), (81, None)]);
    let mut objects = Objects::default();
    for policy in [
        policy("whole", Some(Mode::STRICT), Map::new(), BTreeMap::new()),
        policy("unset", None, Map::new(), BTreeMap::new()),
        policy("ports", Some(Mode::PERMISSIVE), app, ports),
    ] {
        objects.policies.insert(policy.name.clone(), policy);
    }
    objects.namespaces.insert("ns".to_owned(), Namespace { name: "ns".to_owned(), labels: labels.clone() });

    let mut memory = Memory::new(path.clone());
    assert!(memory.recall().is_empty());
    memory.keep(&objects);
    let mut read = Objects::default();
    for object in Memory::new(path.clone()).recall() {
        assert!(matches!(object, Object::Policy(_) | Object::Namespace(..)));
        object.insert(&mut read);
    }
    assert_eq!(read, objects);

    std::fs::write(&path, "{").expect("written");
    assert!(Memory::new(path).recall().is_empty(), "a damaged file is no reason to stop");
}
