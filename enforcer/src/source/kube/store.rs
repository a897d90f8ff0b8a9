//! What is known of the cluster, kind by kind. Pure: changes in, objects and sentences out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::failure::Failure;
use super::kind::Kind;
use crate::object::Objects;
use crate::policy::problem::Problem;
use crate::source::document::Object;
use crate::source::{KindState, Update};

/// How long the first lists of all kinds are waited for, from the start, before the missing ones are named.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// One object as it is read, or what keeps it from being read.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Entry {
    /// The object; `None` when it was refused.
    pub(super) object: Option<Object>,
    /// Why it was refused.
    pub(super) problems: Vec<Problem>,
    /// What deserves a look.
    pub(super) warnings: Vec<Problem>,
}

/// What happens to a kind.
#[derive(Debug)]
pub(super) enum Change {
    /// A list begins.
    Listing,
    /// One object of the list.
    Listed((String, Entry)),
    /// The list is complete, under this version of the API: what it does not hold is gone.
    Complete(&'static str),
    /// An object is new or changed.
    Applied((String, Entry)),
    /// An object is gone.
    Deleted(String),
    /// The kind cannot be followed at the moment.
    Failed(Failure),
}

/// Where the objects of a kind come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Known {
    /// Nowhere: nothing is known.
    #[default]
    Nothing,
    /// From what an agent before wrote down.
    Remembered,
    /// From the API server.
    Listed,
}

#[derive(Debug, Default)]
struct Shelf {
    known: Known,
    entries: BTreeMap<String, Entry>,
    /// The list that is being read.
    listing: Option<BTreeMap<String, Entry>>,
    version: Option<&'static str>,
    synced: Option<Timestamp>,
    failure: Option<(Failure, Timestamp)>,
}

impl Shelf {
    /// The entry that is in force when `new` is read over the one before: a refused object keeps its last good form.
    fn over(&self, key: &str, mut new: Entry, claims: &mut u64) -> Entry {
        let old = self.entries.get(key).and_then(|entry| entry.object.as_ref());
        match (&mut new.object, old) {
            (None, Some(old)) => new.object = Some(old.clone()),
            (Some(Object::Pod(pod, _)), old) => {
                let held = match old {
                    Some(Object::Pod(old, _)) if old.uid == pod.uid && old.addresses == pod.addresses => {
                        Some(old.claim)
                    }
                    _ => None,
                };
                pod.claim = held.unwrap_or_else(|| {
                    *claims += 1;
                    *claims
                });
            }
            _ => {}
        }
        new
    }
}

/// Everything that is known.
#[derive(Debug, Default)]
pub(super) struct Store {
    shelves: BTreeMap<Kind, Shelf>,
    claims: u64,
    /// All kinds that are needed were known once.
    begun: bool,
}

impl Store {
    /// Takes over what an agent before knew of a kind; the API server's list replaces it.
    pub(super) fn remember(&mut self, kind: Kind, objects: impl IntoIterator<Item = Object>) {
        let stock = self.shelves.entry(kind).or_default();
        for object in objects {
            let entry = Entry { object: Some(object.clone()), ..Entry::default() };
            stock.entries.insert(object.key(), entry);
        }
        if stock.known == Known::Nothing {
            stock.known = Known::Remembered;
        }
    }

    /// Applies a change. True when objects or problems are others now.
    pub(super) fn apply(&mut self, kind: Kind, change: Change, now: Timestamp) -> bool {
        let stock = self.shelves.entry(kind).or_default();
        match change {
            Change::Listing => {
                stock.listing = Some(BTreeMap::new());
                false
            }
            Change::Listed((key, entry)) => {
                let entry = stock.over(&key, entry, &mut self.claims);
                stock.listing.get_or_insert_default().insert(key, entry);
                false
            }
            Change::Complete(version) => {
                let entries = stock.listing.take().unwrap_or_default();
                let changed =
                    stock.known != Known::Listed || stock.failure.is_some() || entries != stock.entries;
                stock.entries = entries;
                stock.known = Known::Listed;
                stock.version = Some(version);
                stock.synced = Some(now);
                stock.failure = None;
                changed
            }
            Change::Applied((key, entry)) => {
                let entry = stock.over(&key, entry, &mut self.claims);
                stock.entries.insert(key, entry.clone()).is_none_or(|old| old != entry)
            }
            Change::Deleted(key) => stock.entries.remove(&key).is_some(),
            Change::Failed(failure) => {
                stock.listing = None;
                let since = stock.failure.as_ref().map_or(now, |(_, since)| *since);
                let changed = stock.failure.as_ref().is_none_or(|(old, _)| *old != failure);
                stock.failure = Some((failure, since));
                changed
            }
        }
    }

