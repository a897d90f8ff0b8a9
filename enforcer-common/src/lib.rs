//! What the kernel programs and the agent share: map layouts, modes, reasons, the TLS classifier and the
//! flow state machine.
//!
//! Nothing here does I/O, and nothing needs `std`: the same code is compiled for the kernel and for the host,
//! where it is tested exhaustively. Numbers are in host byte order unless a field says otherwise; addresses are
//! always in network byte order (see [`Address`]).
#![no_std]
#![forbid(unsafe_code)]
#![expect(
    clippy::inline_always,
    reason = "the kernel allows 512 bytes of stack for a whole chain of calls: what becomes a call is decided by hand"
)]

// The model in the tests also serves the tests of the compiled programs, where this crate has its own name.
#[cfg(test)]
extern crate self as enforcer_common;
#[cfg(test)]
extern crate std;

pub mod address;
pub mod datapath;
pub mod event;
pub mod flow;
pub mod map;
pub mod mode;
pub mod reason;
pub mod settings;
pub mod tcp;
pub mod tls;

pub use address::Address;
pub use mode::Mode;
pub use reason::{Direction, Reason, Verdict};
