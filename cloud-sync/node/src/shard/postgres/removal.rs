//! Devices and metrics that are no more.
//!
//! Arrives: floors of versions. Leaves: rows without what is below them. Always holds: from the commit of a
//! floor on, nothing below it is taken; what is there goes in slices, after which answers have forgotten it.

use super::devices::{devices_of, put_labels};
use super::rows::{COLUMNS, Columns, TYPES, mark_stale, metrics_of, version};
use super::schema::LOCK;
use crate::row::{Floor, Key, Row, Version};
use crate::shard::merge::HOUR_US;
use crate::shard::{Removal, SWEPT_AT_ONCE, ShardError, slot_of};
use futures_util::pin_mut;
use model::Micros;
use std::collections::HashMap;
use std::sync::Arc;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::{GenericClient, Row as SqlRow, Transaction};

/// What is no more of some devices, by their numbers.
pub(super) async fn floors(
    db: &impl GenericClient,
    ids: impl Iterator<Item = i64>,
) -> Result<HashMap<i64, Vec<Floor>>, ShardError> {
    let mut floors: HashMap<i64, Vec<Floor>> = HashMap::new();
    let ids: Vec<i64> = ids.collect();
    let of = "SELECT incarnation, revision, received_us, metric, device FROM tidegate.removed WHERE device = ANY($1)";
    for row in db.query(of, &[&ids]).await? {
        floors.entry(row.get(4)).or_default().push(floor_of(&row));
    }
    Ok(floors)
}

fn floor_of(row: &SqlRow) -> Floor {
    let metric = Some(row.get::<_, String>(3)).filter(|metric| !metric.is_empty());
    Floor { metric: metric.map(Into::into), version: version(row, 0), received_us: row.get(2) }
}

/// Takes note of what a push says is no more.
pub(super) async fn put_removed(
    db: &Transaction<'_>,
    gateway: &Arc<str>,
    removed: &[Removal],
    batch: u64,
) -> Result<(), ShardError> {
    if removed.is_empty() {
        return Ok(());
    }
    let wanted = removed.iter().map(|of| (of.slot, Arc::clone(gateway), Arc::clone(&of.device)));
    let ids = devices_of(db, wanted.collect()).await?;
    for Removal { device, floor, .. } in removed {
        let id = ids[&(Arc::clone(gateway), Arc::clone(device))];
        if floor.metric.is_none() {
            put_labels(db, id, &Default::default(), (floor.version.incarnation, batch)).await?;
        }
        put_floor(db, id, floor, false).await?;
    }
    sweep(db, SWEPT_AT_ONCE).await.map(drop)
}

/// The higher floor stays; one that is not known may say that there is nothing below it.
pub(super) async fn put_floor(db: &impl GenericClient, id: i64, floor: &Floor, swept: bool) -> Result<(), ShardError> {
    let Version { incarnation, revision } = floor.version;
    let metric = floor.metric.as_deref().unwrap_or_default();
    db.execute(
        "INSERT INTO tidegate.removed AS t VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (device, metric) DO UPDATE SET incarnation = excluded.incarnation, revision = excluded.revision,
            received_us = excluded.received_us, swept = false
         WHERE (excluded.incarnation, excluded.revision) > (t.incarnation, t.revision)",
        &[&id, &metric, &(incarnation as i64), &(revision as i64), &floor.received_us, &swept],
    )
    .await?;
    Ok(())
}

/// Deletes some of what is below a floor; how many rows there were.
pub(super) async fn sweep(db: &Transaction<'_>, limit: usize) -> Result<usize, ShardError> {
    let mut swept = 0;
    while swept < limit {
        let next = "SELECT incarnation, revision, received_us, metric, device FROM tidegate.removed WHERE NOT swept
            ORDER BY device LIMIT 1 FOR UPDATE SKIP LOCKED";
        let Some(row) = db.query_opt(next, &[]).await? else { break };
        let (floor, id): (Floor, i64) = (floor_of(&row), row.get(4));
        // Hours must not be computed meanwhile from what goes.
        db.query("SELECT pg_advisory_xact_lock_shared($1)", &[&LOCK]).await?;
        swept += match &floor.metric {
            None => sweep_device(db, id, &floor, limit - swept).await?,
            Some(metric) => sweep_metric(db, id, metric, &floor, limit - swept).await?,
        };
        if swept < limit {
            let metric = floor.metric.as_deref().unwrap_or_default();
            let done = "UPDATE tidegate.removed SET swept = true WHERE device = $1 AND metric = $2";
            db.execute(done, &[&id, &metric]).await?;
        }
    }
    Ok(swept)
}

