//! What a restart puts back.
//!
//! Arrives: the store. Leaves: the catalog as it was, and the batches that open windows still
//! need. The *snapshot* is a cache: the latest reading and the count of every series as of one
//! commit, so that a restart reads the batches since then and not all there are. Layout,
//! format 1: `format u8, LZ4 with size of: count varint, then per series: id, time, received
//! (both zigzag), readings, kind u8, number 8 bytes or text with length`.

use super::removal::is_mark;
use super::seal::unpack;
use super::{Committed, ReadError, batch, schema};
use crate::catalog::{Catalog, Latest};
use model::{Micros, Value, varint};
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;

const FORMAT: u8 = 1;

/// What recovery found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// The last commit with readings.
    pub last_seq: u64,
    /// The lowest commit that an open or dirty window may still need.
    pub replay_from: u64,
}

/// Fills an empty catalog from the store.
pub(crate) fn recover(db: &Connection, catalog: &Catalog) -> Result<Recovered, ReadError> {
    catalog.restore_era(schema::meta(db, "era")?.unwrap_or(0));
    let mut devices = db.prepare("SELECT id, name, era FROM device ORDER BY id")?;
    let mut rows = devices.query([])?;
    while let Some(row) = rows.next()? {
        match row.get_ref(1)?.as_str().unwrap_or_default() {
            name if is_mark(name) => catalog.restore_removed(row.get(0)?, None),
            name => catalog.restore_device(row.get(0)?, name, row.get(2)?),
        }
    }
    let mut series = db.prepare("SELECT id, device, metric, unit FROM series ORDER BY id")?;
    let mut rows = series.query([])?;
    while let Some(row) = rows.next()? {
        let unit: Option<String> = row.get(3)?;
        match row.get_ref(2)?.as_str().unwrap_or_default() {
            metric if is_mark(metric) => catalog.restore_removed(row.get(0)?, Some(row.get(1)?)),
            metric => catalog.restore_series(row.get(0)?, row.get(1)?, metric, unit.as_deref()),
        }
    }
    let mut labels = db.prepare("SELECT device, name, value FROM label")?;
    let mut rows = labels.query([])?;
    while let Some(row) = rows.next()? {
        let (name, value): (String, String) = (row.get(1)?, row.get(2)?);
        catalog.restore_label(row.get(0)?, &name, &value);
    }
    let snapshot_seq = read_snapshot(db, catalog)?;
    // Also the number of a batch that cannot be read is taken.
    let newest: Option<i64> = db.query_row("SELECT max(seq) FROM batch", [], |row| row.get(0))?;
    let archived: Option<i64> = schema::meta(db, "archived_seq")?;
    let last_seq = snapshot_seq.max(newest.max(archived).unwrap_or(0) as u64);
    each_batch(db, snapshot_seq + 1, |committed| {
        catalog.note(&committed.readings, committed.received_us);
        true
    })?;
    let replay_from = schema::meta::<i64>(db, "replay_from")?.unwrap_or(1) as u64;
    Ok(Recovered { last_seq, replay_from })
}

/// Calls `each` with every batch from `from` on, in order, until it says false. A damaged
/// batch is named in the log and passed over: what is whole still counts.
pub(crate) fn each_batch(
    db: &Connection,
    from: u64,
    mut each: impl FnMut(Committed) -> bool,
) -> Result<(), rusqlite::Error> {
    let mut batches = db.prepare("SELECT seq, received_us, body FROM batch WHERE seq >= ?1 ORDER BY seq")?;
    let mut rows = batches.query([from as i64])?;
    while let Some(row) = rows.next()? {
        let seq: i64 = row.get(0)?;
        match batch::decode(row.get_ref(2)?.as_blob().unwrap_or_default()) {
            Ok(readings) => {
                let committed = Committed { seq: seq as u64, received_us: row.get(1)?, readings: Arc::new(readings) };
                if !each(committed) {
                    break;
                }
            }
            Err(error) => tracing::error!("{}", ReadError::Batch { seq: seq as u64, error }),
        }
    }
    Ok(())
}

/// Writes the latest reading of every series as of commit `seq`.
pub(super) fn write_snapshot(db: &Connection, catalog: &Catalog, seq: u64) -> rusqlite::Result<u64> {
    let latest = catalog.all_latest();
    let mut body = Vec::with_capacity(latest.len() * 24);
    varint::put(&mut body, latest.iter().flatten().count() as u64);
    for (id, latest) in latest.iter().enumerate().filter_map(|(id, latest)| Some((id, latest.as_ref()?))) {
        varint::put(&mut body, id as u64);
        varint::put_signed(&mut body, latest.time_us);
        varint::put_signed(&mut body, latest.received_us);
        varint::put(&mut body, latest.readings);
        put_value(&mut body, &latest.value, latest.doubtful);
    }
    let mut bytes = vec![FORMAT];
    bytes.extend(lz4_flex::block::compress_prepend_size(&body));
    db.prepare_cached("INSERT OR REPLACE INTO snapshot VALUES (1, ?1, ?2)")?.execute(params![seq as i64, bytes])?;
    Ok(bytes.len() as u64)
}

