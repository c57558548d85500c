//! A file, for one daemon: a lock beside it keeps a second one away.

use super::{Coordinator, CoordinatorError};
use async_trait::async_trait;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

const FILE: &str = "map.db";

/// The map in an SQLite file.
pub(crate) struct Sqlite {
    db: Mutex<Connection>,
    version: watch::Sender<u64>,
    _lock: File,
}

fn failed(e: impl std::fmt::Display) -> CoordinatorError {
    CoordinatorError(e.to_string())
}

impl Sqlite {
    /// True if there is a map in a directory.
    pub(crate) fn is_in(directory: &Path) -> bool {
        directory.join(FILE).exists()
    }

    /// The document with its version, also while a daemon has it.
    pub(crate) fn look(directory: &Path) -> Result<Option<(u64, String)>, CoordinatorError> {
        if !Sqlite::is_in(directory) {
            return Ok(None);
        }
        let db = Connection::open_with_flags(directory.join(FILE), OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
        db.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
        read(&db)
    }

    /// Opens the map in a directory, which no other daemon may use.
    pub(crate) fn open(directory: &Path) -> Result<Self, CoordinatorError> {
        let at = |e: std::io::Error| failed(format!("data directory {}: {e}", directory.display()));
        std::fs::create_dir_all(directory).map_err(at)?;
        let lock = File::options().create(true).truncate(false).write(true).open(directory.join("lock")).map_err(at)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(failed(format!(
                    "data directory {} is in use by another tidegate-cloud: stop it, choose another with cloud.data_dir, or \
                     let several daemons share a map with cloud.coordinator",
                    directory.display()
                )));
            }
            Err(TryLockError::Error(e)) => return Err(at(e)),
        }
        let db = Connection::open(directory.join(FILE)).map_err(failed)?;
        db.execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
             CREATE TABLE IF NOT EXISTS map (id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL, document TEXT NOT NULL);",
        )
        .map_err(failed)?;
        Ok(Sqlite { db: Mutex::new(db), version: watch::Sender::new(0), _lock: lock })
    }
}

fn read(db: &Connection) -> Result<Option<(u64, String)>, CoordinatorError> {
    let row =
        db.query_row("SELECT version, document FROM map", [], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?)));
    row.optional().map_err(failed)
}

#[async_trait]
impl Coordinator for Sqlite {
    async fn read(&self) -> Result<Option<(u64, String)>, CoordinatorError> {
        read(&self.db.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn swap(&self, version: Option<u64>, document: &str) -> Result<bool, CoordinatorError> {
        let db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = match version {
            None => db.execute("INSERT OR IGNORE INTO map VALUES (1, 1, ?1)", [document]),
            Some(version) => db.execute(
                "UPDATE map SET version = version + 1, document = ?2 WHERE version = ?1",
                params![version as i64, document],
            ),
        };
        let changed = changed.map_err(failed)? > 0;
        if changed {
            self.version.send_replace(version.unwrap_or(0) + 1);
        }
        Ok(changed)
    }

    async fn lead(&self, _who: &str, _ttl: Duration) -> Result<bool, CoordinatorError> {
        Ok(true)
    }

    async fn resign(&self, _who: &str) -> Result<(), CoordinatorError> {
        Ok(())
    }

    async fn changed(&self, version: u64) {
        // The sender is ours, so this ends only with a change.
        let _ = self.version.subscribe().wait_for(|now| *now > version).await;
    }
}
