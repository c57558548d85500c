//! How it goes, for `/v1/status` and `/metrics`.

use model::Micros;
use std::sync::{Mutex, PoisonError};

/// How an endpoint does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointStatus {
    /// As it was configured.
    pub url: String,
    /// The circuit breaker: "closed" (in use), "open" (left alone) or "half-open" (being tried).
    pub state: &'static str,
}

/// How it goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Changes that have not been acknowledged.
    pub backlog: u64,
    /// When the oldest of them was made.
    pub oldest_us: Option<Micros>,
    /// Summaries acknowledged since the start; one may count twice that was sent twice.
    pub summaries: u64,
    /// Batches acknowledged since the start.
    pub batches: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Pushes that failed since the start.
    pub failures: u64,
    /// Shards found restored since the start.
    pub replays: u64,
    /// Changes since the start that the cloud could not read, and that are not sent again.
    pub set_aside: u64,
    /// When the cloud last answered.
    pub last_answer_us: Option<Micros>,
    /// What went wrong last, until something goes right.
    pub last_error: Option<String>,
    /// All endpoints.
    pub endpoints: Vec<EndpointStatus>,
}

/// Shared between the uplink and those who ask.
#[derive(Debug, Default)]
pub struct Status(Mutex<Snapshot>);

impl Status {
    /// How it goes now.
    pub fn get(&self) -> Snapshot {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
