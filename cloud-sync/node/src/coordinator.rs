//! Where the map lives.
//!
//! A coordinator keeps one document, changed by compare-and-set, and one lease, held by the
//! daemon that moves slots. Always holds: neither decides anything about data; whoever acts on
//! an old map, or still thinks that it holds the lease, is refused by the shards.

/// etcd.
mod etcd;
/// A database.
mod postgres;
/// A file, for one daemon.
mod sqlite;

use async_trait::async_trait;
pub(crate) use etcd::Etcd;
pub(crate) use postgres::Postgres;
pub(crate) use sqlite::Sqlite;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Why the coordinator did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator cannot be used: {0}")]
pub struct CoordinatorError(pub String);

/// One document and one lease.
#[async_trait]
pub(crate) trait Coordinator: Send + Sync + 'static {
    /// The document with its version; `None` before there is one.
    async fn read(&self) -> Result<Option<(u64, String)>, CoordinatorError>;

    /// Replaces the document of a version; `None`: there must be none yet. False if another was
    /// quicker.
    async fn swap(&self, version: Option<u64>, document: &str) -> Result<bool, CoordinatorError>;

    /// Takes or keeps the lease; false if another holds it.
    async fn lead(&self, who: &str, ttl: Duration) -> Result<bool, CoordinatorError>;

    /// Lets the lease go.
    async fn resign(&self, who: &str) -> Result<(), CoordinatorError>;

    /// Returns when the document may have another version.
    async fn changed(&self, version: u64);
}

/// The document with its version, without taking the map from a daemon that uses it.
pub(crate) async fn look(url: &str, directory: &Path) -> Result<Option<(u64, String)>, CoordinatorError> {
    if url == "sqlite" { Sqlite::look(directory) } else { open(url, directory).await?.read().await }
}

/// Opens the coordinator of a configuration: `sqlite`, `postgres://...` or `etcd://...`.
pub(crate) async fn open(url: &str, directory: &Path) -> Result<Arc<dyn Coordinator>, CoordinatorError> {
    match url.split_once("://").map(|(scheme, _)| scheme) {
        None if url == "sqlite" => Ok(Arc::new(Sqlite::open(directory)?)),
        Some("postgres" | "postgresql") => {
            let pool = crate::shard::postgres::pool(url).map_err(|e| CoordinatorError(e.to_string()))?;
            Ok(Arc::new(Postgres::open(pool).await?))
        }
        Some("etcd" | "etcds") => Ok(Arc::new(Etcd::new(url)?)),
        _ => Err(CoordinatorError(format!("{url:?} is none: write sqlite, postgres://... or etcd://HOST:PORT"))),
    }
}
