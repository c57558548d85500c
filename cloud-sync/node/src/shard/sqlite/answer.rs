//! Rows to answers, in one snapshot.

use super::rows::{COLUMNS, take_metrics};
use crate::shard::merge::{Asked, DAY_US, HOUR_US, Merger, Spans, fits};
use crate::shard::{Known, LabelsVersion, Partial, Question, ShardError, Slots};
use daemon::aggregates::Range;
use model::Micros;
use model::aggregate::{glob, is_glob};
use model::time::window_start;
use placement::Epoch;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::{BTreeMap, BTreeSet};
use wire::HeldWindow;

pub(super) fn aggregate(db: &Connection, question: &Question) -> Result<Partial, ShardError> {
    let mut query = db.prepare_cached("SELECT length_us FROM length ORDER BY length_us")?;
    let lengths = query.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut task =
        Task { db, lengths, spans: Spans::of(question), sketches: question.sketches, merger: Merger::new(question) };
    for device in asked(db, question)? {
        task.device(&device)?;
    }
    Ok(task.merger.finish())
}

/// The devices of the slots asked about that the filter lets through.
fn asked(db: &Connection, question: &Question) -> Result<Vec<Asked>, ShardError> {
    let slots = Slots::of(&question.fences);
    let mut query = db.prepare_cached(&format!("SELECT id, name, gateway, labels FROM device WHERE {NAMED}"))?;
    let mut rows = query.query([named(&question.filter.devices)])?;
    let mut asked = Vec::new();
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let (name, gateway): (String, String) = (row.get(1)?, row.get(2)?);
        if slots.hold(id) && question.wants(&name, &gateway) {
            let labels = if question.wants_labels() { row.get::<_, String>(3)? } else { "{}".into() };
            let labels = serde_json::from_str(&labels).unwrap_or_default();
            asked.push(Asked { id, name: name.into(), gateway: gateway.into(), labels });
        }
    }
    Ok(asked)
}

/// That a device is among the names in `?1`, or all of them where that is NULL.
const NAMED: &str = "(?1 IS NULL OR name IN (SELECT value FROM json_each(?1)))";

/// For [`NAMED`]: nothing unless no pattern may name others.
fn named(patterns: &[String]) -> Option<String> {
    let all = !patterns.is_empty() && patterns.iter().all(|pattern| !is_glob(pattern));
    all.then(|| serde_json::to_string(patterns).unwrap_or_else(|_| "[]".into()))
}

struct Task<'a> {
    db: &'a Connection,
    lengths: Vec<Micros>,
    spans: Spans,
    sketches: bool,
    merger: Merger<'a>,
}

impl Task<'_> {
    /// Merges what there is of a device.
    fn device(&mut self, device: &Asked) -> Result<(), ShardError> {
        let Spans { edges, hours, days } = self.spans;
        for edge in edges {
            self.windows(device, edge, |_| true)?;
            self.sealed(device, edge)?;
        }
        if hours.from_us >= hours.to_us {
            return Ok(());
        }
        let mut query = self.db.prepare_cached(
            "SELECT s.hour_us, coalesce(r.revision, 0) FROM stale s LEFT JOIN rollup r
                ON r.device = s.device AND r.length_us = ?4 AND r.start_us = s.hour_us
             WHERE s.device = ?1 AND s.hour_us >= ?2 AND s.hour_us < ?3",
        )?;
        let marks = query.query_map([device.id, hours.from_us, hours.to_us, HOUR_US], |row| {
            Ok((row.get::<_, Micros>(0)?, row.get::<_, i64>(1)? > 0))
        })?;
        let marks = marks.collect::<rusqlite::Result<Vec<_>>>()?;
        // A sealed hour is what it is, though its day may have to be computed again.
        let stale: BTreeSet<Micros> = marks.iter().filter(|(_, sealed)| !sealed).map(|(hour_us, _)| *hour_us).collect();
        for &hour_us in &stale {
            self.windows(device, Range { from_us: hour_us, to_us: hour_us + HOUR_US }, |us| fits(us, HOUR_US))?;
        }
        let stale_days: BTreeSet<Micros> = marks.iter().map(|(hour_us, _)| window_start(*hour_us, DAY_US)).collect();
        let whole = |&day_us: &Micros| Range { from_us: day_us, to_us: day_us + DAY_US };
        let mut by_hour: Vec<Range> = stale_days.range(days.from_us..days.to_us).map(whole).collect();
        if days.from_us < days.to_us {
            by_hour.extend([Range { to_us: days.from_us, ..hours }, Range { from_us: days.to_us, ..hours }]);
        } else {
            by_hour.push(hours);
        }
        for range in by_hour {
            self.rows("rollup", device, HOUR_US, range, &stale)?;
            self.windows(device, range, |us| fits(us, DAY_US) && !fits(us, HOUR_US))?;
        }
        self.rows("rollup", device, DAY_US, days, &stale_days)?;
        self.windows(device, hours, |us| !fits(us, DAY_US))
    }

    /// Windows of some lengths that start in a range.
    fn windows(&mut self, device: &Asked, range: Range, of: impl Fn(Micros) -> bool) -> Result<(), ShardError> {
        for length_us in self.lengths.clone().into_iter().filter(|&us| of(us)) {
            self.rows("summary", device, length_us, range, &BTreeSet::new())?;
        }
        Ok(())
    }

    /// Hours that start in a range and are all that is left of their windows.
    fn sealed(&mut self, device: &Asked, range: Range) -> Result<(), ShardError> {
        self.rows("(SELECT * FROM rollup WHERE revision = 1)", device, HOUR_US, range, &BTreeSet::new())
    }

    /// Rows that start in a range, but for those of `without`.
    fn rows(
        &mut self,
        table: &str,
        device: &Asked,
        length_us: Micros,
        range: Range,
        without: &BTreeSet<Micros>,
    ) -> Result<(), ShardError> {
        if range.from_us >= range.to_us {
            return Ok(());
        }
        let db = self.db;
        let mut query = db.prepare_cached(&format!(
            "SELECT start_us, {COLUMNS} FROM {table} WHERE device = ?1 AND length_us = ?2 AND start_us >= ?3 AND start_us < ?4"
        ))?;
        let mut rows = query.query([device.id, length_us, range.from_us, range.to_us])?;
        while let Some(row) = rows.next()? {
            let start_us: Micros = row.get(0)?;
            if !without.contains(&start_us) {
                self.merger.add(device, length_us, start_us, take_metrics(row, 1, self.sketches)?);
                self.merger.check()?;
            }
        }
        Ok(())
    }
}

