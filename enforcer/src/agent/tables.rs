//! The maps that the agent writes, and carrying changes out in them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use enforcer_common::map::{
    Bypassed, Endpoint, Flow, FlowKey, FlowState, Outbound, Pending, PodLink, PodLinkKey, PortKey,
    endpoint_flags, flow_flags,
};
use enforcer_common::settings::Settings;
use enforcer_common::{Address, Mode, Reason, Verdict};

use crate::datapath::Datapath;
use crate::datapath::apply::{Change, Held, Write};
use crate::datapath::conntrack::Ends;
use crate::datapath::maps::{
    BypassedPods, Endpoints, Exempt, Flows, Links, MapsError, Outbounds, Pendings, PodLinks, PortModes,
    SettingsMap,
};
use crate::datapath::sockdiag::{OnWire, PodSockets};

/// How long a packet may still be using what it read from a map: far more than any packet takes.
const GRACE: Duration = Duration::from_millis(200);
/// Kernel numbers of socket states whose handshake is not done (`tcp_states.h`).
const HANDSHAKE_STATES: [u8; 2] = [3, 12];

/// What happens to inbound connections that were open before their pod was enforced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum ExistingFlows {
    /// They go on.
    #[default]
    Allow,
    /// Under STRICT they are reset at their next packet.
    Reset,
}

/// A write that the kernel refused.
#[derive(Debug)]
pub struct Refusal {
    /// The pod that it concerns; 0: none.
    pub workload: u32,
    /// The address that it concerns; `None`: ports or exemptions.
    pub address: Option<Address>,
    /// The kernel's answer.
    pub error: MapsError,
}

/// The maps.
pub struct Tables {
    endpoints: Endpoints,
    links: Links,
    ports: PortModes,
    exempt: Exempt,
    flows: Flows,
    transient: Flows,
    outbound: Outbounds,
    pending: Pendings,
    pod_links: PodLinks,
    bypassed: BypassedPods,
    settings: SettingsMap,
    held: Held,
    stale: Vec<(Instant, Vec<PortKey>)>,
}

fn take(datapath: &mut Datapath, name: &'static str) -> Result<aya::maps::Map, MapsError> {
    datapath.take_map(name).ok_or(MapsError::Missing { map: name })
}

impl Tables {
    /// Takes the maps and reads what they hold from an earlier run.
    ///
    /// # Errors
    /// When a map is missing or holds invalid entries.
    pub fn open(datapath: &mut Datapath) -> Result<Self, MapsError> {
        let endpoints = Endpoints::new("ENDPOINTS", take(datapath, "ENDPOINTS")?)?;
        let links = Links::new("LINKS", take(datapath, "LINKS")?)?;
        let on_links = links.entries()?.into_iter().map(|(link, endpoint)| (Address::link(link), endpoint));
        let ports = PortModes::new("PORT_MODES", take(datapath, "PORT_MODES")?)?;
        let exempt = Exempt::new(take(datapath, "EXEMPT")?)?;
        let held = Held {
            endpoints: endpoints.entries()?.into_iter().chain(on_links).collect(),
            ports: ports
                .entries()?
                .into_iter()
                .map(|(key, mode)| ((key.workload, key.generation, key.port), mode))
                .collect(),
            exempt: exempt.entries()?.into_iter().collect(),
        };
        Ok(Self {
            endpoints,
            links,
            ports,
            exempt,
            flows: Flows::new("FLOWS", take(datapath, "FLOWS")?)?,
            transient: Flows::new("TRANSIENT", take(datapath, "TRANSIENT")?)?,
            outbound: Outbounds::new("OUTBOUND", take(datapath, "OUTBOUND")?)?,
            pending: Pendings::new("PENDING", take(datapath, "PENDING")?)?,
            pod_links: PodLinks::new("POD_LINKS", take(datapath, "POD_LINKS")?)?,
            bypassed: BypassedPods::new("BYPASSED", take(datapath, "BYPASSED")?)?,
            settings: SettingsMap::new(take(datapath, "SETTINGS")?)?,
            held,
            stale: Vec::new(),
        })
    }

    /// What the maps hold.
    #[must_use]
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Puts settings in force.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_settings(&mut self, settings: &Settings) -> Result<(), MapsError> {
        self.settings.set(settings)
    }

