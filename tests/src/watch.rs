//! A witness beside the agent: looks at the hooks, the counters and the pins without a pause, whatever the agent does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use enforcer::datapath::attach::{HookedProgram, Side, Way, hooked_programs_at};
use enforcer::datapath::load::Pinned;
use enforcer::datapath::maps::{Counters, Flows, HalfOpens, WorkloadCounters};
use enforcer_common::map::{Flow, FlowKey, endpoint_flags};
use enforcer_common::{Direction, Reason, Verdict};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};

use crate::lab::NODE;
use crate::{Lab, poll};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// A running witness. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// Connections, packets, bytes by what they were counted under.
type Totals = BTreeMap<(Verdict, Reason, Direction), [u64; 3]>;

impl Watch {
    /// Starts to look: on the interfaces of these pods, or on their own devices where they are enforced there, each direction
    /// has exactly one program of ours, and no counter goes back.
    ///
    /// # Errors
    /// When an interface is missing.
    pub fn start(lab: &Lab, pods: &[&str]) -> Result<Self> {
        let places = pods.iter().map(|pod| Place::of(lab, pod)).collect::<Result<Vec<_>>>()?;
        let (stop, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, looked, bpffs) = (Arc::clone(&stop), Arc::clone(&looks), lab.bpffs());
        let thread = thread::spawn(move || -> Result<()> {
            let mut before = node_totals(&bpffs)?;
            while !stopped.load(Ordering::Relaxed) {
                places.iter().try_for_each(Place::one_each)?;
                let now = node_totals(&bpffs)?;
                for (key, counts) in &before {
                    let later = now.get(key).with_context(|| format!("the counter of {key:?} is gone"))?;
                    let back = counts.iter().zip(later).any(|(one, other)| other < one);
                    ensure!(!back, "the counter of {key:?} went from {counts:?} to {later:?}");
                }
                before = now;
                looked.fetch_add(1, Ordering::Relaxed);
                thread::sleep(PAUSE);
            }
            Ok(())
        });
        Ok(Self { stop, looks, thread: Some(thread) })
    }

    /// Fails as soon as the witness saw something.
    ///
    /// # Errors
    /// With what it saw.
    pub fn check(&mut self) -> Result<()> {
        match self.thread.take_if(|thread| thread.is_finished()) {
            Some(thread) => thread.join().map_err(|_| anyhow!("the witness panicked"))?,
            None => Ok(()),
        }
    }

    /// Ends it and gives the number of looks.
    ///
    /// # Errors
    /// With what it saw.
    pub fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the witness panicked"))??;
        }
        Ok(self.looks.load(Ordering::Relaxed))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Whoever drops it without `finish` has another failure to tell.
            let _ = thread.join();
        }
    }
}

/// Where a pod is enforced.
#[derive(Debug)]
struct Place {
    namespace: File,
    index: u32,
    side: Side,
}

impl Place {
    fn of(lab: &Lab, pod: &str) -> Result<Self> {
        let [host, _] = lab.own_hooks_by_side(pod)?;
        let (member, name, side) = if host.is_empty() {
            (pod, "eth0".to_owned(), Side::Pod)
        } else {
            (NODE, lab.pod(pod).interface(), Side::Host)
        };
        let index = lab.inside(member, || if_nametoindex(name.as_str()))??;
        let path = Path::new("/run/netns").join(lab.namespace(member));
        let namespace = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { namespace, index, side })
    }

    /// Looks, in the namespace of the place, where the calling thread stays.
    fn one_each(&self) -> Result<()> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
        // A program that is replaced between the question for the hook and the one for its name has no name any more: what is
        // on the hook is asked anew.
        let nameless = |hooks: &[HookedProgram]| hooks.iter().any(|hook| hook.name.is_empty());
        let mut hooks = hooked_programs_at(self.index, self.side)?;
        for _ in 0..100 {
            if !nameless(&hooks) {
                break;
            }
            hooks = hooked_programs_at(self.index, self.side)?;
        }
        for way in Way::BOTH {
            let ours = hooks.iter().filter(|hook| hook.way == way && hook.name == way.program());
            let what = (way.program(), self.index, self.side);
            ensure!(ours.count() == 1, "{what:?}: {hooks:?}");
        }
        Ok(())
    }
}

