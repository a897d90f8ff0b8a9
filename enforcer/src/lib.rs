//! The agent and the command line of enforcer, as a library with a short `main`.
//!
//! - [`agent`]: the loop that ties the parts together.
//! - [`object`]: the Kubernetes objects that the agent reads, reduced to what it needs.
//! - [`policy`]: `PeerAuthentication`: validation, composition, explanation. Pure, no I/O.
//! - [`source`]: where objects come from: manifest files, later the Kubernetes API.
//! - [`datapath`]: load, attach, pin, replace; desired state into maps; events out of the ring buffer.
//! - [`certificate`]: trust bundle, SPIFFE, checks of what a workload serves.
//! - [`telemetry`]: counters, flow log, readiness.
//! - [`cli`]: one file per subcommand.

pub mod agent;
pub mod certificate;
pub mod cli;
pub mod datapath;
pub mod object;
pub mod policy;
pub mod source;
pub mod telemetry;
