//! The soak in its short form; `cargo xtask soak --minutes 30` is the long one.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use enforcer_tests::soak::{Options, run};

#[test]
fn a_minute_of_everything_at_once() -> Result<()> {
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    // The seed is in what a failure says.
    let summary = run(Options { duration: Duration::from_secs(30), seed })?;
    println!("{summary}");
    Ok(())
}
