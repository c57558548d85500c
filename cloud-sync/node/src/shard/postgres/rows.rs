//! Rows to SQL and back, inside whatever transaction the caller has begun.
//!
//! Always holds: the higher version of a row stays; what changes a row marks its hour stale.

use super::super::merge::HOUR_US;
use super::devices::devices_of;
use super::removal::floors;
use super::retire::Seals;
use crate::row::{Counts, Key, Other, Row, Version, above, put_sketches, take_sketches};
use crate::shard::{ShardError, check_lengths, tell_sealed};
use futures_util::{future, pin_mut};
use model::time::window_start;
use model::{Micros, Sketch, Summary, Value};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row as SqlRow, Transaction};

/// From so many rows on they are copied into a staging table; fewer are upserted one by one,
/// all in one round trip. `cargo xtask bench cloud` has the measurement.
const COPIED_FROM: usize = 200;

pub(super) const COLUMNS: &str =
    "metric, count, texts, sum, m2, min, max, first_us, first, first_text, last_us, last, last_text, sketch";
pub(super) const TYPES: [Type; 20] = [
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::INT8,
    Type::TEXT_ARRAY,
    Type::INT8_ARRAY,
    Type::INT8_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::INT8_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::TEXT_ARRAY,
    Type::INT8_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::TEXT_ARRAY,
    Type::BYTEA,
];
/// The higher version stays.
const ON_CONFLICT: &str = "ON CONFLICT (device, length_us, start_us) DO UPDATE SET
    incarnation = excluded.incarnation, revision = excluded.revision, received_us = excluded.received_us,
    metric = excluded.metric, count = excluded.count, texts = excluded.texts, sum = excluded.sum, m2 = excluded.m2,
    min = excluded.min, max = excluded.max, first_us = excluded.first_us, first = excluded.first,
    first_text = excluded.first_text, last_us = excluded.last_us, last = excluded.last,
    last_text = excluded.last_text, sketch = excluded.sketch
    WHERE (excluded.incarnation, excluded.revision) > (t.incarnation, t.revision)";

/// A row as PostgreSQL takes it.
pub(super) struct Columns {
    id: i64,
    length_us: i64,
    start_us: i64,
    incarnation: i64,
    revision: i64,
    received_us: i64,
    metric: Vec<String>,
    count: Vec<i64>,
    texts: Vec<i64>,
    numbers: [Vec<f64>; 4],
    first_us: Vec<i64>,
    first: Vec<Option<f64>>,
    first_text: Vec<Option<String>>,
    last_us: Vec<i64>,
    last: Vec<Option<f64>>,
    last_text: Vec<Option<String>>,
    sketch: Vec<u8>,
}

impl Columns {
    pub(super) fn of(id: i64, row: &Row) -> Self {
        let each = || row.metrics.values();
        let text = |value: &Value| match value {
            // PostgreSQL keeps no zero characters.
            Value::Text(text) => Some(text.replace('\0', "")),
            _ => None,
        };
        let numbers = |of: fn(&Summary) -> f64| each().map(of).collect();
        Columns {
            id,
            length_us: row.key.length_us,
            start_us: row.key.start_us,
            incarnation: row.version.incarnation as i64,
            revision: row.version.revision as i64,
            received_us: row.received_us,
            metric: row.metrics.keys().map(|name| name.to_string()).collect(),
            count: each().map(|s| s.count as i64).collect(),
            texts: each().map(|s| s.texts as i64).collect(),
            numbers: [numbers(|s| s.sum), numbers(|s| s.m2), numbers(|s| s.min), numbers(|s| s.max)],
            first_us: each().map(|s| s.first.0).collect(),
            first: each().map(|s| s.first.1.as_number()).collect(),
            first_text: each().map(|s| text(&s.first.1)).collect(),
            last_us: each().map(|s| s.last.0).collect(),
            last: each().map(|s| s.last.1.as_number()).collect(),
            last_text: each().map(|s| text(&s.last.1)).collect(),
            sketch: put_sketches(each().map(|s| &s.sketch)),
        }
    }

    pub(super) fn values(&self) -> [&(dyn ToSql + Sync); 20] {
        let [sum, m2, min, max] = &self.numbers;
        [
            &self.id,
            &self.length_us,
            &self.start_us,
            &self.incarnation,
            &self.revision,
            &self.received_us,
            &self.metric,
            &self.count,
            &self.texts,
            sum,
            m2,
            min,
            max,
            &self.first_us,
            &self.first,
            &self.first_text,
            &self.last_us,
            &self.last,
            &self.last_text,
            &self.sketch,
        ]
    }
}

