use enforcer_common::Address;
use enforcer_common::map::PortMode;

use super::*;
use crate::object::{ContainerPort, Map, Service, ServicePort};

fn objects() -> (Objects, ObjectName) {
    let name = ObjectName::new("shop", "web-1");
    let declared = |name: &str, port, tcp| ContainerPort { name: Some(name.to_owned()), port, tcp };
    let pod = Pod {
        name: name.clone(),
        service_account: "web".to_owned(),
        labels: Map::from([("app".to_owned(), "web".to_owned())]),
        ports: vec![
            declared("http", 8080, true),
            declared("dns", 53, false),
            declared("status", 15021, true),
            declared("open", 9000, true),
        ],
        ..Pod::default()
    };
    let mut objects = Objects::default();
    objects.pods.insert(name.clone(), pod);
    (objects, name)
}

fn wanted(pod: &ObjectName, meshed: bool) -> Desired {
    let port = |mode, flags| PortMode { mode, flags, reserved: 0 };
    let plan = EndpointPlan {
        pod: pod.clone(),
        workload: 1,
        mode: Mode::STRICT,
        ports: BTreeMap::from([
            (9000, port(Mode::PERMISSIVE, 0)),
            (9443, port(Mode::STRICT, port_flags::BLOCKED)),
            (15021, port(Mode::STRICT, port_flags::EXEMPT)),
        ]),
        ifindex: 0,
        netns_id: 0,
        inside: None,
        meshed,
        decided_by: Vec::new(),
    };
    let address: IpAddr = "10.0.0.1".parse().expect("an address");
    Desired { endpoints: BTreeMap::from([(Address::from(address), plan)]), ..Desired::default() }
}

#[test]
fn strict_ports_that_are_declared_named_or_seen_are_checked() {
    let (objects, pod) = objects();
    let mut observed = Observed::default();
    for port in [7000, 9000, 15021, 8080] {
        observed.note(&pod, port);
    }
    let domains = TrustDomains::default();
    let found = targets(&objects, &wanted(&pod, true), &observed, &domains);
    assert_eq!(found.iter().map(|target| target.port).collect::<Vec<_>>(), [7000, 8080, 9443]);
    assert_eq!(found[0].expected.id.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert!(targets(&objects, &wanted(&pod, false), &observed, &domains).is_empty());
}

#[test]
fn the_server_name_is_that_of_the_service_whose_port_leads_here() {
    let (mut objects, pod) = objects();
    let mut add = |namespace: &str, name: &str, app: Option<&str>, port, target| {
        let name = ObjectName::new(namespace, name);
        let selector = app.map(|app| ("app".to_owned(), app.to_owned())).into_iter().collect();
        let ports = vec![ServicePort { name: None, port, target }];
        objects.services.insert(name.clone(), Service { name, selector, ports });
    };
    add("shop", "all", None, 80, TargetPort::Number(8080));
    add("shop", "other", Some("db"), 80, TargetPort::Number(8080));
    add("other", "web", Some("web"), 81, TargetPort::Number(8080));
    add("shop", "web", Some("web"), 82, TargetPort::Name("http".to_owned()));
    add("shop", "zzz", Some("web"), 83, TargetPort::Number(8080));
    add("shop", "raw", Some("web"), 84, TargetPort::Number(9443));
    let found = targets(&objects, &wanted(&pod, true), &Observed::default(), &TrustDomains::default());
    let fronts: Vec<_> = found.iter().map(|target| (target.port, target.service.clone())).collect();
    let front = |name: &str, port| Some(Front { name: name.to_owned(), port });
    assert_eq!(fronts, [(8080, front("web", 82)), (9443, front("raw", 84))]);
}

#[test]
fn observed_ports_are_bounded_and_forgotten_with_their_pod() {
    let (mut objects, pod) = objects();
    let mut observed = Observed::default();
    assert!(observed.note(&pod, 1) && !observed.note(&pod, 1));
    for port in 2..=200 {
        observed.note(&pod, port);
    }
    let kept: Vec<u16> = observed.of(&pod).collect();
    assert_eq!(kept, (169..=200).collect::<Vec<u16>>());
    observed.retain(&objects);
    assert_eq!(observed.of(&pod).count(), OBSERVED_PORTS);
    objects.pods.clear();
    observed.retain(&objects);
    assert_eq!(observed, Observed::default());
}