/// Puts the snapshot back and says up to which commit it holds. One that cannot be read is as
/// good as none: all batches are read instead.
fn read_snapshot(db: &Connection, catalog: &Catalog) -> Result<u64, rusqlite::Error> {
    let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?));
    let Some((seq, bytes)) = db.query_row("SELECT seq, body FROM snapshot", [], row).optional()? else {
        return Ok(0);
    };
    match parse_snapshot(&bytes, catalog.ids() as usize) {
        Some(all) => {
            for (id, latest) in all {
                catalog.restore_latest(id, latest);
            }
            Ok(seq as u64)
        }
        None => {
            tracing::warn!("the snapshot is damaged: reading every batch instead, which takes longer");
            Ok(0)
        }
    }
}

/// Reads what [`write_snapshot`] wrote of a store whose series have ids below `series`. There is no checksum: nothing is believed that
/// would take more memory than there are series.
pub(crate) fn parse_snapshot(bytes: &[u8], series: usize) -> Option<Vec<(u32, Latest)>> {
    let (&format, packed) = bytes.split_first()?;
    let body = if format == FORMAT { unpack(packed)? } else { return None };
    let rest = &mut body.as_slice();
    let mut all = Vec::new();
    for _ in 0..varint::take(rest)? {
        let id = u32::try_from(varint::take(rest)?).ok().filter(|&id| (id as usize) < series)?;
        let (time_us, received_us, readings) =
            (varint::take_signed(rest)?, varint::take_signed(rest)?, varint::take(rest)?);
        let (value, doubtful) = take_value(rest)?;
        // Earlier versions did not say so.
        let doubtful = doubtful || time_us > received_us.saturating_add(DOUBTFUL_US);
        all.push((id, Latest { time_us, value, received_us, readings, doubtful }));
    }
    Some(all)
}

/// Added to a value's kind if its time cannot be believed.
const DOUBTFUL: u8 = 1 << 2;
/// Further in the future than any skew that is allowed.
const DOUBTFUL_US: Micros = 86_400 * model::time::SECOND_US;

fn put_value(out: &mut Vec<u8>, value: &Value, doubtful: bool) {
    let mark = if doubtful { DOUBTFUL } else { 0 };
    match value {
        Value::Number(n) => {
            out.push(mark);
            out.extend(n.to_le_bytes());
        }
        Value::Bool(b) => out.push(mark + 1 + u8::from(*b)),
        Value::Text(text) => {
            out.push(mark + 3);
            varint::put(out, text.len() as u64);
            out.extend(text.as_bytes());
        }
    }
}

fn take_value(rest: &mut &[u8]) -> Option<(Value, bool)> {
    let byte = varint::take_byte(rest)?;
    let value = match byte & !DOUBTFUL {
        0 => Value::Number(varint::take_f64(rest)?),
        kind @ (1 | 2) => Value::Bool(kind == 2),
        3 => Value::Text(varint::take_str(rest)?.into()),
        _ => return None,
    };
    Some((value, byte & DOUBTFUL != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(id: u64, size: u32) -> Vec<u8> {
        let mut body = Vec::new();
        varint::put(&mut body, 1);
        varint::put(&mut body, id);
        varint::put_signed(&mut body, 5);
        varint::put_signed(&mut body, 7);
        varint::put(&mut body, 3);
        put_value(&mut body, &Value::Bool(true), false);
        let mut packed = lz4_flex::block::compress_prepend_size(&body);
        packed[..4].copy_from_slice(&(body.len() as u32 + size).to_le_bytes());
        [vec![FORMAT], packed].concat()
    }

    /// A start must not fail for want of memory that a flipped bit asks for.
    #[test]
    fn a_damaged_snapshot_takes_no_more_than_there_are_series() {
        let latest = Latest { time_us: 5, value: Value::Bool(true), received_us: 7, readings: 3, doubtful: false };
        assert_eq!(parse_snapshot(&snapshot(9, 0), 10), Some(vec![(9, latest)]));
        assert_eq!(parse_snapshot(&snapshot(10, 0), 10), None);
        assert_eq!(parse_snapshot(&snapshot(u64::from(u32::MAX), 0), 10), None);
        assert_eq!(parse_snapshot(&snapshot(9, 1 << 31), 10), None);
    }
}
