//! Taking over what an agent with another layout has pinned.
//!
//! A map whose layout did not change is the same map: it gets a second pin, in the folder of this version, and the programs of
//! both versions work on it until the last interface has changed over. So no connection and no count falls between the two.

use std::io;
use std::os::fd::AsFd as _;

use aya::maps::MapData;

use super::pin::Pins;
use super::sys;

/// A map of an earlier layout that is a map of this one: its old name and its new one.
type Carry = (&'static str, &'static str);

/// Those of layout 1. Its `FLOWS` pushed old entries out, as `TRANSIENT` does now; judged connections are moved from there to
/// `FLOWS` once the new programs run. Events, settings and clients begin anew.
///
/// `ENDPOINTS` is last: once it is there, all are.
const FROM_1: &[Carry] = &[
    ("PORT_MODES", "PORT_MODES"),
    ("EXEMPT", "EXEMPT"),
    ("HALF_OPEN", "HALF_OPEN"),
    ("FLOWS", "TRANSIENT"),
    ("OUTBOUND", "OUTBOUND"),
    ("COUNTERS", "COUNTERS"),
    ("WORKLOAD_COUNTERS", "WORKLOAD_COUNTERS"),
    ("RESET_BUDGET", "RESET_BUDGET"),
    (ENDPOINTS, ENDPOINTS),
];
/// Those of layout 2. Settings, events with their budget and the resets of each client begin anew.
const FROM_2: &[Carry] = &[
    ("PORT_MODES", "PORT_MODES"),
    ("EXEMPT", "EXEMPT"),
    ("HALF_OPEN", "HALF_OPEN"),
    ("FLOWS", "FLOWS"),
    ("TRANSIENT", "TRANSIENT"),
    ("SOCKETS", "SOCKETS"),
    ("OUTBOUND", "OUTBOUND"),
    ("COUNTERS", "COUNTERS"),
    ("WORKLOAD_COUNTERS", "WORKLOAD_COUNTERS"),
    ("CLIENTS", "CLIENTS"),
    ("PENDING", "PENDING"),
    ("RESET_BUDGET", "RESET_BUDGET"),
    (ENDPOINTS, ENDPOINTS),
];
/// The newest first.
const LAYOUTS: [(u32, &[Carry]); 2] = [(2, FROM_2), (1, FROM_1)];
const ENDPOINTS: &str = "ENDPOINTS";
/// Where connections are known from.
const CONNECTIONS: [&str; 2] = ["TRANSIENT", "OUTBOUND"];

/// What was taken over.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// Maps, by their name in this layout.
    pub maps: Vec<&'static str>,
    /// What an operator should know, one sentence each.
    pub warnings: Vec<String>,
}

/// Pins the maps of the newest earlier layout for this version, where it has none of its own yet.
pub(super) fn carry(pins: &Pins, object: &aya_obj::Object) -> io::Result<Carried> {
    let mut carried = Carried::default();
    if sys::open(&pins.maps().join(ENDPOINTS)).is_ok() {
        return Ok(carried);
    }
    let folder = |layout: u32| pins.dir().join(format!("v{layout}/maps"));
    let Some((layout, maps)) = LAYOUTS.into_iter().find(|(layout, _)| folder(*layout).is_dir()) else {
        return Ok(carried);
    };
    let from = folder(layout);
    for &(old, new) in maps {
        // An endpoint that is there counts as one whose connections are known.
        if new == ENDPOINTS && !CONNECTIONS.iter().all(|name| carried.maps.contains(name)) {
            continue;
        }
        let Some(wanted) = object.maps.get(new) else { continue };
        let (from, to) = (from.join(old), pins.maps().join(new));
        let map = match sys::open(&from) {
            Ok(map) => map,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        if !fits(map.try_clone()?, wanted) {
            carried.warnings.push(format!(
                "{} has not the shape that layout {layout} gave it: {new} begins empty; connections that are open are found \
                 again as existing ones",
                from.display()
            ));
            continue;
        }
        match sys::pin(map.as_fd(), &to) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => carried.maps.push(new),
        }
    }
    Ok(carried)
}

fn fits(map: std::os::fd::OwnedFd, wanted: &aya_obj::Map) -> bool {
    let Ok(info) = MapData::from_fd(map).and_then(|data| data.info()) else { return false };
    info.map_type().is_ok_and(|kind| kind as u32 == wanted.map_type())
        && info.key_size() == wanted.key_size()
        && info.value_size() == wanted.value_size()
        && info.map_flags() == wanted.map_flags()
}
