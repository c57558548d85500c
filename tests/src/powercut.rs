//! A disk whose power can be cut.
//!
//! A recording layer below SQLite writes down everything that reaches the files: writes,
//! truncations, syncs, deletions, and between them what clients were told. Afterwards any
//! point of the recording is a power cut: what was synced is there; of what was not, a seed
//! decides, sector by sector, what the disk had got to. One run gives thousands of cuts.

/// What a disk holds after a cut.
pub mod disk;

/// The recording layer.
pub mod vfs;

/// Something that happened to the files, or was told to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A file came to be.
    Created(String),
    /// Bytes were written.
    Written(String, u64, Vec<u8>),
    /// A file was cut short, or made longer.
    Truncated(String, u64),
    /// All of a file so far is on disk.
    Synced(String),
    /// A file was deleted.
    Deleted(String),
    /// A client was told that this is kept.
    Told(u64),
}
