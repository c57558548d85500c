//! `cargo xtask bench`: programs that measure, beside a named peer in the same run.

/// Readings acknowledged per second.
pub(crate) mod ingest;
/// A closed-loop MQTT load.
mod load;
