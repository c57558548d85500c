//! Hours and days, from the windows in them.

use super::super::merge::{DAY_US, HOUR_US};
use super::retire::Seals;
use super::rows::{COLUMNS, Columns, TYPES, metrics_of};
use super::schema::LOCK;
use crate::row::{Key, Row, Version};
use crate::shard::{ShardError, of_table, slot_of};
use futures_util::pin_mut;
use model::time::window_start;
use model::{Micros, Summary};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio_postgres::Transaction;
use tokio_postgres::binary_copy::BinaryCopyInWriter;

/// Windows that fit into an hour, and those that fit only into a day.
pub(super) const SHORT: &str = "3600000000 % s.length_us = 0";
pub(super) const LONG: &str = "3600000000 % s.length_us <> 0 AND 86400000000 % s.length_us = 0";

/// Computes hours that have changed, oldest first, and the days of which no hour is stale any
/// more. Hours are taken of earlier generations only: all their writes are over.
pub(super) async fn roll_up(db: &Transaction<'_>, until_us: Micros, limit: usize) -> Result<usize, ShardError> {
    let alone: bool = db.query_one("SELECT pg_try_advisory_xact_lock($1)", &[&(LOCK + 2)]).await?.get(0);
    if !alone {
        return Ok(0);
    }
    let before_us = until_us - HOUR_US;
    let found = db
        .query(
            "SELECT s.device, s.hour_us, s.generation FROM tidegate.stale s, tidegate.meta m
             WHERE m.key = 'generation' AND s.generation < m.value AND s.hour_us < $1
             ORDER BY s.hour_us, s.device LIMIT $2",
            &[&before_us, &(limit as i64)],
        )
        .await?;
    if found.is_empty() {
        let waiting = "SELECT 1 FROM tidegate.stale WHERE hour_us < $1 LIMIT 1";
        if db.query_opt(waiting, &[&before_us]).await?.is_some() {
            // Alone: then no write of this generation is under way.
            db.query("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
            db.execute("UPDATE tidegate.meta SET value = value + 1 WHERE key = 'generation'", &[]).await?;
        }
        return Ok(0);
    }
    let hours: BTreeSet<(i64, Micros)> = found.iter().map(|row| (row.get(0), row.get(1))).collect();
    let seals = Seals::read(db, hours.iter().map(|&(id, us)| (id, us, us + HOUR_US))).await?;
    let open = hours.difference(seals.hours()).copied().collect();
    roll(db, &open, &[("summary", SHORT)], HOUR_US).await?;
    let generations: Vec<i64> = found.iter().map(|row| row.get(2)).collect();
    let (ids, starts): (Vec<i64>, Vec<Micros>) =
        found.iter().map(|row| (row.get::<_, i64>(0), row.get::<_, Micros>(1))).unzip();
    db.execute(
        "DELETE FROM tidegate.stale s USING unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS w(device, hour_us, generation)
         WHERE s.device = w.device AND s.hour_us = w.hour_us AND s.generation = w.generation",
        &[&ids, &starts, &generations],
    )
    .await?;
    // A day with a stale hour is computed with the last of them.
    let days: BTreeSet<(i64, Micros)> = hours.iter().map(|(id, us)| (*id, window_start(*us, DAY_US))).collect();
    roll(db, &days, &[("rollup", &format!("s.length_us = {HOUR_US}")), ("summary", LONG)], DAY_US).await?;
    Ok(hours.len())
}

/// When the latest part was received, and what all come to.
type Merged = (Micros, BTreeMap<Arc<str>, Summary>);

/// Merges windows that start within longer ones, and writes these.
async fn roll(
    db: &Transaction<'_>,
    places: &BTreeSet<(i64, Micros)>,
    parts: &[(&str, &str)],
    whole_us: Micros,
) -> Result<(), ShardError> {
    if places.is_empty() {
        return Ok(());
    }
    let (ids, starts): (Vec<i64>, Vec<Micros>) = places.iter().copied().unzip();
    let columns = of_table("s", COLUMNS);
    let mut found = Vec::new();
    for (table, which) in parts {
        let select = format!(
            "SELECT w.device, w.start_us, s.received_us, {columns}
             FROM unnest($1::bigint[], $2::bigint[]) AS w(device, start_us)
             JOIN tidegate.{table} s ON s.device = w.device AND s.start_us >= w.start_us
                AND s.start_us < w.start_us + $3 AND {which}"
        );
        found.extend(db.query(&select, &[&ids, &starts, &whole_us]).await?);
    }
    let mut merged: BTreeMap<(i64, Micros), Merged> = BTreeMap::new();
    for row in &found {
        let place: (i64, Micros) = (row.get(0), row.get(1));
        let (received_us, metrics) = merged.entry(place).or_default();
        *received_us = row.get::<_, Micros>(2).max(*received_us);
        for (name, summary) in metrics_of(row, 3, true)? {
            metrics.entry(name.into()).or_insert_with(|| Summary::empty(place.1)).add(&summary);
        }
    }
    db.execute(
        "DELETE FROM tidegate.rollup r USING unnest($1::bigint[], $2::bigint[]) AS w(device, start_us)
         WHERE r.device = w.device AND r.length_us = $3 AND r.start_us = w.start_us AND r.revision = 0",
        &[&ids, &starts, &whole_us],
    )
    .await?;
    let sink = db.copy_in("COPY tidegate.rollup FROM STDIN BINARY").await?;
    let writer = BinaryCopyInWriter::new(sink, &TYPES);
    pin_mut!(writer);
    for ((id, start_us), (received_us, metrics)) in merged {
        // Rollups follow from what they are made of: they have no version of their own.
        let key = Key { slot: slot_of(id), gateway: "".into(), device: "".into(), length_us: whole_us, start_us };
        let row = Row { key, version: Version::default(), received_us, metrics };
        writer.as_mut().write(&Columns::of(id, &row).values()).await?;
    }
    writer.finish().await?;
    Ok(())
}
