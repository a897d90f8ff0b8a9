//! Who is behind an address: pods that the agent's objects name, the node itself, and remote pods that a lookup learned.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use crate::object::{Objects, Pod};

/// A pod by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub pod: Arc<str>,
    /// The workload that it belongs to.
    pub workload: Arc<str>,
}

impl Identity {
    /// Of a pod.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        Self {
            namespace: pod.name.namespace.as_str().into(),
            pod: pod.name.name.as_str().into(),
            workload: workload_name(pod).into(),
        }
    }
}

/// The name of the workload that a pod belongs to, by the labels that the controllers of Kubernetes put on their pods;
/// the pod's own name when none of them made it. The Jobs of a `CronJob` are one workload, its own.
#[must_use]
pub fn workload_name(pod: &Pod) -> &str {
    let name = pod.name.name.as_str();
    let label = |key: &str| pod.labels.get(key).map(String::as_str).filter(|value| !value.is_empty());
    if let Some(job) = label("batch.kubernetes.io/job-name").or_else(|| label("job-name")) {
        return cron_job(job, pod.created).unwrap_or(job);
    }
    if let Some(hash) = label("pod-template-hash") {
        // NAME-HASH-RANDOM, the part before the hash being the Deployment.
        let owner = name.rsplit_once('-').and_then(|(set, _)| set.strip_suffix(hash)?.strip_suffix('-'));
        return owner.unwrap_or(name);
    }
    let stem = name.rsplit_once('-').map_or(name, |(stem, _)| stem);
    if label("statefulset.kubernetes.io/pod-name").is_some() || label("controller-revision-hash").is_some() {
        return stem;
    }
    name
}

/// How long after its time a Job of a `CronJob` may be made: its starting deadline, or its controller's absence.
const LATE: SignedDuration = SignedDuration::from_hours(14 * 24);

/// The `CronJob` that made a Job. It names it after itself and the minute that it is for, counted from 1970; where the pod says
/// when it was made, that must fit.
fn cron_job(job: &str, created: Option<Timestamp>) -> Option<&str> {
    let (name, minutes) = job.rsplit_once('-')?;
    // Eight digits: from 1989 to 2160.
    let digits = minutes.len() == 8 && minutes.bytes().all(|byte| byte.is_ascii_digit());
    let due =
        Timestamp::from_second(minutes.parse::<i64>().ok().filter(|_| digits)?.checked_mul(60)?).ok()?;
    let fits = |made: Timestamp| {
        let after = made.duration_since(due);
        // The clocks of a controller and an API server may differ by a minute.
        (SignedDuration::from_mins(-1)..LATE).contains(&after)
    };
    (!name.is_empty() && created.is_none_or(fits)).then_some(name)
}

/// Pods by address, from one set of objects.
#[derive(Debug, Default)]
pub struct Index {
    pods: BTreeMap<IpAddr, Identity>,
}

impl Index {
    /// Of these objects. Addresses of the host network are not a pod's own.
    #[must_use]
    pub fn new(objects: &Objects) -> Self {
        let own = objects.pods.values().filter(|pod| !pod.host_network && !pod.finished);
        let pods = own.flat_map(|pod| pod.addresses.iter().map(|address| (*address, Identity::of(pod))));
        Self { pods: pods.collect() }
    }

    /// The pod that has an address.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Option<&Identity> {
        self.pods.get(&address)
    }
}

/// Asks for the pod behind an address that the agent's own objects do not name, and hands the answer to
/// [`Remote::learn`] or [`Remote::unanswered`] some time later. Must not block.
pub trait Lookup: Send + Sync {
    /// Asks. False when too many questions wait already: the address may be asked for again at once.
    fn request(&self, address: IpAddr) -> bool;
}

/// How long the name of a pod stands: its address may be another pod's then.
pub const KEEP: Duration = Duration::from_mins(5);
/// How long it stands that an address is no pod's, and how long an answer may take.
pub const KEEP_NOBODY: Duration = Duration::from_mins(10);
/// The same the first time: a new pod connects before its kubelet has told its address.
pub const KEEP_NOBODY_YET: Duration = Duration::from_secs(30);
/// A question that failed is not asked again before.
pub const KEEP_UNANSWERED: Duration = Duration::from_mins(1);

/// For how long a name is kept while it is asked for again, or cannot be: better one that was right lately than none.
pub const KEEP_OLD: Duration = Duration::from_mins(10);

/// An answer that named a pod.
#[derive(Clone, Debug)]
struct Named {
    identity: Identity,
    /// When it was first said, and when last.
    first: Instant,
    last: Instant,
}

/// An address.
#[derive(Clone, Debug)]
struct Entry {
    /// Since when this is known.
    since: Instant,
    known: Known,
    /// The last pod that it was said to be.
    named: Option<Named>,
}

