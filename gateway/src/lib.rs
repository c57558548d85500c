//! The gateway, in the order in which data flows.
//!
//! Device to listen to decode to journal to acknowledgement; from the journal to windows, to
//! subscribers and live listeners, and to answers over HTTP. ARCHITECTURE.md has the map.

/// What fuzz targets and their replay call.
#[cfg(any(test, fuzzing))]
pub mod fuzz;

/// Opens, wires and orders everything.
pub mod app;

/// What a person can turn.
pub mod config;

/// What time it is.
pub mod clock;

/// What a person can run alerts on.
pub mod metrics;

/// A raw message comes in, by any protocol, and waits for its commit.
pub mod listen;

/// Bytes to readings or rejects.
pub mod decode;

/// Who is there: names to ids, and the latest value of each.
pub mod catalog;

/// Readings as columns.
pub mod readings;

/// The way to the disk: commit, then acknowledge.
pub mod journal;

/// Batches to chunks of one series and day; raw readings read back.
pub mod archive;

/// Which window, when it closes, what is late.
pub mod window;

/// The store as the uplink to the cloud sees it.
pub mod uplink;

/// What happens now, for those who watch.
pub mod live;

/// A question to an answer.
pub mod query;

/// Rows as tables: Arrow and Parquet.
pub mod table;

/// Answers over HTTP.
pub mod http;

/// Readings as files.
pub mod export;

/// `tidegate forget`.
pub mod forget;

/// Whether the cloud holds what this store holds.
pub mod verify;

/// What a store looks like, and what can be saved of a damaged one.
pub mod doctor;
