//! How long the windows are that summaries are folded at, and where their rows are.
//!
//! The *base* level has windows of `window.length`, the levels above it those of
//! `window.rollups`, each a whole multiple of the one below. A row of the table `rollup` holds
//! the summaries of one series, at one level, over a span of days: the longer the windows, the
//! more days. Levels have numbers, given when they are first used and never again to another.

use super::read::Raw;
use super::rollup::{self, Folded};
use super::{DAY_US, PART_BITS, SERIES_BITS, SERIES_MAX, series_of};
use crate::journal::ReadError;
use crate::journal::steps::read_summary;
use model::Micros;
use rusqlite::{Connection, OptionalExtension};

/// Windows of a row, about, for levels of long windows.
const WINDOWS: Micros = 192;
const SPAN_DAYS_MAX: Micros = 64;
/// As many as numbers fit into an id.
const LEVELS_MAX: i64 = 1 << PART_BITS;

/// Windows of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level {
    number: i64,
    /// How long its windows are.
    pub length_us: Micros,
    /// How many days a row spans.
    pub span_days: i64,
}

/// What a row of the table says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rows {
    /// When the latest of the readings was received, about.
    pub received_us: Micros,
    /// The windows, in order of their starts.
    pub windows: Vec<Folded>,
}

impl Rows {
    /// The windows that start in `[from_us, to_us)`.
    pub(crate) fn between(&self, from_us: Micros, to_us: Micros) -> &[Folded] {
        let begin = self.windows.partition_point(|row| row.start_us < from_us);
        let rest = &self.windows[begin..];
        &rest[..rest.partition_point(|row| row.start_us < to_us)]
    }
}

/// All levels of a store.
#[derive(Debug, Clone)]
pub(crate) struct Levels {
    /// Windows of `window.length`.
    pub base: Level,
    /// Those of `window.rollups` that are whole multiples, shortest first.
    pub rollups: Vec<Level>,
    /// Those that the configuration had once, shortest first.
    pub former: Vec<Level>,
}

impl Level {
    pub(crate) fn new(number: i64, length_us: Micros) -> Self {
        let span_days = (length_us * WINDOWS / DAY_US).clamp(1, SPAN_DAYS_MAX);
        Level { number, length_us, span_days }
    }

    /// Its number in the ids of rows.
    pub(crate) fn number(&self) -> i64 {
        self.number
    }

    /// The first day that a row holds.
    pub(crate) fn first_day_of(&self, id: i64) -> i64 {
        (id >> (SERIES_BITS + PART_BITS)) * self.span_days
    }

    /// The row that holds a day of a series.
    pub(crate) fn id(&self, day: i64, series: u32) -> i64 {
        debug_assert!((series as usize) < SERIES_MAX && self.number < LEVELS_MAX);
        let span = day.div_euclid(self.span_days);
        (span << (SERIES_BITS + PART_BITS)) | (i64::from(series) << PART_BITS) | self.number
    }

    /// True if there is a row that holds a day of a series.
    pub(crate) fn has(&self, db: &Connection, day: i64, series: u32) -> rusqlite::Result<bool> {
        db.prepare_cached("SELECT 1 FROM rollup WHERE id = ?1")?.exists([self.id(day, series)])
    }

    /// True if a day of a series has windows in its row.
    pub(crate) fn has_windows(&self, raw: &Raw<'_>, day: i64, series: u32) -> Result<bool, ReadError> {
        if self.span_days == 1 {
            return Ok(self.has(raw.db(), day, series)?);
        }
        let rows = self.read(raw, day, series, false)?.unwrap_or_default();
        Ok(!rows.between(day * DAY_US, (day + 1) * DAY_US).is_empty())
    }

    /// No row is of a later time.
    pub(crate) fn folded_until_us(&self, db: &Connection) -> rusqlite::Result<Option<Micros>> {
        let last = "SELECT id FROM rollup WHERE (id & 65535) = ?1 ORDER BY id DESC LIMIT 1";
        let last: Option<i64> = db.query_row(last, [self.number], |row| row.get(0)).optional()?;
        Ok(last.map(|id| (self.first_day_of(id) + self.span_days) * DAY_US))
    }

    /// The row that holds a day of a series; sketches only if they are asked for.
    pub(crate) fn read(&self, raw: &Raw<'_>, day: i64, series: u32, sketches: bool) -> Result<Option<Rows>, ReadError> {
        let id = self.id(day, series);
        let mut query = raw.db().prepare_cached("SELECT received_us, body FROM rollup WHERE id = ?1")?;
        let mut rows = query.query([id])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let body = row.get_ref(1)?.as_blob().unwrap_or_default();
        let windows = rollup::decode(body, sketches).map_err(|error| ReadError::Rollup { id, error })?;
        Ok(Some(Rows { received_us: row.get(0)?, windows }))
    }
}

