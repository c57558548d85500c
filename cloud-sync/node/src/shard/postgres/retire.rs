//! What is left when windows are retired.
//!
//! Arrives: an age. Leaves: sealed hours (`revision` 1), without their windows. Always holds: windows
//! go only when their hour is there and not stale, while nobody writes; nothing more is taken for
//! what is sealed, so that it stays what all of its windows came to.

use super::devices::devices_of;
use super::removal::floors;
use super::rollup::SHORT;
use super::rows::{Columns, TYPES, mark_stale};
use super::schema::LOCK;
use crate::row::{Row, sealed_above};
use crate::shard::merge::{DAY_US, HOUR_US};
use crate::shard::{LENGTHS_MANY, ShardError};
use futures_util::pin_mut;
use model::Micros;
use model::time::window_start;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::{GenericClient, Transaction};

/// Whole partitions first, then hours one by one; how many of these there were. Windows that fit into
/// no hour are as coarse as rollups, and stay.
pub(super) async fn retire(db: &Transaction<'_>, until_us: Micros, limit: usize) -> Result<usize, ShardError> {
    let due = "SELECT 1 FROM tidegate.rollup WHERE length_us = $1 AND revision = 0 AND received_us < $2 LIMIT 1";
    let is_due = db.query_opt(due, &[&HOUR_US, &until_us]).await?.is_some();
    let lengths: i64 = db.query_one("SELECT count(*) FROM tidegate.length", &[]).await?.get(0);
    if !is_due && lengths as usize <= LENGTHS_MANY {
        return Ok(0);
    }
    // Whoever reads for long must not make all writes wait behind this.
    db.batch_execute("SET LOCAL lock_timeout = '2s'").await?;
    // Alone: no write is under way that has not marked its hours stale yet.
    db.query("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    if !is_due {
        return forget_lengths(db).await.map(|()| 0);
    }
    db.execute(
        "INSERT INTO tidegate.meta VALUES ('retired_us', $1) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        &[&until_us],
    )
    .await?;
    drop_partitions(db, until_us).await?;
    let found = db
        .query(
            "SELECT r.device, r.start_us FROM tidegate.rollup r
             WHERE r.length_us = $1 AND r.revision = 0 AND r.received_us < $2
                AND NOT EXISTS (SELECT 1 FROM tidegate.stale t WHERE t.device = r.device AND t.hour_us = r.start_us)
                AND EXISTS (SELECT 1 FROM tidegate.slot o WHERE o.slot = r.device >> 40 AND o.state = 'open') LIMIT $3",
            &[&HOUR_US, &until_us, &(limit as i64)],
        )
        .await?;
    let (ids, starts): (Vec<i64>, Vec<Micros>) =
        found.iter().map(|row| (row.get::<_, i64>(0), row.get::<_, Micros>(1))).unzip();
    remove_windows(db, &ids, &starts).await?;
    db.execute(
        "UPDATE tidegate.rollup r SET revision = 1 FROM unnest($1::bigint[], $2::bigint[]) AS w(device, start_us)
         WHERE r.device = w.device AND r.length_us = $3 AND r.start_us = w.start_us",
        &[&ids, &starts, &HOUR_US],
    )
    .await?;
    Ok(ids.len())
}

/// Forgets lengths of which there are no windows any more, looking for them device by device.
async fn forget_lengths(db: &Transaction<'_>) -> Result<(), ShardError> {
    let unused = "DELETE FROM tidegate.length l WHERE NOT EXISTS (SELECT 1 FROM tidegate.device d, LATERAL
        (SELECT 1 FROM tidegate.summary s WHERE s.device = d.id AND s.length_us = l.length_us LIMIT 1) w)";
    db.execute(unused, &[]).await?;
    Ok(())
}

/// Removes the windows that fit into some hours.
async fn remove_windows(db: &Transaction<'_>, ids: &[i64], starts: &[Micros]) -> Result<(), ShardError> {
    db.execute(
        &format!(
            "DELETE FROM tidegate.summary s USING unnest($1::bigint[], $2::bigint[]) AS w(device, start_us)
             WHERE s.device = w.device AND s.start_us >= w.start_us AND s.start_us < w.start_us + $3 AND {SHORT}"
        ),
        &[&ids, &starts, &HOUR_US],
    )
    .await?;
    Ok(())
}

