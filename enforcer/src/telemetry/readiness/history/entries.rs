//! What is remembered of each entry of `CLIENTS`: who it was, what its hellos said, how many connections it had when. Goes
//! with its entry: another one under the same key, known by its first connection, starts anew.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Seen;
use crate::telemetry::hellos::{Hellos, Tally};
use crate::telemetry::readiness::Class;

const MINUTE: u64 = 60_000_000_000;
const HOUR: u64 = 60 * MINUTE;
/// How far apart marks of an age are, the youngest first: age up to, ns; distance, ns. Of older ones the last is kept.
const DISTANCES: [(u64, u64); 4] =
    [(10 * MINUTE, MINUTE / 6), (HOUR, MINUTE), (48 * HOUR, HOUR), (35 * 24 * HOUR, 6 * HOUR)];
/// Marks of all entries that are kept at most. Beyond that every second one goes: numbers of a window reach back further.
const MOST_MARKS: usize = 65_536;

/// Key of an entry of `CLIENTS`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
struct Key {
    workload: u32,
    port: u16,
    class: Class,
    client: IpAddr,
}

impl Key {
    const fn of(seen: &Seen) -> Self {
        Self { workload: seen.workload, port: seen.port, class: seen.class, client: seen.client }
    }
}

/// The numbers at a moment, `CLOCK_MONOTONIC` ns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The moment.
    pub(super) at_ns: u64,
    /// Connections until then.
    pub(super) connections: u64,
    /// What their hellos said.
    pub(super) hellos: Tally,
}

/// What is remembered of one entry.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Entry {
    first_ns: u64,
    connections: u64,
    /// Who had the address when the entry was active last.
    pub(super) name: Option<String>,
    /// What its hellos said.
    pub(super) hellos: Tally,
    /// The oldest first.
    pub(super) marks: Vec<Mark>,
}

/// All of them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Vec<(Key, Entry)>", into = "Vec<(Key, Entry)>")]
pub(super) struct Entries(BTreeMap<Key, Entry>);

impl From<Vec<(Key, Entry)>> for Entries {
    fn from(rows: Vec<(Key, Entry)>) -> Self {
        Self(rows.into_iter().collect())
    }
}

impl From<Entries> for Vec<(Key, Entry)> {
    fn from(entries: Entries) -> Self {
        entries.0.into_iter().collect()
    }
}

impl Entries {
    /// Takes in what `CLIENTS` holds at `now`; `before`: the last look. What it does not hold any more is forgotten.
    pub(super) fn look(
        &mut self,
        (before, now): (u64, u64),
        names: &BTreeMap<IpAddr, String>,
        clients: &[Seen],
        hellos: &Hellos,
    ) {
        let mut old = std::mem::take(&mut self.0);
        for seen in clients {
            let key = Key::of(seen);
            // Another first connection, or fewer of them: the entry was pushed out meanwhile and is a new one.
            let same =
                |entry: &Entry| entry.first_ns == seen.first_ns && entry.connections <= seen.connections;
            let mut entry = old
                .remove(&key)
                .filter(same)
                .unwrap_or_else(|| Entry { first_ns: seen.first_ns, ..Entry::default() });
            if seen.last_ns >= before
                && let Some(name) = names.get(&seen.client)
            {
                entry.name = Some(name.clone());
            }
            if seen.class == Class::Tls {
                entry.hellos.add(hellos.of(seen.workload, seen.port, seen.client), seen.connections);
            }
            let last = entry.marks.last();
            if last.is_none_or(|mark| mark.connections != seen.connections || mark.hellos != entry.hellos) {
                entry.marks.push(Mark { at_ns: now, connections: seen.connections, hellos: entry.hellos });
                thin(&mut entry.marks, now);
            }
            entry.connections = seen.connections;
            self.0.insert(key, entry);
        }
        self.bound();
    }

    fn bound(&mut self) {
        let marks = |entries: &BTreeMap<Key, Entry>| entries.values().map(|e| e.marks.len()).sum::<usize>();
        while marks(&self.0) > MOST_MARKS.max(self.0.len()) {
            for entry in self.0.values_mut() {
                let mut number = entry.marks.len();
                // The latest stays.
                entry.marks.retain(|_| {
                    number -= 1;
                    number.is_multiple_of(2)
                });
            }
        }
    }

    /// What is remembered of an entry.
    pub(super) fn of(&self, seen: &Seen) -> Option<&Entry> {
        self.0.get(&Key::of(seen)).filter(|entry| entry.first_ns == seen.first_ns)
    }

    /// How many have a name.
    pub(super) fn named(&self) -> usize {
        self.0.values().filter(|entry| entry.name.is_some()).count()
    }
}

/// Leaves of each stretch of [`DISTANCES`] the last mark.
fn thin(marks: &mut Vec<Mark>, now: u64) {
    let stretch = |mark: &Mark| {
        let age = now.saturating_sub(mark.at_ns);
        let distance = DISTANCES.iter().find(|(limit, _)| age <= *limit).map_or(u64::MAX, |found| found.1);
        (distance, mark.at_ns / distance)
    };
    let stretches: Vec<_> = marks.iter().map(stretch).collect();
    let mut number = 0;
    marks.retain(|_| {
        number += 1;
        stretches.get(number - 1) != stretches.get(number)
    });
}

#[cfg(test)]
mod tests;
