//! `cargo xtask setup`: finds or installs what a build and the tests need. Does nothing when nothing is missing.

pub(crate) mod apt;
pub(crate) mod cache;
mod components;
mod envoy;
pub(crate) mod helm;
mod linker;
mod packages;
mod rust_src;
pub(crate) mod sources;

use std::fmt::Display;

use anyhow::Result;

/// Everything, in the order in which one needs the other.
pub(crate) fn run() -> Result<()> {
    // Two set-ups at once would install the same things into the same places.
    let _lock = cache::lock()?;
    components::ensure()?;
    rust_src::ensure()?;
    linker::ensure()?;
    packages::ensure()?;
    envoy::ensure()
}

/// One line about something that was found or is being done.
pub(crate) fn report(what: &str, how: impl Display) {
    println!("  {what:<12} {how}");
}
