//! Devices and metrics that are no more.
//!
//! Arrives: floors of versions. Leaves: rows without what is below them. Always holds: from the commit of a
//! floor on, nothing below it is taken; what is there goes in slices, after which answers have forgotten it.

use super::devices::{device, put_labels};
use super::rows::{COLUMNS, put_row, take_metrics, version};
use crate::row::{Floor, Key, Row, Version};
use crate::shard::merge::HOUR_US;
use crate::shard::{LabelsVersion, Removal, SWEPT_AT_ONCE, ShardError, slot_of};
use model::Micros;
use model::time::window_start;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashMap;
use std::sync::Arc;

/// What is no more of the devices that a push is about.
pub(super) struct Floors<'a> {
    /// Nothing has ever been removed.
    db: Option<&'a Connection>,
    known: HashMap<i64, Arc<[Floor]>>,
}

impl<'a> Floors<'a> {
    pub(super) fn of(db: &'a Connection) -> rusqlite::Result<Self> {
        let any = db.prepare_cached("SELECT 1 FROM removed LIMIT 1")?.exists([])?;
        Ok(Floors { db: any.then_some(db), known: HashMap::new() })
    }

    /// Those of a device.
    pub(super) fn below(&mut self, id: i64) -> rusqlite::Result<Arc<[Floor]>> {
        let Some(db) = self.db else { return Ok(Arc::default()) };
        if let Some(known) = self.known.get(&id) {
            return Ok(Arc::clone(known));
        }
        let floors: Arc<[Floor]> = floors_of(db, id)?.into();
        self.known.insert(id, Arc::clone(&floors));
        Ok(floors)
    }
}

/// What is no more of a device.
pub(super) fn floors_of(db: &Connection, id: i64) -> rusqlite::Result<Vec<Floor>> {
    let mut query =
        db.prepare_cached("SELECT incarnation, revision, received_us, metric FROM removed WHERE device = ?1")?;
    let floors = query.query_map([id], |row| {
        let metric = Some(row.get::<_, String>(3)?).filter(|metric| !metric.is_empty());
        Ok(Floor { metric: metric.map(Into::into), version: version(row, 0)?, received_us: row.get(2)? })
    })?;
    floors.collect()
}

/// Takes note of what a push says is no more.
pub(super) fn put_removed(db: &Connection, gateway: &str, removed: &[Removal], batch: u64) -> Result<(), ShardError> {
    for Removal { slot, device: name, floor } in removed {
        let id = device(db, *slot, gateway, name)?;
        if floor.metric.is_none() {
            put_labels(db, id, &Default::default(), (floor.version.incarnation, batch) as LabelsVersion)?;
        }
        put_floor(db, id, floor, false)?;
    }
    if !removed.is_empty() {
        sweep(db, SWEPT_AT_ONCE)?;
    }
    Ok(())
}

/// The higher floor stays; one that is not known may say that there is nothing below it.
pub(super) fn put_floor(db: &Connection, id: i64, floor: &Floor, swept: bool) -> rusqlite::Result<()> {
    let Version { incarnation, revision } = floor.version;
    db.prepare_cached(
        "INSERT INTO removed VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO UPDATE SET incarnation = excluded.incarnation,
            revision = excluded.revision, received_us = excluded.received_us, swept = 0
         WHERE (excluded.incarnation, excluded.revision) > (incarnation, revision)",
    )?
    .execute(params![
        id,
        floor.metric.as_deref().unwrap_or_default(),
        incarnation as i64,
        revision as i64,
        floor.received_us,
        swept
    ])?;
    Ok(())
}

