//! Whole slots: what moves read, take in, compare and delete.

use super::devices::device;
use super::fences::{check_all_writable, fence};
use super::rollup::import_sealed;
use super::rows::{COLUMNS, put_rows, take_metrics, version};
use crate::row::{Key, Row};
use crate::shard::merge::HOUR_US;
use crate::shard::{Fence, Part, ShardError, numbers, of_table};
use daemon::aggregates::Range;
use model::Micros;
use placement::Epoch;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::BTreeMap;

pub(super) fn export(
    db: &Connection,
    slot: u16,
    part: Part,
    range: Range,
    after: Option<&Key>,
    limit: usize,
) -> Result<Vec<Row>, ShardError> {
    let (table, which) = part.rows();
    let (first, behind) = numbers(slot);
    let place = match after {
        Some(key) => {
            let mut query = db.prepare_cached("SELECT id FROM device WHERE name = ?1 AND gateway = ?2")?;
            let id: Option<i64> = query.query_row([&*key.device, &*key.gateway], |row| row.get(0)).optional()?;
            (id.unwrap_or(first), key.length_us, key.start_us)
        }
        None => (first, 0, i64::MIN),
    };
    let columns = of_table("s", COLUMNS);
    let mut query = db.prepare_cached(&format!(
        "SELECT s.length_us, s.start_us, s.incarnation, s.revision, s.received_us, d.gateway, d.name, {columns}
         FROM {table} s JOIN device d ON d.id = s.device
         WHERE (s.device, s.length_us, s.start_us) > (?1, ?2, ?3) AND s.device < ?4 AND {which}
            AND s.start_us >= ?6 AND s.start_us < ?7
         ORDER BY s.device, s.length_us, s.start_us LIMIT ?5"
    ))?;
    let values = params![place.0, place.1, place.2, behind, limit as i64, range.from_us, range.to_us];
    let mut found = query.query(values)?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        let metrics = take_metrics(row, 7, true)?;
        rows.push(Row {
            key: Key {
                slot,
                gateway: row.get::<_, String>(5)?.into(),
                device: row.get::<_, String>(6)?.into(),
                length_us: row.get(0)?,
                start_us: row.get(1)?,
            },
            version: version(row, 2)?,
            received_us: row.get(4)?,
            metrics: metrics.into_iter().map(|(name, summary)| (name.into(), summary)).collect(),
        });
    }
    Ok(rows)
}

pub(super) fn import(db: &Connection, rows: &[Row], part: Part, fences: &[(u16, Epoch)]) -> Result<(), ShardError> {
    check_all_writable(db, fences, true)?;
    if part == Part::Windows {
        return put_rows(db, rows);
    }
    let id = |row: &Row| device(db, row.key.slot, &row.key.gateway, &row.key.device);
    let ids = rows.iter().map(id).collect::<rusqlite::Result<Vec<i64>>>()?;
    import_sealed(db, &ids, rows)
}

pub(super) fn changed(db: &Connection, slots: &[u16], since_us: Micros) -> rusqlite::Result<BTreeMap<u16, Range>> {
    let mut query = db.prepare_cached(
        "SELECT device >> 40, min(start_us), max(start_us) + 1 FROM summary WHERE received_us >= ?1 GROUP BY 1",
    )?;
    let rows = query
        .query_map([since_us], |row| Ok((row.get(0)?, Range { from_us: row.get(1)?, to_us: row.get(2)? })))?
        .collect::<rusqlite::Result<Vec<(u16, Range)>>>()?;
    Ok(rows.into_iter().filter(|(slot, _)| slots.contains(slot)).collect())
}

pub(super) fn digests(db: &Connection, slot: u16, range: Range) -> Result<BTreeMap<i64, (u64, u64)>, ShardError> {
    let (first, behind) = numbers(slot);
    let mut query = db.prepare_cached(
        "SELECT d.gateway, d.name, s.length_us, s.start_us, s.incarnation, s.revision
         FROM device d CROSS JOIN length l CROSS JOIN summary s ON s.device = d.id AND s.length_us = l.length_us
            AND s.start_us >= ?3 AND s.start_us < ?4 WHERE d.id >= ?1 AND d.id < ?2
         UNION ALL SELECT d.gateway, d.name, -r.length_us, r.start_us, r.incarnation, r.revision
         FROM device d CROSS JOIN rollup r ON r.device = d.id AND r.revision = 1
            AND r.start_us >= ?3 AND r.start_us < ?4 WHERE d.id >= ?1 AND d.id < ?2",
    )?;
    let mut found = query.query([first, behind, range.from_us, range.to_us])?;
    let mut digests: BTreeMap<i64, (u64, u64)> = BTreeMap::new();
    while let Some(row) = found.next()? {
        let (gateway, device): (String, String) = (row.get(0)?, row.get(1)?);
        let (length_us, start_us) = (row.get(2)?, row.get(3)?);
        let key = Key { slot, gateway: gateway.into(), device: device.into(), length_us, start_us };
        let hour = digests.entry(start_us.div_euclid(HOUR_US)).or_default();
        *hour = (hour.0 + 1, hour.1.wrapping_add(key.digest(version(row, 4)?)));
    }
    Ok(digests)
}

pub(super) fn delete(db: &Connection, wanted: Fence, limit: usize) -> Result<usize, ShardError> {
    let slot = wanted.slot;
    let found = fence(db, slot)?;
    if found != Some(wanted) {
        return Err(ShardError::fenced(slot, found.as_ref()));
    }
    let (first, behind) = numbers(slot);
    let rows = db.execute(
        "DELETE FROM summary WHERE (device, length_us, start_us) IN
            (SELECT device, length_us, start_us FROM summary WHERE device >= ?1 AND device < ?2 LIMIT ?3)",
        params![first, behind, limit as i64],
    )?;
    if rows < limit {
        for table in ["rollup", "stale", "removed"] {
            db.execute(&format!("DELETE FROM {table} WHERE device >= ?1 AND device < ?2"), [first, behind])?;
        }
        db.execute("DELETE FROM device WHERE id >= ?1 AND id < ?2", [first, behind])?;
        db.execute("DELETE FROM gateway WHERE slot = ?1", [slot])?;
    }
    Ok(rows)
}
