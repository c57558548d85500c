//! `cargo xtask bench`: programs that measure, beside a named peer in the same run.

/// Summaries into shards and out of them.
pub(crate) mod cloud;
/// A day of a thousand sensors.
mod day;
/// Readings acknowledged per second.
pub(crate) mod ingest;
/// A closed-loop MQTT load.
mod load;
/// Answers over HTTP.
pub(crate) mod query;
/// Readings in no order.
pub(crate) mod replay;
/// What a large fleet needs.
pub(crate) mod scale;
/// Bytes on disk and bytes written.
pub(crate) mod store;
/// What a process has used.
mod usage;
/// Bytes sent to the disk in a day.
pub(crate) mod wear;
