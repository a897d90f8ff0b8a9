//! The pinned maps with their types. Entries cross as bytes and are checked when they are read: a value that somebody
//! else wrote is an error here, not undefined behaviour.

use std::marker::PhantomData;

use aya::maps::{
    Array, HashMap, IterableMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, lpm_trie::Key,
};
use bytemuck::{CheckedBitPattern, NoUninit};
use enforcer_common::Address;
use enforcer_common::map::{
    Bypassed, Client, ClientBudget, ClientKey, Counter, CounterKey, Endpoint, EventBudget, ExemptKind, Flow,
    FlowKey, HalfOpen, Outbound, Pending, PodLink, PodLinkKey, PortKey, PortMode, WorkloadCounterKey,
};
use enforcer_common::settings::Settings;
use thiserror::Error;

use super::batch;

/// Why a map could not be read or written.
#[derive(Debug, Error)]
pub enum MapsError {
    /// The kernel refused.
    #[error("map {map}: {source}")]
    Kernel {
        /// Name of the map.
        map: &'static str,
        /// The kernel's answer.
        source: MapError,
    },
    /// The kernel refused to show the entries.
    #[error("map {map} cannot be read: {source}")]
    Read {
        /// Name of the map.
        map: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// An entry holds bytes that are no value of its type.
    #[error(
        "map {map} holds an entry that is not valid: something other than this version wrote it; run enforcer detach and start again"
    )]
    Invalid {
        /// Name of the map.
        map: &'static str,
    },
    /// The object or the pin folder does not have the map.
    #[error("map {map} is missing")]
    Missing {
        /// Name of the map.
        map: &'static str,
    },
}

impl MapsError {
    /// True when the map takes no more entries.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Kernel { source, .. } if is_errno(source, libc::E2BIG))
    }
}

/// A type that is stored in maps.
pub trait Entry: NoUninit + CheckedBitPattern {}
impl<T: NoUninit + CheckedBitPattern> Entry for T {}

fn decode<T: Entry>(map: &'static str, bytes: &[u8]) -> Result<T, MapsError> {
    bytemuck::checked::try_pod_read_unaligned(bytes).map_err(|_| MapsError::Invalid { map })
}

fn encode<T: Entry, const N: usize>(value: &T) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(bytemuck::bytes_of(value));
    bytes
}

/// True when the kernel's answer is this error number.
fn is_errno(error: &MapError, errno: i32) -> bool {
    matches!(error, MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(errno))
}

/// Somebody else may have removed the entry; aya gives the plain `ENOENT` then, not `KeyNotFound`.
fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(error) if is_errno(&error, libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// A hash map with keys of `KN` bytes and values of `VN` bytes.
pub struct Table<K, V, const KN: usize, const VN: usize> {
    name: &'static str,
    map: HashMap<MapData, [u8; KN], [u8; VN]>,
    types: PhantomData<(K, V)>,
}

impl<K: Entry, V: Entry, const KN: usize, const VN: usize> Table<K, V, KN, VN> {
    const SIZES: () = assert!(size_of::<K>() == KN && size_of::<V>() == VN, "sizes of key and value");

    /// Takes a map as this table.
    ///
    /// # Errors
    /// When the map is of another kind or size.
    pub fn new(name: &'static str, map: Map) -> Result<Self, MapsError> {
        let () = Self::SIZES;
        let map = HashMap::try_from(map).map_err(|source| MapsError::Kernel { map: name, source })?;
        Ok(Self { name, map, types: PhantomData })
    }

    fn kernel(&self, source: MapError) -> MapsError {
        MapsError::Kernel { map: self.name, source }
    }

    /// The entry of a key.
    ///
    /// # Errors
    /// When the kernel refuses or the entry is not valid.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapsError> {
        match self.map.get(&encode(key), 0) {
            Ok(bytes) => decode(self.name, &bytes).map(Some),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(self.kernel(source)),
        }
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// When the kernel refuses, e.g. because the map is full.
    pub fn insert(&mut self, key: &K, value: &V) -> Result<(), MapsError> {
        let result = self.map.insert(encode::<K, KN>(key), encode::<V, VN>(value), 0);
        result.map_err(|source| MapsError::Kernel { map: self.name, source })
    }

    /// Writes an entry unless the key has one already, in one step; false when it has.
    ///
    /// # Errors
    /// When the kernel refuses, e.g. because the map is full.
    pub fn insert_new(&mut self, key: &K, value: &V) -> Result<bool, MapsError> {
        /// `BPF_NOEXIST`.
        const NO_EXIST: u64 = 1;
        match self.map.insert(encode::<K, KN>(key), encode::<V, VN>(value), NO_EXIST) {
            Err(error) if is_errno(&error, libc::EEXIST) => Ok(false),
            result => result.map(|()| true).map_err(|source| self.kernel(source)),
        }
    }

    /// Removes an entry; one that is not there is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&mut self, key: &K) -> Result<(), MapsError> {
        absent_is_fine(self.map.remove(&encode(key))).map_err(|source| self.kernel(source))
    }

    /// All entries; what goes away meanwhile is left out.
    ///
    /// # Errors
    /// When the kernel refuses or an entry is not valid.
    pub fn entries(&self) -> Result<Vec<(K, V)>, MapsError> {
        let mut entries = Vec::new();
        let mut invalid = None;
        let data = IterableMap::<[u8; KN], [u8; VN]>::map(&self.map);
        let scanned = batch::scan(data, |key, value| {
            match decode(self.name, key).and_then(|key| Ok((key, decode(self.name, value)?))) {
                Ok(entry) => entries.push(entry),
                Err(error) => invalid = Some(error),
            }
        });
        scanned.map_err(|source| MapsError::Read { map: self.name, source })?;
        invalid.map_or(Ok(entries), Err)
    }
}