impl Entry {
    fn stands(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < self.known.stands()
    }

    /// The pod now, as far as it is known.
    fn identity(&self, now: Instant) -> Option<Identity> {
        let named = self.named.as_ref()?;
        let recent = now.saturating_duration_since(named.last) < KEEP_OLD;
        (recent && !matches!(self.known, Known::Nobody { .. })).then(|| named.identity.clone())
    }
}

/// What is known of an address.
#[derive(Clone, Copy, Debug)]
enum Known {
    /// A question waits for its answer; whether it is the second one.
    Asked { again: bool },
    /// The question failed.
    Unanswered,
    /// A pod's.
    Pod,
    /// No pod's; whether that was said twice.
    Nobody { twice: bool },
}

impl Known {
    const fn stands(self) -> Duration {
        match self {
            Self::Pod => KEEP,
            Self::Nobody { twice: false } => KEEP_NOBODY_YET,
            Self::Nobody { twice: true } | Self::Asked { .. } => KEEP_NOBODY,
            Self::Unanswered => KEEP_UNANSWERED,
        }
    }
}

/// Remote pods, learned on demand; bounded.
pub struct Remote {
    lookup: Option<Box<dyn Lookup>>,
    known: Mutex<HashMap<IpAddr, Entry>>,
    capacity: usize,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

/// Addresses that no pod has for others: of one link, of one machine, of groups.
#[must_use]
pub const fn may_be_pod(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !(address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_unspecified()
                || address.is_broadcast())
        }
        IpAddr::V6(address) => {
            !(address.is_loopback()
                || address.is_unicast_link_local()
                || address.is_multicast()
                || address.is_unspecified())
        }
    }
}

impl Remote {
    /// With a lookup, or none; knows at most `capacity` addresses.
    #[must_use]
    pub fn new(lookup: Option<Box<dyn Lookup>>, capacity: usize) -> Self {
        Self { lookup, known: Mutex::default(), capacity }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<IpAddr, Entry>> {
        // Nothing is left half done under this lock.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names that are not known can be asked for.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.lookup.is_some()
    }

    /// The pod behind an address, if it is known now; asks for it if not.
    pub fn get(&self, address: IpAddr, now: Instant) -> Option<Identity> {
        let lookup = self.lookup.as_ref()?;
        if !may_be_pod(address) {
            return None;
        }
        let before = {
            let mut all = self.known();
            let before = all.get(&address).cloned();
            if let Some(entry) = before.as_ref().filter(|entry| entry.stands(now)) {
                return entry.identity(now);
            }
            if before.is_none() && all.len() >= self.capacity {
                all.retain(|_, entry| entry.stands(now));
                if all.len() >= self.capacity {
                    return None;
                }
            }
            let again = matches!(before, Some(Entry { known: Known::Nobody { .. }, .. }));
            let named = before.as_ref().and_then(|before| before.named.clone());
            all.insert(address, Entry { since: now, known: Known::Asked { again }, named });
            before
        };
        if !lookup.request(address) {
            let mut all = self.known();
            match before.clone() {
                Some(before) => drop(all.insert(address, before)),
                None => drop(all.remove(&address)),
            }
        }
        // While it is asked for again the name from before is as good as any.
        before?.identity(now)
    }

    /// Takes an answer over; `None`: it is no pod's. One that nobody asked for is ignored.
    pub fn learn(&self, address: IpAddr, identity: Option<Identity>, now: Instant) {
        if let Some(entry) = self.known().get_mut(&address) {
            let twice = matches!(entry.known, Known::Asked { again: true });
            entry.since = now;
            entry.known = if identity.is_some() { Known::Pod } else { Known::Nobody { twice } };
            let Some(identity) = identity else { return };
            match &mut entry.named {
                Some(named) if named.identity == identity => named.last = now,
                named => *named = Some(Named { identity, first: now, last: now }),
            }
        }
    }

    /// The question could not be answered.
    pub fn unanswered(&self, address: IpAddr, now: Instant) {
        if let Some(entry) = self.known().get_mut(&address) {
            entry.since = now;
            entry.known = Known::Unanswered;
        }
    }

    /// The pod behind an address at a time, if an answer of about then is there; does not ask. Addresses get other owners: a
    /// record does not take the name of a later one.
    #[must_use]
    pub fn peek(&self, address: IpAddr, at: Instant) -> Option<Identity> {
        let all = self.known();
        let Named { identity, first, last } = all.get(&address)?.named.as_ref()?;
        let near = first.saturating_duration_since(at) < KEEP && at.saturating_duration_since(*last) < KEEP;
        near.then(|| identity.clone())
    }
}

#[cfg(test)]
mod tests;
