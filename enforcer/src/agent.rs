//! The agent.

pub mod state; pub mod tables;
