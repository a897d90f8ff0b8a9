//! Which workloads have series of their own. Pure.
//!
//! No series ever goes down: who has one keeps it, and who is counted among the others stays there as long as anything is
//! counted for it. Only a workload that has no pod any more gives its place up, when another needs it: its series ends,
//! and what it counted moves to the others.

use std::collections::BTreeSet;

/// Namespace and name of a workload.
pub(super) type Workload = (String, String);

/// Stands for all workloads without series of their own.
pub(super) fn other() -> Workload {
    ("other".to_owned(), "other".to_owned())
}

/// Stands for what is counted for a pod of which nothing is known.
pub(super) fn unknown() -> Workload {
    ("unknown".to_owned(), "unknown".to_owned())
}

/// The places.
#[derive(Debug)]
pub(super) struct Slots {
    most: usize,
    taken: BTreeSet<Workload>,
    /// Workloads that are counted among the others.
    without: BTreeSet<Workload>,
}

impl Slots {
    pub(super) fn new(most: usize) -> Self {
        Self { most, taken: BTreeSet::new(), without: BTreeSet::new() }
    }

    /// Gives places to these workloads, which are all for which anything is counted, as far as there are any; `live` are
    /// those that have pods.
    pub(super) fn arrange<'a>(
        &mut self,
        counted: impl Iterator<Item = &'a Workload>,
        live: &BTreeSet<Workload>,
    ) {
        let mut present = BTreeSet::new();
        for workload in counted.filter(|workload| **workload != other()) {
            if !present.insert(workload) || self.taken.contains(workload) || self.without.contains(workload) {
                continue;
            }
            if self.taken.len() >= self.most {
                let gone = self.taken.iter().find(|taken| !live.contains(*taken)).cloned();
                match gone {
                    Some(gone) if live.contains(workload) => {
                        self.taken.remove(&gone);
                        self.without.insert(gone);
                    }
                    _ => {
                        self.without.insert(workload.clone());
                        continue;
                    }
                }
            }
            self.taken.insert(workload.clone());
        }
        // For which nothing is counted any more there is nothing to remember.
        self.taken.retain(|workload| present.contains(workload));
        self.without.retain(|workload| present.contains(workload));
    }

    /// Whether a workload has series of its own.
    pub(super) fn has(&self, workload: &Workload) -> bool {
        self.taken.contains(workload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> BTreeSet<Workload> {
        names.iter().map(|name| ("shop".to_owned(), (*name).to_owned())).collect()
    }

    fn held(slots: &Slots, names: &[&str]) -> Vec<bool> {
        names.iter().map(|name| slots.has(&("shop".to_owned(), (*name).to_owned()))).collect()
    }

    #[test]
    fn workloads_keep_their_place_and_the_rest_is_one() {
        let mut slots = Slots::new(2);
        let all = named(&["a", "b", "c"]);
        slots.arrange(all.iter(), &all);
        assert_eq!(held(&slots, &["a", "b", "c"]), [true, true, false]);
        // A place becomes free: who is counted among the others stays there, or their count would fall.
        slots.arrange(all.iter(), &named(&["b", "c"]));
        assert_eq!(held(&slots, &["a", "b", "c"]), [true, true, false]);
    }

    #[test]
    fn a_new_workload_gets_the_place_of_one_that_is_gone() {
        let mut slots = Slots::new(2);
        let two = named(&["a", "b"]);
        slots.arrange(two.iter(), &two);
        let all = named(&["a", "b", "d"]);
        slots.arrange(all.iter(), &named(&["b", "d"]));
        assert_eq!(held(&slots, &["a", "b", "d"]), [false, true, true]);
        // It comes back: what it counted is among the others now.
        slots.arrange(all.iter(), &named(&["a", "b"]));
        assert_eq!(held(&slots, &["a", "b", "d"]), [false, true, true]);
        // Nothing is counted for it any more: it is as new as any.
        slots.arrange(named(&["b"]).iter(), &named(&["b"]));
        assert_eq!((slots.taken.len(), slots.without.len()), (1, 0));
    }
}