fn node_totals(bpffs: &Path) -> Result<Totals> {
    let counters = Counters::new("COUNTERS", Pinned::open(bpffs)?.map("COUNTERS")?)?.totals()?;
    Ok(counters
        .into_iter()
        .map(|(key, c)| ((key.verdict, key.reason, key.direction), [c.connections, c.packets, c.bytes]))
        .collect())
}

impl Lab {
    /// The node's counters, and those of all workloads added up. Whatever is counted is counted in both, except what
    /// belongs to no workload.
    ///
    /// # Errors
    /// When the maps cannot be read.
    pub fn both_totals(&self) -> Result<(Totals, Totals)> {
        let map = Pinned::open(&self.bpffs())?.map("WORKLOAD_COUNTERS")?;
        let mut workloads = Totals::new();
        for (key, c) in WorkloadCounters::new("WORKLOAD_COUNTERS", map)?.totals()? {
            let sum = workloads.entry((key.verdict, key.reason, key.direction)).or_default();
            for (sum, part) in sum.iter_mut().zip([c.connections, c.packets, c.bytes]) {
                *sum += part;
            }
        }
        Ok((node_totals(&self.bpffs())?, workloads))
    }

    /// The content of `FLOWS`: judged TLS connections.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn flows(&self) -> Result<Vec<(FlowKey, Flow)>> {
        Ok(Flows::new("FLOWS", Pinned::open(&self.bpffs())?.map("FLOWS")?)?.entries()?)
    }

    /// The connections in `HALF_OPEN`: the pod has answered, the client not yet.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn half_open(&self) -> Result<Vec<FlowKey>> {
        let map = Pinned::open(&self.bpffs())?.map("HALF_OPEN")?;
        Ok(HalfOpens::new("HALF_OPEN", map)?.entries()?.into_iter().map(|(key, _)| key).collect())
    }

    /// The content of `TRANSIENT`: all other inbound connections.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn transient(&self) -> Result<Vec<(FlowKey, Flow)>> {
        Ok(Flows::new("TRANSIENT", Pinned::open(&self.bpffs())?.map("TRANSIENT")?)?.entries()?)
    }

    /// Moves a connection from `FLOWS` to `TRANSIENT`, as the agent does with what seems to be over.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn move_to_transient(&self, key: &FlowKey, flow: &Flow) -> Result<()> {
        let pinned = Pinned::open(&self.bpffs())?;
        Flows::new("TRANSIENT", pinned.map("TRANSIENT")?)?.insert(key, flow)?;
        Ok(Flows::new("FLOWS", pinned.map("FLOWS")?)?.remove(key)?)
    }

    /// Waits until the agent has entered what was open at these pods before it came.
    ///
    /// # Errors
    /// When it does not get there.
    pub fn wait_settled(&self, pods: &[&str]) -> Result<()> {
        for address in pods.iter().flat_map(|pod| self.pod(pod).addresses()) {
            poll::until(&format!("the open connections of {address}"), Duration::from_secs(10), || {
                let learning = self.endpoint(address)?.flags & endpoint_flags::LEARNING != 0;
                ensure!(!learning, "they are still collected");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Everything that is pinned in the lab's bpffs, without the two files that the kernel puts into every one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn pins(&self) -> Result<BTreeSet<PathBuf>> {
        let mut all = BTreeSet::new();
        let mut folders = vec![self.bpffs()];
        while let Some(folder) = folders.pop() {
            let entries =
                fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else if !["maps.debug", "progs.debug"].iter().any(|name| entry.file_name() == *name) {
                    all.insert(entry.path());
                }
            }
        }
        Ok(all)
    }
}
