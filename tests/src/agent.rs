//! The agent under test.
