//! Taking over the maps of an earlier layout. A map whose entries are still what they were is pinned a second time, under
//! the new layout: the programs before and behind an upgrade work on the same entries, so there is no moment without
//! policy and no flow is forgotten. Others start empty, and that is said.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::MapData;
use enforcer_common::map::LAYOUT_VERSION;

use super::load::{OpenError, pin_error};
use super::pin::Pins;
use super::sys;

/// Maps by the first layout whose entries this version reads as they are. To be raised with every change of an entry
/// that is more than a new meaning for bytes that were zero. What is not listed is not worth keeping: the agent writes
/// it anew at its start.
const SINCE: [(&str, u32); 9] = [
    ("FLOWS", 1),
    ("HALF_OPEN", 1),
    ("OUTBOUND", 1),
    ("COUNTERS", 1),
    ("WORKLOAD_COUNTERS", 1),
    ("CLIENTS", 2),
    ("PORT_MODES", 1),
    ("EXEMPT", 1),
    (ENDPOINTS, 1),
];
/// Comes last. An endpoint that is there counts as one whose connections are known.
const ENDPOINTS: &str = "ENDPOINTS";
/// Where connections are known from.
const CONNECTIONS: [&str; 2] = ["FLOWS", "OUTBOUND"];

/// Takes over all that can be. `maps`: what this version would make.
pub(super) fn carry_all(
    pins: &Pins,
    maps: &HashMap<String, aya_obj::Map>,
    warnings: &mut Vec<String>,
) -> Result<(), OpenError> {
    for (name, since) in SINCE {
        let Some(map) = maps.get(name) else { continue };
        let known = CONNECTIONS.iter().all(|name| pins.maps().join(name).exists());
        if name != ENDPOINTS || known {
            carry(pins, name, since, map, warnings)?;
        }
    }
    Ok(())
}

/// Pins the map of the newest earlier layout that has it under this layout, unless there is one already.
fn carry(
    pins: &Pins,
    name: &str,
    since: u32,
    map: &aya_obj::Map,
    warnings: &mut Vec<String>,
) -> Result<(), OpenError> {
    let to = pins.maps().join(name);
    if to.exists() {
        return Ok(());
    }
    let Some((version, from)) = newest(pins, name)? else { return Ok(()) };
    let failed = |e| pin_error("take over", &from, e);
    let fd = sys::open(&from).map_err(failed)?;
    if version < since && name != ENDPOINTS && !CONNECTIONS.contains(&name) {
        // What is only counted is not worth a word.
        return Ok(());
    }
    let difference = if version < since {
        Some("entries with another meaning".to_owned())
    } else {
        difference(&fd, map, &from)?
    };
    match difference {
        None => sys::pin(fd.as_fd(), &to).map_err(failed)?,
        Some(difference) => warnings.push(format!(
            "{} has {difference}: {name} starts empty, and what is not known from elsewhere is collected anew; \
             connections that are open now are taken for existing ones",
            from.display()
        )),
    }
    Ok(())
}

/// The newest earlier layout that has this map.
fn newest(pins: &Pins, name: &str) -> Result<Option<(u32, PathBuf)>, OpenError> {
    let others = pins.other_versions().map_err(|e| pin_error("read", pins.dir(), e))?;
    let number = |path: &Path| path.file_name()?.to_str()?.strip_prefix('v')?.parse::<u32>().ok();
    let earlier = others.iter().filter_map(|path| Some((number(path)?, path.join("maps").join(name))));
    Ok(earlier.filter(|(version, path)| *version < LAYOUT_VERSION && path.exists()).max())
}

/// What an earlier map has that this version would make otherwise.
fn difference(fd: &OwnedFd, map: &aya_obj::Map, path: &Path) -> Result<Option<String>, OpenError> {
    let failed = |source| OpenError::Map { path: path.to_owned(), source };
    let copy = fd.try_clone().map_err(|e| pin_error("take over", path, e))?;
    let info = MapData::from_fd(copy).and_then(|data| data.info()).map_err(failed)?;
    let kind = info.map_type().map_err(failed)? as u32;
    let compared = [
        ("type", kind, map.map_type()),
        ("key size", info.key_size(), map.key_size()),
        ("value size", info.value_size(), map.value_size()),
        ("flags", info.map_flags(), map.map_flags()),
    ];
    let other = compared.into_iter().find(|(_, found, needed)| found != needed);
    Ok(other.map(|(property, found, needed)| format!("{property} {found} where this version needs {needed}")))
}
