//! How long to wait between two attempts to follow a kind. Pure.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// The first wait after a failure; each further one is twice as long.
const SHORTEST: Duration = Duration::from_millis(250);
/// The longest. Every node waits its own time, by chance. Also how long a kind must have been followed for the next
/// failure to be the first again: a watch that ends as soon as it has begun is no success.
const LONGEST: Duration = Duration::from_secs(10);

/// The next wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(SHORTEST)
    }
}

impl Backoff {
    /// How long to wait now; `followed`: how long the kind was followed before it failed. The next wait is longer.
    pub(super) fn next(&mut self, followed: Duration) -> Duration {
        if followed >= LONGEST {
            *self = Self::default();
        }
        let wait = self.0;
        self.0 = (wait * 2).min(LONGEST);
        let spread = u32::try_from(RandomState::new().hash_one(0) % 500).unwrap_or(0);
        wait * (750 + spread) / 1000
    }

    /// There is reason to try soon: what kept it is over.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: Duration, wanted: Duration) -> bool {
        found >= wanted * 3 / 4 && found < wanted * 5 / 4
    }

    #[test]
    fn waits_grow_until_the_longest_also_where_every_watch_ends_at_once() {
        let mut backoff = Backoff::default();
        for millis in [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000] {
            let wait = backoff.next(Duration::from_secs(1));
            assert!(near(wait, Duration::from_millis(millis)), "{wait:?} in place of {millis} ms");
        }
    }

    #[test]
    fn who_was_followed_for_a_while_is_tried_again_at_once() {
        let mut backoff = Backoff::default();
        for _ in 0..6 {
            backoff.next(Duration::ZERO);
        }
        assert!(near(backoff.next(LONGEST), SHORTEST));
        assert!(near(backoff.next(Duration::ZERO), SHORTEST * 2));
        backoff.reset();
        assert!(near(backoff.next(Duration::ZERO), SHORTEST));
    }
}