pub(super) fn devices(
    db: &Connection,
    patterns: &[String],
    after: Option<(String, String)>,
    limit: usize,
    fences: &[(u16, Epoch)],
) -> Result<Vec<Known>, ShardError> {
    let slots = Slots::of(fences);
    let (name, gateway) = after.unwrap_or_default();
    let mut lengths = db.prepare_cached("SELECT length_us FROM length")?;
    let lengths: Vec<Micros> = lengths.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut query = db.prepare_cached(&format!(
        "SELECT id, name, gateway, labels FROM device WHERE {NAMED} AND (name, gateway) > (?2, ?3) ORDER BY name, gateway"
    ))?;
    let mut rows = query.query(params![named(patterns), name, gateway])?;
    let mut known = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, name): (i64, String) = (row.get(0)?, row.get(1)?);
        let matches = patterns.is_empty() || patterns.iter().any(|pattern| glob(pattern, &name));
        if !matches || !slots.hold(id) {
            continue;
        }
        let mut latest = db.prepare_cached(
            "SELECT start_us + length_us, metric FROM summary WHERE device = ?1 AND length_us = ?2
             ORDER BY start_us DESC LIMIT 1",
        )?;
        let mut newest: Option<(Micros, String)> = None;
        for length_us in &lengths {
            let found = latest.query_row([id, *length_us], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            newest = newest.max(found);
        }
        let labels: BTreeMap<String, String> = serde_json::from_str(&row.get::<_, String>(3)?).unwrap_or_default();
        let mut removed = db.prepare_cached("SELECT 1 FROM removed WHERE device = ?1 AND metric = ''")?;
        if newest.is_none() && labels.is_empty() && removed.exists([id])? {
            continue;
        }
        let (last_us, metrics) = newest.unzip();
        known.push(Known {
            device: name.into(),
            gateway: row.get::<_, String>(2)?.into(),
            labels,
            labels_version: LabelsVersion::default(),
            metrics: metrics.and_then(|metrics| serde_json::from_str(&metrics).ok()).unwrap_or_default(),
            last_us,
            removed: Vec::new(),
        });
        if known.len() == limit {
            break;
        }
    }
    Ok(known)
}

pub(super) fn windows(
    db: &Connection,
    gateway: &str,
    after: Option<(String, Micros, Micros)>,
    limit: usize,
    fences: &[(u16, Epoch)],
) -> Result<Vec<HeldWindow>, ShardError> {
    let slots = Slots::of(fences);
    let (first, length_us, start_us) = after.unwrap_or((String::new(), 0, Micros::MIN));
    let mut devices =
        db.prepare_cached("SELECT id, name FROM device WHERE gateway = ?1 AND name >= ?2 ORDER BY name")?;
    let mut devices = devices.query([gateway, &first])?;
    let mut of_device = db.prepare_cached(
        "SELECT length_us, start_us, incarnation, revision, count, texts, false FROM summary
            WHERE device = ?1 AND (length_us, start_us) > (?2, ?3)
         UNION ALL SELECT length_us, start_us, incarnation, revision, count, texts, true FROM rollup
            WHERE device = ?1 AND (length_us, start_us) > (?2, ?3) AND revision = 1
         ORDER BY length_us, start_us LIMIT ?4",
    )?;
    let mut windows = Vec::new();
    while let Some(device) = devices.next()? {
        let (id, name): (i64, String) = (device.get(0)?, device.get(1)?);
        if !slots.hold(id) {
            continue;
        }
        let (length_us, start_us) = if name == first { (length_us, start_us) } else { (0, Micros::MIN) };
        let left = (limit - windows.len()) as i64;
        let found = of_device.query_map(params![id, length_us, start_us, left], |row| {
            let readings = |at: usize| -> rusqlite::Result<u64> {
                let counts: Vec<u64> = serde_json::from_str(&row.get::<_, String>(at)?).unwrap_or_default();
                Ok(counts.iter().sum())
            };
            Ok(HeldWindow {
                device: name.clone(),
                length_us: row.get(0)?,
                start_us: row.get(1)?,
                incarnation: row.get::<_, i64>(2)? as u64,
                revision: row.get::<_, i64>(3)? as u64,
                readings: readings(4)? + readings(5)?,
                sealed: row.get(6)?,
            })
        })?;
        for window in found {
            windows.push(window?);
        }
        if windows.len() >= limit {
            break;
        }
    }
    Ok(windows)
}
