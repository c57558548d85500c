//! What a shard may do with each slot, and at which epoch.

use crate::shard::{Fence, Fenced, ShardError, State, check_writable};
use placement::Epoch;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// All slots that are known, read again only when they have changed.
#[derive(Debug, Default)]
pub(super) struct Fences(Mutex<(i64, Arc<Fenced>)>);

impl Fences {
    /// Checks that the snapshot owns slots at epochs.
    pub(super) fn check(&self, db: &Connection, wanted: &[(u16, Epoch)]) -> Result<(), ShardError> {
        let mut version = db.prepare_cached("SELECT value FROM meta WHERE key = 'fences'")?;
        let version: i64 = version.query_row([], |row| row.get(0)).optional()?.unwrap_or(0);
        let known = {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if known.0 != version {
                *known = (version, Arc::new(Fenced::of(fences(db)?.into_values())));
            }
            Arc::clone(&known.1)
        };
        known.check(wanted)
    }
}

pub(super) fn fences(db: &Connection) -> rusqlite::Result<BTreeMap<u16, Fence>> {
    let mut query = db.prepare_cached("SELECT slot, epoch, state FROM slot")?;
    let rows = query.query_map([], |row| {
        let state = State::of_name(&row.get::<_, String>(2)?);
        Ok(Fence { slot: row.get(0)?, epoch: row.get::<_, i64>(1)? as u64, state })
    })?;
    rows.map(|row| row.map(|fence| (fence.slot, fence))).collect()
}

pub(super) fn fence(db: &Connection, slot: u16) -> rusqlite::Result<Option<Fence>> {
    let mut query = db.prepare_cached("SELECT epoch, state FROM slot WHERE slot = ?1")?;
    let row = query.query_row([slot], |row| {
        let state = State::of_name(&row.get::<_, String>(1)?);
        Ok(Fence { slot, epoch: row.get::<_, i64>(0)? as u64, state })
    });
    row.optional()
}

pub(super) fn check_all_writable(
    db: &Connection,
    wanted: &[(u16, Epoch)],
    importing_only: bool,
) -> Result<(), ShardError> {
    let each = |&(slot, epoch): &(u16, Epoch)| check_writable(slot, fence(db, slot)?.as_ref(), epoch, importing_only);
    wanted.iter().try_for_each(each)
}

pub(super) fn set_fences(db: &Connection, fences: &[Fence]) -> Result<(), ShardError> {
    for wanted in fences {
        if let Some(found) = fence(db, wanted.slot)?.filter(|found| found.epoch > wanted.epoch) {
            return Err(ShardError::fenced(wanted.slot, Some(&found)));
        }
        db.prepare_cached("INSERT OR REPLACE INTO slot VALUES (?1, ?2, ?3)")?.execute(params![
            wanted.slot,
            wanted.epoch as i64,
            wanted.state.name()
        ])?;
    }
    db.execute("INSERT INTO meta VALUES ('fences', 1) ON CONFLICT (key) DO UPDATE SET value = value + 1", [])?;
    Ok(())
}
