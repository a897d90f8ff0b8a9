//! The `enforcer` binary: see the library's `cli` module.

use std::process::ExitCode;

fn main() -> ExitCode {
    enforcer::cli::main()
}
