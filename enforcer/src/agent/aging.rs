//! Connections that are over without anybody having seen their end: their places in `FLOWS` are freed.
//!
//! The kernel side sees an end by the socket's close or by the packets of both ends. Where it cannot watch sockets, or packets
//! were lost between socket and interface, an entry would stay for good. So from time to time the untagged entries are held
//! against the pods' socket tables, on a thread of its own. What has no socket twice in a row and carried nothing meanwhile
//! moves to `TRANSIENT`; should it live all the same (a pod with a TCP stack of its own), the pod's next packet brings it back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use enforcer_common::Address;
use enforcer_common::map::{Flow, FlowKey, flow_flags};
use tracing::{info, warn};

use super::Agent;
use super::tables::key_on_link;
use crate::datapath::Interface;
use crate::datapath::load::Pinned;
use crate::datapath::maps::Flows;
use crate::datapath::netns::Namespaces;
use crate::datapath::pod_side::PodDevice;
use crate::datapath::sockdiag::OnWire;

/// How often is looked, at most.
const EVERY: Duration = Duration::from_secs(20);
/// Looking may take this part of the time.
const PART: u32 = 50;

/// A flow in an order: its addresses and ports.
type Ordered = ([u8; 16], [u8; 16], u16, u16);

fn ordered(key: &FlowKey) -> Ordered {
    (key.client.bytes, key.pod.bytes, key.client_port, key.pod_port)
}

/// What changes when a connection goes on, or another one takes its tuple.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    pod_start: u32,
    packets: u64,
}

impl Mark {
    pub(super) fn of(flow: &Flow) -> Self {
        Self { pod_start: flow.pod_start, packets: flow.packets_to_pod.wrapping_add(flow.packets_from_pod) }
    }
}

/// Connections without a socket.
type Suspects = BTreeMap<Ordered, (FlowKey, Mark)>;

/// Where the last look stands.
#[derive(Debug, Default)]
pub(super) struct Aging {
    due: Option<Instant>,
    running: Option<(Instant, Receiver<anyhow::Result<Suspects>>)>,
    suspects: Suspects,
}

/// What a look needs to know.
struct Look {
    bpffs: PathBuf,
    /// Closes of tagged sockets are seen.
    tags_count: bool,
    /// Hooked interfaces, with what was seen behind them and the link that link-local addresses there are on.
    interfaces: Vec<(Interface, BTreeSet<IpAddr>, u32)>,
    endpoints: BTreeSet<Address>,
}

impl Agent {
    /// To be called with every tick.
    pub(super) fn age_flows(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let Some((begun, running)) = &self.aging.running else {
            if self.aging.due.is_some_and(|due| now < due) {
                return Ok(());
            }
            let look = self.look_at_flows();
            let (tell, told) = channel();
            std::thread::Builder::new().name("flows".into()).spawn(move || {
                // Nobody waits any more when the agent ends meanwhile.
                let _ = tell.send(look.suspects());
            })?;
            self.aging.running = Some((now, told));
            return Ok(());
        };
        let found = match running.try_recv() {
            Ok(found) => found,
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => Err(anyhow::anyhow!("the thread died")),
        };
        self.aging.due = Some(now + EVERY.max((now - *begun) * PART));
        self.aging.running = None;
        let found = found.unwrap_or_else(|error| {
            warn!("connections whose end was not seen cannot be looked for: {error:#}");
            Suspects::new()
        });
        let mut moved = 0;
        for (key, mark) in twice(&self.aging.suspects, &found) {
            moved += usize::from(self.tables.unprotect(&key, |flow| Mark::of(flow) == mark)?);
        }
        if moved > 0 {
            info!(connections = moved, "connections without a socket have given up their place in FLOWS");
        }
        self.aging.suspects = found;
        Ok(())
    }

    fn look_at_flows(&self) -> Look {
        let interfaces = self.attachments.values().map(|attachment| {
            let interface = attachment.interface.clone();
            let addresses = self.facts.places.behind(interface.index);
            let link = attachment.device.as_ref().map_or(interface.index, PodDevice::stamp);
            (interface, addresses, link)
        });
        Look {
            bpffs: self.config.open.bpffs.clone(),
            tags_count: self.sockets_problem.is_none(),
            interfaces: interfaces.collect(),
            endpoints: self.tables.held().endpoints.keys().copied().collect(),
        }
    }
}

/// What was found both times without having carried anything between.
fn twice(before: &Suspects, now: &Suspects) -> Vec<(FlowKey, Mark)> {
    now.iter().filter(|(key, found)| before.get(*key) == Some(*found)).map(|(_, found)| *found).collect()
}

impl Look {
    fn suspects(&self) -> anyhow::Result<Suspects> {
        let mut suspects = open_flows(&self.bpffs, self.tags_count)?;
        if suspects.is_empty() {
            return Ok(suspects);
        }
        // After the flows: each of them had its socket by then, if it has one.
        let pods: BTreeSet<Address> = suspects.values().map(|(key, _)| key.pod.listed()).collect();
        let namespaces = Namespaces::scan()?;
        let (mut seen, mut live) = (BTreeSet::new(), BTreeSet::new());
        for (interface, addresses, link) in &self.interfaces {
            let addresses = addresses.iter().map(|address| Address::from(*address));
            let addresses: BTreeSet<Address> = addresses.chain([Address::link(*link)]).collect();
            if addresses.is_disjoint(&pods) {
                continue;
            }
            let Ok(pod) = namespaces.inspect(interface) else { continue };
            seen.extend(addresses);
            for socket in pod.sockets.established.iter().chain(&pod.sockets.time_wait) {
                if let OnWire::Inbound(all) = pod.sockets.on_wire(socket) {
                    live.extend(all.into_iter().map(|ends| ordered(&key_on_link(ends, *link))));
                }
            }
        }
        // Nothing is said of pods that cannot be looked into.
        let is_known = |pod: Address| seen.contains(&pod) || !self.endpoints.contains(&pod);
        suspects.retain(|at, (key, _)| is_known(key.pod.listed()) && !live.contains(at));
        Ok(suspects)
    }
}

/// The protected connections whose close is not told by their sockets.
fn open_flows(bpffs: &Path, tags_count: bool) -> anyhow::Result<Suspects> {
    let flows = Flows::new("FLOWS", Pinned::open(bpffs)?.map("FLOWS")?)?;
    let all = flows.entries()?.into_iter();
    let open = all.filter(|(_, flow)| !(tags_count && flow.flags & flow_flags::TAGGED != 0));
    Ok(open.map(|(key, flow)| (ordered(&key), (key, Mark::of(&flow)))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stood_still_without_a_socket_twice_is_over() {
        let key = |port| FlowKey {
            client: Address::from_v4([10, 0, 0, 9]),
            pod: Address::from_v4([10, 0, 0, 5]),
            client_port: port,
            pod_port: 8080,
        };
        let at = |port, packets| (ordered(&key(port)), (key(port), Mark { pod_start: 1, packets }));
        let before = Suspects::from([at(1, 10), at(2, 10), at(3, 10)]);
        let now = Suspects::from([at(1, 10), at(2, 11), at(4, 10)]);
        assert_eq!(twice(&before, &now), [(key(1), Mark { pod_start: 1, packets: 10 })]);
        let again = (key(1), Mark { pod_start: 2, packets: 10 });
        assert_eq!(twice(&before, &Suspects::from([(ordered(&key(1)), again)])), []);
    }
}
