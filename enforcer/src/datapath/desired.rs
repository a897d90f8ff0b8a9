//! Desired state: from objects and facts about the node to the wanted content of the maps, as one pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use enforcer_common::map::{ExemptKind, PortMode, port_flags};
use enforcer_common::{Address, Mode};
use serde::{Deserialize, Serialize};

use super::pod_side::PodDevice;
use crate::certificate::report::PodPort;
use crate::object::{ObjectName, Objects, Pod};
use crate::policy::compose::{Composer, Decision};
use crate::policy::membership::{self, Membership};

use super::places::{Place, Places};

/// Source address of the mesh's probes (ambient): `HOST_PROBE_SNAT_IP` and its IPv6 twin in Istio.
const PROBE_SOURCES: [&str; 2] = ["169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"];

/// A pod that was deleted or has finished, and whose interface is still there: something in it may still serve.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GonePod {
    /// What it was.
    pub pod: Pod,
    /// Index of its interface.
    pub ifindex: u32,
}

/// What is known about the node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// The node's own addresses.
    pub node_addresses: BTreeSet<IpAddr>,
    /// What was found behind the interfaces.
    pub places: Places,
    /// Pods that are enforced at their own device, by the index of the host side of its pair.
    pub inside: BTreeMap<u32, PodDevice>,
    /// Pods that are gone and whose interface is still there, the last one last.
    pub gone: Vec<GonePod>,
    /// Ports blocked after a failed certificate check.
    pub blocked: BTreeSet<PodPort>,
    /// Ports that have passed their certificate check, where every other known STRICT port is blocked; `None` where
    /// ports are open until they fail.
    pub passed: Option<BTreeSet<PodPort>>,
}

/// How objects are read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Istio's root namespace.
    pub root_namespace: String,
    /// The control plane's revision; `None`: policies of every revision count.
    pub revision: Option<String>,
    /// List pods outside the mesh too, so that they are not taken for unknown ones.
    pub list_all_pods: bool,
}

/// Ids of workloads, one per pod: what counters are kept under. An id is never given to another pod while it is listed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WorkloadIds {
    ids: BTreeMap<ObjectName, u32>,
    last: u32,
}

impl WorkloadIds {
    /// Ids that were given before, and the one that was given last.
    #[must_use]
    pub fn restore(ids: BTreeMap<ObjectName, u32>, last: u32) -> Self {
        let last = ids.values().copied().max().unwrap_or(0).max(last);
        Self { ids, last }
    }

    /// The id that was given last, 0 when none was.
    #[must_use]
    pub fn last(&self) -> u32 {
        self.last
    }

    /// Takes a pod off the list. Its id is not given again.
    pub fn forget(&mut self, pod: &ObjectName) {
        self.ids.remove(pod);
    }

    /// The id of a pod; a new one when it has none.
    pub fn id(&mut self, pod: &ObjectName) -> u32 {
        if let Some(id) = self.ids.get(pod) {
            return *id;
        }
        // 0 stands for "no workload" in the maps.
        self.last = self.last.checked_add(1).unwrap_or(1);
        self.ids.insert(pod.clone(), self.last);
        self.last
    }

    /// All ids.
    #[must_use]
    pub fn all(&self) -> &BTreeMap<ObjectName, u32> {
        &self.ids
    }
}

/// The wanted policy of one address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointPlan {
    /// The pod that has the address.
    pub pod: ObjectName,
    /// Its workload id.
    pub workload: u32,
    /// Mode of every port that is not listed.
    pub mode: Mode,
    /// Ports with a mode or treatment of their own.
    pub ports: BTreeMap<u16, PortMode>,
    /// Host-side interface; 0 while unknown, or where several have the address.
    pub ifindex: u32,
    /// Network namespace id plus one; 0 while unknown.
    pub netns_id: u32,
    /// The pod's own device, where it is enforced there.
    pub inside: Option<PodDevice>,
    /// False for a pod outside the mesh.
    pub meshed: bool,
    /// The policies that decided.
    pub decided_by: Vec<Decision>,
}

/// The wanted content of the maps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    /// By address.
    pub endpoints: BTreeMap<Address, EndpointPlan>,
    /// For the link-local addresses of pods, by link ([`Address::link`]): neighbours reach a pod by them, and no status names them.
    pub links: BTreeMap<Address, EndpointPlan>,
    /// Exempt sources.
    pub exempt: BTreeMap<Address, ExemptKind>,
    /// Pods that a mesh namespace leaves without a data plane.
    pub unprotected: BTreeSet<ObjectName>,
}