impl Levels {
    /// The levels of a configuration; those that the store has not seen yet get a number.
    pub(crate) fn settle(db: &Connection, length_us: Micros, rollups_us: &[Micros]) -> rusqlite::Result<Self> {
        let number = |length_us: Micros| -> rusqlite::Result<Level> {
            db.execute("INSERT OR IGNORE INTO level (length_us) VALUES (?1)", [length_us])?;
            let number = db.query_row("SELECT id FROM level WHERE length_us = ?1", [length_us], |row| row.get(0))?;
            Ok(Level::new(number, length_us))
        };
        let base = number(length_us)?;
        let mut rollups: Vec<Level> = Vec::new();
        let mut lengths = rollups_us.to_vec();
        lengths.sort_unstable();
        for length_us in lengths {
            let below_us = rollups.last().map_or(base.length_us, |level| level.length_us);
            if length_us > below_us && length_us % below_us == 0 && DAY_US % length_us == 0 {
                rollups.push(number(length_us)?);
            } else if length_us != below_us {
                tracing::warn!(
                    "window.rollups: {} s is no multiple of {} s that divides a day; there will be none of that length",
                    length_us / 1_000_000,
                    below_us / 1_000_000
                );
            }
        }
        let mut query = db.prepare("SELECT id, length_us FROM level ORDER BY length_us")?;
        let all = query.query_map([], |row| Ok(Level::new(row.get(0)?, row.get(1)?)))?;
        let mut former = all.collect::<Result<Vec<_>, _>>()?;
        former.retain(|level| *level != base && !rollups.contains(level));
        Ok(Levels { base, rollups, former })
    }

    /// True for levels below those of `window.rollups`.
    pub(crate) fn is_fine(&self, level: &Level) -> bool {
        self.rollups.first().is_none_or(|rollup| level.length_us < rollup.length_us)
    }

    /// The levels below those of `window.rollups`, also former ones.
    pub(crate) fn fine(&self) -> impl Iterator<Item = Level> + '_ {
        self.former.iter().chain([&self.base]).filter(|level| self.is_fine(level)).copied()
    }

    /// All of them in the order in which they are asked for a sealed day: shortest windows
    /// first, but former levels whose rows are not kept in step last.
    pub(crate) fn all(&self) -> Vec<Level> {
        let mut all = self.former.clone();
        all.push(self.base);
        all.extend(&self.rollups);
        all.sort_by_key(|level| (self.former.contains(level) && level.span_days > 1, level.length_us));
        all
    }

    /// The spans, by their first days, for which any series may have a row at a level.
    pub(crate) fn spans(raw: &Raw<'_>, level: Level, from_day: i64, to_day: i64) -> Result<Vec<i64>, ReadError> {
        let bits = SERIES_BITS + PART_BITS;
        let mut next = raw.db().prepare_cached("SELECT id FROM rollup WHERE id >= ?1 ORDER BY id LIMIT 1")?;
        let (mut span, last) = (from_day.div_euclid(level.span_days), to_day.div_euclid(level.span_days));
        let mut spans = Vec::new();
        while span <= last {
            let found: Option<i64> = next.query_row([span << bits], |row| row.get(0)).optional()?;
            match found.map(|id| id >> bits) {
                Some(found) if found <= last => {
                    spans.push(found * level.span_days);
                    span = found + 1;
                }
                _ => break,
            }
        }
        Ok(spans)
    }

    /// The longest windows of which the given stretches are whole multiples.
    pub(crate) fn coarsest(&self, multiples_us: &[Micros]) -> Option<Level> {
        let suits = |level: &&Level| multiples_us.iter().all(|us| us % level.length_us == 0);
        self.rollups.iter().rev().chain([&self.base]).find(suits).copied()
    }
}

/// Calls `each` with every summary of windows of `length_us`: series and window, folded ones
/// first. A window may come twice while its day is being folded; the first counts.
pub fn each_summary(db: &Connection, length_us: Micros, mut each: impl FnMut(u32, Folded)) -> Result<(), ReadError> {
    let raw = Raw::open(db)?;
    let number: Option<i64> =
        db.query_row("SELECT id FROM level WHERE length_us = ?1", [length_us], |row| row.get(0)).optional()?;
    let mut folded = db.prepare_cached("SELECT id, body FROM rollup WHERE (id & 65535) = ?1 ORDER BY id")?;
    let mut rows = folded.query([number])?;
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let body = row.get_ref(1)?.as_blob().unwrap_or_default();
        let windows = rollup::decode(body, true).map_err(|error| ReadError::Rollup { id, error })?;
        windows.into_iter().for_each(|window| each(series_of(id), window));
    }
    let mut keys = db.prepare_cached("SELECT start_us, series FROM summary WHERE length_us = ?1")?;
    let mut rows = keys.query([length_us])?;
    while let Some(row) = rows.next()? {
        let (start_us, series): (Micros, u32) = (row.get(0)?, row.get(1)?);
        if let Some(window) = read_summary(raw.db(), length_us, start_us, series)? {
            each(series, window);
        }
    }
    Ok(())
}

/// The days in `[from_day, to_day)` of a series whose readings have been retired, as ranges.
pub(crate) fn sealed_days(
    raw: &Raw<'_>,
    series: u32,
    from_day: i64,
    to_day: i64,
) -> Result<Vec<(i64, i64)>, ReadError> {
    let mut query = raw
        .db()
        .prepare_cached("SELECT from_day, to_day FROM retired WHERE series = ?1 AND from_day < ?3 AND to_day > ?2")?;
    let rows = query.query_map([i64::from(series), from_day, to_day], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let days = rows.map(|row| row.map(|(from, to): (i64, i64)| (from.max(from_day), to.min(to_day))));
    Ok(days.collect::<Result<_, _>>()?)
}

/// True if the readings of a day of a series have been retired.
pub(crate) fn is_sealed(raw: &Raw<'_>, day: i64, series: u32) -> Result<bool, ReadError> {
    Ok(!sealed_days(raw, series, day, day + 1)?.is_empty())
}
