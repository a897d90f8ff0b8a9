//! What an agent has put into the kernel of a node, and whether any of it is left.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Node;

/// Where the chart has the pins.
const PINS: &str = "/sys/fs/bpf/enforcer";

/// Ids of what is pinned on a node.
#[derive(Debug)]
pub struct Pinned {
    programs: BTreeSet<u64>,
    maps: BTreeSet<u64>,
    links: BTreeSet<u64>,
}

impl Pinned {
    /// Everything that is pinned now: programs, maps and links, each at least once.
    ///
    /// # Errors
    /// When one of the three is missing.
    pub fn now(node: &Node) -> Result<Self> {
        let pins = files(node, PINS)?;
        // The programs are held by the links; status knows them.
        let agent = node.agent()?;
        let status = node.exec(&agent, &["enforcer", "status", "-o", "json"])?;
        let status: Value = serde_json::from_str(&status.stdout)?;
        let programs = status["programs"].as_array().cloned().unwrap_or_default();
        let found = Self {
            programs: programs.iter().filter_map(|program| program["id"].as_u64()).collect(),
            maps: ids(node, "map", &pins)?,
            links: ids(node, "link", &pins)?,
        };
        let whole = !found.programs.is_empty() && !found.maps.is_empty() && !found.links.is_empty();
        ensure!(whole, "not everything is pinned: {found:?} of {pins:?}; status: {status}");
        Ok(found)
    }

    /// None of it is in the kernel, nothing is pinned, no interface of the node has a program, no state is on disk.
    ///
    /// # Errors
    /// Says what is left.
    pub fn all_gone(&self, node: &Node) -> Result<()> {
        let kinds = [("prog", &self.programs), ("map", &self.maps), ("link", &self.links)];
        for (kind, ids) in kinds {
            for id in ids {
                let shown = node.on_node(&["bpftool", kind, "show", "id", &id.to_string()])?;
                ensure!(shown.code != 0, "{kind} {id} is left: {}", shown.stdout);
            }
        }
        let pins = files(node, PINS)?;
        ensure!(pins.is_empty(), "pins are left: {pins:?}");
        let state = files(node, "/var/lib/enforcer")?;
        ensure!(state.is_empty(), "state is left: {state:?}");
        let hooks: Value =
            serde_json::from_str(&node.on_node(&["bpftool", "-j", "net", "show"])?.success()?.stdout)?;
        let tc = hooks[0]["tc"].as_array().context("bpftool net has no tc")?;
        ensure!(tc.is_empty(), "programs are left on interfaces: {tc:?}");
        Ok(())
    }
}

/// The ids of those pins that are of this kind.
fn ids(node: &Node, kind: &str, pins: &[String]) -> Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    for pin in pins {
        let shown = node.on_node(&["bpftool", "-j", kind, "show", "pinned", pin])?;
        if let Ok(shown) = serde_json::from_str::<Value>(&shown.stdout) {
            found.extend(shown["id"].as_u64());
        }
    }
    Ok(found)
}

/// The files below a folder of the node; none when it is not there.
fn files(node: &Node, folder: &str) -> Result<Vec<String>> {
    let found = node.on_node(&["find", folder, "-type", "f"])?;
    Ok(found.stdout.lines().map(str::to_owned).collect())
}
