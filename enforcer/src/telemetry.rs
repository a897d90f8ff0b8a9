//! To come: telemetry.

pub mod readiness;
