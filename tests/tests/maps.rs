//! Reading maps as a whole: every way shows every entry once, and full tables do not hold a scrape up.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, MapType};
use enforcer::datapath::batch::{self, Reading};
use enforcer::telemetry::client;
use enforcer_tests::Scene;
use serde_json::Value;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_F_NO_PREALLOC: u32 = 1;

/// The beginning of what `BPF_MAP_CREATE` takes.
#[repr(C)]
#[derive(Default)]
struct Create {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Update {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> Result<i32> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of `attr`; pointers in it are to buffers that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    ensure!(result >= 0, std::io::Error::last_os_error());
    Ok(i32::try_from(result)?)
}

fn create(kind: MapType, key: u32, value: u32, entries: u32) -> Result<MapData> {
    let flags = if kind == MapType::LpmTrie { BPF_F_NO_PREALLOC } else { 0 };
    let fd = bpf(BPF_MAP_CREATE, &mut Create { kind: kind as u32, key, value, entries, flags })?;
    // SAFETY: the kernel has just handed out this descriptor, nobody else has it.
    Ok(MapData::from_fd(unsafe { OwnedFd::from_raw_fd(fd) })?)
}

fn update(map: &MapData, key: &[u8], value: &[u8]) -> Result<()> {
    let address = |bytes: &[u8]| bytes.as_ptr() as usize as u64;
    let map = u32::try_from(map.fd().as_fd().as_raw_fd())?;
    bpf(
        BPF_MAP_UPDATE_ELEM,
        &mut Update { map, key: address(key), value: address(value), ..Update::default() },
    )
    .map(drop)
}

type Entries = BTreeSet<(Vec<u8>, Vec<u8>)>;

fn shown(map: &MapData, reading: Option<Reading>) -> Result<Entries> {
    let (mut entries, mut twice) = (Entries::new(), 0);
    let each =
        |key: &[u8], value: &[u8]| twice += usize::from(!entries.insert((key.to_vec(), value.to_vec())));
    match reading {
        Some(reading) => batch::scan_by(map, reading, each)?,
        None => batch::scan(map, each)?,
    }
    ensure!(twice == 0, "{twice} entries were shown twice");
    Ok(entries)
}

#[test]
fn every_way_shows_every_entry_once() -> Result<()> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    let ways = [None, Some(Reading::Batches(4096)), Some(Reading::Batches(1)), Some(Reading::Single)];
    for (kind, size) in
        [(MapType::Hash, 5), (MapType::LruHash, 5), (MapType::PerCpuHash, 8), (MapType::LpmTrie, 5)]
    {
        let map = create(kind, 8, size, 20_000)?;
        for way in ways {
            ensure!(shown(&map, way)?.is_empty(), "{kind:?} by {way:?}: an empty map shows something");
        }
        let values = if kind == MapType::PerCpuHash { 8 * cpus } else { usize::try_from(size)? };
        let mut wanted = Entries::new();
        for number in 0..10_000_u32 {
            // The length of the prefix for the trie, then the number.
            let key = [32_u32.to_ne_bytes(), number.to_be_bytes()].concat();
            let value = vec![number.to_ne_bytes()[0]; values];
            update(&map, &key, &value)?;
            wanted.insert((key, value));
        }
        for way in ways {
            let found = shown(&map, way)?;
            ensure!(found == wanted, "{kind:?} by {way:?}: {} of {}", found.len(), wanted.len());
        }
        assert_eq!(batch::count(&map)?, 10_000, "{kind:?}");
    }
    Ok(())
}

/// Fills a pinned table with keys of no meaning.
fn fill(scene: &Scene, name: &str, most: u32) -> Result<usize> {
    let map = MapData::from_pin(scene.lab.map_path(name)?)?;
    let (key, value) = (map.info()?.key_size(), map.info()?.value_size());
    let value = vec![0_u8; usize::try_from(value)?];
    for number in 0..most {
        let mut key = vec![0_u8; usize::try_from(key)?];
        // In the address of the client, and of a class that is none: nobody takes it for something.
        key[8..12].copy_from_slice(&number.to_ne_bytes());
        if update(&map, &key, &value).is_err() {
            break;
        }
    }
    batch::count(&map).context("it cannot be counted")
}

