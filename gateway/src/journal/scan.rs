//! Raw readings, read back.
//!
//! Arrives: a range of event times. Leaves: batches that touch it, in order of commit, as one
//! snapshot of the store. Always holds: a batch that cannot be decoded is an error here, since
//! an answer without it would be wrong.

use super::batch;
use super::recover::RecoverError;
use crate::readings::Readings;
use model::Micros;
use rusqlite::{Connection, params};
use std::ops::ControlFlow;

/// Calls `each` with every batch that has readings in `[from_us, to_us)`; returns the last
/// sequence in the store, up to which this is all there is.
pub fn scan(
    db: &Connection,
    from_us: Micros,
    to_us: Micros,
    mut each: impl FnMut(&Readings) -> ControlFlow<()>,
) -> Result<u64, RecoverError> {
    let snapshot = db.unchecked_transaction()?;
    let last: Option<i64> = snapshot.query_row("SELECT max(seq) FROM batch", [], |row| row.get(0))?;
    let mut batches =
        snapshot.prepare_cached("SELECT seq, body FROM batch WHERE last_us >= ?1 AND first_us < ?2 ORDER BY seq")?;
    let mut rows = batches.query(params![from_us, to_us])?;
    while let Some(row) = rows.next()? {
        let seq: i64 = row.get(0)?;
        let body = row.get_ref(1)?.as_blob().unwrap_or_default();
        let readings = batch::decode(body).map_err(|error| RecoverError::Batch { seq: seq as u64, error })?;
        if each(&readings).is_break() {
            break;
        }
    }
    Ok(last.unwrap_or(0) as u64)
}