/// `ENDPOINTS`.
pub type Endpoints = Table<Address, Endpoint, 16, 16>;
/// `LINKS`.
pub type Links = Table<u32, Endpoint, 4, 16>;
/// `PORT_MODES`.
pub type PortModes = Table<PortKey, PortMode, 8, 4>;
/// `FLOWS` or `TRANSIENT`.
pub type Flows = Table<FlowKey, Flow, 36, 96>;
/// `CLIENTS`.
pub type Clients = Table<ClientKey, Client, 28, 32>;
/// `HALF_OPEN`.
pub type HalfOpens = Table<FlowKey, HalfOpen, 36, 12>;
/// `BYPASSED`.
pub type BypassedPods = Table<Address, Bypassed, 16, 48>;
/// `OWN_PROBES`.
pub type OwnProbes = Table<FlowKey, u64, 36, 8>;
/// `PENDING`.
pub type Pendings = Table<FlowKey, Pending, 36, 32>;
/// `POD_LINKS`.
pub type PodLinks = Table<PodLinkKey, PodLink, 32, 12>;
/// `CLIENT_RESETS`.
pub type ClientResets = Table<Address, ClientBudget, 16, 24>;
/// `OUTBOUND` and `OUTBOUND_ENDED`.
pub type Outbounds = Table<FlowKey, Outbound, 36, 8>;

/// `COUNTERS` or `WORKLOAD_COUNTERS`: one value per CPU, summed when read.
pub struct CounterTable<K, const KN: usize> {
    name: &'static str,
    capacity: usize,
    map: PerCpuHashMap<MapData, [u8; KN], [u8; 24]>,
    types: PhantomData<K>,
}

/// `COUNTERS`.
pub type Counters = CounterTable<CounterKey, 12>;
/// `WORKLOAD_COUNTERS`.
pub type WorkloadCounters = CounterTable<WorkloadCounterKey, 16>;

impl<K: Entry, const KN: usize> CounterTable<K, KN> {
    /// Takes a map as this table.
    ///
    /// # Errors
    /// When the map is of another kind or size.
    pub fn new(name: &'static str, map: Map) -> Result<Self, MapsError> {
        let kernel = |source| MapsError::Kernel { map: name, source };
        let entries = match &map {
            Map::PerCpuHashMap(data) => data.info().map_err(kernel)?.max_entries(),
            _ => 0,
        };
        let map = PerCpuHashMap::try_from(map).map_err(kernel)?;
        Ok(Self { name, capacity: entries as usize, map, types: PhantomData })
    }

    /// All counters, summed over the CPUs.
    ///
    /// # Errors
    /// When the kernel refuses or an entry is not valid.
    pub fn totals(&self) -> Result<Vec<(K, Counter)>, MapsError> {
        let mut totals = Vec::new();
        let mut invalid = None;
        let data = IterableMap::<[u8; KN], _>::map(&self.map);
        let scanned = batch::scan(data, |key, values| match self.total(key, values) {
            Ok(total) => totals.push(total),
            Err(error) => invalid = Some(error),
        });
        scanned.map_err(|source| MapsError::Read { map: self.name, source })?;
        invalid.map_or(Ok(totals), Err)
    }

