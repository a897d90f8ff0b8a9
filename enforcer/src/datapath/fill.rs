//! How full the pinned maps are, and what they cost.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use aya::maps::{MapData, MapType};

use super::batch;
use super::load::{OpenError, Pinned};

/// Maps whose being full has consequences, with what these are. What is pushed out of other maps is told anew by the next
/// packet.
const LIMITED: [(&str, &str); 10] = [
    ("ENDPOINTS", "pods beyond it have no policy"),
    ("LINKS", "link-local addresses of pods beyond it have no policy"),
    ("PORT_MODES", "policies with ports beyond it are not put in force"),
    ("EXEMPT", "probes of sources beyond it are judged like any client"),
    ("FLOWS", "the pods' answers on TLS connections beyond it wait until there is room"),
    ("OUTBOUND", "the pods' own connections that are idle longest are forgotten, and reset under STRICT"),
    ("PENDING", "clients beyond it whose first bytes could be a hello wait until there is room"),
    ("WORKLOAD_COUNTERS", "what is counted beyond it is counted for the node only"),
    ("COUNTERS", "what is counted beyond it is lost"),
    ("CLIENTS", "clients are forgotten, and no workload is READY for what they may have spoken"),
];

/// A map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapFill {
    /// Its name.
    pub name: String,
    /// Entries now; `None` where that says nothing (arrays, the ring buffer) or cannot be told (what sockets carry).
    pub entries: Option<usize>,
    /// Entries at most; of the ring buffer: bytes; 0 without a bound.
    pub capacity: u32,
    /// Kernel memory, bytes.
    pub memory_bytes: u64,
}

impl MapFill {
    /// How full it is, in per cent.
    #[must_use]
    pub fn percent(&self) -> Option<usize> {
        percent(self.entries, self.capacity)
    }

    /// What a person should know: the map has consequences when it is full, and is nearly so. Nine tenths: time to act
    /// before anything is refused for it.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let (_, consequence) = LIMITED.iter().find(|(name, _)| *name == self.name)?;
        (self.percent()? >= 90).then(|| {
            format!(
                "map {} is nearly full, and {consequence}: run enforcer detach and start the agent with --map-size {}={}",
                self.name,
                self.name,
                self.capacity.saturating_mul(2)
            )
        })
    }
}

/// How full a map is, in per cent.
#[must_use]
pub fn percent(entries: Option<usize>, capacity: u32) -> Option<usize> {
    Some(entries? * 100 / usize::try_from(capacity.max(1)).unwrap_or(usize::MAX))
}

/// All pinned maps by name.
///
/// # Errors
/// When one cannot be read.
pub fn all(pinned: &Pinned) -> Result<Vec<MapFill>, OpenError> {
    let folder = pinned.pins().maps();
    let names =
        super::pin::names(&folder).map_err(|source| super::load::pin_error("read", &folder, source))?;
    let mut maps = Vec::new();
    for name in names {
        let path = folder.join(&name);
        let unreadable = |source| super::load::pin_error("read", &path, source);
        let data =
            MapData::from_pin(&path).map_err(|source| OpenError::Map { path: path.clone(), source })?;
        maps.push(fill(name, &data).map_err(unreadable)?);
    }
    maps.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(maps)
}

fn fill(name: String, data: &MapData) -> io::Result<MapFill> {
    let info = data.info().map_err(io::Error::other)?;
    let counted = matches!(
        info.map_type(),
        Ok(MapType::Hash | MapType::LruHash | MapType::PerCpuHash | MapType::LpmTrie)
    );
    Ok(MapFill {
        name,
        entries: if counted { Some(batch::count(data)?) } else { None },
        capacity: info.max_entries(),
        memory_bytes: memory_bytes(data.fd().as_fd()).unwrap_or(0),
    })
}

/// Kernel memory of a map, by `/proc/self/fdinfo`.
pub(super) fn memory_bytes(map: BorrowedFd<'_>) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(name: &str, entries: usize) -> MapFill {
        MapFill { name: name.into(), entries: Some(entries), capacity: 1000, memory_bytes: 0 }
    }

    #[test]
    fn a_map_with_consequences_is_told_of_at_nine_tenths() {
        assert_eq!(map("CLIENTS", 899).problem(), None);
        let problem = map("CLIENTS", 900).problem().expect("a problem");
        assert!(problem.contains("READY") && problem.contains("--map-size CLIENTS=2000"), "{problem}");
        // Pushed out of here is a connection of a pod's own, which nothing tells of again.
        assert!(map("OUTBOUND", 950).problem().is_some_and(|problem| problem.contains("reset under STRICT")));
        assert!(map("PENDING", 1000).problem().is_some_and(|problem| problem.contains("wait until")));
        // An LRU map that forgets what comes again is full most of the time.
        assert_eq!(map("HALF_OPEN", 1000).problem(), None);
        assert_eq!(MapFill { entries: None, ..map("FLOWS", 0) }.problem(), None);
    }
}
