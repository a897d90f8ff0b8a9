//! When which server is checked. Pure: the present is an argument (time since some start), and so is chance.
//!
//! A new server is due at once, every server is due once per interval (with jitter, so that they do not march in
//! step), and earlier when something changes: bundle, policy, the end of a validity. A check that was not good is
//! repeated soon, then ever later, up to the interval; one that found out nothing stays soon. Starts are bounded in rate and in number at a time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// The bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScheduleSettings {
    /// From one good check of a server to the next.
    pub interval: Duration,
    /// First repetition of a check that was not good; doubles up to the interval.
    pub retry: Duration,
    /// A check that found out nothing (nobody listens yet, say) is repeated after this at the latest.
    pub uncertain: Duration,
    /// Checks at one time.
    pub concurrency: usize,
    /// Those of one group, which is an address: no server gets many connections at once, and one that answers nothing holds
    /// up few checks of others.
    pub per_group: usize,
    /// Shortest time between two starts.
    pub spacing: Duration,
}

impl Default for ScheduleSettings {
    fn default() -> Self {
        Self {
            interval: Duration::from_mins(10),
            retry: Duration::from_secs(5),
            uncertain: Duration::from_secs(15),
            concurrency: 8,
            per_group: 2,
            spacing: Duration::from_millis(50),
        }
    }
}

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// All is well.
    Good,
    /// Something is wrong.
    Bad,
    /// Nothing was found out.
    Uncertain,
}

/// What is scheduled.
pub trait Key: Ord + Clone {
    /// What is limited by [`ScheduleSettings::per_group`].
    type Group: Ord;
    /// The group of this one.
    fn group(&self) -> Self::Group;
}

impl Key for (IpAddr, u16) {
    type Group = IpAddr;
    fn group(&self) -> IpAddr {
        self.0
    }
}

/// What to do now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next<K> {
    /// Start this check; it is running until [`Schedule::finished`].
    Start(K),
    /// Nothing before this time.
    Wait(Duration),
    /// Nothing before some running check finishes, or something is added.
    Idle,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Item {
    due: Duration,
    running: bool,
    /// It became due again while it was running.
    again: bool,
    failures: u32,
}

/// The schedule of all servers.
#[derive(Clone, Debug)]
pub struct Schedule<K: Key> {
    settings: ScheduleSettings,
    items: BTreeMap<K, Item>,
    running: usize,
    /// How many of each group are running.
    groups: BTreeMap<K::Group, usize>,
    last_start: Option<Duration>,
}

impl<K: Key> Schedule<K> {
    /// Nothing to check yet.
    #[must_use]
    pub fn new(settings: ScheduleSettings) -> Self {
        Self { settings, items: BTreeMap::new(), running: 0, groups: BTreeMap::new(), last_start: None }
    }

    /// A server is to be checked now: it is new, or something about it has changed.
    pub fn request(&mut self, key: K, now: Duration) {
        let new = Item { due: now, running: false, again: false, failures: 0 };
        let item = self.items.entry(key).or_insert(new);
        item.due = item.due.min(now);
        item.failures = 0;
        item.again = item.running;
    }

    /// Everything is to be checked now: the trust bundle has changed.
    pub fn request_all(&mut self, now: Duration) {
        let keys: Vec<K> = self.items.keys().cloned().collect();
        for key in keys {
            self.request(key, now);
        }
    }

    /// A server is gone. A running check of it still has to be reported as finished.
    pub fn remove(&mut self, key: &K) {
        self.items.remove(key);
    }

    /// What to do at this time.
    pub fn next(&mut self, now: Duration) -> Next<K> {
        if self.running >= self.settings.concurrency.max(1) {
            return Next::Idle;
        }
        let (groups, most) = (&self.groups, self.settings.per_group.max(1));
        let has_room = |key: &K| groups.get(&key.group()).is_none_or(|running| *running < most);
        let waiting = self.items.iter_mut().filter(|(key, item)| !item.running && has_room(key));
        let Some((key, item)) = waiting.min_by_key(|(_, item)| item.due) else {
            return Next::Idle;
        };
        let spaced = self.last_start.map_or(Duration::ZERO, |last| last + self.settings.spacing);
        let start = item.due.max(spaced);
        if start > now {
            return Next::Wait(start);
        }
        item.running = true;
        self.running += 1;
        *self.groups.entry(key.group()).or_default() += 1;
        self.last_start = Some(now);
        Next::Start(key.clone())
    }

    /// How long the check that has waited longest has been due.
    #[must_use]
    pub fn overdue(&self, now: Duration) -> Duration {
        let waiting = self.items.values().filter(|item| !item.running);
        waiting.map(|item| now.saturating_sub(item.due)).max().unwrap_or_default()
    }

    /// A started check has ended. `expiry` is when its result is going to change by itself (an expiry); `chance`
    /// is a random number, 0 to 999.
    pub fn finished(
        &mut self,
        key: &K,
        now: Duration,
        ending: Ending,
        expiry: Option<Duration>,
        chance: u32,
    ) {
        self.running = self.running.saturating_sub(1);
        if let Some(running) = self.groups.get_mut(&key.group()) {
            *running = running.saturating_sub(1);
            if *running == 0 {
                self.groups.remove(&key.group());
            }
        }
        let Some(item) = self.items.get_mut(key).filter(|item| item.running) else {
            return;
        };
        item.running = false;
        if std::mem::take(&mut item.again) {
            item.due = now;
            return;
        }
        let interval = self.settings.interval;
        let pause = if ending == Ending::Good {
            item.failures = 0;
            interval
        } else {
            let doubled = self.settings.retry.saturating_mul(1 << item.failures.min(20));
            item.failures = item.failures.saturating_add(1);
            let longest =
                if ending == Ending::Bad { interval } else { self.settings.uncertain.min(interval) };
            doubled.min(longest)
        };
        // Jitter only shortens: "opens within one interval" stays true.
        let pause = pause.saturating_sub(pause / 10 * chance.min(999) / 1000);
        item.due = now + pause;
        if let Some(expiry) = expiry.filter(|expiry| *expiry > now) {
            item.due = item.due.min(expiry);
        }
    }
}

#[cfg(test)]
mod tests;
