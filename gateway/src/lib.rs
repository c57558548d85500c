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
mod clock;

/// What a person can run alerts on.
mod metrics;

/// A raw message comes in, by any protocol, and waits for its commit.
mod listen;

/// Bytes to readings or rejects.
mod decode;

/// Who is there: names to ids, and the latest value of each.
mod catalog;

/// Readings as columns.
mod readings;

/// The way to the disk: commit, then acknowledge.
mod journal;

/// Batches to chunks of one series and day; raw readings read back.
mod archive;

/// Which window, when it closes, what is late.
mod window;

/// The store as the uplink to the cloud sees it.
mod uplink;

/// What happens now, for those who watch.
mod live;

/// A question to an answer.
mod query;

/// Rows as tables: Arrow and Parquet.
mod table;

/// Answers over HTTP.
mod http;

/// Readings as files.
pub mod export;

/// `tidegate forget`.
pub mod forget;

/// Whether the cloud holds what this store holds.
pub mod verify;

/// What a store looks like, and what can be saved of a damaged one.
pub mod doctor;

/// What the tests look at inside a store, beside the daemon.
pub mod inside {
    pub use crate::archive::levels::each_summary;
    pub use crate::archive::read::{Raw, Wanted};
    pub use crate::archive::rollup::Folded;
    pub use crate::clock::Clock;
    pub use crate::journal::{ReadError, schema};
    pub use crate::window::dirty::read_blob;
    pub use crate::window::revise::Stretch;
}
