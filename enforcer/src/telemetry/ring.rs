//! The flow log: the latest records, bounded, for any number of readers. Writers never wait for readers: who reads too
//! slowly is told how many records it missed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::record::{Line, Record};

/// The latest records.
#[derive(Debug)]
pub struct FlowLog {
    records: Mutex<Records>,
    capacity: usize,
    /// Number of the record that comes next.
    next: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Records {
    /// The oldest first; their numbers are consecutive.
    kept: VecDeque<Arc<Record>>,
    next: u64,
}

/// What a reader gets at once.
#[derive(Debug, Default)]
pub struct Batch {
    /// Records that were gone before the reader came.
    pub missed: u64,
    /// The records, oldest first.
    pub records: Vec<Arc<Record>>,
    /// Where to read on.
    pub next: u64,
}

impl FlowLog {
    /// A log of at most `capacity` records; 0 keeps none.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { records: Mutex::default(), capacity, next: watch::channel(0).0 }
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        // Nothing is left half done under this lock.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends records and wakes the readers once. Each gets its number.
    pub fn extend(&self, lines: impl IntoIterator<Item = Line>) {
        let next = {
            let mut held = self.records();
            for line in lines {
                let record = Record { id: held.next, line };
                held.next += 1;
                if self.capacity == 0 {
                    continue;
                }
                if held.kept.len() >= self.capacity {
                    held.kept.pop_front();
                }
                held.kept.push_back(Arc::new(record));
            }
            held.next
        };
        self.next.send_if_modified(|current| std::mem::replace(current, next) != next);
    }

    /// At most `most` records from number `from` on.
    #[must_use]
    pub fn read(&self, from: u64, most: usize) -> Batch {
        let held = self.records();
        let first = held.next - held.kept.len() as u64;
        let start = from.clamp(first, held.next);
        let skip = usize::try_from(start - first).unwrap_or(usize::MAX);
        let records: Vec<_> = held.kept.iter().skip(skip).take(most).cloned().collect();
        Batch { missed: start.saturating_sub(from), next: start + records.len() as u64, records }
    }

    /// Number of the oldest record that is kept.
    #[must_use]
    pub fn first(&self) -> u64 {
        let held = self.records();
        held.next - held.kept.len() as u64
    }

    /// Number of the record that comes next.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.records().next
    }

    /// Wakes when records came.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.next.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::record::Suppressed;

    fn line() -> Line {
        Line::Suppressed(Suppressed::default())
    }

    fn log(capacity: usize, records: usize) -> FlowLog {
        let log = FlowLog::new(capacity);
        log.extend((0..records).map(|_| line()));
        log
    }

    fn ids(batch: &Batch) -> Vec<u64> {
        batch.records.iter().map(|record| record.id).collect()
    }

    #[test]
    fn the_latest_are_kept_and_numbered() {
        let log = log(3, 5);
        let all = log.read(log.first(), 100);
        assert_eq!((ids(&all), all.missed, all.next), (vec![2, 3, 4], 0, 5));
        assert_eq!(log.next(), 5);
    }

    #[test]
    fn a_slow_reader_is_told_what_it_missed() {
        let log = log(3, 5);
        let late = log.read(0, 2);
        assert_eq!((ids(&late), late.missed, late.next), (vec![2, 3], 2, 4));
        let rest = log.read(late.next, 2);
        assert_eq!((ids(&rest), rest.missed, rest.next), (vec![4], 0, 5));
        let none = log.read(rest.next, 2);
        assert_eq!((ids(&none), none.missed, none.next), (vec![], 0, 5));
    }

    #[test]
    fn a_log_of_no_size_counts_only() {
        let log = log(0, 4);
        let none = log.read(0, 10);
        assert_eq!((ids(&none), none.missed, none.next), (vec![], 4, 4));
    }

    #[test]
    fn readers_wake_once_for_each_extension() {
        let log = log(3, 0);
        let mut watch = log.watch();
        assert!(!watch.has_changed().expect("the log lives"));
        log.extend([line(), line()]);
        assert_eq!(*watch.borrow_and_update(), 2);
        log.extend([]);
        assert!(!watch.has_changed().expect("the log lives"), "nothing came");
    }
}
