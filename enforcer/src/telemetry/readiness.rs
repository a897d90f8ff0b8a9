//! Readiness: who would break if a workload turned STRICT? What each node saw of its pods' clients, how long and how
//! completely it watched, and what follows from that. Pure but for [`watch`], the agent's part, and [`clients`], its eyes.
//!
//! The data of nodes merge as a set with one entry per node, the newest: in any order, any grouping, and twice is once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub mod clients;
pub mod history;
pub mod judge;
pub mod manifest;
pub mod spans;
pub mod watch;

use self::spans::Spans;

/// Labels.
pub type Labels = BTreeMap<String, String>;

/// What one node knows.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeData {
    /// When this was read.
    pub time: Timestamp,
    /// The node's name.
    pub node: String,
    /// Up to when its pods were watched; absent when they never were.
    pub looked: Option<Timestamp>,
    /// They are watched at this moment: an agent lives and looks.
    pub watching: bool,
    /// False in audit mode: STRICT is not carried out yet.
    pub enforcing: bool,
    /// What a reader should know of how it was watched, one sentence each.
    pub notes: Vec<String>,
    /// Its meshed pods, those that are gone included.
    pub pods: Vec<PodData>,
    /// Names of the policies in the pods' namespaces.
    pub policies: BTreeMap<String, BTreeSet<String>>,
}

/// A mode, by its word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// Only mutual TLS.
    Strict,
    /// TLS and plaintext.
    Permissive,
    /// Nothing is asked.
    Disable,
}

impl From<enforcer_common::Mode> for Mode {
    fn from(mode: enforcer_common::Mode) -> Self {
        match mode {
            enforcer_common::Mode::STRICT => Self::Strict,
            enforcer_common::Mode::PERMISSIVE => Self::Permissive,
            enforcer_common::Mode::DISABLE => Self::Disable,
        }
    }
}

/// A workload policy that governs a pod.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Governing {
    /// Its name, in the pod's namespace.
    pub policy: String,
    /// The labels that it selects.
    pub selector: Labels,
}

/// What is in force for a pod.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Posture {
    /// Mode of every port that is not listed.
    pub mode: Mode,
    /// Ports with a mode of their own.
    pub ports: BTreeMap<u16, Mode>,
    /// Ports that no mode reaches.
    pub exempt: BTreeSet<u16>,
    /// TCP ports that the pod declares.
    pub declared: BTreeSet<u16>,
    /// The workload policy, if one decided.
    pub governed_by: Option<Governing>,
}

/// One pod.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PodData {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// The workload that it belongs to.
    pub workload: String,
    /// Its labels.
    pub labels: Labels,
    /// It is there now.
    pub present: bool,
    /// Why its connections are not seen now, one sentence; absent when they are.
    pub unwatched: Option<String>,
    /// A sidecar or ambient holds it: under STRICT they refuse TLS without a certificate of the mesh.
    pub data_plane: bool,
    /// What is in force for it.
    pub posture: Posture,
    /// When its connections were seen.
    pub watched: Spans,
    /// When it may have had connections that were not seen.
    pub blind: Spans,
    /// Who talked to it.
    pub clients: Vec<ClientData>,
}

/// What a client speaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Anything but TLS.
    Plaintext,
    /// TLS; whether of the mesh, the hellos say.
    Tls,
    /// TLS to the mesh's tunnel port.
    MeshTls,
    /// Connections from before the pod was watched: not known.
    Existing,
}

impl Class {
    /// For people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Tls => "TLS",
            Self::MeshTls => "mesh TLS",
            Self::Existing => "existing",
        }
    }
}

/// Connections up to a moment, since the client was first seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Mark {
    /// The moment.
    pub time: Timestamp,
    /// Connections until then.
    pub connections: u64,
    /// Of these, as far as [`ClientData::mesh_hellos`] says.
    pub mesh_hellos: u64,
    /// Of these, as far as [`ClientData::other_hellos`] says.
    pub other_hellos: u64,
}