#[test]
fn full_tables_do_not_hold_a_scrape_up() -> Result<()> {
    let scene = Scene::strict()?;
    let socket = scene.lab.socket();
    let scrape = || -> Result<(Duration, String)> {
        let begun = Instant::now();
        let body = client::get(&socket, "/metrics")?;
        Ok((begun.elapsed(), body))
    };
    let (empty, _) = scrape()?;
    let mut entries = 0;
    for (name, most) in [
        ("FLOWS", 262_144),
        ("TRANSIENT", 131_072),
        ("OUTBOUND", 131_072),
        ("HALF_OPEN", 65_536),
        ("CLIENT_RESETS", 16_384),
    ] {
        entries += fill(&scene, name, most)?;
    }
    let (full, body) = scrape()?;
    println!("a scrape takes {empty:?} with empty tables and {full:?} with {entries} entries");
    assert!(body.contains("enforcer_flows 262144"), "{body}");
    assert!(entries > 500_000, "{entries}");
    // Entry by entry this is more than a million calls.
    assert!(full < Duration::from_secs(5), "{full:?}");
    let flows = MapData::from_pin(scene.lab.map_path("FLOWS")?)?;
    let begun = Instant::now();
    assert_eq!(batch::count(&flows)?, 262_144);
    let batches = begun.elapsed();
    batch::scan_by(&flows, Reading::Single, |_, _| ())?;
    let single = begun.elapsed().saturating_sub(batches);
    println!("FLOWS is counted in {batches:?} by batches, and in {single:?} entry by entry");
    assert!(batches * 2 < single, "{batches:?} by batches, {single:?} entry by entry");
    Ok(())
}

#[test]
fn a_full_table_of_clients_needs_a_person() -> Result<()> {
    let scene = Scene::strict()?;
    let status = || scene.lab.enforcer(&["status"]);
    status()?.success()?;
    assert!(fill(&scene, "CLIENTS", 60_000)? >= 59_000);
    let output = status()?;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stdout.contains("problem: map CLIENTS is nearly full"), "{output:?}");
    let metrics = client::get(&scene.lab.socket(), "/metrics")?;
    assert!(metrics.contains("\nenforcer_problems 1"), "{metrics}");
    Ok(())
}

#[test]
fn status_shows_every_pinned_map_and_what_they_cost_together() -> Result<()> {
    let scene = Scene::strict()?;
    let report: Value =
        serde_json::from_str(&scene.lab.enforcer(&["status", "-o", "json"])?.success()?.stdout)?;
    let maps = report["maps"].as_array().context("maps")?;
    let shown: BTreeSet<&str> = maps.iter().filter_map(|map| map["name"].as_str()).collect();
    let folder = scene.lab.map_path("FLOWS")?;
    let folder = folder.parent().context("no folder")?;
    let mut pinned = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        pinned.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    assert_eq!(shown, pinned.iter().map(String::as_str).collect());
    for name in ["TRANSIENT", "PENDING", "CLIENT_RESETS", "CLIENTS"] {
        let map = maps.iter().find(|map| map["name"] == name).context(name)?;
        assert!(map["entries"].is_u64() && map["memory_bytes"].as_u64() > Some(0), "{map}");
    }
    assert!(scene.lab.enforcer(&["status"])?.success()?.stdout.contains("\ntotal "));
    // The same maps are in the metrics.
    let metrics = client::get(&scene.lab.socket(), "/metrics")?;
    for name in &pinned {
        assert!(metrics.contains(&format!("enforcer_map_memory_bytes{{map=\"{name}\"}}")), "{name}");
    }
    Ok(())
}
