//! What the writer does besides readings: one function for each step.
//!
//! Arrives: steps, in the writer's transaction. Leaves: about how many bytes they write. Always
//! holds: a step is small, or cut into small ones by whoever asks for it, so that no commit
//! waits noticeably.

use super::schema::{meta, set_meta};
use super::{Chunk, Moved, ReadError, Rollup, Step, SummaryRow, batch, removal};
use crate::archive::rollup::Folded;
use crate::clock::{Correction, Ledger};
use model::{Micros, Sketch, Summary, Value};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, params};
use uplink::Saved;

/// Does a step; a snapshot is the writer's own, because it needs the catalog.
pub(crate) fn write_step(db: &Connection, step: &Step) -> rusqlite::Result<u64> {
    match step {
        Step::Windows { rows, replay_from, through_seq, dirty } => {
            let bytes = write_summaries(db, rows)?;
            set_meta(db, "replay_from", *replay_from as i64)?;
            set_meta(db, "windows_seq", *through_seq as i64)?;
            let Some(dirty) = dirty else { return Ok(bytes) };
            set_meta(db, "dirty", dirty)?;
            return Ok(bytes + dirty.len() as u64);
        }
        Step::Revised(rows) => return write_summaries(db, rows),
        Step::Rollups { rows, remove, .. } => {
            delete(db, "DELETE FROM rollup WHERE id = ?1", remove)?;
            return write_rollups(db, rows);
        }
        Step::RemoveSummaries { length_us, until_us } => {
            db.prepare_cached("DELETE FROM summary WHERE length_us = ?1 AND start_us < ?2")?
                .execute([length_us, until_us])?;
        }
        Step::Clock(ledger) => write_ledger(db, ledger)?,
        Step::Move(moved) => return write_moved(db, moved),
        Step::Received(correction) => write_received(db, correction)?,
        Step::Barrier | Step::Snapshot | Step::Changes(_) => {}
        Step::Filling { done } => set_meta(db, "recording", if *done { "all" } else { "new" })?,
        Step::Uplink { saved, now_us, until_us } => return write_uplink(db, saved, *now_us, *until_us),
        Step::Incarnation(incarnation) => set_meta(db, "incarnation", incarnation.to_string())?,
        Step::Begin { seq } => set_meta(db, "folding_seq", seq)?,
        Step::Chunks(chunks) => return write_chunks(db, chunks),
        Step::Count { seq } => set_meta(db, "archived_seq", seq)?,
        Step::Remove(ids) => remove_chunks(db, ids)?,
        Step::Rewrite { remove, chunks } => {
            remove_chunks(db, remove)?;
            return write_chunks(db, chunks);
        }
        Step::Rename { remove, ids } => {
            remove_chunks(db, remove)?;
            // In the way is at most what an interrupted fold of an earlier version has left.
            let mut rename = db.prepare_cached("UPDATE OR REPLACE chunk SET id = ?2, covers = 0 WHERE id = ?1")?;
            ids.iter().try_for_each(|&(id, other)| rename.execute([id, other]).map(drop))?;
        }
        Step::RemoveBatches { seq } => {
            db.prepare_cached("DELETE FROM batch WHERE seq <= ?1")?.execute([seq])?;
        }
        Step::Folded => {
            db.prepare_cached("DELETE FROM meta WHERE key = 'folding_seq'")?.execute([])?;
        }
        Step::Retire { chunks, places } => {
            remove_chunks(db, chunks)?;
            places.iter().try_for_each(|&(series, day)| seal(db, series, day))?;
            return Ok(places.len() as u64 * 16);
        }
        Step::Sweep(keys) => removal::sweep(db, keys)?,
        Step::Told(devices) => removal::told(db, devices)?,
        Step::Swept(series) => removal::swept(db, series)?,
        Step::RetireRollups(ids) => delete(db, "DELETE FROM rollup WHERE id = ?1", ids)?,
        Step::Vacuum { pages } => {
            // Every page given back is a row of the answer.
            let mut vacuum = db.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
            let mut rows = vacuum.query([])?;
            while rows.next()?.is_some() {}
        }
    }
    Ok(0)
}

