//! Flow records: what is told about a connection, once when its verdict falls and once when it ends.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::names::Identity;

/// A word that is mostly one of the program's own.
pub type Word = Cow<'static, str>;

/// One entry of the flow log.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Record {
    /// Its number: counts up by one from the agent's start, so that gaps show.
    pub id: u64,
    /// What it tells.
    #[serde(flatten)]
    pub line: Line,
}

/// What a record tells.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Line {
    /// A verdict fell.
    Verdict(Flow),
    /// A connection ended.
    End(Flow),
    /// Events are missing here.
    Suppressed(Suppressed),
}

/// What is missing here. The counters have every connection.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Suppressed {
    /// When this was seen.
    pub time: Timestamp,
    /// Verdicts and ends that the kernel side did not tell of because of the limit per second.
    pub suppressed: u64,
    /// Pieces of clients' hellos that it did not send because of it: records of their connections lack what the hello says.
    #[serde(default)]
    pub hellos_suppressed: u64,
    /// What found the ring buffer full: verdicts, ends or pieces of hellos.
    pub lost: u64,
    /// Records that were overwritten in the agent's log before this reader came to them.
    pub missed: u64,
}

/// One end of a connection, with the pod behind it where that is known.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The pod's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
    /// The pod's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Arc<str>>,
    /// The workload that the pod belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Arc<str>>,
    /// The address is one of this node's own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub node: bool,
}

/// What is known of a connection when its record is written.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Flow {
    /// When the verdict fell or the connection ended.
    pub time: Timestamp,
    /// Direction of the packet that decided: `to_pod` or `from_pod`; `unknown` where the kernel's table does not tell.
    pub direction: Word,
    /// Who opened the connection.
    pub client: Peer,
    /// The meshed pod.
    pub pod: Peer,
    /// `tls`, `mesh_tls`, `plaintext` or `unknown`. `mesh_tls`: the hello offers Istio's ALPN, or the port is 15008; `tls`: it does
    /// not, or was not read.
    pub class: Word,
    /// Guess at the protocol of plaintext, from its first bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Word>,
    /// Server name of the client's hello.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<Arc<str>>,
    /// Application protocols that the client's hello offers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alpn: Vec<Arc<str>>,
    /// TLS versions that the client's hello offers, such as `1.3`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls_versions: Vec<Word>,
    /// What was done.
    pub verdict: Word,
    /// Why.
    pub reason: Word,
    /// What can be done about a refusal.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub remedy: Word,
    /// Mode that the policy gives this port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Word>,
    /// The policy that decided: `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<str>>,
    /// At which level it decides: `mesh`, `namespace`, `workload` or `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Word>,
    /// Generation of the policy.
    pub generation: u16,
    /// Payload bytes towards the pod: at a verdict those let through so far, or those of the packet that decided where these are
    /// more; at the end all.
    pub bytes_to_pod: u64,
    /// Payload bytes from the pod.
    pub bytes_from_pod: u64,
    /// How long the connection was open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<f64>,
}

impl Peer {
    /// An end of which only the address is known.
    #[must_use]
    pub fn at(address: IpAddr, port: u16) -> Self {
        Self { address, port, namespace: None, pod: None, workload: None, node: false }
    }

    /// Names the pod behind it.
    pub fn name(&mut self, identity: &Identity) {
        self.namespace = Some(identity.namespace.clone());
        self.pod = Some(identity.pod.clone());
        self.workload = Some(identity.workload.clone());
    }

    /// `namespace/name` of the pod behind it.
    #[must_use]
    pub fn pod_name(&self) -> Option<String> {
        Some(format!("{}/{}", self.namespace.as_ref()?, self.pod.as_ref()?))
    }

    /// For people: pod and port, else address and port.
    #[must_use]
    pub fn label(&self) -> String {
        match self.pod_name() {
            Some(pod) => format!("{pod}:{}", self.port),
            None if self.node => format!("node {}", SocketAddr::new(self.address, self.port)),
            None => SocketAddr::new(self.address, self.port).to_string(),
        }
    }
}

impl Flow {
    /// The connection was refused, or would have been.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(&*self.verdict, "reset" | "drop" | "would_reset")
    }
}

impl Line {
    /// The connection that it tells of.
    #[must_use]
    pub fn flow(&self) -> Option<&Flow> {
        match self {
            Self::Verdict(flow) | Self::End(flow) => Some(flow),
            Self::Suppressed(_) => None,
        }
    }

    /// When it was.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        match self {
            Self::Verdict(flow) | Self::End(flow) => flow.time,
            Self::Suppressed(gap) => gap.time,
        }
    }
}
