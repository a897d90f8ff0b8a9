//! Any conversation, SYN cookies included: no byte that does not fit reaches the pod's application, and none leaves it.

#![no_main]

#[allow(dead_code)]
#[path = "../../enforcer-common/src/datapath/tests/model.rs"]
mod model;
#[path = "../../enforcer-common/tests/oracle/world.rs"]
mod world;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| world::play(bytes));
