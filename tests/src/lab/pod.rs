//! The pods of a lab: who they are, and the documents that say so.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A pod (or a client: a pod that serves nothing).
#[derive(Clone, Debug)]
pub struct Pod {
    /// Name, unique in the lab; also the name of its network namespace in the lab.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Labels.
    pub labels: Vec<(String, String)>,
    /// Annotations.
    pub annotations: Vec<(String, String)>,
    /// TCP ports that it declares.
    pub ports: Vec<u16>,
    /// Last number of both its addresses, 2 to 254.
    pub number: u8,
}

impl Pod {
    /// A pod that no mesh captures.
    #[must_use]
    pub fn new(namespace: &str, name: &str, number: u8) -> Self {
        let app = format!("{name}.{namespace}.svc.cluster.local");
        Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            service_account: name.to_owned(),
            labels: vec![("app".to_owned(), app)],
            annotations: Vec::new(),
            ports: Vec::new(),
            number,
        }
    }

    /// A pod with a sidecar.
    #[must_use]
    pub fn meshed(namespace: &str, name: &str, number: u8) -> Self {
        Self::new(namespace, name, number).label("security.istio.io/tlsMode", "istio")
    }

    /// True for a pod with a sidecar.
    #[must_use]
    pub fn is_meshed(&self) -> bool {
        self.labels.iter().any(|(key, value)| key == "security.istio.io/tlsMode" && value == "istio")
    }

    /// With one more label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// With one more annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    /// With one more declared port.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.ports.push(port);
        self
    }

    /// The cast of the walk-through.
    #[must_use]
    pub fn cast() -> Vec<Self> {
        vec![
            Self::meshed("hipstershopv1v2", "frontend", 10).port(8080),
            Self::meshed("hipstershopv1v2", "adservice", 11).port(9555),
            Self::meshed("hipstershopv1v2", "loadgenerator", 12),
            Self::new("noistio", "sleep", 20),
        ]
    }

    /// Its IPv4 address.
    #[must_use]
    pub const fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, 0, self.number)
    }

    /// Its IPv6 address; the last group reads like the last number of the IPv4 address.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        let [_, _, _, number] = self.v4().octets();
        let group = u16::from_str_radix(&number.to_string(), 16).unwrap_or_default();
        Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, group)
    }

    /// Both addresses, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4().into(), self.v6().into()]
    }

    /// The name under which the lab resolves it.
    #[must_use]
    pub fn host(&self) -> String {
        format!("{}.{}", self.name, self.namespace)
    }

    /// Name of its interface in the node's namespace.
    #[must_use]
    pub fn interface(&self) -> String {
        format!("veth-{}", self.name).chars().take(15).collect()
    }

    /// MAC address of its `eth0`.
    #[must_use]
    pub fn mac(&self) -> String {
        format!("02:00:00:00:00:{:02x}", self.number)
    }

    /// The SPIFFE identity of its service account.
    #[must_use]
    pub fn spiffe(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.namespace, self.service_account)
    }

    /// The pod as `kubectl get pod -o yaml` shows it, reduced to what says something.
    #[must_use]
    pub fn manifest(&self) -> String {
        let mut text = String::from("apiVersion: v1\nkind: Pod\nmetadata:\n");
        let _ = writeln!(text, "  name: {}\n  namespace: {}", self.name, self.namespace);
        for (title, entries) in [("labels", &self.labels), ("annotations", &self.annotations)] {
            if !entries.is_empty() {
                let _ = writeln!(text, "  {title}:");
            }
            for (key, value) in entries {
                let _ = writeln!(text, "    {key}: {value:?}");
            }
        }
        let _ = writeln!(text, "spec:\n  serviceAccountName: {}\n  containers:", self.service_account);
        let _ = writeln!(text, "    - name: app\n      image: app");
        if !self.ports.is_empty() {
            let _ = writeln!(text, "      ports:");
        }
        for port in &self.ports {
            let _ = writeln!(text, "        - containerPort: {port}");
        }
        let [v4, v6] = self.addresses();
        let _ = writeln!(
            text,
            "status:\n  phase: Running\n  podIP: {v4}\n  podIPs:\n    - ip: {v4}\n    - ip: {v6}"
        );
        text
    }
}
