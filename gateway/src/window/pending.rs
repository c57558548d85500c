//! What waits to be written: windows of recent days as rows, those of old days folded.
//!
//! Arrives: days of series, computed again. Leaves: rows of summaries, and rollups of `window.length`
//! and of all levels above. Always holds: of a row that holds several days the others are kept;
//! only what has come to something else gets a higher revision. Deliberately absent: reading
//! readings, and writing.

use super::revise::Stretch;
use crate::archive::DAY_US;
use crate::archive::levels::{Level, Levels, Rows};
use crate::archive::read::Raw;
use crate::archive::rollup::{self, Folded};
use crate::journal::{ReadError, Rollup, SummaryRow};
use model::time::window_start;
use model::{Micros, Summary};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

/// A day of a series and the windows of it that are dirty.
pub(super) struct Place {
    pub(super) series: u32,
    pub(super) day: i64,
    pub(super) dirty: Vec<(Micros, Micros)>,
}

impl Place {
    pub(super) fn holds(&self, start_us: Micros) -> bool {
        self.dirty.iter().any(|&(from_us, to_us)| (from_us..to_us).contains(&start_us))
    }

    /// What has to be done again if it could not be done.
    pub(super) fn stretches(&self) -> Vec<Stretch> {
        self.dirty.iter().map(|&(from_us, to_us)| Stretch { series: self.series, from_us, to_us }).collect()
    }
}

/// What a day of a series comes to.
pub(super) struct Day<'a> {
    pub(super) place: &'a Place,
    /// Its windows, by their starts.
    pub(super) windows: BTreeMap<Micros, Folded>,
    /// The starts of those that have come to something else.
    pub(super) changed: Vec<Micros>,
    pub(super) received_us: Micros,
}

/// What waits to be written, and what of the series under way may be written again.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) recent: Vec<SummaryRow>,
    pub(super) rollups: Vec<Rollup>,
    /// The windows in rollups that have come to something else, by series and start.
    pub(super) changed: Vec<(u32, Micros)>,
    pub(super) remove: Vec<i64>,
    pub(super) bytes: usize,
    open_series: u32,
    open: HashMap<i64, Rows>,
}

impl Pending {
    /// Folds a day of a series, and its windows at all levels above.
    pub(super) fn fold(&mut self, levels: &Levels, raw: &Raw<'_>, day: &Day<'_>, whole: bool) -> Result<(), ReadError> {
        let Place { series, day: number, .. } = *day.place;
        let windows: Vec<Folded> = day.windows.values().cloned().collect();
        self.replace(raw, &levels.base, day, windows)?;
        for level in &levels.rollups {
            let touches = |start_us: Micros| {
                let mut changed = day.changed.iter();
                whole || changed.any(|&base_us| window_start(base_us, level.length_us) == start_us)
            };
            let (from_us, to_us) = of_day(number);
            let mut above: BTreeMap<Micros, Folded> = {
                let rows = self.rows(raw, level, number, series)?.between(from_us, to_us);
                rows.iter().map(|row| (row.start_us, row.clone())).collect()
            };
            let parts = day.windows.values().filter(|window| !window.summary.is_empty());
            let mut merged: BTreeMap<Micros, Summary> = BTreeMap::new();
            for part in parts {
                let start_us = window_start(part.start_us, level.length_us);
                if touches(start_us) {
                    merged
                        .entry(start_us)
                        .and_modify(|whole| whole.merge(&part.summary))
                        .or_insert_with(|| part.summary.clone());
                }
            }
            for start_us in (from_us..to_us).step_by(level.length_us as usize).filter(|&start_us| touches(start_us)) {
                let before = above.remove(&start_us);
                let Some(summary) =
                    merged.remove(&start_us).or_else(|| before.as_ref().map(|_| Summary::empty(start_us)))
                else {
                    continue;
                };
                let window = match before {
                    Some(before) if before.summary.says_the_same(&summary) => before,
                    before => Folded { start_us, revision: before.map_or(0, |before| before.revision) + 1, summary },
                };
                above.insert(start_us, window);
            }
            self.replace(raw, level, day, above.into_values().collect())?;
        }
        if whole {
            // Windows of a length that is not configured any more would only be in the way.
            let former = levels.former.iter().filter(|level| level.span_days == 1);
            self.remove.extend(former.map(|level| level.id(number, series)));
        }
        Ok(())
    }

    /// Rows of other series need not be kept.
    pub(super) fn turn_to(&mut self, series: u32) {
        if self.open_series != series {
            self.open_series = series;
            self.open.clear();
        }
    }

    pub(super) fn rows(&mut self, raw: &Raw<'_>, level: &Level, day: i64, series: u32) -> Result<&Rows, ReadError> {
        match self.open.entry(level.id(day, series)) {
            Entry::Occupied(rows) => Ok(rows.into_mut()),
            Entry::Vacant(vacant) => {
                let rows = match level.read(raw, day, series, true) {
                    Err(e @ ReadError::Rollup { .. }) => {
                        tracing::error!("a row of folded summaries is written anew: {e}");
                        None
                    }
                    rows => rows?,
                };
                Ok(vacant.insert(rows.unwrap_or_default()))
            }
        }
    }

    /// Puts the windows of a day into the row of a level that holds it.
    fn replace(&mut self, raw: &Raw<'_>, level: &Level, day: &Day<'_>, windows: Vec<Folded>) -> Result<(), ReadError> {
        let Place { series, day: number, .. } = *day.place;
        let (from_us, to_us) = of_day(number);
        let id = level.id(number, series);
        let received_us = day.received_us.max(self.rows(raw, level, number, series)?.received_us);
        let Some(rows) = self.open.get_mut(&id) else { return Ok(()) };
        let own = rows.windows.partition_point(|row| row.start_us < from_us)
            ..rows.windows.partition_point(|row| row.start_us < to_us);
        rows.windows.splice(own, windows);
        rows.received_us = received_us;
        let (Some(first), Some(last)) = (rows.windows.first(), rows.windows.last()) else { return Ok(()) };
        let rollup = Rollup {
            id,
            received_us,
            windows: rows.windows.len() as i64,
            from_us: first.start_us,
            to_us: last.start_us + level.length_us,
            body: rollup::encode(level.length_us, &rows.windows),
        };
        self.bytes += rollup.body.len() + 64;
        // Of one written twice the later counts.
        self.rollups.retain(|before| before.id != id);
        self.rollups.push(rollup);
        Ok(())
    }
}

/// From its begin to its end.
pub(super) fn of_day(day: i64) -> (Micros, Micros) {
    (day * DAY_US, (day + 1) * DAY_US)
}
