//! The gateway's half: summaries on their way to the cloud.
//!
//! Arrives: the numbers of changes to summaries, from a [`Source`] that can read them back.
//! Leaves: batches, pushed to one of several endpoints, and what has been acknowledged, on disk.
//! Always holds: a change counts as sent only when every shard that its batch touches has
//! committed; whatever is in doubt is sent again, which changes nothing. Two cursors move over
//! the changes: *live* over those since the cloud was last reached, *backlog* over the rest.
//! Deliberately absent: a copy of what is to be sent.

/// Endpoints: gRPC, or the same body over HTTP.
mod client;
/// Which endpoint, and which of them are down.
mod picker;
/// What has been acknowledged.
mod progress;
/// Reads, sends, waits.
mod sender;
/// Which batches each shard holds.
mod shards;
/// How it goes.
mod status;

pub use client::{Endpoint, EndpointError, Tls};
pub use picker::Balance;
pub use sender::{Uplink, UplinkError, begun_anew, waiting};
pub use shards::Held;
pub use status::{EndpointStatus, Snapshot, Status};

use model::Micros;
use std::ops::Range;
use std::time::Duration;
use tokio::sync::watch;
use wire::Batch;

/// How summaries are sent.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to; any of them takes anything.
    pub endpoints: Vec<Endpoint>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// Changes are sent in their order; otherwise fresh ones go first.
    pub in_order: bool,
    /// A bearer token.
    pub token: Option<String>,
    /// For endpoints with TLS.
    pub tls: Tls,
    /// Batches under way at once, at most.
    pub in_flight: usize,
    /// Summaries in a batch, about.
    pub batch: usize,
    /// Summaries of the backlog in a second, at most; 0 sets no bound.
    pub catch_up: u32,
    /// Fresh summaries are sent once in this time, each gateway at its own moment.
    pub jitter: Duration,
    /// How often the cloud hears from a gateway that has nothing to send.
    pub heartbeat: Duration,
    /// How long a push may take.
    pub timeout: Duration,
}

/// Who sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `gateway.id`.
    pub gateway: String,
    /// The store's incarnation.
    pub incarnation: u64,
    /// How often the store has been started.
    pub starts: u64,
    /// Random for each start.
    pub session: u64,
    /// Of the program.
    pub version: &'static str,
}

/// What some changes come to now.
#[derive(Debug, Default)]
pub struct Portion {
    /// The windows that they touch, as they are now.
    pub batch: Batch,
    /// All changes below this one are in it.
    pub until: u64,
}

/// What is kept on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// Opaque: acknowledged changes, batches by shard.
    pub state: Vec<u8>,
    /// Batches sent since the last time, with their changes.
    pub sent: Vec<(u64, Range<u64>)>,
    /// Changes below are acknowledged and may be forgotten when they are old enough.
    pub done_below: u64,
}

/// Why the source cannot do it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(pub String);

/// Where changes are read; all of it may block.
pub trait Source: Send + Sync + 'static {
    /// The number of the latest change, now and whenever it rises; they count from 1.
    fn latest(&self) -> watch::Receiver<u64>;

    /// What the changes in a range come to now: about `summaries` of them, from the first on,
    /// and at least one change.
    fn read(&self, changes: Range<u64>, summaries: usize) -> Result<Portion, SourceError>;

    /// When a change was made, or the first one behind it that is still known.
    fn made_us(&self, change: u64) -> Option<Micros>;

    /// What was saved last.
    fn saved(&self) -> Result<Vec<u8>, SourceError>;

    /// Saves, durably.
    fn save(&self, saved: Saved) -> Result<(), SourceError>;

    /// The changes that batches from `batch` on have carried; `None` if that is not known any more.
    fn sent_since(&self, batch: u64) -> Result<Option<Vec<Range<u64>>>, SourceError>;

    /// Makes everything that is kept a change once more.
    fn everything_again(&self) -> Result<(), SourceError>;

    /// A later life for a store that began its life by a wrong clock, so that the cloud takes it for older than another;
    /// `None` if it did not. What nothing has been acknowledged of may always begin its life now.
    fn renew(&self, is_acknowledged: bool) -> Result<Option<u64>, SourceError> {
        let _ = is_acknowledged;
        Ok(None)
    }

    /// Only late readings can change windows that end here or before, once no change waits.
    fn complete_us(&self) -> Micros;

    /// The time.
    fn now_us(&self) -> Micros;
}