/// The summaries of a row whose columns begin at `at`; sketches only if they are asked for.
pub(super) fn metrics_of(row: &SqlRow, at: usize, sketches: bool) -> Result<Vec<(String, Summary)>, ShardError> {
    let damaged = || ShardError::Down("a row is damaged: restore the shard from a backup".into());
    let names: Vec<String> = row.try_get(at)?;
    let (counts, texts): (Vec<i64>, Vec<i64>) = (row.try_get(at + 1)?, row.try_get(at + 2)?);
    let numbers: [Vec<f64>; 4] =
        [row.try_get(at + 3)?, row.try_get(at + 4)?, row.try_get(at + 5)?, row.try_get(at + 6)?];
    let ends = |at: usize| -> Result<Vec<(Micros, Value)>, ShardError> {
        let times: Vec<i64> = row.try_get(at)?;
        let values: Vec<Option<f64>> = row.try_get(at + 1)?;
        let texts: Vec<Option<String>> = row.try_get(at + 2)?;
        let value = |(number, text): (Option<f64>, Option<String>)| match text {
            Some(text) => Value::Text(text.into()),
            None => Value::Number(number.unwrap_or(0.0)),
        };
        Ok(times.into_iter().zip(values.into_iter().zip(texts).map(value)).collect())
    };
    let (first, last) = (ends(at + 7)?, ends(at + 10)?);
    let mut all = if sketches {
        take_sketches(row.try_get(at + 13)?, names.len()).ok_or_else(damaged)?
    } else {
        vec![Sketch::default(); names.len()]
    };
    let whole = [counts.len(), texts.len(), first.len(), last.len()] == [names.len(); 4]
        && numbers.iter().all(|column| column.len() == names.len());
    if !whole {
        return Err(damaged());
    }
    let of = |(n, name): (usize, String)| {
        let summary = Summary {
            count: counts[n] as u64,
            texts: texts[n] as u64,
            sum: numbers[0][n],
            m2: numbers[1][n],
            min: numbers[2][n],
            max: numbers[3][n],
            first: first[n].clone(),
            last: last[n].clone(),
            sketch: std::mem::take(&mut all[n]),
        };
        (name, summary)
    };
    Ok(names.into_iter().enumerate().map(of).collect())
}

/// Writes rows unless versions as high are there, and marks their hours stale.
pub(super) async fn put_rows(db: &Transaction<'_>, rows: &[Row]) -> Result<(), ShardError> {
    if rows.is_empty() {
        return Ok(());
    }
    let wanted = rows.iter().map(|row| (row.key.slot, Arc::clone(&row.key.gateway), Arc::clone(&row.key.device)));
    let ids = devices_of(db, wanted.collect()).await?;
    let id = |row: &Row| ids[&(Arc::clone(&row.key.gateway), Arc::clone(&row.key.device))];
    let found = db.query("SELECT length_us FROM tidegate.length", &[]).await?;
    let mut lengths: BTreeSet<Micros> = found.iter().map(|row| row.get(0)).collect();
    for row in rows {
        if lengths.insert(row.key.length_us) {
            check_lengths(lengths.len())?;
            let length_us = row.key.length_us;
            db.execute("INSERT INTO tidegate.length VALUES ($1) ON CONFLICT DO NOTHING", &[&length_us]).await?;
        }
    }
    let floors = floors(db, ids.values().copied()).await?;
    let below = |row: &Row| floors.get(&id(row)).map_or(&[][..], Vec::as_slice);
    let rows: Vec<Cow<'_, Row>> = rows.iter().filter_map(|row| above(row, below(row))).collect();
    let places = rows.iter().map(|row| (id(row), row.key.start_us, row.key.start_us + row.key.length_us));
    let (seals, mut sealed) = (Seals::read(db, places).await?, 0);
    let mut columns = Vec::with_capacity(rows.len());
    for row in rows.iter().map(|row| &**row) {
        if seals.hold(id(row), row) {
            sealed += 1;
        } else if lengths.len() == 1 || supersede(db, id(row), row, &lengths).await? {
            columns.push(Columns::of(id(row), row));
        }
    }
    tell_sealed(sealed);
    columns.sort_by_key(|row| (row.id, row.length_us, row.start_us));
    let written = if columns.len() < COPIED_FROM {
        let upsert = format!(
            "INSERT INTO tidegate.summary AS t VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,
                $17, $18, $19, $20) {ON_CONFLICT}"
        );
        let statement = db.prepare_typed(&upsert, &TYPES).await?;
        let values: Vec<_> = columns.iter().map(Columns::values).collect();
        let each = values.iter().map(|values| db.execute(&statement, values));
        let written = future::try_join_all(each).await?;
        columns.iter().zip(written).filter(|(_, n)| *n > 0).map(|(row, _)| (row.id, row.start_us)).collect()
    } else {
        copy(db, &columns).await?
    };
    mark_stale(db, written).await
}

