//! HTTP as both daemons speak it.
//!
//! Arrives: query strings, `Accept` headers. Leaves: JSON, CSV, Arrow, Parquet, and errors as
//! RFC 9457 problems that say what to do.

/// `/v1/aggregates`: parameters to a question, rows to an answer.
pub mod aggregates;
/// Metrics in the form that is asked for.
pub mod metrics;
/// Query parameters.
pub mod params;
/// Answers and errors.
pub mod reply;
/// Connections.
pub mod serve;
/// Pages from elsewhere.
pub mod web;
