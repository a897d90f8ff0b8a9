//! Any bytes as a record of the ring buffer: a record or an error, never a panic.

#![no_main]

#[path = "../../enforcer-common/tests/oracle/record.rs"]
mod record;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| record::read(bytes));
