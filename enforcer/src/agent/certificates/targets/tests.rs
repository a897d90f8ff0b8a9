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

fn names(domains: &TrustDomains) -> Names<'_> {
    Names { domains, cluster: "cluster.example" }
}

#[test]
fn strict_ports_that_are_declared_named_or_seen_are_checked() {
    let (objects, pod) = objects();
    let mut observed = Observed::default();
    for port in [7000, 9000, 15021, 8080] {
        observed.note(&pod, port);
    }
    let domains = TrustDomains::default();
    let found = targets(&objects, &wanted(&pod, true), &observed, names(&domains));
    assert_eq!(found.iter().map(|target| target.port).collect::<Vec<_>>(), [7000, 8080, 9443]);
    assert_eq!(found[0].expected.id.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert!(targets(&objects, &wanted(&pod, false), &observed, names(&domains)).is_empty());
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
    let found = targets(&objects, &wanted(&pod, true), &Observed::default(), names(&TrustDomains::default()));
    let asked: Vec<_> = found
        .iter()
        .map(|target| {
            let name = target.server_name.as_ref().expect("a name").as_ref();
            (target.port, name, target.names.iter().map(AsRef::as_ref).collect::<Vec<_>>())
        })
        .collect();
    let of = |service: &str| {
        [service.to_owned(), format!("{service}.shop"), format!("{service}.shop.svc.cluster.example")]
    };
    let [web, zzz, raw] = [of("web"), of("zzz"), of("raw")];
    assert_eq!(
        asked,
        [
            (
                8080,
                "outbound_.82_._.web.shop.svc.cluster.example",
                web.iter().chain(&zzz).map(String::as_str).collect()
            ),
            (
                9443,
                "outbound_.84_._.raw.shop.svc.cluster.example",
                raw.iter().map(String::as_str).collect::<Vec<_>>()
            ),
        ]
    );
}

#[test]
fn of_an_ambient_pod_the_end_of_the_tunnel_is_checked() {
    let (mut objects, pod) = objects();
    let pod_object = objects.pods.get_mut(&pod).expect("the pod");
    pod_object.annotations.insert("ambient.istio.io/redirection".to_owned(), "enabled".to_owned());
    pod_object.uid = "u".to_owned();
    let mut observed = Observed::default();
    observed.note(&pod, 7000);
    let domains = TrustDomains::default();
    let found = targets(&objects, &wanted(&pod, true), &observed, names(&domains));
    assert_eq!(found.iter().map(|target| (target.port, target.tunnel)).collect::<Vec<_>>(), [(15008, true)]);
    assert_eq!((found[0].server_name.as_ref(), &*found[0].uid), (None, "u"));
    let mut open = wanted(&pod, true);
    for plan in open.endpoints.values_mut() {
        plan.mode = Mode::PERMISSIVE;
        plan.ports.clear();
    }
    assert!(targets(&objects, &open, &observed, names(&domains)).is_empty());
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