    /// One counter, summed over the CPUs.
    fn total(&self, key: &[u8], values: &[u8]) -> Result<(K, Counter), MapsError> {
        let mut sum = Counter { connections: 0, packets: 0, bytes: 0 };
        for value in values.chunks_exact(size_of::<Counter>()) {
            let value: Counter = decode(self.name, value)?;
            sum.connections += value.connections;
            sum.packets += value.packets;
            sum.bytes += value.bytes;
        }
        Ok((decode(self.name, key)?, sum))
    }

    /// How many counters the map can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Removes a counter; one that is not there is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&mut self, key: &K) -> Result<(), MapsError> {
        absent_is_fine(self.map.remove(&encode(key)))
            .map_err(|source| MapsError::Kernel { map: self.name, source })
    }
}

/// `EXEMPT`.
pub struct Exempt(LpmTrie<MapData, [u8; 16], [u8; 4]>);

impl Exempt {
    /// Takes a map as this table.
    ///
    /// # Errors
    /// When the map is of another kind or size.
    pub fn new(map: Map) -> Result<Self, MapsError> {
        LpmTrie::try_from(map).map(Self).map_err(|source| MapsError::Kernel { map: "EXEMPT", source })
    }

    /// All single addresses and what they exempt.
    ///
    /// # Errors
    /// When an entry is not valid.
    pub fn entries(&self) -> Result<Vec<(Address, ExemptKind)>, MapsError> {
        let mut entries = Vec::new();
        for key in self.0.keys().flatten() {
            if let Ok(value) = self.0.get(&key, 0) {
                entries.push((Address { bytes: key.data() }, decode("EXEMPT", &value)?));
            }
        }
        Ok(entries)
    }

    /// Exempts one address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn insert(&mut self, address: Address, kind: ExemptKind) -> Result<(), MapsError> {
        let result = self.0.insert(&Key::new(128, address.bytes), encode::<_, 4>(&kind), 0);
        result.map_err(|source| MapsError::Kernel { map: "EXEMPT", source })
    }

    /// Takes an address out; one that is not there is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&mut self, address: Address) -> Result<(), MapsError> {
        absent_is_fine(self.0.remove(&Key::new(128, address.bytes)))
            .map_err(|source| MapsError::Kernel { map: "EXEMPT", source })
    }
}

/// `SETTINGS`.
pub struct SettingsMap(Array<MapData, [u8; size_of::<Settings>()]>);

impl SettingsMap {
    /// Takes a map as this one.
    ///
    /// # Errors
    /// When the map is of another kind or size.
    pub fn new(map: Map) -> Result<Self, MapsError> {
        Array::try_from(map).map(Self).map_err(|source| MapsError::Kernel { map: "SETTINGS", source })
    }

    /// The settings in force.
    ///
    /// # Errors
    /// When the kernel refuses or they are not valid.
    pub fn get(&self) -> Result<Settings, MapsError> {
        let bytes = self.0.get(&0, 0).map_err(|source| MapsError::Kernel { map: "SETTINGS", source })?;
        decode("SETTINGS", &bytes)
    }

    /// Puts settings in force.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set(&mut self, settings: &Settings) -> Result<(), MapsError> {
        self.0
            .set(0, encode::<_, { size_of::<Settings>() }>(settings), 0)
            .map_err(|source| MapsError::Kernel { map: "SETTINGS", source })
    }
}

/// `EVENT_BUDGET`, summed over the CPUs.
///
/// # Errors
/// When the kernel refuses or an entry is not valid.
pub fn event_budget(map: Map) -> Result<EventBudget, MapsError> {
    let kernel = |source| MapsError::Kernel { map: "EVENT_BUDGET", source };
    let map: PerCpuArray<MapData, [u8; 48]> = PerCpuArray::try_from(map).map_err(kernel)?;
    let mut sum =
        EventBudget { window_ns: 0, sent: 0, hellos_sent: 0, suppressed: 0, hellos_suppressed: 0, lost: 0 };
    for value in map.get(&0, 0).map_err(kernel)?.iter() {
        let value: EventBudget = decode("EVENT_BUDGET", value)?;
        sum.sent += value.sent;
        sum.hellos_sent += value.hellos_sent;
        sum.suppressed += value.suppressed;
        sum.hellos_suppressed += value.hellos_suppressed;
        sum.lost += value.lost;
    }
    Ok(sum)
}
