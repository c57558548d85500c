//! Devices, their numbers and their labels.

use super::fences::check_all_writable;
use super::removal::{floors_of, put_floor};
use super::senders::put_beat;
use crate::shard::{Known, LabelsVersion, Names, ShardError, numbers};
use placement::Epoch;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::{BTreeMap, BTreeSet};

/// Labels are of the batch that brought them: those of a later one stay.
pub(super) fn put_labels(
    db: &Connection,
    id: i64,
    labels: &BTreeMap<String, String>,
    (incarnation, batch): LabelsVersion,
) -> rusqlite::Result<()> {
    let labels = serde_json::to_string(labels).unwrap_or_else(|_| "{}".into());
    db.prepare_cached(
        "UPDATE device SET labels = ?2, labels_incarnation = ?3, labels_batch = ?4
         WHERE id = ?1 AND (labels_incarnation, labels_batch) < (?3, ?4)",
    )?
    .execute(params![id, labels, incarnation as i64, batch as i64])?;
    Ok(())
}

/// The number of a device, given now if it has none.
pub(super) fn device(db: &Connection, slot: u16, gateway: &str, name: &str) -> rusqlite::Result<i64> {
    let mut query = db.prepare_cached("SELECT id FROM device WHERE name = ?1 AND gateway = ?2")?;
    if let Some(id) = query.query_row([name, gateway], |row| row.get(0)).optional()? {
        return Ok(id);
    }
    let (first, behind) = numbers(slot);
    let mut last = db.prepare_cached("SELECT max(id) FROM device WHERE id >= ?1 AND id < ?2")?;
    let last: Option<i64> = last.query_row([first, behind], |row| row.get(0))?;
    let id = last.map_or(first, |last| last + 1);
    db.prepare_cached("INSERT INTO device (id, gateway, name) VALUES (?1, ?2, ?3)")?
        .execute(params![id, gateway, name])?;
    Ok(id)
}

pub(super) fn export_names(db: &Connection, slot: u16) -> Result<Names, ShardError> {
    let (first, behind) = numbers(slot);
    let mut query =
        db.prepare_cached(
            "SELECT name, gateway, labels, labels_incarnation, labels_batch, id FROM device WHERE id >= ?1 AND id < ?2 ORDER BY id",
        )?;
    let known = query.query_map([first, behind], |row| {
        Ok(Known {
            device: row.get::<_, String>(0)?.into(),
            gateway: row.get::<_, String>(1)?.into(),
            labels: serde_json::from_str(&row.get::<_, String>(2)?).unwrap_or_default(),
            labels_version: (row.get::<_, i64>(3)? as u64, row.get::<_, i64>(4)? as u64),
            metrics: Vec::new(),
            last_us: None,
            removed: floors_of(db, row.get(5)?)?,
        })
    })?;
    let devices = known.collect::<rusqlite::Result<_>>()?;
    let mut query = db.prepare_cached("SELECT beat FROM gateway WHERE slot = ?1")?;
    let beats = query.query_map([slot], |row| row.get::<_, String>(0))?;
    let beats = beats.filter_map(|beat| serde_json::from_str(&beat.ok()?).ok()).collect();
    Ok(Names { slot, devices, beats })
}

/// Which slots, of some, have devices or gateways.
pub(super) fn inhabited(db: &Connection, slots: &[u16]) -> Result<Vec<u16>, ShardError> {
    let mut of_devices = db.prepare_cached("SELECT 1 FROM device WHERE id >= ?1 AND id < ?2 LIMIT 1")?;
    let mut gateways = db.prepare_cached("SELECT DISTINCT slot FROM gateway")?;
    let gateways = gateways.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<BTreeSet<u16>>>()?;
    let mut inhabited = Vec::new();
    for &slot in slots {
        let (first, behind) = numbers(slot);
        if gateways.contains(&slot) || of_devices.exists([first, behind])? {
            inhabited.push(slot);
        }
    }
    Ok(inhabited)
}

pub(super) fn import_names(db: &Connection, names: &[Names], fences: &[(u16, Epoch)]) -> Result<(), ShardError> {
    check_all_writable(db, fences, true)?;
    for Names { slot, devices, beats } in names {
        for known in devices {
            let id = device(db, *slot, &known.gateway, &known.device)?;
            put_labels(db, id, &known.labels, known.labels_version)?;
            // Rows come behind it: nothing is below it here.
            known.removed.iter().try_for_each(|floor| put_floor(db, id, floor, true))?;
        }
        for beat in beats {
            let mut later = db.prepare_cached("SELECT 1 FROM gateway WHERE id = ?1 AND beat ->> 'seen_us' >= ?2")?;
            if !later.exists(params![beat.gateway, beat.seen_us])? {
                put_beat(db, beat, *slot)?;
            }
        }
    }
    Ok(())
}
