//! Rows to SQL and back, inside whatever transaction the caller has begun.
//!
//! Always holds: the higher version of a row stays; what changes a row marks its hour stale.

use super::devices::device;
use super::removal::Floors;
use super::rollup::Seals;
use crate::row::{Counts, Key, Other, Row, Version, above, put_sketches, take_sketches, value_of_json, value_to_json};
use crate::shard::merge::HOUR_US;
use crate::shard::{ShardError, check_lengths, tell_sealed};
use model::time::window_start;
use model::{Micros, Sketch, Summary};
use rusqlite::{Connection, params};
use serde_json::Value as Json;
use std::collections::{BTreeSet, HashMap};

pub(super) fn lengths(db: &Connection) -> rusqlite::Result<BTreeSet<Micros>> {
    let mut query = db.prepare_cached("SELECT length_us FROM length")?;
    query.query_map([], |row| row.get(0))?.collect()
}

pub(super) fn put_rows(db: &Connection, rows: &[Row]) -> Result<(), ShardError> {
    let mut lengths = lengths(db)?;
    let mut ids: HashMap<(&str, &str), i64> = HashMap::new();
    let (mut seals, mut sealed) = (Seals::of(db)?, 0);
    let mut floors = Floors::of(db)?;
    // Rollups go by the hour in which a window starts.
    let mut stale: BTreeSet<(i64, Micros)> = BTreeSet::new();
    for row in rows {
        let Key { slot, gateway, device: name, length_us, start_us } = &row.key;
        let id = match ids.get(&(&**gateway, &**name)) {
            Some(id) => *id,
            None => device(db, *slot, gateway, name)?,
        };
        ids.insert((gateway, name), id);
        let Some(row) = above(row, &floors.below(id)?) else { continue };
        if lengths.insert(*length_us) {
            check_lengths(lengths.len())?;
            db.execute("INSERT OR IGNORE INTO length VALUES (?1)", [length_us])?;
        }
        if seals.hold(id, *length_us, *start_us)? {
            sealed += 1;
            continue;
        }
        if lengths.len() > 1 && !supersede(db, id, &row, &lengths, &mut stale)? {
            continue;
        }
        if put_row(db, "summary", id, &row)? {
            stale.insert((id, window_start(*start_us, HOUR_US)));
        }
    }
    let mut mark = db.prepare_cached("INSERT OR IGNORE INTO stale VALUES (?1, ?2)")?;
    for (id, hour_us) in stale {
        mark.execute([id, hour_us])?;
    }
    tell_sealed(sealed);
    Ok(())
}

/// Removes windows of other lengths that this one takes the place of; false if one of them stays.
fn supersede(
    db: &Connection,
    id: i64,
    row: &Row,
    lengths: &BTreeSet<Micros>,
    stale: &mut BTreeSet<(i64, Micros)>,
) -> Result<bool, ShardError> {
    let Key { length_us, start_us, .. } = row.key;
    let mut find = db.prepare_cached(
        "SELECT start_us, incarnation FROM summary WHERE device = ?1 AND length_us = ?2 AND start_us > ?3 AND start_us < ?4",
    )?;
    let mut found: Vec<(Micros, Other)> = Vec::new();
    for &other_us in lengths.iter().filter(|&&other_us| other_us != length_us) {
        let rows = find.query_map([id, other_us, start_us - other_us, start_us + length_us], |row| {
            Ok((row.get(0)?, Other { length_us: other_us, incarnation: row.get::<_, i64>(1)? as u64 }))
        })?;
        for other in rows {
            found.push(other?);
        }
    }
    if found.iter().any(|(_, other)| row.yields_to(*other)) {
        return Ok(false);
    }
    let own_us = start_us..start_us + length_us;
    let lies_within = |(at_us, other): &(Micros, Other)| {
        other.incarnation == row.version.incarnation && own_us.contains(at_us) && at_us + other.length_us <= own_us.end
    };
    if !found.is_empty() && found.iter().all(lies_within) && row.adds_nothing_to(&counts(db, id, &found)?) {
        return Ok(false);
    }
    for (start_us, other) in found {
        db.prepare_cached("DELETE FROM summary WHERE device = ?1 AND length_us = ?2 AND start_us = ?3")?.execute([
            id,
            other.length_us,
            start_us,
        ])?;
        stale.insert((id, window_start(start_us, HOUR_US)));
    }
    Ok(true)
}

/// The readings of some windows, by metric.
fn counts(db: &Connection, id: i64, windows: &[(Micros, Other)]) -> Result<Counts, ShardError> {
    let mut query = db.prepare_cached(
        "SELECT m.value, (s.count ->> m.key) + (s.texts ->> m.key) FROM summary s JOIN json_each(s.metric) m
         WHERE s.device = ?1 AND s.length_us = ?2 AND s.start_us = ?3",
    )?;
    let mut counts = Counts::new();
    for (start_us, other) in windows {
        let mut rows = query.query([id, other.length_us, *start_us])?;
        while let Some(row) = rows.next()? {
            let many = row.get::<_, i64>(1)? as u64;
            if many > 0 {
                *counts.entry(row.get(0)?).or_default() += many;
            }
        }
    }
    Ok(counts)
}

