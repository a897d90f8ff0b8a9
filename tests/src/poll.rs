//! Waiting for a condition until a deadline.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Calls `probe` every few milliseconds until it gives a value.
///
/// # Errors
/// When `limit` has passed, with `what` and the last obstacle that `probe` named; `probe` says with `Err` why the value
/// is not there yet.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(obstacle) if Instant::now() >= deadline => {
                bail!("waited {limit:?} in vain for {what}: {obstacle:#}")
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}