/// Into a staging table first, which belongs to the connection.
async fn copy(db: &Transaction<'_>, rows: &[Columns]) -> Result<Vec<(i64, Micros)>, ShardError> {
    db.batch_execute(
        "CREATE TEMPORARY TABLE IF NOT EXISTS tidegate_staging (LIKE tidegate.summary) ON COMMIT DELETE ROWS",
    )
    .await?;
    let sink = db.copy_in("COPY tidegate_staging FROM STDIN BINARY").await?;
    let writer = BinaryCopyInWriter::new(sink, &TYPES);
    pin_mut!(writer);
    for row in rows {
        writer.as_mut().write(&row.values()).await?;
    }
    writer.finish().await?;
    let written = db
        .query(
            &format!(
                "INSERT INTO tidegate.summary AS t SELECT * FROM tidegate_staging ORDER BY device, length_us, start_us
                 {ON_CONFLICT} RETURNING t.device, t.start_us"
            ),
            &[],
        )
        .await?;
    Ok(written.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Under the shared lock the generation cannot change: whoever rolls up waits for this write.
pub(super) async fn mark_stale(db: &Transaction<'_>, written: Vec<(i64, Micros)>) -> Result<(), ShardError> {
    let hours: BTreeSet<(i64, Micros)> =
        written.into_iter().map(|(id, start_us)| (id, window_start(start_us, HOUR_US))).collect();
    let (ids, hours): (Vec<i64>, Vec<Micros>) = hours.into_iter().unzip();
    db.execute(
        "INSERT INTO tidegate.stale SELECT w.device, w.hour_us, m.value
         FROM unnest($1::bigint[], $2::bigint[]) AS w(device, hour_us), tidegate.meta m WHERE m.key = 'generation'
         ON CONFLICT DO NOTHING",
        &[&ids, &hours],
    )
    .await?;
    Ok(())
}

/// Removes windows of other lengths that this one takes the place of; false if one of them stays.
async fn supersede(db: &Transaction<'_>, id: i64, row: &Row, lengths: &BTreeSet<Micros>) -> Result<bool, ShardError> {
    let Key { length_us, start_us, .. } = row.key;
    let others: Vec<Micros> = lengths.iter().copied().filter(|&other_us| other_us != length_us).collect();
    let end_us = start_us + length_us;
    let found = db
        .query(
            "SELECT length_us, start_us, incarnation FROM tidegate.summary
             WHERE device = $1 AND length_us = ANY($2) AND start_us < $4 AND start_us + length_us > $3",
            &[&id, &others, &start_us, &end_us],
        )
        .await?;
    let other = |row: &SqlRow| Other { length_us: row.get(0), incarnation: row.get::<_, i64>(2) as u64 };
    if found.iter().any(|found| row.yields_to(other(found))) {
        return Ok(false);
    }
    let lies_within = |found: &SqlRow| {
        let (other_us, at_us): (Micros, Micros) = (found.get(0), found.get(1));
        other(found).incarnation == row.version.incarnation && at_us >= start_us && at_us + other_us <= end_us
    };
    if !found.is_empty() && found.iter().all(lies_within) {
        let counts = db
            .query(
                "SELECT m.metric, sum(m.count + m.texts)::bigint FROM tidegate.summary s,
                    unnest(s.metric, s.count, s.texts) AS m(metric, count, texts)
                 WHERE s.device = $1 AND s.length_us = ANY($2) AND s.start_us >= $3 AND s.start_us + s.length_us <= $4
                 GROUP BY m.metric HAVING sum(m.count + m.texts) > 0",
                &[&id, &others, &start_us, &end_us],
            )
            .await?;
        let counts: Counts = counts.iter().map(|row| (row.get(0), row.get::<_, i64>(1) as u64)).collect();
        if row.adds_nothing_to(&counts) {
            return Ok(false);
        }
    }
    let mut removed = Vec::new();
    for found in found {
        let (other_us, start_us): (Micros, Micros) = (found.get(0), found.get(1));
        db.execute(
            "DELETE FROM tidegate.summary WHERE device = $1 AND length_us = $2 AND start_us = $3",
            &[&id, &other_us, &start_us],
        )
        .await?;
        removed.push((id, start_us));
    }
    mark_stale(db, removed).await?;
    Ok(true)
}

pub(super) fn version(row: &SqlRow, at: usize) -> Version {
    Version { incarnation: row.get::<_, i64>(at) as u64, revision: row.get::<_, i64>(at + 1) as u64 }
}