/// Batches are forgotten in the order of their numbers, and `sent_floor` says up to which; changes
/// only when they are acknowledged and no batch that is remembered has carried them.
fn write_uplink(db: &Connection, saved: &Saved, now_us: Micros, until_us: Micros) -> rusqlite::Result<u64> {
    set_meta(db, "uplink", &saved.state)?;
    let mut insert = db.prepare_cached("INSERT OR REPLACE INTO sent VALUES (?1, ?2, ?3, ?4)")?;
    for (batch, changes) in &saved.sent {
        insert.execute(params![*batch as i64, changes.start as i64, changes.end as i64, now_us])?;
    }
    let mut kept = db.prepare_cached("SELECT min(batch) FROM sent WHERE acknowledged_us >= ?1")?;
    let kept: Option<i64> = kept.query_row([until_us], |row| row.get(0))?;
    let mut old = db.prepare_cached("SELECT max(batch) FROM sent WHERE batch < ?1")?;
    let old: Option<i64> = old.query_row([kept.unwrap_or(i64::MAX)], |row| row.get(0))?;
    if let Some(floor) = old {
        db.prepare_cached("DELETE FROM sent WHERE batch <= ?1")?.execute([floor])?;
        set_meta(db, "sent_floor", floor)?;
    }
    db.prepare_cached(
        "DELETE FROM change WHERE id < ?1 AND made_us < ?2
            AND id < (SELECT coalesce(min(from_change), 9223372036854775807) FROM sent)",
    )?
    .execute([saved.done_below as i64, until_us])?;
    Ok(saved.state.len() as u64 + saved.sent.len() as u64 * 16)
}

/// What a restart has to know of the clock.
pub(crate) fn read_ledger(db: &Connection) -> rusqlite::Result<Ledger> {
    let unset: Option<String> = meta(db, "clock_unset")?;
    let waiting: Option<String> = meta(db, "clock_corrections")?;
    Ok(Ledger {
        unset: unset.and_then(|text| serde_json::from_str(&text).ok()),
        waiting: waiting.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
    })
}

/// Keeps it.
pub(crate) fn write_ledger(db: &Connection, ledger: &Ledger) -> rusqlite::Result<()> {
    let json = |value: serde_json::Result<String>| value.map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()));
    let unset = ledger.unset.as_ref().map(|unset| json(serde_json::to_string(unset))).transpose()?;
    let waiting = Some(&ledger.waiting).filter(|waiting| !waiting.is_empty());
    let waiting = waiting.map(|waiting| json(serde_json::to_string(waiting))).transpose()?;
    for (key, value) in [("clock_unset", unset), ("clock_corrections", waiting)] {
        match value {
            Some(value) => set_meta(db, key, value)?,
            None => drop(db.execute("DELETE FROM meta WHERE key = ?1", [key])?),
        }
    }
    Ok(())
}

/// The readings themselves are in the batch of the same commit.
fn write_moved(db: &Connection, moved: &Moved) -> rusqlite::Result<u64> {
    let mut bytes = 0;
    for (seq, left) in &moved.batches {
        if left.is_empty() {
            db.prepare_cached("DELETE FROM batch WHERE seq = ?1")?.execute([seq])?;
            continue;
        }
        let (first_us, last_us) = left.span();
        let body = batch::encode(left);
        bytes += body.len() as u64;
        db.prepare_cached("UPDATE batch SET readings = ?2, first_us = ?3, last_us = ?4, body = ?5 WHERE seq = ?1")?
            .execute(params![seq, left.len() as i64, first_us, last_us, body])?;
    }
    remove_chunks(db, &moved.remove)?;
    Ok(bytes + write_chunks(db, &moved.chunks)?)
}

/// Everything else that was received, made or told while the clock was wrong; done again after
/// an interruption it changes nothing.
fn write_received(db: &Connection, correction: &Correction) -> rusqlite::Result<()> {
    let done = serde_json::to_string(correction).unwrap_or_default();
    if meta(db, "received_corrected")?.is_some_and(|before: String| before == done) {
        return Ok(());
    }
    for (table, column) in [
        ("batch", "received_us"),
        ("chunk", "received_us"),
        ("rollup", "received_us"),
        ("reject", "received_us"),
        ("device", "created_us"),
        ("change", "made_us"),
        ("sent", "acknowledged_us"),
    ] {
        let sql = format!("UPDATE {table} SET {column} = {column} + ?3 WHERE {column} >= ?1 AND {column} < ?2");
        db.execute(&sql, [correction.from_us, correction.to_us, correction.shift_us])?;
    }
    set_meta(db, "received_corrected", done)
}

