//! Rows to answers, in one snapshot.

use super::super::merge::{Asked, DAY_US, HOUR_US, Merger, Spans};
use super::devices::labels_of;
use super::rollup::{LONG, SHORT};
use super::rows::{COLUMNS, metrics_of};
use crate::shard::{Known, LabelsVersion, Partial, Question, ShardError, Slots};
use futures_util::{TryStreamExt, pin_mut};
use model::Micros;
use model::aggregate::{glob, is_glob};
use placement::Epoch;
use std::collections::{BTreeMap, HashMap};
use tokio_postgres::types::ToSql;
use tokio_postgres::{GenericClient, Row as SqlRow, Transaction};
use wire::HeldWindow;

pub(super) async fn aggregate(db: &Transaction<'_>, question: &Question) -> Result<Partial, ShardError> {
    let asked = asked(db, question).await?;
    let ids: Vec<i64> = asked.keys().copied().collect();
    let mut merger = Merger::new(question);
    let Spans { edges, hours, days } = Spans::of(question);
    let sketch = if question.sketches { "sketch" } else { "''::bytea" };
    let columns = |of: &str| {
        let columns = COLUMNS.split(", ").filter(|column| *column != "sketch").map(|column| format!("{of}.{column}"));
        let sketch = if question.sketches { format!("{of}.{sketch}") } else { sketch.to_owned() };
        format!("{of}.device, {of}.length_us, {of}.start_us, {}, {sketch}", columns.collect::<Vec<_>>().join(", "))
    };
    let windows = format!(
        "SELECT {} FROM tidegate.summary s WHERE s.device = ANY($1) AND s.start_us >= $2 AND s.start_us < $3",
        columns("s")
    );
    let mut parts: Vec<(String, Vec<Micros>)> = Vec::new();
    for edge in edges.into_iter().filter(|edge| edge.from_us < edge.to_us) {
        parts.push((windows.clone(), vec![edge.from_us, edge.to_us]));
        // Hours that are all that is left of their windows.
        let sealed = format!(
            "SELECT {} FROM tidegate.rollup r WHERE r.device = ANY($1) AND r.length_us = {HOUR_US} AND r.revision = 1
                AND r.start_us >= $2 AND r.start_us < $3",
            columns("r")
        );
        parts.push((sealed, vec![edge.from_us, edge.to_us]));
    }
    if hours.from_us < hours.to_us {
        let stale = format!(
            "SELECT {} FROM (SELECT DISTINCT device, hour_us FROM tidegate.stale
                WHERE device = ANY($1) AND hour_us >= $2 AND hour_us < $3) h
             JOIN tidegate.summary s ON s.device = h.device AND s.start_us >= h.hour_us AND s.start_us < h.hour_us + {HOUR_US}
                AND {SHORT}",
            columns("s")
        );
        parts.push((stale, vec![hours.from_us, hours.to_us]));
        let is_stale = |whole_us: Micros, of: &str, at: &str| {
            format!(
                "EXISTS (SELECT 1 FROM tidegate.stale t WHERE t.device = {of}.device AND t.hour_us >= {at}
                    AND t.hour_us < {at} + {whole_us})"
            )
        };
        let of_hours = format!(
            "SELECT {} FROM tidegate.rollup r WHERE r.device = ANY($1) AND r.length_us = {HOUR_US} AND r.start_us >= $2
                AND r.start_us < $3 AND (r.revision = 1 OR NOT {}) AND (r.start_us < $4 OR r.start_us >= $5 OR {})",
            columns("r"),
            is_stale(HOUR_US, "r", "r.start_us"),
            is_stale(DAY_US, "r", &format!("(r.start_us - r.start_us % {DAY_US})"))
        );
        parts.push((of_hours, vec![hours.from_us, hours.to_us, days.from_us, days.to_us]));
        let long = format!(
            "{windows} AND {LONG} AND (s.start_us < $4 OR s.start_us >= $5 OR {})",
            is_stale(DAY_US, "s", "(s.start_us - s.start_us % 86400000000)")
        );
        parts.push((long, vec![hours.from_us, hours.to_us, days.from_us, days.to_us]));
        parts.push((format!("{windows} AND 86400000000 % s.length_us <> 0"), vec![hours.from_us, hours.to_us]));
        if days.from_us < days.to_us {
            let of_days = format!(
                "SELECT {} FROM tidegate.rollup r WHERE r.device = ANY($1) AND r.length_us = {DAY_US} AND r.start_us >= $2
                    AND r.start_us < $3 AND NOT {}",
                columns("r"),
                is_stale(DAY_US, "r", "r.start_us")
            );
            parts.push((of_days, vec![days.from_us, days.to_us]));
        }
    }
    for (sql, times) in parts {
        let mut values: Vec<&(dyn ToSql + Sync)> = vec![&ids];
        values.extend(times.iter().map(|us| us as &(dyn ToSql + Sync)));
        let rows = db.query_raw(&sql, values.into_iter().map(|value| value as &dyn ToSql)).await;
        let rows = rows?;
        pin_mut!(rows);
        while let Some(row) = rows.try_next().await? {
            let Some(device) = asked.get(&row.get::<_, i64>(0)) else { continue };
            merger.add(device, row.get(1), row.get(2), metrics_of(&row, 3, question.sketches)?);
            merger.check()?;
        }
    }
    Ok(merger.finish())
}

