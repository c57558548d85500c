//! Hours and days, from the windows in them; and what is left when those are retired.
//!
//! Arrives: hours that are stale, and an age. Leaves: rollups. Always holds: an hour is made of the
//! windows that fit into it, a day of its hours and of the windows that only fit into it; windows
//! go only when their hour is there and not stale, and from then on it is *sealed* (`revision` 1):
//! never computed again, and nothing more is taken for it.

use super::removal::Floors;
use super::rows::{COLUMNS, lengths, put_row, take_metrics};
use crate::row::{Key, Row, Version, sealed_above};
use crate::shard::merge::{DAY_US, HOUR_US, fits};
use crate::shard::{LENGTHS_MANY, ShardError, slot_of};
use model::time::window_start;
use model::{Micros, Summary};
use rusqlite::{Connection, params};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Computes hours that have changed, oldest first, and the days of which no hour is stale any more.
pub(super) fn roll_up(db: &Connection, until_us: Micros, limit: usize) -> Result<usize, ShardError> {
    let mut query =
        db.prepare_cached("SELECT device, hour_us FROM stale WHERE hour_us < ?1 ORDER BY hour_us, device LIMIT ?2")?;
    let found = query.query_map([until_us - HOUR_US, limit as i64], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let hours: Vec<(i64, Micros)> = found.collect::<rusqlite::Result<_>>()?;
    let (short, long) = short_and_long(db)?;
    let mut days = BTreeSet::new();
    for &(id, hour_us) in &hours {
        if !is_sealed(db, id, hour_us)? {
            let merged = merged(db, id, &[("summary", &short)], hour_us, HOUR_US)?;
            put_rollup(db, id, HOUR_US, hour_us, merged)?;
        }
        days.insert((id, window_start(hour_us, DAY_US)));
        db.prepare_cached("DELETE FROM stale WHERE device = ?1 AND hour_us = ?2")?.execute([id, hour_us])?;
    }
    for (id, day_us) in days {
        if !has_stale(db, id, day_us)? {
            let parts = [("rollup", &BTreeSet::from([HOUR_US])), ("summary", &long)];
            let merged = merged(db, id, &parts, day_us, DAY_US)?;
            put_rollup(db, id, DAY_US, day_us, merged)?;
        }
    }
    Ok(hours.len())
}

/// Lengths of windows that fit into an hour, and of those that fit only into a day.
fn short_and_long(db: &Connection) -> rusqlite::Result<(BTreeSet<Micros>, BTreeSet<Micros>)> {
    let lengths = lengths(db)?;
    Ok(lengths.into_iter().filter(|&us| fits(us, DAY_US)).partition(|&us| fits(us, HOUR_US)))
}

fn has_stale(db: &Connection, id: i64, day_us: Micros) -> rusqlite::Result<bool> {
    let mut stale = db.prepare_cached("SELECT 1 FROM stale WHERE device = ?1 AND hour_us >= ?2 AND hour_us < ?3")?;
    stale.exists([id, day_us, day_us + DAY_US])
}

fn is_sealed(db: &Connection, id: i64, hour_us: Micros) -> rusqlite::Result<bool> {
    let mut sealed = db.prepare_cached(
        "SELECT 1 FROM rollup WHERE device = ?1 AND length_us = ?2 AND start_us = ?3 AND revision = 1",
    )?;
    sealed.exists([id, HOUR_US, hour_us])
}

/// Retires the windows of hours all of which were received before. Those that fit into no hour are as
/// coarse as rollups, and stay.
pub(super) fn retire(db: &Connection, until_us: Micros, limit: usize) -> Result<usize, ShardError> {
    let mut query = db.prepare_cached(
        "SELECT r.device, r.start_us FROM rollup r WHERE r.length_us = ?1 AND r.revision = 0 AND r.received_us < ?2
            AND NOT EXISTS (SELECT 1 FROM stale s WHERE s.device = r.device AND s.hour_us = r.start_us)
            AND EXISTS (SELECT 1 FROM slot o WHERE o.slot = r.device >> 40 AND o.state = 'open') LIMIT ?3",
    )?;
    let found = query.query_map(params![HOUR_US, until_us, limit as i64], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let hours: Vec<(i64, Micros)> = found.collect::<rusqlite::Result<_>>()?;
    let (short, _) = short_and_long(db)?;
    for &(id, hour_us) in &hours {
        seal(db, id, hour_us, &short)?;
    }
    if !hours.is_empty() {
        db.execute("INSERT OR REPLACE INTO meta VALUES ('retired_us', ?1)", [until_us])?;
    } else if lengths(db)?.len() > LENGTHS_MANY {
        forget_lengths(db)?;
    }
    Ok(hours.len())
}

/// Forgets lengths of which there are no windows any more.
fn forget_lengths(db: &Connection) -> rusqlite::Result<()> {
    let looks_by_device = "DELETE FROM length WHERE NOT EXISTS
        (SELECT 1 FROM device d CROSS JOIN summary s WHERE s.device = d.id AND s.length_us = length.length_us)";
    db.execute(looks_by_device, []).map(drop)
}

/// From now on the hour is its rollup.
fn seal(db: &Connection, id: i64, hour_us: Micros, short: &BTreeSet<Micros>) -> rusqlite::Result<()> {
    let mut delete = db.prepare_cached(
        "DELETE FROM summary WHERE device = ?1 AND length_us = ?2 AND start_us >= ?3 AND start_us < ?4",
    )?;
    for &length_us in short {
        delete.execute([id, length_us, hour_us, hour_us + HOUR_US])?;
    }
    db.prepare_cached("UPDATE rollup SET revision = 1 WHERE device = ?1 AND length_us = ?2 AND start_us = ?3")?
        .execute([id, HOUR_US, hour_us])?;
    Ok(())
}

/// Takes sealed hours, whose windows go; their days are computed again.
pub(super) fn import_sealed(db: &Connection, ids: &[i64], rows: &[Row]) -> Result<(), ShardError> {
    let (short, _) = short_and_long(db)?;
    let mut floors = Floors::of(db)?;
    for (&id, row) in ids.iter().zip(rows) {
        let Some(row) = sealed_above(row, &floors.below(id)?) else { continue };
        let hour_us = row.key.start_us;
        put_rollup(db, id, HOUR_US, hour_us, (row.received_us, row.metrics.clone()))?;
        seal(db, id, hour_us, &short)?;
        db.prepare_cached("INSERT OR IGNORE INTO stale VALUES (?1, ?2)")?.execute([id, hour_us])?;
    }
    if !rows.is_empty() {
        db.execute("INSERT OR IGNORE INTO meta VALUES ('retired_us', 0)", [])?;
    }
    Ok(())
}

/// Says of windows whether they come for an hour that is sealed.
pub(super) struct Seals<'a> {
    /// Nothing has ever been retired: nothing is sealed.
    db: Option<&'a Connection>,
    known: HashMap<(i64, Micros), bool>,
}

impl<'a> Seals<'a> {
    pub(super) fn of(db: &'a Connection) -> rusqlite::Result<Self> {
        let retired = db.prepare_cached("SELECT 1 FROM meta WHERE key = 'retired_us'")?.exists([])?;
        Ok(Seals { db: retired.then_some(db), known: HashMap::new() })
    }

    /// True if the windows of its hour are gone.
    pub(super) fn hold(&mut self, id: i64, length_us: Micros, start_us: Micros) -> rusqlite::Result<bool> {
        let Some(db) = self.db else { return Ok(false) };
        if !fits(length_us, HOUR_US) {
            // It would count again what sealed hours in it say.
            let mut sealed = db.prepare_cached(
                "SELECT 1 FROM rollup WHERE device = ?1 AND length_us = ?2 AND start_us > ?3 AND start_us < ?4 AND revision = 1",
            )?;
            return sealed.exists([id, HOUR_US, start_us - HOUR_US, start_us + length_us]);
        }
        let hour_us = window_start(start_us, HOUR_US);
        let sealed = match self.known.get(&(id, hour_us)) {
            Some(&sealed) => sealed,
            None => is_sealed(db, id, hour_us)?,
        };
        self.known.insert((id, hour_us), sealed);
        Ok(sealed)
    }
}

type Merged = (Micros, BTreeMap<Arc<str>, Summary>);

/// The windows of a device, of some lengths, that start within a longer one.
fn merged(
    db: &Connection,
    id: i64,
    parts: &[(&str, &BTreeSet<Micros>)],
    start_us: Micros,
    whole_us: Micros,
) -> Result<Merged, ShardError> {
    let (mut received_us, mut metrics) = (0, BTreeMap::<Arc<str>, Summary>::new());
    for (table, lengths) in parts {
        let mut query = db.prepare_cached(&format!(
            "SELECT received_us, {COLUMNS} FROM {table}
             WHERE device = ?1 AND length_us = ?2 AND start_us >= ?3 AND start_us < ?4"
        ))?;
        for length_us in *lengths {
            let mut found = query.query([id, *length_us, start_us, start_us + whole_us])?;
            while let Some(row) = found.next()? {
                received_us = received_us.max(row.get(0)?);
                for (name, summary) in take_metrics(row, 1, true)? {
                    let whole = metrics.entry(name.into()).or_insert_with(|| Summary::empty(start_us));
                    whole.add(&summary);
                }
            }
        }
    }
    Ok((received_us, metrics))
}

/// Rollups follow from what they are made of: they have no version of their own.
fn put_rollup(
    db: &Connection,
    id: i64,
    length_us: Micros,
    start_us: Micros,
    (received_us, metrics): Merged,
) -> Result<(), ShardError> {
    db.prepare_cached("DELETE FROM rollup WHERE device = ?1 AND length_us = ?2 AND start_us = ?3")?
        .execute([id, length_us, start_us])?;
    if !metrics.is_empty() {
        let key = Key { slot: slot_of(id), gateway: "".into(), device: "".into(), length_us, start_us };
        put_row(db, "rollup", id, &Row { key, version: Version::default(), received_us, metrics })?;
    }
    Ok(())
}
