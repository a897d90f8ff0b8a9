//! A client that writes its own packets against a pod under STRICT: what no honest stack would send.
//!
//! Each case looks at the pod's socket (the bytes that it read, how it ended), at what came back to the client, and at the
//! node's counters. The list of cases with their outcomes is in `docs/threat-model.md`.

#[path = "evasion/alive.rs"]
mod alive;
#[path = "evasion/arena.rs"]
mod arena;
#[path = "evasion/copies.rs"]
mod copies;
#[path = "evasion/discarded.rs"]
mod discarded;
#[path = "evasion/fragments.rs"]
mod fragments;
#[path = "evasion/headers.rs"]
mod headers;
#[path = "evasion/inside.rs"]
mod inside;
#[path = "evasion/large.rs"]
mod large;
#[path = "evasion/multipath.rs"]
mod multipath;
#[path = "evasion/order.rs"]
mod order;
#[path = "evasion/reuse.rs"]
mod reuse;
#[path = "evasion/server.rs"]
mod server;
#[path = "evasion/tags.rs"]
mod tags;
