//! The kernel side's other half: load, attach, pin, replace; what is on the node's interfaces and in its pods'
//! network namespaces.
//!
//! Everything that enforces is pinned in bpffs, so that it outlives the agent (see [`pin`] for the folder's form).

pub mod addresses;
pub mod apply;
pub mod attach;
pub mod batch;
pub mod bpffs;
pub mod chain;
pub mod conntrack;
pub mod desired;
pub mod detach;
pub mod fill;
pub mod interface;
pub mod kubelet;
pub mod load;
pub mod lock;
pub mod look;
pub mod maps;
pub mod memory;
pub mod netns;
pub mod nudge;
pub mod pin;
pub mod places;
pub mod pod_side;
pub mod sockdiag;
pub mod sockets;

mod clsact;
mod entry;
mod migrate;
mod netlink;
mod redirects;
mod sys;
mod tcx;
pub mod trial;

pub use attach::{Attachment, Hook, Side};
pub use interface::{Interface, InterfaceEvent, LinkWatch, Selector};
pub use load::{Datapath, OpenOptions, Pinned};
