//! The compiled kernel programs, packet by packet, by `BPF_PROG_TEST_RUN`.

#[path = "../../enforcer-common/src/datapath/tests/model.rs"]
mod model;

#[path = "program_run/differential.rs"]
mod differential;
#[path = "program_run/frame.rs"]
mod frame;
#[path = "program_run/rig.rs"]
mod rig;

#[path = "program_run/clients.rs"]
mod clients;
#[path = "program_run/inside.rs"]
mod inside;
#[path = "program_run/reset.rs"]
mod reset;
#[path = "program_run/verdict.rs"]
mod verdict;