impl Desired {
    /// All content of `ENDPOINTS` and `LINKS`.
    pub fn listed(&self) -> impl Iterator<Item = (&Address, &EndpointPlan)> {
        self.endpoints.iter().chain(&self.links)
    }

    /// The policy of an address, link-local ones on their link included.
    #[must_use]
    pub fn plan(&self, address: Address) -> Option<&EndpointPlan> {
        let listed = address.listed();
        self.endpoints.get(&listed).or_else(|| self.links.get(&listed))
    }
}

/// Computes the desired state.
pub fn desired(objects: &Objects, facts: &Facts, options: &Options, ids: &mut WorkloadIds) -> Desired {
    let composer =
        Composer::new(objects.policies.values(), &options.root_namespace, options.revision.as_deref());
    let mut wanted = Desired { exempt: exempt(facts), ..Desired::default() };
    let owners = owners(objects, facts);
    let (mut named, mut doubtful) = (BTreeSet::new(), Vec::new());
    for (pod, leaving) in pods(objects, facts) {
        let membership = membership::membership(pod, objects.namespaces.get(&pod.name.namespace));
        if matches!(membership, Membership::Unprotected { .. }) {
            wanted.unprotected.insert(pod.name.clone());
        }
        let meshed = matches!(membership, Membership::Enforced { .. });
        // Of several pods with one name each has counters and ports of its own; the name is the newest one's.
        let id = if named.insert(&pod.name) { pod.name.clone() } else { apart(pod) };
        if !(meshed || options.list_all_pods) {
            continue;
        }
        let own = pod
            .addresses
            .iter()
            .filter(|address| owners.get(address).is_some_and(|owner| std::ptr::eq(*owner, pod)));
        let own: Vec<(IpAddr, Place)> =
            own.filter_map(|address| Some((*address, facts.places.claim(pod, leaving, address)?))).collect();
        if own.is_empty() {
            continue;
        }
        let plan = plan(pod, meshed, &composer, facts, ids.id(&id));
        for (address, place) in own {
            let plan = EndpointPlan {
                ifindex: place.ifindex,
                netns_id: place.netns_id.cast_unsigned().wrapping_add(1),
                inside: facts.inside.get(&place.ifindex).cloned(),
                ..plan.clone()
            };
            links(facts, &address, &plan, &mut wanted.links, &mut doubtful);
            wanted.endpoints.insert(Address::from(address), plan);
        }
    }
    for (link, plan) in doubtful {
        wanted.links.entry(link).or_insert(plan);
    }
    wanted
}

/// Adds the links of a pod with this address. A link is the first one's: what is listed comes before what is gone, and where an
/// address is behind interfaces of several pods, whose a link is says another address, or nobody better.
fn links(
    facts: &Facts,
    address: &IpAddr,
    plan: &EndpointPlan,
    links: &mut BTreeMap<Address, EndpointPlan>,
    doubtful: &mut Vec<(Address, EndpointPlan)>,
) {
    let is_shared = facts.places.of(address).len() > 1;
    let only = Some(plan.ifindex).filter(|ifindex| *ifindex != 0);
    let interfaces = only.map_or_else(|| facts.places.interfaces(address), |only| BTreeSet::from([only]));
    for ifindex in interfaces {
        let inside = facts.inside.get(&ifindex).cloned();
        let link = Address::link(inside.as_ref().map_or(ifindex, PodDevice::stamp));
        let plan = EndpointPlan { ifindex, inside, ..plan.clone() };
        if is_shared && only.is_none() {
            doubtful.push((link, plan));
        } else {
            links.entry(link).or_insert(plan);
        }
    }
}

/// The pods that may serve, and whether each is leaving: what is listed first, then what is gone, newest first.
fn pods<'a>(objects: &'a Objects, facts: &'a Facts) -> impl Iterator<Item = (&'a Pod, bool)> {
    let gone = facts.gone.iter().rev().map(|gone| (&gone.pod, true));
    let listed = objects.pods.values().map(|pod| (pod, pod.deleting));
    listed.filter(|(pod, _)| !pod.finished).chain(gone).filter(|(pod, _)| !pod.host_network)
}

/// Under which a pod is listed whose name another pod has now.
#[must_use]
pub fn apart(pod: &Pod) -> ObjectName {
    ObjectName::new(pod.name.namespace.clone(), format!("{} (gone, uid {})", pod.name.name, pod.uid))
}

