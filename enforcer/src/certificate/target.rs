//! One endpoint and port that is checked, and the names by which it is asked for. Pure.

use std::net::IpAddr;

use rustls_pki_types::DnsName;

use super::spiffe::Expected;
use crate::object::ObjectName;

/// The cluster's DNS domain, unless it is told another one.
pub const DEFAULT_CLUSTER_DOMAIN: &str = "cluster.local";

/// One endpoint and port that speaks for itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// The pod.
    pub pod: ObjectName,
    /// Its uid: another pod may come with the same name and address. Empty in files without one.
    pub uid: String,
    /// Its address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The identity that it must have; see [`super::spiffe::TrustDomains::expected`].
    pub expected: Expected,
    /// The server name by which mesh clients ask for it; see [`istio_server_name`].
    pub server_name: Option<DnsName<'static>>,
    /// Names of its Services by which other clients may ask for it; see [`service_names`].
    pub names: Vec<DnsName<'static>>,
    /// It is the end of ambient mode's tunnels (HBONE).
    pub tunnel: bool,
}

impl Target {
    /// It is the same server as before, whatever it is asked for by.
    #[must_use]
    pub fn is_same_server(&self, earlier: &Self) -> bool {
        (&self.pod, &self.uid, &self.expected) == (&earlier.pod, &earlier.uid, &earlier.expected)
    }
}

/// The server name that an Istio sidecar sends for a service,
/// `outbound_.<service port>_._.<service>.<namespace>.svc.<cluster domain>`; `None` when that is no possible name.
#[must_use]
pub fn istio_server_name(
    port: u16,
    service: &str,
    namespace: &str,
    cluster_domain: &str,
) -> Option<DnsName<'static>> {
    DnsName::try_from(format!("outbound_.{port}_._.{service}.{namespace}.svc.{cluster_domain}")).ok()
}

/// The names by which pods without a proxy ask for a Service: `SERVICE`, `SERVICE.NAMESPACE`, and the full one.
#[must_use]
pub fn service_names(service: &str, namespace: &str, cluster_domain: &str) -> Vec<DnsName<'static>> {
    let full = format!("{service}.{namespace}.svc.{cluster_domain}");
    [service.to_owned(), format!("{service}.{namespace}"), full]
        .into_iter()
        .filter_map(|name| DnsName::try_from(name).ok())
        .collect()
}
