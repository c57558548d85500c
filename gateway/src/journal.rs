//! The way to the disk.
//!
//! Arrives: parcels of readings with the receipts of those who wait for them. Leaves: one
//! transaction per commit, then the receipts, then the readings for windows and live feeds.
//! Always holds: **commit, then acknowledge**; one thread writes, everybody else reads; what
//! waits is bounded in bytes and full means the sender waits. Deliberately absent: what the
//! readings mean.

/// Readings of one commit as bytes.
pub(crate) mod batch;

/// What batches and chunks have in common.
pub(crate) mod seal;

/// What waits for the commit.
pub(crate) mod intake;

/// From the writer to the windows.
pub(crate) mod handover;

/// The store and its log belong together.
mod pair;

/// Tables, settings, versions.
pub mod schema;

/// How long commits wait for company.
pub(crate) mod pace;

/// The one thread that writes.
pub(crate) mod writer;

/// What the writer does besides readings.
pub(crate) mod steps;

/// Devices and metrics that are no more.
pub(crate) mod removal;

/// What has changed among summaries, for the uplink.
pub(crate) mod changes;

/// What a restart puts back.
pub(crate) mod recover;

use crate::clock::{Correction, Ledger};
use crate::readings::Readings;
use changes::Change;
pub(crate) use intake::{Intake, Parcel};
use model::{Micros, Summary};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use uplink::Saved;

/// What a client is told that does not wait until there is space.
pub(crate) const DISK_FULL: &str = "the disk is full: nothing is stored until there is space; try again later";

/// Readings that are on disk.
#[derive(Debug, Clone)]
pub(crate) struct Committed {
    /// The journal sequence of their commit.
    pub seq: u64,
    /// When the gateway received them.
    pub received_us: Micros,
    /// The readings.
    pub readings: Arc<Readings>,
}

/// Something undecodable that is kept for its owner to look at.
#[derive(Debug, Clone)]
pub(crate) struct Rejected {
    /// When it came.
    pub received_us: Micros,
    /// From where: a topic, a path.
    pub source: String,
    /// Why, see [`crate::decode::Reason`].
    pub reason: &'static str,
    /// Why, in a sentence that names the leaf.
    pub detail: String,
    /// The beginning of the payload.
    pub payload: Box<[u8]>,
}

/// A change to the QoS 2 packet identifiers of a client.
#[derive(Debug, Clone)]
pub(crate) enum Inbound {
    /// The message is stored: a repetition must not be stored again.
    Stored {
        /// The client id.
        client: Arc<str>,
        /// The packet identifier.
        pkid: u16,
        /// A hash of the message, so that a reused identifier is told from a repetition.
        hash: u64,
    },
    /// The client has released the identifier.
    Released {
        /// The client id.
        client: Arc<str>,
        /// The packet identifier.
        pkid: u16,
    },
    /// The client starts anew.
    Forgotten {
        /// The client id.
        client: Arc<str>,
    },
}

/// The summary of one window of one series, to be written.
#[derive(Debug, Clone)]
pub(crate) struct SummaryRow {
    /// Whose.
    pub series: u32,
    /// The window's start.
    pub start_us: Micros,
    /// The window's length.
    pub length_us: Micros,
    /// The journal sequence up to which the window's readings are in it.
    pub through_seq: u64,
    /// How often the window has come to something else, from 1.
    pub revision: u32,
    /// What it says.
    pub summary: Summary,
}

/// Work that the writer does between two batches, in their transactions.
#[derive(Debug)]
pub(crate) struct Chore {
    /// What to do.
    pub step: Step,
    /// Who is told its bytes once it is on disk.
    pub done: Option<Sender<u64>>,
}

/// What there is to do besides readings.
#[derive(Debug)]
pub(crate) enum Step {
    /// How far windows have got, with the summaries of those that closed.
    Windows {
        /// Windows that have no summary yet.
        rows: Vec<SummaryRow>,
        /// The lowest sequence that an open window still needs.
        replay_from: u64,
        /// All commits up to here are in windows, open, closed or dirty.
        through_seq: u64,
        /// Stretches of series whose windows are dirty, if that has changed.
        dirty: Option<Vec<u8>>,
    },
    /// Windows that have come to something else.
    Revised(Vec<SummaryRow>),
    /// Summaries of old days, which replace those that are there.
    Rollups {
        /// Those to write.
        rows: Vec<Rollup>,
        /// Ids of those that they make superfluous.
        remove: Vec<i64>,
        /// The length of the windows that have come to something else, with their series and starts.
        changed: (Micros, Vec<(u32, Micros)>),
    },
    /// Removes rows of the table of summaries that have been folded.
    RemoveSummaries {
        /// The length of their windows.
        length_us: Micros,
        /// Those that start before.
        until_us: Micros,
    },
    /// What is known of the clock.
    Clock(Ledger),
    /// Readings get other times.
    Move(Box<Moved>),
    /// Receive times of a stretch turn out to have been wrong.
    Received(Correction),
    /// Nothing: it is done when all before it are.
    Barrier,
    /// Writes what a restart would otherwise recompute from all readings.
    Snapshot,
    /// Batches up to `seq` are going to be folded.
    Begin {
        /// The last commit of the lot.
        seq: i64,
    },
    /// New parts, which do not count yet.
    Chunks(Vec<Chunk>),
    /// From now on chunks count and batches do not, up to `seq`.
    Count {
        /// The last commit of the lot.
        seq: i64,
    },
    /// Removes chunks that have been replaced.
    Remove(Vec<i64>),
    /// Replaces chunks that count by others that say the same.
    Rewrite {
        /// Those to remove.
        remove: Vec<i64>,
        /// Those to write.
        chunks: Vec<Chunk>,
    },
    /// Gives chunks other ids, each as low or lower, in order; what they replaced must be gone.
    Rename {
        /// What has been replaced.
        remove: Vec<i64>,
        /// Before, and from now on.
        ids: Vec<(i64, i64)>,
    },
    /// Removes batches that are in chunks.
    RemoveBatches {
        /// The last one.
        seq: i64,
    },
    /// The fold is over.
    Folded,
    /// Removes readings for good: from now on their days are sealed.
    Retire {
        /// Ids of their chunks.
        chunks: Vec<i64>,
        /// Series and days.
        places: Vec<(u32, i64)>,
    },
    /// Removes summaries for good.
    RetireRollups(Vec<i64>),
    /// Makes what is there already a change for the uplink.
    Changes(Vec<Change>),
    /// The store begins its life at another time, as the cloud sees it.
    Incarnation(u64),
    /// Whether all that was there already has become a change.
    Filling {
        /// It has.
        done: bool,
    },
    /// How far the uplink has got.
    Uplink {
        /// What is kept.
        saved: Saved,
        /// The time.
        now_us: Micros,
        /// What was acknowledged before may be forgotten.
        until_us: Micros,
    },
    /// Removes summaries of series that are no more, by length, start and series.
    Sweep(Vec<(Micros, Micros, u32)>),
    /// The windows of these devices are changes now: a metric of theirs has been removed.
    Told(Vec<u32>),
    /// Nothing is left of these series.
    Swept(Vec<u32>),
    /// Gives unused pages back to the filesystem.
    Vacuum {
        /// At most so many.
        pages: u32,
    },
}