/// Drops partitions of which everything was received before, fits into hours, and is rolled up; none
/// while a slot is being copied.
async fn drop_partitions(db: &Transaction<'_>, until_us: Micros) -> Result<(), ShardError> {
    let copied = "SELECT 1 FROM tidegate.slot WHERE state IN ('importing', 'arrived', 'fenced') LIMIT 1";
    if db.query_opt(copied, &[]).await?.is_some() {
        return Ok(());
    }
    let children = db
        .query(
            "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
             WHERE i.inhparent = 'tidegate.summary'::regclass AND c.relname ~ '^summary_[0-9]+$'",
            &[],
        )
        .await?;
    for child in children {
        let table: String = child.get(0);
        let day: i64 = table.trim_start_matches("summary_").parse().unwrap_or(i64::MAX / DAY_US);
        let (from_us, to_us) = (day * DAY_US, (day + 1) * DAY_US);
        if to_us > until_us {
            continue;
        }
        let in_the_way = format!(
            "SELECT 1 FROM tidegate.{table} s WHERE received_us >= $1 OR NOT ({SHORT})
             UNION ALL SELECT 1 FROM tidegate.stale WHERE hour_us >= $2 AND hour_us < $3 LIMIT 1"
        );
        if db.query_opt(&in_the_way, &[&until_us, &from_us, &to_us]).await?.is_some() {
            continue;
        }
        db.execute(
            "UPDATE tidegate.rollup SET revision = 1 WHERE length_us = $1 AND revision = 0 AND start_us >= $2 AND start_us < $3",
            &[&HOUR_US, &from_us, &to_us],
        )
        .await?;
        db.batch_execute(&format!("DROP TABLE tidegate.{table}")).await?;
    }
    Ok(())
}

/// Takes sealed hours, whose windows go; their days are computed again.
pub(super) async fn import_sealed(db: &Transaction<'_>, rows: &[Row]) -> Result<(), ShardError> {
    if rows.is_empty() {
        return Ok(());
    }
    let wanted = rows.iter().map(|row| (row.key.slot, Arc::clone(&row.key.gateway), Arc::clone(&row.key.device)));
    let devices = devices_of(db, wanted.collect()).await?;
    let id = |row: &Row| devices[&(Arc::clone(&row.key.gateway), Arc::clone(&row.key.device))];
    let floors = floors(db, devices.values().copied()).await?;
    let below = |row: &Row| floors.get(&id(row)).map_or(&[][..], Vec::as_slice);
    let rows: Vec<Cow<'_, Row>> = rows.iter().filter_map(|row| sealed_above(row, below(row))).collect();
    db.execute("INSERT INTO tidegate.meta VALUES ('retired_us', 0) ON CONFLICT DO NOTHING", &[]).await?;
    let (ids, starts): (Vec<i64>, Vec<Micros>) = rows.iter().map(|row| (id(row), row.key.start_us)).unzip();
    remove_windows(db, &ids, &starts).await?;
    db.execute(
        "DELETE FROM tidegate.rollup r USING unnest($1::bigint[], $2::bigint[]) AS w(device, start_us)
         WHERE r.device = w.device AND r.length_us = $3 AND r.start_us = w.start_us",
        &[&ids, &starts, &HOUR_US],
    )
    .await?;
    let sink = db.copy_in("COPY tidegate.rollup FROM STDIN BINARY").await?;
    let writer = BinaryCopyInWriter::new(sink, &TYPES);
    pin_mut!(writer);
    for row in &rows {
        writer.as_mut().write(&Columns::of(id(row), row).values()).await?;
    }
    writer.finish().await?;
    mark_stale(db, ids.into_iter().zip(starts).collect()).await
}

/// Which hours of some devices are sealed.
pub(super) struct Seals(BTreeSet<(i64, Micros)>);

impl Seals {
    /// Of windows of devices, from and to some times.
    pub(super) async fn read(
        db: &impl GenericClient,
        places: impl Iterator<Item = (i64, Micros, Micros)>,
    ) -> Result<Self, ShardError> {
        if db.query_opt("SELECT 1 FROM tidegate.meta WHERE key = 'retired_us'", &[]).await?.is_none() {
            return Ok(Seals(BTreeSet::new()));
        }
        let hours_of = |(id, from_us, to_us): (i64, Micros, Micros)| {
            let first_us = window_start(from_us, HOUR_US);
            (first_us..to_us).step_by(HOUR_US as usize).map(move |hour_us| (id, hour_us))
        };
        let hours: BTreeSet<(i64, Micros)> = places.flat_map(hours_of).collect();
        let (ids, starts): (Vec<i64>, Vec<Micros>) = hours.into_iter().unzip();
        let sealed = db
            .query(
                "SELECT r.device, r.start_us FROM unnest($1::bigint[], $2::bigint[]) AS w(device, start_us)
                 JOIN tidegate.rollup r ON r.device = w.device AND r.length_us = $3 AND r.start_us = w.start_us
                 WHERE r.revision = 1",
                &[&ids, &starts, &HOUR_US],
            )
            .await?;
        Ok(Seals(sealed.iter().map(|row| (row.get(0), row.get(1))).collect()))
    }

    /// True if the windows of its hour, or of one of them, are gone.
    pub(super) fn hold(&self, id: i64, row: &Row) -> bool {
        let first_us = window_start(row.key.start_us, HOUR_US);
        self.0.range((id, first_us)..(id, row.key.start_us + row.key.length_us)).next().is_some()
    }

    /// Those that are sealed.
    pub(super) fn hours(&self) -> &BTreeSet<(i64, Micros)> {
        &self.0
    }
}
