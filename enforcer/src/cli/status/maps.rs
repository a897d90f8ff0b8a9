//! The maps: how full they are and what they cost.

use schemars::JsonSchema;
use serde::Serialize;

use crate::cli::node::Node;
use crate::datapath::fill::{self, MapFill};

/// A map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub(super) struct MapRow {
    /// Its name.
    pub(super) name: String,
    /// Entries now; absent for arrays, the ring buffer and what sockets carry.
    pub(super) entries: Option<usize>,
    /// Entries at most; of the ring buffer: bytes; 0 without a bound.
    pub(super) capacity: u32,
    /// Kernel memory, bytes.
    pub(super) memory_bytes: u64,
}

impl From<&MapFill> for MapRow {
    fn from(map: &MapFill) -> Self {
        let MapFill { name, entries, capacity, memory_bytes } = map.clone();
        Self { name, entries, capacity, memory_bytes }
    }
}

impl MapRow {
    /// How full it is, in per cent.
    pub(super) fn percent(&self) -> Option<usize> {
        fill::percent(self.entries, self.capacity)
    }
}

/// Reads them.
pub(super) fn maps(node: &Node) -> anyhow::Result<Vec<MapFill>> {
    Ok(fill::all(&node.pinned)?)
}