/// Writes a row unless a version as high is there; true if it was written.
pub(super) fn put_row(db: &Connection, table: &str, id: i64, row: &Row) -> Result<bool, ShardError> {
    let array = |of: &dyn Fn(&Summary) -> Json| Json::Array(row.metrics.values().map(of).collect()).to_string();
    let number = |n: f64| if n.is_finite() { Json::from(n) } else { Json::from(n.to_string()) };
    let extreme = |n: f64| if n.is_finite() { Json::from(n) } else { Json::Null };
    let names = Json::Array(row.metrics.keys().map(|name| Json::from(&**name)).collect()).to_string();
    let written = db
        .prepare_cached(&format!(
            "INSERT INTO {table} VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)
             ON CONFLICT DO UPDATE SET incarnation = excluded.incarnation, revision = excluded.revision,
                received_us = excluded.received_us, metric = excluded.metric, count = excluded.count,
                texts = excluded.texts, sum = excluded.sum, m2 = excluded.m2, min = excluded.min, max = excluded.max,
                first_us = excluded.first_us, first = excluded.first, last_us = excluded.last_us,
                last = excluded.last, sketch = excluded.sketch
             WHERE (excluded.incarnation, excluded.revision) > (incarnation, revision)"
        ))?
        .execute(params![
            id,
            row.key.length_us,
            row.key.start_us,
            row.version.incarnation as i64,
            row.version.revision as i64,
            row.received_us,
            names,
            array(&|s| Json::from(s.count)),
            array(&|s| Json::from(s.texts)),
            array(&|s| number(s.sum)),
            array(&|s| number(s.m2)),
            array(&|s| extreme(s.min)),
            array(&|s| extreme(s.max)),
            array(&|s| Json::from(s.first.0)),
            array(&|s| value_to_json(&s.first.1)),
            array(&|s| Json::from(s.last.0)),
            array(&|s| value_to_json(&s.last.1)),
            put_sketches(row.metrics.values().map(|summary| &summary.sketch)),
        ])?;
    Ok(written > 0)
}

/// The columns that [`take_metrics`] reads.
pub(super) const COLUMNS: &str = "metric, count, texts, sum, m2, min, max, first_us, first, last_us, last, sketch";

/// The summaries of a row whose columns begin at `at`; sketches only if they are asked for.
pub(super) fn take_metrics(
    row: &rusqlite::Row<'_>,
    at: usize,
    sketches: bool,
) -> Result<Vec<(String, Summary)>, ShardError> {
    fn array<T: serde::de::DeserializeOwned>(row: &rusqlite::Row<'_>, at: usize) -> Option<Vec<T>> {
        serde_json::from_str(row.get_ref(at).ok()?.as_str().ok()?).ok()
    }
    let number = |value: &Json| match value {
        Json::String(text) => text.parse().ok(),
        value => value.as_f64(),
    };
    let read = || -> Option<Vec<(String, Summary)>> {
        let names: Vec<String> = array(row, at)?;
        let (counts, texts) = (array::<u64>(row, at + 1)?, array::<u64>(row, at + 2)?);
        let (sums, m2s) = (array::<Json>(row, at + 3)?, array::<Json>(row, at + 4)?);
        let (mins, maxs) = (array::<Option<f64>>(row, at + 5)?, array::<Option<f64>>(row, at + 6)?);
        let (first_us, firsts) = (array::<Micros>(row, at + 7)?, array::<Json>(row, at + 8)?);
        let (last_us, lasts) = (array::<Micros>(row, at + 9)?, array::<Json>(row, at + 10)?);
        let mut all = if sketches {
            take_sketches(row.get_ref(at + 11).ok()?.as_blob().ok()?, names.len())?
        } else {
            vec![Sketch::default(); names.len()]
        };
        let of = |(n, name): (usize, String)| {
            let summary = Summary {
                count: *counts.get(n)?,
                texts: *texts.get(n)?,
                sum: number(sums.get(n)?)?,
                m2: number(m2s.get(n)?)?,
                min: mins.get(n)?.unwrap_or(f64::INFINITY),
                max: maxs.get(n)?.unwrap_or(f64::NEG_INFINITY),
                first: (*first_us.get(n)?, value_of_json(firsts.get(n)?)?),
                last: (*last_us.get(n)?, value_of_json(lasts.get(n)?)?),
                sketch: std::mem::take(all.get_mut(n)?),
            };
            Some((name, summary))
        };
        names.into_iter().enumerate().map(of).collect()
    };
    read().ok_or_else(|| ShardError::Down("a row is damaged: restore the shard from a backup".into()))
}

pub(super) fn version(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<Version> {
    Ok(Version { incarnation: row.get::<_, i64>(at)? as u64, revision: row.get::<_, i64>(at + 1)? as u64 })
}