    /// Carries a change out. Fresh endpoints are first only learning: their handshakes are followed, and nothing unknown
    /// is refused until [`Self::finish`] was called with what is open.
    ///
    /// A write that the kernel refuses, because a map is full, concerns one pod only: its addresses keep the policy that
    /// they had; fresh ones, which have none, are held to the strictest mode of theirs. Gives what was refused; the next
    /// change tries again.
    pub fn apply(&mut self, change: &Change) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        let mut without_ports: BTreeSet<(u32, u16)> = BTreeSet::new();
        for write in &change.writes {
            let Some(write) = self.possible(write, &without_ports) else { continue };
            match self.write(&write, change) {
                Ok(()) => self.held.enter(&write),
                Err(error) => {
                    let (address, first) = match write {
                        Write::Port(key, _) => (None, without_ports.insert((key.workload, key.generation))),
                        Write::Endpoint(address, _) | Write::RemoveEndpoint(address) => (Some(address), true),
                        Write::Exempt(..) | Write::Unexempt(..) => (None, true),
                    };
                    let workload = match write {
                        Write::Port(key, _) => key.workload,
                        Write::Endpoint(_, endpoint) => endpoint.workload,
                        _ => 0,
                    };
                    if first {
                        refusals.push(Refusal { workload, address, error });
                    }
                }
            }
        }
        if !change.stale.is_empty() {
            self.stale.push((Instant::now() + GRACE, change.stale.clone()));
        }
        refusals
    }

    /// Writes everything as fresh, to be written again: new programs that come onto their hooks with empty maps have a
    /// policy from the first packet on, and what is open can still be entered afterwards.
    pub fn prepare(&mut self, change: &Change) -> Vec<Refusal> {
        let held = self.held.clone();
        let refusals = self.apply(change);
        self.held = held;
        self.stale.clear();
        refusals
    }

    /// What can be written of this write when these generations have not all of their ports.
    fn possible(&self, write: &Write, without_ports: &BTreeSet<(u32, u16)>) -> Option<Write> {
        match *write {
            Write::Port(key, _) if without_ports.contains(&(key.workload, key.generation)) => None,
            Write::Endpoint(address, endpoint)
                if without_ports.contains(&(endpoint.workload, endpoint.generation)) =>
            {
                let has_policy =
                    self.held.endpoints.get(&address).is_some_and(|held| held.workload == endpoint.workload);
                (!has_policy).then(|| Write::Endpoint(address, strictest(endpoint)))
            }
            write => Some(write),
        }
    }

    /// Writes a policy where the kernel side looks for it.
    fn put(&mut self, address: Address, endpoint: Endpoint) -> Result<(), MapsError> {
        match address.link_of() {
            Some(link) => self.links.insert(&link, &endpoint),
            None => self.endpoints.insert(&address, &endpoint),
        }
    }

    fn write(&mut self, write: &Write, change: &Change) -> Result<(), MapsError> {
        match *write {
            Write::Port(key, mode) => self.ports.insert(&key, &mode),
            Write::Exempt(address, kind) => self.exempt.insert(address, kind),
            Write::Unexempt(address) => self.exempt.remove(address),
            Write::RemoveEndpoint(address) => match address.link_of() {
                Some(link) => self.links.remove(&link),
                None => self.endpoints.remove(&address),
            },
            Write::Endpoint(address, endpoint) if change.fresh.contains(&address) => {
                let flags = endpoint.flags | endpoint_flags::LEARNING;
                self.put(address, Endpoint { flags, ..endpoint })
            }
            Write::Endpoint(address, endpoint) => self.put(address, endpoint),
        }
    }

    /// Enters what is open at a fresh endpoint and ends its learning.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    pub fn finish(
        &mut self,
        address: Address,
        sockets: Option<&PodSockets>,
        existing: ExistingFlows,
    ) -> Result<(), MapsError> {
        let Some(endpoint) = self.held.endpoints.get(&address).copied() else {
            return Ok(());
        };
        let own = |ends: &Ends| match (address.link_of(), Address::from(ends.0.ip())) {
            (Some(_), pod) => pod.is_link_local(),
            (None, pod) => pod == address,
        };
        let key = |ends: Ends| address.link_of().map_or_else(|| key(ends), |link| key_on_link(ends, link));
        for socket in sockets.iter().flat_map(|sockets| &sockets.established) {
            if HANDSHAKE_STATES.contains(&socket.state) {
                continue;
            }
            match sockets.map(|sockets| sockets.on_wire(socket)) {
                Some(OnWire::Inbound(all)) => {
                    for ends in all.into_iter().filter(own) {
                        self.enter_existing(&key(ends), &existing_flow(&endpoint, existing))?;
                    }
                }
                Some(OnWire::Outbound(ends)) if own(&ends) => {
                    self.outbound.insert(&key(ends), &Outbound { pod_isn: 0, fins: 0 })?;
                }
                _ => {}
            }
        }
        self.put(address, endpoint)
    }

    /// Enters a connection that was open before, where no other can push it out. What the kernel side has judged meanwhile stays
    /// as it is. Without room it goes where it can be pushed out.
    fn enter_existing(&mut self, key: &FlowKey, flow: &Flow) -> Result<(), MapsError> {
        // A refused one stays refused, whatever its socket still looks like.
        let stands = |flow: Flow| {
            flow.flags & flow_flags::ENDED == 0 || !matches!(flow.verdict, Verdict::ALLOW | Verdict::NONE)
        };
        let judged = self.transient.get(key)?.is_some_and(stands);
        if judged {
            return Ok(());
        }
        let protected = Flow { flags: flow.flags | flow_flags::PROTECTED, ..*flow };
        match self.flows.insert_new(key, &protected) {
            Err(error) if error.is_full() => self.transient.insert_new(key, flow).map(drop),
            result => result.map(drop),
        }
    }

    /// Moves allowed TLS and existing connections to where no other can push them out, as the kernel side does with new ones.
    /// Gives how many; those for which there is no room stay where they are.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn protect_judged(&mut self) -> Result<usize, MapsError> {
        let mut moved = 0;
        for (key, flow) in self.transient.entries()? {
            let judged = matches!(flow.state, FlowState::TLS | FlowState::EXISTING);
            let gone = flow.flags & (flow_flags::REOPENING | flow_flags::ENDED) != 0;
            if !judged || gone || flow.verdict != Verdict::ALLOW {
                continue;
            }
            let protected = Flow { flags: flow.flags | flow_flags::PROTECTED, ..flow };
            match self.flows.insert_new(&key, &protected) {
                Err(error) if error.is_full() => break,
                result => moved += usize::from(result?),
            }
        }
        Ok(moved)
    }

    /// Moves a connection to where others can push it out, when it is still the one that is meant. The pod's next packet brings
    /// it back. True when it was moved.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unprotect(&mut self, key: &FlowKey, is_meant: impl Fn(&Flow) -> bool) -> Result<bool, MapsError> {
        let Some(mut flow) = self.flows.get(key)?.filter(is_meant) else { return Ok(false) };
        flow.look_again();
        flow.flags &= !(flow_flags::PROTECTED | flow_flags::SETTLED);
        self.transient.insert(key, &flow)?;
        self.flows.remove(key)?;
        Ok(true)
    }

    /// Removes ports of generations that no packet can be using any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sweep(&mut self) -> Result<(), MapsError> {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.stale).into_iter().partition(|(when, _)| *when <= now);
        self.stale = later;
        let due: Vec<(Instant, Vec<PortKey>)> = due;
        for key in due.into_iter().flat_map(|(_, keys)| keys) {
            let used = self
                .held
                .endpoints
                .values()
                .any(|held| held.workload == key.workload && held.generation == key.generation);
            if !used {
                self.ports.remove(&key)?;
                self.held.ports.remove(&(key.workload, key.generation, key.port));
            }
        }
        Ok(())
    }

    /// Clients that said something that could become a TLS hello, and then nothing for longer than `budget_ns`. Each is told
    /// until [`Self::heard`] is called for it.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn silent(
        &mut self,
        now_ns: u64,
        budget_ns: u64,
    ) -> Result<Vec<(FlowKey, Pending, Flow)>, MapsError> {
        let mut silent = Vec::new();
        for (key, mut pending) in self.pending.entries()? {
            let flow = self.transient.get(&key)?.filter(Flow::is_incomplete);
            let Some(flow) = flow else {
                self.pending.remove(&key)?;
                continue;
            };
            if now_ns.saturating_sub(flow.phase_ns) > budget_ns {
                // What comes to a pod's own device past the host side need not have been sent to its address; what the agent
                // sends must.
                let link = PodLinkKey { pod: key.pod, client: key.client };
                let is_inside = |endpoint: &Endpoint| endpoint.flags & endpoint_flags::POD_SIDE != 0;
                if self.held.endpoints.get(&key.pod.listed()).is_some_and(is_inside)
                    && let Some(PodLink { macs }) = self.pod_links.get(&link)?
                {
                    pending.frame[..6].copy_from_slice(&macs[6..]);
                    pending.frame[6..12].copy_from_slice(&macs[..6]);
                }
                silent.push((key, pending, flow));
            }
        }
        Ok(silent)
    }

    /// Pods that packets reach past the hook on the host side of their interface. Evidence against those that are enforced at
    /// their own device, or are listed no more, is void and goes.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn bypassed(&mut self) -> Result<BTreeMap<Address, Bypassed>, MapsError> {
        let mut found = BTreeMap::new();
        for (address, evidence) in self.bypassed.entries()? {
            let endpoint = self.held.endpoints.get(&address.listed());
            if endpoint.is_some_and(|endpoint| endpoint.flags & endpoint_flags::POD_SIDE == 0) {
                found.insert(address, evidence);
            } else {
                self.bypassed.remove(&address)?;
            }
        }
        Ok(found)
    }

    /// The kernel side was made to judge a silent client for what it said so far.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn heard(&mut self, key: &FlowKey) -> Result<(), MapsError> {
        self.pending.remove(key)
    }

    /// Endpoints that an agent before this one left in learning.
    #[must_use]
    pub fn unfinished(&self) -> BTreeMap<Address, Endpoint> {
        let learning = |endpoint: &Endpoint| endpoint.flags & endpoint_flags::LEARNING != 0;
        self.held
            .endpoints
            .iter()
            .filter(|(_, endpoint)| learning(endpoint))
            .map(|(address, endpoint)| (*address, *endpoint))
            .collect()
    }
}

