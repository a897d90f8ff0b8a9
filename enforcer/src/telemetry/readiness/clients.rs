//! The pinned map `CLIENTS`, as readiness reads it.

use std::fs;
use std::net::IpAddr;

use enforcer_common::map::{Client, ClientKey, TrafficClass};

use super::Class;
use super::history::Seen;
use crate::datapath::load::Pinned;
use crate::datapath::maps::Clients;

/// The map's content, and its capacity.
#[derive(Debug)]
pub struct Table {
    /// The entries.
    pub clients: Vec<Seen>,
    /// How many there can be.
    pub capacity: u32,
}

impl Table {
    /// Reads it.
    ///
    /// # Errors
    /// When it is not there or holds something else.
    pub fn read(pinned: &Pinned) -> anyhow::Result<Self> {
        let map = pinned.map("CLIENTS")?;
        let capacity = match &map {
            aya::maps::Map::LruHashMap(data) | aya::maps::Map::HashMap(data) => data.info()?.max_entries(),
            _ => u32::MAX,
        };
        let entries = Clients::new("CLIENTS", map)?.entries()?;
        Ok(Self { clients: entries.iter().filter_map(|(key, value)| seen(key, value)).collect(), capacity })
    }

    /// So full that the kernel may have pushed entries out: it keeps some room per CPU.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.clients.len() >= usize::try_from(self.capacity).unwrap_or(usize::MAX) / 10 * 9
    }
}

fn seen(key: &ClientKey, value: &Client) -> Option<Seen> {
    Some(Seen {
        workload: key.workload,
        port: key.port,
        class: match key.class {
            TrafficClass::PLAINTEXT => Class::Plaintext,
            TrafficClass::TLS => Class::Tls,
            TrafficClass::MESH_TLS => Class::MeshTls,
            TrafficClass::EXISTING => Class::Existing,
            TrafficClass::UNKNOWN => return None,
        },
        client: IpAddr::from(key.client),
        connections: value.connections,
        first_ns: value.first_ns,
        last_ns: value.last_ns,
        verdict: value.verdict,
        reason: value.reason,
    })
}

/// The kernel's boot id; empty where there is none.
#[must_use]
pub fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}
