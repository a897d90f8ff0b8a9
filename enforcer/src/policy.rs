//! `PeerAuthentication`: validation, composition, explanation, lint and comparison. Pure, no I/O; knows nothing of
//! where objects come from.

pub mod age;
pub mod compose;
pub mod diff;
pub mod explain;
pub mod instant;
pub mod lint;
pub mod membership;
pub mod problem;
pub mod rules;
pub mod validate;
