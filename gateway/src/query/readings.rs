//! The readings themselves, of each identity the last one.
//!
//! Day by day in the order asked for, until the page is full: memory is bounded by the limit
//! and a day of one series.

use super::{Engine, QueryError, ranks};
use crate::archive::read::{Raw, Wanted};
use crate::archive::{DAY_US, day};
use crate::catalog::Series;
use crate::journal::ReadError;
use crate::window::cut::Cuts;
use daemon::aggregates::{Filter, Range};
use model::time::{FIRST_US, LAST_US};
use model::{Micros, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// In which order, and where to go on.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    /// Latest first.
    pub descending: bool,
    /// At most so many rows.
    pub limit: usize,
    /// Only rows behind this one: time, device, metric.
    pub after: Option<(Micros, String, String)>,
}

/// A reading as an answer shows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// Which of the answer's series.
    pub series: u32,
    /// When.
    pub time_us: Micros,
    /// The value.
    pub value: Value,
}

/// The rows of a page.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// The series that were asked for.
    pub series: Vec<Arc<Series>>,
    /// In the order asked for.
    pub rows: Vec<Row>,
    /// There are more.
    pub more: bool,
}

impl Rows {
    /// Device and metric of a row.
    pub(crate) fn names(&self, row: &Row) -> (&str, &str) {
        let series = &self.series[row.series as usize];
        (&series.device.name, &series.metric)
    }
}

/// A place in the order asked for: negated times turn "latest first" into "smallest first".
type Key = (Micros, u32);

/// The rows of a page on their way.
struct Kept {
    rows: BTreeMap<Key, Value>,
    limit: usize,
    descending: bool,
    after: Option<Key>,
    more: bool,
}

impl Kept {
    fn key(&self, time_us: Micros, rank: u32) -> Key {
        if self.descending { (-time_us, rank) } else { (time_us, rank) }
    }

    fn offer(&mut self, time_us: Micros, rank: u32, value: impl FnOnce() -> Value) {
        let key = self.key(time_us, rank);
        if self.after.is_some_and(|after| key < after) {
            return;
        }
        if self.rows.len() >= self.limit && self.rows.last_key_value().is_some_and(|(last, _)| key > *last) {
            self.more = true;
            return;
        }
        self.rows.insert(key, value());
        if self.rows.len() > self.limit {
            self.rows.pop_last();
            self.more = true;
        }
    }

    /// True if nothing that comes on a later day can still belong to the page.
    fn is_full(&self) -> bool {
        self.rows.len() >= self.limit && self.more
    }
}

impl Engine {
    /// Reads the readings of a range.
    pub(crate) fn readings(&self, filter: &Filter, range: Range, page: &Page) -> Result<Rows, QueryError> {
        let series = self.select(filter);
        let mut kept =
            Kept { rows: BTreeMap::new(), limit: page.limit, descending: page.descending, after: None, more: false };
        let mut range = range;
        if let Some((time_us, device, metric)) = &page.after {
            let rank = series.partition_point(|s| (&*s.device.name, &*s.metric) <= (device.as_str(), metric.as_str()));
            // The first rank that may still come at this very time.
            let time_us = (*time_us).clamp(FIRST_US, LAST_US);
            kept.after = Some(kept.key(time_us, rank as u32));
            if page.descending {
                range.to_us = range.to_us.min(time_us + 1);
            } else {
                range.from_us = range.from_us.max(time_us);
            }
        }
        if let ([only], None) = (&series[..], &kept.after)
            && range.from_us < range.to_us
        {
            let rows_max = self.memory_bytes / Cuts::ROW_BYTES;
            let rows = self.with_store(|db| one_series(&Raw::open(db)?, only, range, page, rows_max));
            if let Some((rows, more)) = rows? {
                return Ok(Rows { series, rows, more });
            }
        }
        if range.from_us < range.to_us && !series.is_empty() {
            self.with_store(|db| collect(&Raw::open(db)?, &series, range, &mut kept))?;
        }
        let row = |((time, series), value): (Key, Value)| {
            let time_us = if page.descending { -time } else { time };
            Row { series, time_us, value }
        };
        Ok(Rows { rows: kept.rows.into_iter().map(row).collect(), series, more: kept.more })
    }
}

/// The first page of one series needs no sorting: its days are in order. Nothing if what is
/// not in chunks yet does not fit into memory.
fn one_series(
    raw: &Raw<'_>,
    series: &Series,
    range: Range,
    page: &Page,
    rows_max: usize,
) -> Result<Option<(Vec<Row>, bool)>, ReadError> {
    let (from_us, to_us) = (range.from_us, range.to_us);
    let Some(tail) = raw.tail(&Wanted::new(&[series.id]), from_us, to_us, rows_max)? else { return Ok(None) };
    let tail = tail.points(0);
    let mut days: BTreeSet<i64> = raw.days(from_us, to_us)?.into_iter().collect();
    days.extend(tail.time_us.iter().map(|&us| day(us)));
    let days: Vec<i64> = if page.descending { days.into_iter().rev().collect() } else { days.into_iter().collect() };
    let mut rows = Vec::new();
    for day in days {
        let mut points = raw.chunk(day, series.id)?;
        points.merge(&tail.slice(tail.between(day * DAY_US, (day + 1) * DAY_US)));
        let own = points.between(from_us, to_us);
        let room = page.limit - rows.len();
        let more = own.len() > room;
        let row = |at: usize| Row { series: 0, time_us: points.time_us[at], value: points.value(at) };
        if page.descending {
            rows.extend(own.rev().take(room).map(row));
        } else {
            rows.extend(own.take(room).map(row));
        }
        if more {
            return Ok(Some((rows, true)));
        }
    }
    Ok(Some((rows, false)))
}

/// What is not in chunks yet is offered as it was committed, so that of one identity the last
/// stays; then the chunks, day by day, but for identities that are there already.
fn collect(raw: &Raw<'_>, series: &[Arc<Series>], range: Range, kept: &mut Kept) -> Result<(), ReadError> {
    let ranks = ranks(series);
    let ids: Vec<u32> = series.iter().map(|series| series.id).collect();
    // Rows of a later day need not be kept once an earlier one has filled the page.
    raw.each_unfolded(&Wanted::new(&ids), range.from_us, range.to_us, |series, time_us, value| {
        if let Some(&rank) = ranks.get(&series) {
            kept.offer(time_us, rank, value);
        }
    })?;
    let days: BTreeSet<i64> = raw.days(range.from_us, range.to_us)?.into_iter().collect();
    let days: Vec<i64> = if kept.descending { days.into_iter().rev().collect() } else { days.into_iter().collect() };
    for next in days {
        // The page is full of rows that come before this day.
        if kept.is_full()
            && kept.rows.last_key_value().is_some_and(|((time, _), _)| {
                let last = day(if kept.descending { -time } else { *time });
                if kept.descending { last > next } else { last < next }
            })
        {
            break;
        }
        for (rank, series) in series.iter().enumerate() {
            let points = raw.chunk(next, series.id)?;
            let rows = points.between(range.from_us.max(next * DAY_US), range.to_us);
            for row in rows {
                let key = kept.key(points.time_us[row], rank as u32);
                if !kept.rows.contains_key(&key) {
                    kept.offer(points.time_us[row], rank as u32, || points.value(row));
                }
            }
        }
    }
    Ok(())
}
