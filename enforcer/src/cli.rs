//! The command line.

pub mod detach;

use std::process::ExitCode;
/// Entry point of the binary.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
