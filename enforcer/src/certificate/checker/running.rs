//! The checks that run, each with the key that it is known by whatever becomes of it.

use std::collections::HashMap;
use std::future::Future;

use tokio::task::{Id, JoinSet};

/// Running checks.
#[derive(Debug)]
pub(super) struct Running<K, T> {
    tasks: JoinSet<T>,
    keys: HashMap<Id, K>,
}

impl<K, T: Send + 'static> Running<K, T> {
    pub(super) fn new() -> Self {
        Self { tasks: JoinSet::new(), keys: HashMap::new() }
    }

    pub(super) fn spawn(&mut self, key: K, check: impl Future<Output = T> + Send + 'static) {
        let handle = self.tasks.spawn(check);
        self.keys.insert(handle.id(), key);
    }

    /// The next one that ends, and what it found; `None` in the place of that where it panicked. `None` when none runs.
    pub(super) async fn next(&mut self) -> Option<(K, Option<T>)> {
        loop {
            let (id, found) = match self.tasks.join_next_with_id().await? {
                Ok((id, found)) => (id, Some(found)),
                Err(error) => (error.id(), None),
            };
            if let Some(key) = self.keys.remove(&id) {
                return Some((key, found));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_check_that_panics_ends_like_any_other() {
        let mut running = Running::new();
        running.spawn("good", async { 7 });
        running.spawn("bad", async { panic!("on purpose") });
        let mut ended = [running.next().await, running.next().await];
        ended.sort();
        assert_eq!(ended, [Some(("bad", None)), Some(("good", Some(7)))]);
        assert_eq!(running.next().await, None);
        assert!(running.keys.is_empty());
    }
}
