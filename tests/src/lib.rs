//! The lab and what runs in it.
