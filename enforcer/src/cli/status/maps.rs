//! The maps: how full they are and what they cost.

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{Map, MapData};
use schemars::JsonSchema;
use serde::Serialize;

use crate::cli::node::Node;
use crate::datapath::maps::{
    Clients, Counters, Endpoints, Exempt, Flows, HalfOpens, Outbounds, PortModes, WorkloadCounters,
};

/// A map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub(super) struct MapRow {
    /// Its name.
    pub(super) name: &'static str,
    /// Entries now; absent for arrays and the ring buffer.
    pub(super) entries: Option<usize>,
    /// Entries at most; of the ring buffer: bytes.
    pub(super) capacity: u32,
    /// Kernel memory, bytes.
    pub(super) memory_bytes: u64,
}

impl MapRow {
    /// How full it is, in per cent.
    pub(super) fn fill(&self) -> Option<usize> {
        Some(self.entries? * 100 / usize::try_from(self.capacity.max(1)).unwrap_or(usize::MAX))
    }
}

const MAPS: [&str; 13] = [
    "ENDPOINTS",
    "PORT_MODES",
    "EXEMPT",
    "HALF_OPEN",
    "FLOWS",
    "OUTBOUND",
    "COUNTERS",
    "WORKLOAD_COUNTERS",
    "CLIENTS",
    "EVENTS",
    "SETTINGS",
    "RESET_BUDGET",
    "EVENT_BUDGET",
];

/// Reads them.
pub(super) fn maps(node: &Node) -> anyhow::Result<Vec<MapRow>> {
    let mut rows = Vec::new();
    for name in MAPS {
        let map = node.pinned.map(name)?;
        let (Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuHashMap(data)
        | Map::LpmTrie(data)
        | Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data)) = &map
        else {
            continue;
        };
        let (capacity, memory_bytes) = (data.info()?.max_entries(), memory(data).unwrap_or(0));
        rows.push(MapRow { name, entries: entries(name, map)?, capacity, memory_bytes });
    }
    Ok(rows)
}

/// How many entries a map has; `None` for arrays and the ring buffer.
fn entries(name: &'static str, map: Map) -> anyhow::Result<Option<usize>> {
    Ok(Some(match name {
        "ENDPOINTS" => Endpoints::new(name, map)?.len(),
        "PORT_MODES" => PortModes::new(name, map)?.len(),
        "EXEMPT" => Exempt::new(map)?.entries()?.len(),
        "HALF_OPEN" => HalfOpens::new(name, map)?.len(),
        "FLOWS" => Flows::new(name, map)?.len(),
        "OUTBOUND" => Outbounds::new(name, map)?.len(),
        "COUNTERS" => Counters::new(name, map)?.totals()?.len(),
        "CLIENTS" => Clients::new(name, map)?.len(),
        "WORKLOAD_COUNTERS" => WorkloadCounters::new(name, map)?.totals()?.len(),
        _ => return Ok(None),
    }))
}

/// Kernel memory of a map, by `/proc/self/fdinfo`.
fn memory(data: &MapData) -> Option<u64> {
    let fd = data.fd().as_fd().as_raw_fd();
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}
