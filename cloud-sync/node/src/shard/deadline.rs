//! How long a shard may take: one that hangs must not be a daemon that hangs.
//!
//! A server that is stopped, or a network that swallows everything, gives no error. What was asked when time was up
//! may still be done: every write can be repeated.

use super::ShardError;
use std::time::Duration;

/// What reads or writes a few rows.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// What waits for others that write.
pub(super) const WRITE: Duration = Duration::from_secs(30);
/// What reads or writes many rows.
pub(super) const LONG: Duration = Duration::from_secs(70);

/// The outcome, or that there was none in time.
pub(crate) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, ShardError>>,
) -> Result<T, ShardError> {
    let late = |_| ShardError::Down(format!("no answer within {} s", limit.as_secs()));
    tokio::time::timeout(limit, work).await.map_err(late)?
}
