//! Certificate checks: is the TLS that a workload serves really *mutual* TLS with the mesh's certificates?
//!
//! The kernel proves that a connection is TLS; only its server decides whether a client without a mesh
//! certificate is refused. So the agent asks the servers: it connects as a mesh client would, checks the chain
//! that is presented, and then tries clients that must be refused.
//!
//! - [`spiffe`]: workload identities. Pure.
//! - [`bundle`]: the mesh's trust anchors. Pure but for reading files.
//! - [`x509`]: what is printed of a certificate. Pure.
//! - [`verify`]: everything that is wrong with a presented chain. Pure.
//! - [`client`]: the agent's own mesh certificate.
//! - [`forbidden`]: the clients that a server must refuse.
//! - [`probe`]: one check of one server, bounded in time and bytes.
//! - [`target`]: one endpoint and port, and the names by which it is asked for. Pure.
//! - [`state`]: findings into one state, and its consequence. Pure.
//! - [`schedule`]: when which server is checked. Pure.
//! - [`checker`]: the task that runs checks and publishes their results.
//! - [`report`]: the published results and their file.

pub mod bundle;
pub mod checker;
pub mod client;
pub mod finding;
pub mod forbidden;
pub mod probe;
pub mod report;
pub mod schedule;
pub mod spiffe;
pub mod state;
pub mod target;
pub mod verify;
pub mod x509;
