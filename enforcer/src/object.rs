//! The Kubernetes objects that the agent reads, reduced to what it needs. Both sources, manifest files and the
//! API server, produce these; everything behind them is one code path.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use enforcer_common::Mode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

mod serial;

/// Labels or annotations.
pub type Map = BTreeMap<String, String>;

/// Namespace and name of an object; orders by namespace, then name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectName {
    /// From both parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where a document was read from, for messages.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Origin {
    /// The manifest file; `None` for the API server.
    pub file: Option<PathBuf>,
    /// Number of the document in the file, from 1; the items of a `List` count on with it.
    pub document: usize,
}

/// A `Namespace`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Namespace {
    /// The name.
    pub name: String,
    /// Its labels.
    pub labels: Map,
}

/// A container port that a pod declares.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ContainerPort {
    /// Its name, which Services and probes may refer to.
    pub name: Option<String>,
    /// Port number.
    pub port: u16,
    /// True for TCP (the default protocol).
    pub tcp: bool,
}

/// A `Pod`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// Its uid; empty in files without one.
    pub uid: String,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// Its labels.
    pub labels: Map,
    /// Its annotations.
    pub annotations: Map,
    /// All its addresses (`status.podIPs`, else `status.podIP`).
    pub addresses: Vec<IpAddr>,
    /// It lives in the node's network namespace.
    pub host_network: bool,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// `spec.serviceAccountName`, `default` when absent.
    pub service_account: String,
    /// Declared ports of all containers.
    pub ports: Vec<ContainerPort>,
    /// Ports that its probes and lifecycle hooks name (HTTP, TCP, gRPC), resolved to numbers.
    pub probe_ports: Vec<u16>,
    /// It ran to its end (`status.phase` Succeeded or Failed): its addresses are free again.
    pub finished: bool,
    /// It is being deleted (`metadata.deletionTimestamp`): it may run on until its grace period is over, and its
    /// addresses may be given away before the object is gone.
    pub deleting: bool,
    /// Counts up each time that addresses are seen at a pod for the first time: of two pods with one address, the one
    /// with the higher number has it now. 0 where no order is known, in files.
    pub claim: u64,
}

/// A `PeerAuthentication`, as the composition reads it. It passed validation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerAuthentication {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.creationTimestamp`; `None` (files only) orders before every instant.
    pub created: Option<Timestamp>,
    /// `metadata.labels`, for `istio.io/rev`.
    pub labels: Map,
    /// `spec.selector.matchLabels`; empty when the policy has no selector.
    pub selector: Map,
    /// `spec.mtls.mode`; `None` for absent and UNSET alike.
    #[serde(default, with = "serial::mode")]
    pub mode: Option<Mode>,
    /// `spec.portLevelMtls`; `None` for UNSET.
    #[serde(default, with = "serial::modes")]
    pub ports: BTreeMap<u16, Option<Mode>>,
    /// Where it was read from.
    pub origin: Origin,
}

/// A port of a `Service`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServicePort {
    /// Its name.
    pub name: Option<String>,
    /// The Service's port.
    pub port: u16,
    /// The port of the pods behind it.
    pub target: TargetPort,
}

/// `targetPort` of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TargetPort {
    /// A port number.
    Number(u16),
    /// The name of a container port.
    Name(String),
}

/// A `Service`, for warnings.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `spec.selector`.
    pub selector: Map,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
}

/// A `ConfigMap`, for the trust bundle.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ConfigMap {
    /// Namespace and name.
    pub name: ObjectName,
    /// `data`.
    pub data: Map,
}

/// A webhook or `APIService` that the API server calls without a mesh certificate, for warnings.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ApiServerClient {
    /// What it is, e.g. `ValidatingWebhookConfiguration istio-validator`.
    pub description: String,
    /// The Service it calls.
    pub service: ObjectName,
    /// The Service's port.
    pub port: u16,
}

/// Every object that is known at one moment. As JSON: a list of objects for each kind.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Objects {
    /// Namespaces by name.
    #[serde(with = "serial::list")]
    pub namespaces: BTreeMap<String, Namespace>,
    /// Pods.
    #[serde(with = "serial::list")]
    pub pods: BTreeMap<ObjectName, Pod>,
    /// Policies that passed validation.
    #[serde(with = "serial::list")]
    pub policies: BTreeMap<ObjectName, PeerAuthentication>,
    /// Services.
    #[serde(with = "serial::list")]
    pub services: BTreeMap<ObjectName, Service>,
    /// Config maps (the source keeps only those that are asked for).
    #[serde(with = "serial::list")]
    pub config_maps: BTreeMap<ObjectName, ConfigMap>,
    /// Webhooks and `APIService`s.
    pub api_server_clients: Vec<ApiServerClient>,
    /// The pods that workloads will have, by kind and name of the workload: for the checks of files, in no answer of the
    /// agent.
    #[serde(skip)]
    pub templates: BTreeMap<String, Pod>,
}