    /// Whether what is known may be put in force. `waited`: the patience of the start is over. Once it was, it stays so:
    /// what was known last is in force.
    fn is_ready(&mut self, waited: bool) -> bool {
        self.begun = self.begun
            || Kind::ALL.iter().all(|kind| {
                let stock = self.shelves.get(kind);
                let known = stock.map_or(Known::Nothing, |stock| stock.known);
                let absent = stock.is_some_and(|stock| {
                    matches!(stock.failure, Some((Failure::NotServed(Kind::Policies), _)))
                });
                match known {
                    Known::Listed => true,
                    Known::Remembered => waited,
                    // A cluster without the definition has no policies.
                    Known::Nothing => waited && (absent || !kind.is_essential()),
                }
            });
        self.begun
    }

    /// What there is to tell now.
    pub(super) fn update(&mut self, waited: bool) -> Update {
        let ready = self.is_ready(waited);
        let mut problems = self.failures();
        if waited {
            problems.extend(self.missing(ready));
        }
        let entries = || self.shelves.values().flat_map(|stock| stock.entries.values());
        let text = |problem: &Problem| problem.to_string();
        problems.extend(entries().flat_map(|entry| entry.problems.iter().map(text)));
        Update {
            objects: ready.then(|| self.objects()),
            problems,
            warnings: entries().flat_map(|entry| entry.warnings.iter().map(text)).collect(),
        }
    }

    /// One sentence for each failure; what concerns several kinds is said once.
    fn failures(&self) -> Vec<String> {
        let failing = self.shelves.values().filter_map(|stock| Some(stock.failure.as_ref()?.0.to_string()));
        failing.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// One sentence for each kind that was never listed, and what follows.
    fn missing(&self, ready: bool) -> Vec<String> {
        let sentence = |kind: &Kind| {
            let known = self.shelves.get(kind).map_or(Known::Nothing, |stock| stock.known);
            let what = kind.plural();
            match known {
                Known::Remembered => Some(format!(
                    "{what} were not listed since the agent started: what its predecessor knew of them stays in force"
                )),
                Known::Nothing if ready => {
                    Some(format!("{what} were not listed since the agent started: it goes on without them"))
                }
                Known::Nothing if kind.is_essential() => Some(format!(
                    "{what} were not listed since the agent started: nothing is changed before they are, and what is pinned stays in force"
                )),
                Known::Listed | Known::Nothing => None,
            }
        };
        Kind::ALL.iter().filter_map(sentence).collect()
    }

    /// All kinds were listed once.
    pub(super) fn is_complete(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.shelves.get(kind).is_some_and(|stock| stock.known == Known::Listed))
    }

    /// The kind was listed: what is known of it is worth remembering.
    pub(super) fn is_listed(&self, kind: Kind) -> bool {
        self.shelves.get(&kind).is_some_and(|stock| stock.known == Known::Listed)
    }

    /// The objects in force.
    pub(super) fn objects(&self) -> Objects {
        let mut objects = Objects::default();
        for entry in self.shelves.values().flat_map(|stock| stock.entries.values()) {
            if let Some(object) = &entry.object {
                object.insert(&mut objects);
            }
        }
        objects
    }

    /// How each kind is doing.
    pub(super) fn kinds(&self) -> Vec<KindState> {
        let state = |kind: &Kind| {
            let none = Shelf::default();
            let stock = self.shelves.get(kind).unwrap_or(&none);
            KindState {
                kind: kind.plural().to_owned(),
                version: stock.version.map(str::to_owned),
                essential: kind.is_essential(),
                objects: stock.entries.len(),
                synced: stock.synced,
                failing_since: stock.failure.as_ref().map(|(_, since)| *since),
                error: stock.failure.as_ref().map(|(failure, _)| failure.to_string()),
            }
        };
        Kind::ALL.iter().map(state).collect()
    }
}

#[cfg(test)]
mod tests;
