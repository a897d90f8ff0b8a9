//! The lab and what runs in it: network namespaces with real clients and real servers, the agent under test, and
//! what the end-to-end suites, the demo and the benches need to drive them.
//!
//! - [`lab`]: the namespaces, their network, processes in them, certificates, manifests.
//! - [`agent`]: the agent under test: start, kill, what it reports.
//! - [`cluster`]: a real Kubernetes API server for a lab.
//! - [`client`]: sockets opened inside a namespace, and how they end.
//! - [`raw`]: a client that writes its own packets.
//! - [`flood`]: SYNs from addresses that nobody has.
//! - [`load`]: steady load while something happens to the agent.
//! - [`server`]: the servers of the pods; the binary `lab-server` runs them.
//! - [`node`]: a real node: kubelet, containerd, pods, the chart.
//! - [`neighbour`]: programs of somebody else on the same hooks.
//! - [`tls_server`]: servers of other makers that speak TLS: nginx, openssl, stunnel, Envoy.
//! - [`record`]: what the servers write down about each connection, and waiting for it.
//! - [`soak`]: the long run.
//! - [`watch`]: a witness beside the agent.
//!
//! Nothing here sleeps for a guessed time: [`poll`] waits for a condition until a deadline.

pub mod agent;
pub mod client;
pub mod cluster;
pub mod flood;
pub mod lab;
pub mod load;
pub mod neighbour;
pub mod node;
pub mod poll;
pub mod raw;
pub mod record;
pub mod server;
pub mod soak;
pub mod tls_server;
pub mod watch;

pub use agent::Scene;
pub use lab::{Lab, Pod, Topology};
