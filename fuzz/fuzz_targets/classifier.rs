//! Any bytes as the opening of a stream, cut anyhow: classifier, byte rules and flow agree with the grammar of TLS.

#![no_main]

#[path = "../../enforcer-common/tests/oracle/opening.rs"]
mod opening;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| opening::judge(bytes));
