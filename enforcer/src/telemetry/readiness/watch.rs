//! The agent's part: looks at what the policy loop publishes and at `CLIENTS` from time to time, and keeps the history.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use enforcer_common::map::port_flags;
use jiff::Timestamp;
use tracing::{debug, warn};

use super::clients::{Table, boot_id};
use super::history::{EXTENSION, History, Look, Observed, ObservedPod};
use super::{Governing, Posture};
use crate::agent::{monotonic_ns, state};
use crate::datapath::desired::EndpointPlan;
use crate::datapath::load::Pinned;
use crate::object::{ObjectName, Objects, Pod};
use crate::policy::compose::Level;
use crate::policy::membership::{Membership, Via, membership};
use crate::telemetry::hellos::Hellos;
use crate::telemetry::names::workload_name;
use crate::telemetry::{Shared, Snapshot};

/// How often the agent looks.
const EVERY: Duration = Duration::from_secs(5);
/// How often the history is written while no pod comes or goes and no client gets a name.
const WRITE_EVERY: Duration = Duration::from_secs(15);
/// What is written of the history in a second on average at most, bytes: a large one is written less often.
const WRITE_RATE: u64 = 256 * 1024;
/// How long after the first policy the places of the pods that were there are known.
const SETTLE: Duration = Duration::from_secs(2);

/// The history's file that belongs to a pin folder.
#[must_use]
pub fn path(state_dir: &Path, bpffs: &Path) -> PathBuf {
    state::path(state_dir, bpffs).with_extension(EXTENSION)
}

/// Reads a history; a missing one is the empty history.
///
/// # Errors
/// When it cannot be read or is not valid.
pub fn read(path: &Path) -> io::Result<History> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(History::default()),
        Err(error) => Err(error),
    }
}

/// Reads the history of this boot, for names and hellos: a missing, broken or older one says nothing.
#[must_use]
pub fn read_of_boot(path: &Path) -> History {
    read(path).ok().filter(|history| history.is_of(&boot_id())).unwrap_or_default()
}

/// Gives its size in bytes.
fn write(history: &History, path: &Path) -> io::Result<u64> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let new = path.with_extension("new");
    let bytes = serde_json::to_vec(history)?;
    fs::write(&new, &bytes)?;
    fs::rename(new, path)?;
    Ok(bytes.len() as u64)
}

/// The watch of a running agent.
struct Watch {
    shared: Arc<Shared>,
    bpffs: PathBuf,
    path: PathBuf,
    boot: String,
    history: History,
    /// There was a look: from then on a pod that is new has come under our eyes.
    begun: bool,
    /// What hellos said since the last look.
    hellos: Hellos,
    /// Name of this node.
    node: Option<String>,
    written: Option<Instant>,
    /// Size of what was written, bytes.
    size: u64,
    pods: BTreeSet<u32>,
    told: bool,
}

/// Watches for as long as the agent lives.
///
/// `node`: the name of this node, where it is known; pods that are on another one are not its to watch.
pub async fn run(shared: Arc<Shared>, bpffs: PathBuf, state_dir: PathBuf, node: Option<String>) {
    let path = path(&state_dir, &bpffs);
    let history = read(&path).unwrap_or_else(|error| {
        warn!("{}: {error}: readiness starts anew", path.display());
        History::default()
    });
    let mut watch = Watch {
        shared,
        bpffs,
        path,
        boot: boot_id(),
        history,
        begun: false,
        hellos: Hellos::default(),
        node,
        written: None,
        size: 0,
        pods: BTreeSet::new(),
        told: false,
    };
    // What is there already is behind its hooks a moment after the first policy; from then on what is new is new.
    while watch.shared.view().snapshot.state.policy_applied.is_none() {
        tokio::time::sleep(SETTLE / 4).await;
    }
    tokio::time::sleep(SETTLE).await;
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let looked = tokio::task::spawn_blocking(move || {
            watch.look();
            watch
        });
        match looked.await {
            Ok(back) => watch = back,
            Err(_) => return,
        }
    }
}

impl Watch {
    fn look(&mut self) {
        let view = self.shared.view();
        // Before the table: a connection is in it before its hello comes.
        self.hellos.extend(self.shared.hellos.take());
        let table = match Pinned::open(&self.bpffs).map_err(anyhow::Error::from).and_then(|p| Table::read(&p))
        {
            Ok(table) => table,
            Err(error) => {
                debug!("readiness: {error:#}");
                return;
            }
        };
        let mut observed = observe(&view.snapshot, self.node.as_deref());
        for client in &table.clients {
            if let Some(pod) = view.index.get(client.client) {
                observed.names.insert(client.client, format!("{}/{}", pod.namespace, pod.pod));
            } else if let Some(pod) = self.shared.remote.get(client.client, Instant::now()) {
                observed.names.insert(client.client, format!("{}/{}", pod.namespace, pod.pod));
            } else if view.snapshot.node_addresses.contains(&client.client) {
                observed.names.insert(client.client, "this node".to_owned());
            }
        }
        let look = Look {
            boot: &self.boot,
            now_ns: monotonic_ns(),
            wall: Timestamp::now(),
            first: !self.begun,
            crowded: table.is_crowded(),
        };
        let named = self.history.named();
        self.history.look(&look, &observed, &table.clients, &self.hellos);
        self.hellos.clear();
        let news = named != self.history.named();
        self.begun = true;
        let pods: BTreeSet<u32> = observed.pods.keys().copied().collect();
        let pause = if news || pods != self.pods { Duration::ZERO } else { WRITE_EVERY };
        let pause = pause.max(Duration::from_secs(self.size / WRITE_RATE));
        if self.written.is_none_or(|then| then.elapsed() >= pause) {
            self.pods = pods;
            self.save();
        }
    }

