//! Whole slots: what moves read, compare and delete.

use super::super::merge::HOUR_US;
use super::fences::fence_of;
use super::rows::{COLUMNS, metrics_of, version};
use super::schema::LOCK;
use crate::row::{Key, Row};
use crate::shard::{Fence, Part, ShardError, numbers, of_table};
use daemon::aggregates::Range;
use deadpool_postgres::ClientWrapper;
use futures_util::{TryStreamExt, pin_mut};
use model::Micros;
use std::collections::BTreeMap;
use tokio_postgres::{GenericClient, Row as SqlRow};

pub(super) async fn export(
    db: &ClientWrapper,
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
            let of = db.prepare_cached("SELECT id FROM tidegate.device WHERE name = $1 AND gateway = $2").await?;
            let id = db.query_opt(&of, &[&&*key.device, &&*key.gateway]).await?;
            (id.map_or(first, |row| row.get(0)), key.length_us, key.start_us)
        }
        None => (first, 0, Micros::MIN),
    };
    let columns = of_table("s", COLUMNS);
    let page = db
        .prepare_cached(&format!(
            "SELECT s.length_us, s.start_us, s.incarnation, s.revision, s.received_us, d.gateway, d.name, {columns}
             FROM tidegate.{table} s JOIN tidegate.device d ON d.id = s.device
             WHERE (s.device, s.length_us, s.start_us) > ($1, $2, $3) AND s.device < $4 AND {which}
                AND s.start_us >= $6 AND s.start_us < $7
             ORDER BY s.device, s.length_us, s.start_us LIMIT $5"
        ))
        .await?;
    let rows = db
        .query(&page, &[&place.0, &place.1, &place.2, &behind, &(limit as i64), &range.from_us, &range.to_us])
        .await?;
    let of = |row: &SqlRow| -> Result<Row, ShardError> {
        let metrics = metrics_of(row, 7, true)?;
        Ok(Row {
            key: Key {
                slot,
                gateway: row.get::<_, String>(5).into(),
                device: row.get::<_, String>(6).into(),
                length_us: row.get(0),
                start_us: row.get(1),
            },
            version: version(row, 2),
            received_us: row.get(4),
            metrics: metrics.into_iter().map(|(name, summary)| (name.into(), summary)).collect(),
        })
    };
    rows.iter().map(of).collect()
}

pub(super) async fn changed(
    db: &impl GenericClient,
    slots: &[u16],
    since_us: Micros,
) -> Result<BTreeMap<u16, Range>, ShardError> {
    let slots: Vec<i64> = slots.iter().map(|slot| i64::from(*slot)).collect();
    let rows = db
        .query(
            "SELECT device >> 40, min(start_us), max(start_us) + 1 FROM tidegate.summary
             WHERE received_us >= $1 AND device >> 40 = ANY($2) GROUP BY 1",
            &[&since_us, &slots],
        )
        .await?;
    let range = |row: &SqlRow| (row.get::<_, i64>(0) as u16, Range { from_us: row.get(1), to_us: row.get(2) });
    Ok(rows.iter().map(range).collect())
}

pub(super) async fn digests(
    db: &ClientWrapper,
    slot: u16,
    range: Range,
) -> Result<BTreeMap<i64, (u64, u64)>, ShardError> {
    let (first, behind) = numbers(slot);
    let all = db
        .prepare_cached(
            "SELECT d.gateway, d.name, s.length_us, s.start_us, s.incarnation, s.revision
             FROM (SELECT device, length_us, start_us, incarnation, revision FROM tidegate.summary
                    WHERE device >= $1 AND device < $2 AND start_us >= $3 AND start_us < $4
                UNION ALL SELECT device, -length_us, start_us, incarnation, revision FROM tidegate.rollup
                    WHERE device >= $1 AND device < $2 AND revision = 1 AND start_us >= $3 AND start_us < $4) s
             JOIN tidegate.device d ON d.id = s.device",
        )
        .await?;
    let rows = db.query_raw(&all, [first, behind, range.from_us, range.to_us]).await?;
    pin_mut!(rows);
    let mut digests: BTreeMap<i64, (u64, u64)> = BTreeMap::new();
    while let Some(row) = rows.try_next().await? {
        let key = Key {
            slot,
            gateway: row.get::<_, String>(0).into(),
            device: row.get::<_, String>(1).into(),
            length_us: row.get(2),
            start_us: row.get(3),
        };
        let hour = digests.entry(key.start_us.div_euclid(HOUR_US)).or_default();
        *hour = (hour.0 + 1, hour.1.wrapping_add(key.digest(version(&row, 4))));
    }
    Ok(digests)
}

pub(super) async fn delete(db: &impl GenericClient, wanted: Fence, limit: usize) -> Result<usize, ShardError> {
    let slot = wanted.slot;
    db.query("SELECT pg_advisory_xact_lock_shared($1)", &[&LOCK]).await?;
    let of = "SELECT slot, epoch, state FROM tidegate.slot WHERE slot = $1";
    let found = db.query_opt(of, &[&i32::from(slot)]).await?.as_ref().map(fence_of);
    if found != Some(wanted) {
        return Err(ShardError::fenced(slot, found.as_ref()));
    }
    let (first, behind) = numbers(slot);
    let rows = db
        .execute(
            "DELETE FROM tidegate.summary WHERE (device, length_us, start_us) IN
                (SELECT device, length_us, start_us FROM tidegate.summary WHERE device >= $1 AND device < $2 LIMIT $3)",
            &[&first, &behind, &(limit as i64)],
        )
        .await? as usize;
    if rows < limit {
        for table in ["rollup", "stale", "removed"] {
            let sql = format!("DELETE FROM tidegate.{table} WHERE device >= $1 AND device < $2");
            db.execute(&sql, &[&first, &behind]).await?;
        }
        db.execute("DELETE FROM tidegate.device WHERE id >= $1 AND id < $2", &[&first, &behind]).await?;
        db.execute("DELETE FROM tidegate.gateway WHERE slot = $1", &[&i32::from(slot)]).await?;
    }
    Ok(rows)
}