impl Step {
    /// What its bytes are counted as.
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Step::Windows { .. } | Step::Revised(_) | Step::RemoveSummaries { .. } => Cause::Summaries,
            Step::Rollups { .. } | Step::RetireRollups(_) => Cause::Rollups,
            Step::Snapshot => Cause::Snapshot,
            Step::Changes(_) | Step::Filling { .. } | Step::Uplink { .. } => Cause::Uplink,
            _ => Cause::Archive,
        }
    }
}

/// What bytes are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Batches of readings.
    Journal,
    /// Chunks of readings.
    Archive,
    /// Summaries as rows.
    Summaries,
    /// Summaries of old days.
    Rollups,
    /// What a restart needs.
    Snapshot,
    /// Rejects, retained messages, packet identifiers.
    Messages,
    /// What is to be sent to the cloud, and what has been.
    Uplink,
}

impl Cause {
    /// All of them.
    pub(crate) const ALL: [Cause; 7] = [
        Cause::Journal,
        Cause::Archive,
        Cause::Summaries,
        Cause::Rollups,
        Cause::Snapshot,
        Cause::Messages,
        Cause::Uplink,
    ];

    /// As metrics name it.
    pub(crate) fn name(self) -> &'static str {
        ["journal", "archive", "summaries", "rollups", "snapshot", "messages", "uplink"][self as usize]
    }
}

/// Readings that are taken out of their batches and chunks, and come in again at another time.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    /// What is left of batches, by sequence.
    pub batches: Vec<(i64, Readings)>,
    /// Chunks to remove.
    pub remove: Vec<i64>,
    /// What is left of them.
    pub chunks: Vec<Chunk>,
    /// The readings, with the times they should have had.
    pub readings: Readings,
}

/// A row of the table of rollups, see [`crate::archive::levels`].
#[derive(Debug)]
pub(crate) struct Rollup {
    /// Span of days, series and level.
    pub id: i64,
    /// When the gateway received the latest of the readings, about.
    pub received_us: Micros,
    /// How many windows.
    pub windows: i64,
    /// The start of the first.
    pub from_us: Micros,
    /// The end of the last.
    pub to_us: Micros,
    /// See [`crate::archive::rollup`].
    pub body: Vec<u8>,
}

/// A row of the table of chunks.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Day, series and part.
    pub id: i64,
    /// How many parts before it are replaced.
    pub covers: i64,
    /// The last commit that is in it.
    pub seq: i64,
    /// When the gateway received the latest of its readings.
    pub received_us: Micros,
    /// How many.
    pub readings: i64,
    /// The earliest event time.
    pub first_us: Micros,
    /// The latest event time.
    pub last_us: Micros,
    /// See [`crate::archive::chunk`].
    pub body: Vec<u8>,
}

/// Why the store's content cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// SQLite cannot read it.
    #[error("the store cannot be read: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A batch is damaged.
    #[error("batch {seq}: {error}")]
    Batch {
        /// Its sequence.
        seq: u64,
        /// What is wrong with it.
        error: batch::BatchError,
    },
    /// A row of folded summaries is damaged.
    #[error("rollup {id}: {error}")]
    Rollup {
        /// Its row id.
        id: i64,
        /// What is wrong with it.
        error: batch::BatchError,
    },
    /// A summary is damaged.
    #[error("the summary of series {series} at {start_us} us is damaged")]
    Summary {
        /// Whose.
        series: u32,
        /// The window's start.
        start_us: Micros,
    },
    /// A chunk is damaged.
    #[error("chunk {id}: {error}")]
    Chunk {
        /// Its row id.
        id: i64,
        /// What is wrong with it.
        error: batch::BatchError,
    },
}