/// The devices of the slots asked about that the filter lets through.
async fn asked(db: &impl GenericClient, question: &Question) -> Result<HashMap<i64, Asked>, ShardError> {
    let slots = Slots::of(&question.fences);
    let named = &question.filter.devices;
    let all_named = !named.is_empty() && named.iter().all(|name| !is_glob(name));
    let rows = if all_named {
        db.query("SELECT id, name, gateway, labels::text FROM tidegate.device WHERE name = ANY($1)", &[named]).await?
    } else {
        db.query("SELECT id, name, gateway, labels::text FROM tidegate.device", &[]).await?
    };
    let mut asked = HashMap::new();
    for row in rows {
        let (id, name, gateway): (i64, String, String) = (row.get(0), row.get(1), row.get(2));
        if slots.hold(id) && question.wants(&name, &gateway) {
            let labels = if question.wants_labels() { labels_of(&row, 3) } else { BTreeMap::new() };
            asked.insert(id, Asked { id, name: name.into(), gateway: gateway.into(), labels });
        }
    }
    Ok(asked)
}

/// The numbers of slots, as SQL compares them.
fn numbers_of(fences: &[(u16, Epoch)]) -> Vec<i64> {
    fences.iter().map(|(slot, _)| i64::from(*slot)).collect()
}

/// A page of devices in byte order, as everywhere else, with the end and the metrics of each one's latest window, and
/// whether it is no more.
const DEVICES: &str = "
    SELECT d.name, d.gateway, d.labels::text, w.end_us, w.metric,
        EXISTS (SELECT 1 FROM tidegate.removed r WHERE r.device = d.id AND r.metric = '')
    FROM (SELECT id, name, gateway, labels FROM tidegate.device
        WHERE (name COLLATE \"C\", gateway COLLATE \"C\") > ($1, $2) AND id >> 40 = ANY($3)
            AND ($4::text[] IS NULL OR name = ANY($4))
        ORDER BY name COLLATE \"C\", gateway COLLATE \"C\" LIMIT $5) d
    LEFT JOIN LATERAL (
        SELECT s.end_us, s.metric FROM tidegate.length l, LATERAL (
            SELECT start_us + length_us AS end_us, metric FROM tidegate.summary
            WHERE device = d.id AND length_us = l.length_us ORDER BY start_us DESC LIMIT 1) s
        ORDER BY s.end_us DESC LIMIT 1) w ON true
    ORDER BY d.name COLLATE \"C\", d.gateway COLLATE \"C\"";

pub(super) async fn devices(
    db: &impl GenericClient,
    patterns: &[String],
    after: Option<(String, String)>,
    limit: usize,
    fences: &[(u16, Epoch)],
) -> Result<Vec<Known>, ShardError> {
    let slots = numbers_of(fences);
    let all_named = !patterns.is_empty() && patterns.iter().all(|pattern| !is_glob(pattern));
    let named = all_named.then_some(patterns);
    let (mut name, mut gateway) = after.unwrap_or_default();
    let mut known = Vec::new();
    loop {
        let page = limit as i64;
        let rows = db.query(DEVICES, &[&name, &gateway, &slots, &named, &page]).await?;
        for row in &rows {
            (name, gateway) = (row.get(0), row.get(1));
            let labels = labels_of(row, 2);
            let (last_us, is_removed): (Option<Micros>, bool) = (row.get(3), row.get(5));
            let matches = patterns.is_empty() || patterns.iter().any(|pattern| glob(pattern, &name));
            if !matches || (last_us.is_none() && labels.is_empty() && is_removed) {
                continue;
            }
            known.push(Known {
                device: name.as_str().into(),
                gateway: gateway.as_str().into(),
                labels,
                labels_version: LabelsVersion::default(),
                metrics: row.get::<_, Option<Vec<String>>>(4).unwrap_or_default(),
                last_us,
                removed: Vec::new(),
            });
            if known.len() == limit {
                return Ok(known);
            }
        }
        if rows.len() < limit {
            return Ok(known);
        }
    }
}

/// Windows of a gateway's devices in byte order; of each device no more than the page holds.
const WINDOWS: &str = "
    SELECT d.name, s.length_us, s.start_us, s.incarnation, s.revision,
        (SELECT sum(n) FROM unnest(s.count || s.texts) n)::bigint, s.sealed
    FROM (SELECT id, name FROM tidegate.device
        WHERE gateway = $1 AND name COLLATE \"C\" >= $2 AND id >> 40 = ANY($6) ORDER BY name COLLATE \"C\") d,
    LATERAL (
        SELECT length_us, start_us, incarnation, revision, count, texts, false AS sealed FROM tidegate.summary
            WHERE device = d.id AND (d.name <> $2 OR (length_us, start_us) > ($3, $4))
        UNION ALL SELECT length_us, start_us, incarnation, revision, count, texts, true FROM tidegate.rollup
            WHERE device = d.id AND revision = 1 AND (d.name <> $2 OR (length_us, start_us) > ($3, $4))
        ORDER BY length_us, start_us LIMIT $5) s
    ORDER BY d.name COLLATE \"C\", s.length_us, s.start_us LIMIT $5";

pub(super) async fn windows(
    db: &impl GenericClient,
    gateway: &str,
    after: Option<(String, Micros, Micros)>,
    limit: usize,
    fences: &[(u16, Epoch)],
) -> Result<Vec<HeldWindow>, ShardError> {
    let (name, length_us, start_us) = after.unwrap_or((String::new(), 0, Micros::MIN));
    let rows =
        db.query(WINDOWS, &[&gateway, &name, &length_us, &start_us, &(limit as i64), &numbers_of(fences)]).await?;
    let window = |row: &SqlRow| HeldWindow {
        device: row.get(0),
        length_us: row.get(1),
        start_us: row.get(2),
        incarnation: row.get::<_, i64>(3) as u64,
        revision: row.get::<_, i64>(4) as u64,
        readings: row.get::<_, i64>(5) as u64,
        sealed: row.get(6),
    };
    Ok(rows.iter().map(window).collect())
}