    fn save(&mut self) {
        self.written = Some(Instant::now());
        match write(&self.history, &self.path) {
            Ok(size) => (self.size, self.told) = (size, false),
            Err(error) if !self.told => {
                warn!(
                    "{} cannot be written ({error}): readiness forgets what was watched when the agent ends",
                    self.path.display()
                );
                self.told = true;
            }
            Err(_) => {}
        }
    }
}

/// What the policy loop published, as far as it matters here: the meshed pods of this node.
fn observe(snapshot: &Snapshot, node: Option<&str>) -> Observed {
    let Snapshot { objects, wanted, .. } = snapshot;
    let mut observed = Observed::default();
    let unhooked = unhooked(snapshot, node);
    for plan in wanted.endpoints.values().filter(|plan| plan.meshed) {
        let Some(pod) = objects.pods.get(&plan.pod) else { continue };
        if is_elsewhere(pod, plan, node) {
            continue;
        }
        let membership = membership(pod, objects.namespaces.get(&pod.name.namespace));
        observed.pods.insert(
            plan.workload,
            ObservedPod {
                namespace: pod.name.namespace.clone(),
                pod: pod.name.name.clone(),
                workload: workload_name(pod).to_owned(),
                labels: pod.labels.clone(),
                posture: posture(
                    plan,
                    pod.ports.iter().filter(|port| port.tcp).map(|port| port.port),
                    objects,
                ),
                unwatched: unhooked.get(&plan.workload).cloned(),
                data_plane: matches!(membership, Membership::Enforced { via: Via::Sidecar | Via::Ambient }),
                created: pod.created,
            },
        );
    }
    let namespaces: BTreeSet<&String> = observed.pods.values().map(|pod| &pod.namespace).collect();
    for name in objects.policies.keys().filter(|name| namespaces.contains(&name.namespace)) {
        observed.policies.entry(name.namespace.clone()).or_default().insert(name.name.clone());
    }
    observed
}

/// The pod runs on another node, as far as can be told: behind none of this node's interfaces, and under another node's name.
fn is_elsewhere(pod: &Pod, plan: &EndpointPlan, node: Option<&str>) -> bool {
    plan.ifindex == 0 && pod.node.as_deref().is_some_and(|name| node != Some(name))
}

/// Workload ids of the pods of this node that are not behind a hook with all their addresses, with the reason.
fn unhooked(snapshot: &Snapshot, node: Option<&str>) -> BTreeMap<u32, String> {
    let hooked: BTreeSet<u32> = snapshot.state.interfaces.iter().map(|interface| interface.index).collect();
    let past = |pod: &ObjectName| {
        let why =
            "its packets come past the hook on the host side of its interface: run with --attach auto or pod";
        snapshot.bypassed.contains(&pod.to_string()).then(|| why.to_owned())
    };
    let mut unhooked: BTreeMap<u32, String> = BTreeMap::new();
    let mut unplaced = BTreeMap::new();
    for (address, plan) in snapshot.wanted.endpoints.iter().filter(|(_, plan)| plan.meshed) {
        let Some(pod) = snapshot.objects.pods.get(&plan.pod) else { continue };
        // Behind several interfaces, which are hooked.
        if is_elsewhere(pod, plan, node) || snapshot.shared.contains(address) {
            continue;
        }
        if plan.ifindex == 0 {
            let why = format!("its address {address} is behind no interface that is hooked");
            unplaced.entry(plan.workload).or_insert(why);
        } else if !hooked.contains(&plan.ifindex) {
            let why = format!("its interface {} is not hooked", plan.ifindex);
            unhooked.insert(plan.workload, why);
        }
    }
    let plans = snapshot.wanted.endpoints.values();
    unhooked.extend(plans.filter_map(|plan| Some((plan.workload, past(&plan.pod)?))));
    // As for readiness of the agent: behind an interface whose other end cannot be looked at there is one of them.
    if unplaced.len() > hooked.difference(&snapshot.placed).count() {
        unhooked.extend(unplaced);
    }
    unhooked
}

fn posture(plan: &EndpointPlan, declared: impl Iterator<Item = u16>, objects: &Objects) -> Posture {
    let exempt = |flags: u8| flags & port_flags::EXEMPT != 0;
    let of_workload = plan
        .decided_by
        .iter()
        .find(|decision| matches!(decision.level, Level::Workload | Level::Port))
        .and_then(|decision| objects.policies.get(&decision.policy));
    Posture {
        mode: plan.mode.into(),
        ports: plan
            .ports
            .iter()
            .filter(|(_, port)| port.mode != plan.mode)
            .map(|(port, entry)| (*port, entry.mode.into()))
            .collect(),
        exempt: plan.ports.iter().filter(|(_, port)| exempt(port.flags)).map(|(port, _)| *port).collect(),
        declared: declared.collect(),
        governed_by: of_workload
            .filter(|policy| !policy.selector.is_empty())
            .map(|policy| Governing { policy: policy.name.name.clone(), selector: policy.selector.clone() }),
    }
}

#[cfg(test)]
mod tests;
