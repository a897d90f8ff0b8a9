//! What is to be checked: every STRICT port that a meshed pod declares, a policy names, or clients were seen at.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use enforcer_common::Mode;
use enforcer_common::map::port_flags;

use crate::certificate::spiffe::TrustDomains;
use crate::certificate::target::{Target, istio_server_name, service_names};
use crate::datapath::desired::{Desired, EndpointPlan};
use crate::object::{ObjectName, Objects, Pod, TargetPort};
use crate::policy::membership::is_ambient;

/// So many ports are remembered of one pod beside those that are written somewhere; then the oldest is forgotten.
const OBSERVED_PORTS: usize = 32;

/// Ports at which clients were seen. A flow exists only where the pod has answered, so that nobody can fill this by
/// knocking at closed ports.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Observed {
    ports: BTreeMap<ObjectName, VecDeque<u16>>,
}

impl Observed {
    /// Takes a port down; true when it is new.
    pub(super) fn note(&mut self, pod: &ObjectName, port: u16) -> bool {
        if self.ports.get(pod).is_some_and(|ports| ports.contains(&port)) {
            return false;
        }
        let ports = self.ports.entry(pod.clone()).or_default();
        if ports.len() >= OBSERVED_PORTS {
            ports.pop_front();
        }
        ports.push_back(port);
        true
    }

    /// Forgets pods that are gone.
    pub(super) fn retain(&mut self, objects: &Objects) {
        self.ports.retain(|pod, _| objects.pods.contains_key(pod));
    }

    fn of(&self, pod: &ObjectName) -> impl Iterator<Item = u16> {
        self.ports.get(pod).into_iter().flatten().copied()
    }
}

/// How things are called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names<'a> {
    /// The trust domains whose identities count.
    pub(super) domains: &'a TrustDomains,
    /// The cluster's DNS domain.
    pub(super) cluster: &'a str,
}

/// The end of ambient mode's tunnels (HBONE).
const TUNNEL_PORT: u16 = 15008;
/// The names of so many Services of one port are asked for.
const SERVICES: usize = 4;

/// All targets, in the order of their addresses and ports.
pub(super) fn targets(
    objects: &Objects,
    wanted: &Desired,
    observed: &Observed,
    names: Names<'_>,
) -> Vec<Target> {
    let mut targets = Vec::new();
    for (address, plan) in wanted.endpoints.iter().filter(|(_, plan)| plan.meshed) {
        let Some(pod) = objects.pods.get(&plan.pod) else { continue };
        let Ok(expected) = names.domains.expected(&pod.name.namespace, &pod.service_account) else {
            continue;
        };
        let target = |port| Target {
            pod: plan.pod.clone(),
            uid: pod.uid.clone(),
            address: IpAddr::from(*address),
            port,
            expected: expected.clone(),
            server_name: None,
            names: Vec::new(),
            tunnel: false,
        };
        // Mesh clients of an ambient pod come through the tunnel; its own ports speak no TLS of the mesh.
        if is_ambient(pod) {
            if plan.mode == Mode::STRICT || plan.ports.values().any(|port| port.mode == Mode::STRICT) {
                targets.push(Target { tunnel: true, ..target(TUNNEL_PORT) });
            }
            continue;
        }
        let ports: BTreeSet<u16> = known_ports(pod, plan).chain(observed.of(&pod.name)).collect();
        for port in ports.into_iter().filter(|port| is_strict(plan, *port)) {
            let namespace = &pod.name.namespace;
            let fronts: Vec<_> = fronts(objects, pod, port).take(SERVICES).collect();
            let (service, service_port) = fronts.first().copied().unwrap_or((&pod.name.name, port));
            targets.push(Target {
                server_name: istio_server_name(service_port, service, namespace, names.cluster),
                names: fronts
                    .iter()
                    .flat_map(|(service, _)| service_names(service, namespace, names.cluster))
                    .collect(),
                ..target(port)
            });
        }
    }
    targets
}

fn known_ports<'a>(pod: &'a Pod, plan: &'a EndpointPlan) -> impl Iterator<Item = u16> + 'a {
    let declared = pod.ports.iter().filter(|port| port.tcp).map(|port| port.port);
    declared.chain(plan.ports.keys().copied())
}

fn is_strict(plan: &EndpointPlan, port: u16) -> bool {
    let (mode, flags) = plan.ports.get(&port).map_or((plan.mode, 0), |entry| (entry.mode, entry.flags));
    mode == Mode::STRICT && flags & port_flags::EXEMPT == 0
}

/// The Services, by name, whose ports lead to this one, and these ports: mesh clients ask for it by the first.
fn fronts<'a>(objects: &'a Objects, pod: &'a Pod, port: u16) -> impl Iterator<Item = (&'a str, u16)> {
    let first = ObjectName::new(pod.name.namespace.clone(), String::new());
    let services = objects.services.range(first..).map(|(_, service)| service);
    let services = services.take_while(|service| service.name.namespace == pod.name.namespace);
    let selects = |pair: (&String, &String)| pod.labels.get(pair.0) == Some(pair.1);
    services
        .filter(move |service| !service.selector.is_empty() && service.selector.iter().all(selects))
        .filter_map(move |service| {
            let leads_here = service.ports.iter().find(|known| match &known.target {
                TargetPort::Number(number) => *number == port,
                TargetPort::Name(name) => pod
                    .ports
                    .iter()
                    .any(|declared| declared.port == port && declared.name.as_ref() == Some(name)),
            });
            leads_here.map(|known| (&*service.name.name, known.port))
        })
}

#[cfg(test)]
mod tests;