async fn sweep_device(db: &Transaction<'_>, id: i64, floor: &Floor, limit: usize) -> Result<usize, ShardError> {
    let Version { incarnation, revision } = floor.version;
    // Hours and days first: until they are there again, answers are made of windows.
    let hours = "SELECT start_us FROM tidegate.rollup WHERE device = $1 AND length_us = $2";
    let hours = db.query(hours, &[&id, &HOUR_US]).await?;
    mark_stale(db, hours.iter().map(|row| (id, row.get(0))).collect()).await?;
    let of = "DELETE FROM tidegate.rollup WHERE device = $1 AND received_us <= $2";
    let hours = db.execute(of, &[&id, &floor.received_us]).await?;
    let windows = db
        .execute(
            "DELETE FROM tidegate.summary WHERE (device, length_us, start_us) IN
                (SELECT device, length_us, start_us FROM tidegate.summary
                 WHERE device = $1 AND (incarnation, revision) < ($2, $3) LIMIT $4)",
            &[&id, &(incarnation as i64), &(revision as i64), &(limit as i64)],
        )
        .await?;
    Ok(windows as usize + usize::from(hours > 0))
}

async fn sweep_metric(
    db: &Transaction<'_>,
    id: i64,
    metric: &str,
    floor: &Floor,
    limit: usize,
) -> Result<usize, ShardError> {
    let Version { incarnation, revision } = floor.version;
    let mut rows = 0;
    for (table, which) in [("rollup", "received_us <= $5"), ("summary", "(incarnation, revision) < ($3, $4)")] {
        let left = limit.saturating_sub(rows) as i64;
        // All parameters stand in both.
        let found = db
            .query(
                &format!(
                    "SELECT length_us, start_us, incarnation, revision, received_us, {COLUMNS} FROM tidegate.{table}
                     WHERE device = $1 AND $2 = ANY(metric) AND {which}
                        AND $3::bigint IS NOT NULL AND $4::bigint IS NOT NULL AND $5::bigint IS NOT NULL LIMIT $6"
                ),
                &[&id, &metric, &(incarnation as i64), &(revision as i64), &floor.received_us, &left],
            )
            .await?;
        let stripped = found.iter().map(|row| stripped(id, row, floor)).collect::<Result<Vec<Row>, ShardError>>()?;
        rows += stripped.len();
        let (lengths, starts): (Vec<Micros>, Vec<Micros>) =
            stripped.iter().map(|row| (row.key.length_us, row.key.start_us)).unzip();
        db.execute(
            &format!(
                "DELETE FROM tidegate.{table} s USING unnest($2::bigint[], $3::bigint[]) AS w(length_us, start_us)
                 WHERE s.device = $1 AND s.length_us = w.length_us AND s.start_us = w.start_us"
            ),
            &[&id, &lengths, &starts],
        )
        .await?;
        let sink = db.copy_in(&format!("COPY tidegate.{table} FROM STDIN BINARY")).await?;
        let writer = BinaryCopyInWriter::new(sink, &TYPES);
        pin_mut!(writer);
        for row in stripped.iter().filter(|row| !row.metrics.is_empty()) {
            writer.as_mut().write(&Columns::of(id, row).values()).await?;
        }
        writer.finish().await?;
        mark_stale(db, starts.into_iter().map(|start_us| (id, start_us)).collect()).await?;
    }
    Ok(rows)
}

fn stripped(id: i64, row: &SqlRow, floor: &Floor) -> Result<Row, ShardError> {
    let key =
        Key { slot: slot_of(id), gateway: "".into(), device: "".into(), length_us: row.get(0), start_us: row.get(1) };
    let metrics = metrics_of(row, 5, true)?.into_iter().map(|(name, summary)| (name.into(), summary)).collect();
    let mut row = Row { key, version: version(row, 2), received_us: row.get(4), metrics };
    floor.strip(&mut row.metrics);
    Ok(row)
}