/// The endpoint without its ports: what has no readable port is held to STRICT where any of its ports is.
fn strictest(endpoint: Endpoint) -> Endpoint {
    let strict = endpoint.flags & endpoint_flags::ANY_STRICT != 0;
    Endpoint {
        mode: if strict { Mode::STRICT } else { endpoint.mode },
        flags: endpoint.flags & !endpoint_flags::HAS_PORTS,
        ..endpoint
    }
}

/// The same of a pod on this link.
pub(super) fn key_on_link(ends: Ends, link: u32) -> FlowKey {
    let key = key(ends);
    if key.pod.is_link_local() { FlowKey { pod: key.pod.on_link(link), ..key } } else { key }
}

/// The flow with these ends on the wire: the pod's, then the other's.
pub(super) fn key((pod, other): Ends) -> FlowKey {
    FlowKey {
        client: Address::from(other.ip()),
        pod: Address::from(pod.ip()),
        client_port: other.port(),
        pod_port: pod.port(),
    }
}

fn existing_flow(endpoint: &Endpoint, existing: ExistingFlows) -> Flow {
    Flow {
        opened_ns: 0,
        phase_ns: 0,
        bytes_to_pod: 0,
        bytes_from_pod: 0,
        packets_to_pod: 0,
        packets_from_pod: 0,
        client_start: 0,
        pod_start: 0,
        pod_ack: 0,
        workload: endpoint.workload,
        state: FlowState::EXISTING,
        fault: match existing {
            ExistingFlows::Allow => Reason::NONE,
            ExistingFlows::Reset => Reason::MIDSTREAM,
        },
        verdict: Verdict::NONE,
        reason: Reason::NONE,
        generation: endpoint.generation,
        client_prefix: [0; 6],
        client_mask: 0,
        pod_judged: 0,
        flags: 0,
        hello_sent: 0,
        hello_parts: 0,
        counted_class: 0,
    }
}