/// Who has each address. Several pods may claim one while the old one is going: meshed or not, the one that came last has
/// it, so that no pod is held to the policy of another that had its address before.
fn owners<'a>(objects: &'a Objects, facts: &'a Facts) -> BTreeMap<IpAddr, &'a Pod> {
    let rank = |pod: &Pod, listed: bool| (listed, !pod.deleting, pod.created, pod.claim);
    let mut owners: BTreeMap<IpAddr, (&Pod, bool)> = BTreeMap::new();
    let gone = facts.gone.iter().map(|gone| (&gone.pod, false, true));
    let listed = objects.pods.values().map(|pod| (pod, true, pod.deleting));
    for (pod, listed, leaving) in gone.chain(listed).filter(|(pod, ..)| !pod.finished && !pod.host_network) {
        for address in
            pod.addresses.iter().filter(|address| facts.places.claim(pod, leaving, address).is_some())
        {
            match owners.get(address) {
                Some((held, was)) if rank(held, *was) > rank(pod, listed) => {}
                _ => drop(owners.insert(*address, (pod, listed))),
            }
        }
    }
    owners.into_iter().map(|(address, (pod, _))| (address, pod)).collect()
}

fn plan(pod: &Pod, meshed: bool, composer: &Composer<'_>, facts: &Facts, workload: u32) -> EndpointPlan {
    let base = EndpointPlan {
        pod: pod.name.clone(),
        workload,
        mode: Mode::DISABLE,
        ports: BTreeMap::new(),
        ifindex: 0,
        netns_id: 0,
        inside: None,
        meshed,
        decided_by: Vec::new(),
    };
    if !meshed {
        return base;
    }
    let effective = composer.effective(&pod.name.namespace, &pod.labels);
    let exempt = membership::exempt_ports(pod);
    let mut ports: BTreeMap<u16, PortMode> = effective
        .ports
        .iter()
        .map(|(port, mode)| (*port, PortMode { mode: *mode, flags: 0, reserved: 0 }))
        .collect();
    let mut mark = |port: u16, flag: u8| {
        ports.entry(port).or_insert(PortMode { mode: effective.default, flags: 0, reserved: 0 }).flags |=
            flag;
    };
    for port in &exempt.ports {
        mark(*port, port_flags::EXEMPT);
    }
    for port in &pod.probe_ports {
        mark(*port, port_flags::PROBE);
    }
    for found in facts.blocked.iter().filter(|found| is_of(found, pod)) {
        mark(found.port, port_flags::BLOCKED);
    }
    // The ports behind a tunnel are not checked; its own end is.
    if let Some(passed) = facts.passed.as_ref().filter(|_| !membership::is_ambient(pod)) {
        block_unchecked(pod, effective.default, &mut ports, passed);
    }
    let mut mode = effective.default;
    if let Some(included) = &exempt.only {
        // Only these ports pass the sidecar: every other one is as if the pod had none.
        mode = Mode::DISABLE;
        for port in included {
            ports.entry(*port).or_insert(PortMode { mode: effective.default, flags: 0, reserved: 0 });
        }
        ports.retain(|port, entry| included.contains(port) || entry.flags & port_flags::EXEMPT != 0);
    }
    EndpointPlan { mode, ports, decided_by: effective.decided_by, ..base }
}

/// What was found is of this very pod, not of an earlier one of its name.
fn is_of(found: &PodPort, pod: &Pod) -> bool {
    found.pod == pod.name && (found.uid == pod.uid || found.uid.is_empty())
}

/// Blocks the STRICT ports that the pod declares or a policy names and that have not passed.
fn block_unchecked(
    pod: &Pod,
    default: Mode,
    ports: &mut BTreeMap<u16, PortMode>,
    passed: &BTreeSet<PodPort>,
) {
    let passed: BTreeSet<u16> =
        passed.iter().filter(|known| is_of(known, pod)).map(|known| known.port).collect();
    for declared in pod.ports.iter().filter(|declared| declared.tcp && default == Mode::STRICT) {
        ports.entry(declared.port).or_insert(PortMode { mode: default, flags: 0, reserved: 0 });
    }
    for (port, entry) in ports {
        let checked = entry.mode == Mode::STRICT && entry.flags & port_flags::EXEMPT == 0;
        if checked && !passed.contains(port) {
            entry.flags |= port_flags::BLOCKED;
        }
    }
}

fn exempt(facts: &Facts) -> BTreeMap<Address, ExemptKind> {
    let sources = PROBE_SOURCES.iter().filter_map(|text| text.parse::<IpAddr>().ok());
    let nodes = facts.node_addresses.iter().filter(|address| !address.is_loopback());
    nodes
        .map(|address| (Address::from(*address), ExemptKind::NODE))
        .chain(sources.map(|address| (Address::from(address), ExemptKind::SOURCE)))
        .collect()
}

#[cfg(test)]
mod checks;
#[cfg(test)]
mod tests;