/// A client of one port, as far as it speaks one thing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ClientData {
    /// The pod's port.
    pub port: u16,
    /// What it speaks.
    pub class: Class,
    /// Its address.
    pub address: IpAddr,
    /// Who that is, where it is known: `namespace/name`.
    pub name: Option<String>,
    /// Its connections since `first`.
    pub connections: u64,
    /// Of these, TLS whose hello offered the mesh's ALPN.
    pub mesh_hellos: u64,
    /// Of these, TLS whose hello did not. The hellos of the rest were not read.
    pub other_hellos: u64,
    /// Its first connection.
    pub first: Timestamp,
    /// Its last connection.
    pub last: Timestamp,
    /// How many there were at earlier moments, the oldest first: from these the numbers of a window follow.
    pub marks: Vec<Mark>,
}

/// Connections of a client within a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counted {
    /// From when on they are counted: the last moment before the window of which the number is known, else the first
    /// connection.
    pub from: Timestamp,
    /// Connections.
    pub connections: u64,
    /// Of these, TLS of the mesh.
    pub mesh: u64,
    /// Of these, TLS whose hello was read and is not the mesh's.
    pub other: u64,
}

impl ClientData {
    /// What counts within a window that begins at `since`: never too few; more than there were by those between the last
    /// mark and the window's beginning.
    #[must_use]
    pub fn within(&self, since: Timestamp) -> Counted {
        let mark = self.marks.iter().rfind(|mark| mark.time <= since);
        let before = mark.map_or((0, 0, 0), |mark| (mark.connections, mark.mesh_hellos, mark.other_hellos));
        let connections = self.connections.saturating_sub(before.0);
        let mesh = match self.class {
            Class::MeshTls => connections,
            _ => self.mesh_hellos.saturating_sub(before.1).min(connections),
        };
        let other = self.other_hellos.saturating_sub(before.2).min(connections - mesh);
        Counted { from: mark.map_or(self.first, |mark| mark.time), connections, mesh, other }
    }
}

/// A node of which nothing is known.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Absent {
    /// Its name.
    pub node: String,
    /// Why, one sentence.
    pub why: String,
    /// The workloads (`namespace/name`) that have pods there; absent when that is not known: it may be any.
    pub workloads: Option<BTreeSet<String>>,
}

/// The data of several nodes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Nodes {
    known: BTreeMap<String, NodeData>,
    absent: BTreeMap<String, Absent>,
}

impl Nodes {
    /// Adds a node; of two readings of one node the later one stays.
    pub fn add(&mut self, data: NodeData) {
        match self.known.get_mut(&data.node) {
            // Ordered by time first, then by all the rest: the choice does not depend on who came first.
            Some(held) if *held >= data => {}
            Some(held) => *held = data,
            None => {
                self.known.insert(data.node.clone(), data);
            }
        }
    }

    /// Adds a node of which nothing is known; data of it make it known.
    pub fn add_absent(&mut self, absent: Absent) {
        match self.absent.get_mut(&absent.node) {
            Some(held) if *held >= absent => {}
            Some(held) => *held = absent,
            None => drop(self.absent.insert(absent.node.clone(), absent)),
        }
    }

    /// All that either knows.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        for data in other.known.into_values() {
            self.add(data);
        }
        for absent in other.absent.into_values() {
            self.add_absent(absent);
        }
        self
    }

    /// The nodes of which nothing is known, by name.
    pub fn absent(&self) -> impl Iterator<Item = &Absent> {
        self.absent.values().filter(|absent| !self.known.contains_key(&absent.node))
    }

    /// The nodes, by name.
    pub fn iter(&self) -> impl Iterator<Item = &NodeData> {
        self.known.values()
    }

    /// Gives names to clients that have none.
    pub fn name(&mut self, name: impl Fn(IpAddr) -> Option<String>) {
        let pods = self.known.values_mut().flat_map(|node| &mut node.pods);
        for client in pods.flat_map(|pod| &mut pod.clients).filter(|client| client.name.is_none()) {
            client.name = name(client.address);
        }
    }
}

impl From<NodeData> for Nodes {
    fn from(data: NodeData) -> Self {
        let mut nodes = Self::default();
        nodes.add(data);
        nodes
    }
}

impl FromIterator<NodeData> for Nodes {
    fn from_iter<I: IntoIterator<Item = NodeData>>(all: I) -> Self {
        let mut nodes = Self::default();
        all.into_iter().for_each(|data| nodes.add(data));
        nodes
    }
}

#[cfg(test)]
mod tests;