/// Deletes some of what is below a floor; how many rows there were.
pub(super) fn sweep(db: &Connection, limit: usize) -> Result<usize, ShardError> {
    let mut query = db.prepare_cached(
        "SELECT device, incarnation, revision, received_us, metric FROM removed WHERE swept = 0 LIMIT 1",
    )?;
    let mut swept = 0;
    while swept < limit {
        let found = query.query_row([], |row| {
            let metric: String = row.get(4)?;
            Ok((row.get::<_, i64>(0)?, version(row, 1)?, row.get::<_, Micros>(3)?, metric))
        });
        let Some((id, version, received_us, metric)) = found.optional()? else { break };
        let floor =
            Floor { metric: Some(metric.into()).filter(|metric: &Arc<str>| !metric.is_empty()), version, received_us };
        let rows = match &floor.metric {
            None => sweep_device(db, id, &floor, limit - swept)?,
            Some(metric) => sweep_metric(db, id, metric, &floor, limit - swept)?,
        };
        swept += rows;
        if swept < limit {
            let metric = floor.metric.as_deref().unwrap_or_default();
            db.prepare_cached("UPDATE removed SET swept = 1 WHERE device = ?1 AND metric = ?2")?
                .execute(params![id, metric])?;
        }
    }
    Ok(swept)
}

fn sweep_device(db: &Connection, id: i64, floor: &Floor, limit: usize) -> Result<usize, ShardError> {
    let Version { incarnation, revision } = floor.version;
    // Hours and days first: until they are there again, answers are made of windows.
    db.prepare_cached(
        "INSERT OR IGNORE INTO stale SELECT device, start_us FROM rollup WHERE device = ?1 AND length_us = ?2",
    )?
    .execute([id, HOUR_US])?;
    let hours = db
        .prepare_cached("DELETE FROM rollup WHERE device = ?1 AND received_us <= ?2")?
        .execute([id, floor.received_us])?;
    let windows = db
        .prepare_cached(
            "DELETE FROM summary WHERE (device, length_us, start_us) IN (SELECT device, length_us, start_us FROM summary
                WHERE device = ?1 AND (incarnation, revision) < (?2, ?3) LIMIT ?4)",
        )?
        .execute(params![id, incarnation as i64, revision as i64, limit as i64])?;
    Ok(windows + usize::from(hours > 0))
}

fn sweep_metric(db: &Connection, id: i64, metric: &str, floor: &Floor, limit: usize) -> Result<usize, ShardError> {
    let Version { incarnation, revision } = floor.version;
    let mut rows = 0;
    for (table, which) in [("rollup", "received_us <= ?5"), ("summary", "(incarnation, revision) < (?3, ?4)")] {
        // All parameters stand in both.
        let mut query = db.prepare_cached(&format!(
            "SELECT length_us, start_us, incarnation, revision, received_us, {COLUMNS} FROM {table}
             WHERE device = ?1 AND {which} AND ?3 IS NOT NULL AND ?4 IS NOT NULL AND ?5 IS NOT NULL
                AND EXISTS (SELECT 1 FROM json_each(metric) WHERE value = ?2) LIMIT ?6"
        ))?;
        let wanted = params![
            id,
            metric,
            incarnation as i64,
            revision as i64,
            floor.received_us,
            limit.saturating_sub(rows) as i64
        ];
        let mut found = query.query(wanted)?;
        let mut stripped = Vec::new();
        while let Some(row) = found.next()? {
            let (length_us, start_us) = (row.get(0)?, row.get(1)?);
            let key = Key { slot: slot_of(id), gateway: "".into(), device: "".into(), length_us, start_us };
            let metrics =
                take_metrics(row, 5, true)?.into_iter().map(|(name, summary)| (name.into(), summary)).collect();
            stripped.push(Row { key, version: version(row, 2)?, received_us: row.get(4)?, metrics });
        }
        drop(found);
        rows += stripped.len();
        for mut row in stripped {
            db.prepare_cached(&format!("DELETE FROM {table} WHERE device = ?1 AND length_us = ?2 AND start_us = ?3"))?
                .execute([id, row.key.length_us, row.key.start_us])?;
            if floor.strip(&mut row.metrics) {
                put_row(db, table, id, &row)?;
            }
            db.prepare_cached("INSERT OR IGNORE INTO stale VALUES (?1, ?2)")?
                .execute([id, window_start(row.key.start_us, HOUR_US)])?;
        }
    }
    Ok(rows)
}