fn write_chunks(db: &Connection, chunks: &[Chunk]) -> rusqlite::Result<u64> {
    let mut bytes = 0;
    let mut insert = db.prepare_cached("INSERT OR REPLACE INTO chunk VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?;
    for c in chunks {
        bytes += c.body.len() as u64 + 48;
        insert.execute(params![c.id, c.covers, c.seq, c.received_us, c.readings, c.first_us, c.last_us, c.body])?;
    }
    Ok(bytes)
}

fn remove_chunks(db: &Connection, ids: &[i64]) -> rusqlite::Result<()> {
    delete(db, "DELETE FROM chunk WHERE id = ?1", ids)
}

/// Executes a statement for each of some ids.
pub(super) fn delete(db: &Connection, sql: &str, ids: &[i64]) -> rusqlite::Result<()> {
    let mut delete = db.prepare_cached(sql)?;
    ids.iter().try_for_each(|id| delete.execute([id]).map(drop))
}

fn write_rollups(db: &Connection, rows: &[Rollup]) -> rusqlite::Result<u64> {
    let mut bytes = 0;
    let mut insert = db.prepare_cached("INSERT OR REPLACE INTO rollup VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    for r in rows {
        bytes += r.body.len() as u64 + 48;
        insert.execute(params![r.id, r.received_us, r.windows, r.from_us, r.to_us, r.body])?;
    }
    Ok(bytes)
}

/// Days next to each other are one row.
fn seal(db: &Connection, series: u32, day: i64) -> rusqlite::Result<()> {
    let mut before = db.prepare_cached(
        "SELECT from_day, to_day FROM retired WHERE series = ?1 AND from_day <= ?2 ORDER BY from_day DESC",
    )?;
    let before: Option<(i64, i64)> =
        before.query_row(params![series, day], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    if before.is_some_and(|(_, to_day)| day < to_day) {
        return Ok(());
    }
    let from_day = before.filter(|&(_, to_day)| to_day == day).map_or(day, |(from_day, _)| from_day);
    let mut after = db.prepare_cached("DELETE FROM retired WHERE series = ?1 AND from_day = ?2 RETURNING to_day")?;
    let after: Option<i64> = after.query_row(params![series, day + 1], |row| row.get(0)).optional()?;
    db.prepare_cached("INSERT OR REPLACE INTO retired VALUES (?1, ?2, ?3)")?.execute(params![
        series,
        from_day,
        after.unwrap_or(day + 1)
    ])?;
    Ok(())
}

/// Writes summaries; of a window that is there already the higher revision stays.
fn write_summaries(db: &Connection, rows: &[SummaryRow]) -> rusqlite::Result<u64> {
    let mut bytes = 0;
    for row in rows {
        let s = &row.summary;
        let sketch = s.sketch.to_bytes();
        bytes += sketch.len() as u64 + 100;
        let finite = |n: f64| n.is_finite().then_some(n);
        db.prepare_cached(
            "INSERT INTO summary VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
             ON CONFLICT DO UPDATE SET revision = excluded.revision, through_seq = excluded.through_seq,
               count = excluded.count, texts = excluded.texts, sum = excluded.sum, m2 = excluded.m2,
               min = excluded.min, max = excluded.max, first_us = excluded.first_us, first = excluded.first,
               last_us = excluded.last_us, last = excluded.last, sketch = excluded.sketch
             WHERE excluded.revision > revision",
        )?
        .execute(params![
            row.length_us,
            row.start_us,
            row.series,
            row.revision,
            row.through_seq as i64,
            s.count as i64,
            s.texts as i64,
            s.sum,
            s.m2,
            finite(s.min),
            finite(s.max),
            s.first.0,
            ToSql(&s.first.1),
            s.last.0,
            ToSql(&s.last.1),
            sketch
        ])?;
    }
    Ok(bytes)
}

/// A value as SQLite keeps it.
struct ToSql<'a>(&'a Value);

impl rusqlite::ToSql for ToSql<'_> {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(match self.0 {
            Value::Number(n) => (*n).into(),
            Value::Bool(b) => (*b).into(),
            Value::Text(text) => (&**text).into(),
        })
    }
}

/// Reads a summary back.
pub(crate) fn read_summary(
    db: &Connection,
    length_us: Micros,
    start_us: Micros,
    series: u32,
) -> Result<Option<Folded>, ReadError> {
    let mut query = db.prepare_cached(
        "SELECT revision, count, texts, sum, m2, min, max, first_us, first, last_us, last, sketch
         FROM summary WHERE length_us = ?1 AND start_us = ?2 AND series = ?3",
    )?;
    let mut rows = query.query(params![length_us, start_us, series])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let damaged = || ReadError::Summary { series, start_us };
    let number = |at: usize, none: f64| row.get::<_, Option<f64>>(at).map(|n| n.unwrap_or(none));
    let value = |at: usize| -> Result<Value, ReadError> {
        Ok(match row.get_ref(at)? {
            ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into()),
            ValueRef::Real(n) => Value::Number(n),
            ValueRef::Integer(n) => Value::Number(n as f64),
            _ => return Err(damaged()),
        })
    };
    let sketch = row.get_ref(11)?.as_blob().map_err(|_| damaged())?;
    let summary = Summary {
        count: row.get::<_, i64>(1)? as u64,
        texts: row.get::<_, i64>(2)? as u64,
        sum: number(3, 0.0)?,
        m2: number(4, 0.0)?,
        min: number(5, f64::INFINITY)?,
        max: number(6, f64::NEG_INFINITY)?,
        first: (row.get(7)?, value(8)?),
        last: (row.get(9)?, value(10)?),
        sketch: Sketch::from_bytes(sketch).map_err(|_| damaged())?,
    };
    Ok(Some(Folded { start_us, revision: row.get(0)?, summary }))
}
