//! Dirty windows, computed again from the raw readings.
//!
//! Arrives: stretches of series. Leaves: the summaries that have come to something else, on
//! disk: of recent days as rows, of old ones folded, with the rollups above them. Always holds:
//! a window's revision rises only if it says something else; a day whose readings are retired
//! is never computed again; what cannot be read is named and does not hold up the rest. One
//! thread does this, so that nobody else changes a summary that is there. A day is old when
//! its windows are folded, or are to be.

use super::cut::{Cuts, Needs, windows};
use super::pending::{Day, Pending, Place, of_day};
use crate::archive::fold::SLICE_BYTES;
use crate::archive::levels::{Levels, is_sealed};
use crate::archive::read::{Raw, Wanted};
use crate::archive::rollup::Folded;
use crate::archive::{DAY_US, day};
use crate::clock::Clock;
use crate::journal::intake::{NotDone, wait};
use crate::journal::steps::read_summary;
use crate::journal::{Intake, ReadError, Step, SummaryRow};
use crate::live::{Event, Live};
use crate::readings::Points;
use model::{Micros, Summary};
use polars::prelude::PolarsError;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

/// Days of series read in one snapshot.
const LOT: usize = 64;
/// Rows of recent days that one commit carries; folded ones are bounded as the archive's are.
const SLICE_ROWS: usize = 1_000;
/// Rows of old days removed in one commit, about.
const REMOVE_ROWS: i64 = 4_000;

/// Some windows of a series: whole ones, within `[from_us, to_us)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Whose.
    pub series: u32,
    /// The start of the first.
    pub from_us: Micros,
    /// The end of the last.
    pub to_us: Micros,
}

/// Why windows could not be computed again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReviseError {
    /// The store could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// SQLite refuses.
    #[error("the store cannot be read: {0}")]
    Store(#[from] rusqlite::Error),
    /// Polars refused.
    #[error("aggregation failed: {0}")]
    Frame(#[from] PolarsError),
    /// The writer could not take it.
    #[error(transparent)]
    NotDone(#[from] NotDone),
}

/// What is to be done.
#[derive(Debug)]
pub(crate) struct Job {
    /// The dirty windows.
    pub stretches: Vec<Stretch>,
    /// Days that end here or before are folded.
    pub old_until_us: Micros,
    /// Also fold this day, of all series, and remove its rows.
    pub settle: Option<i64>,
    /// Everything that was written before is on disk once this is told.
    pub after: Receiver<u64>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Revised {
    /// How many windows have come to something else.
    pub windows: u64,
    /// What could not be done.
    pub failed: Vec<(Stretch, String)>,
    /// Stretches of days whose readings are retired.
    pub sealed: u64,
    /// The day could not be settled.
    pub unsettled: Option<String>,
}

/// Who does it.
pub(crate) struct Reviser {
    /// A connection that only reads.
    pub db: Connection,
    /// Where folded summaries go.
    pub levels: Levels,
    /// Where steps go.
    pub intake: Arc<Intake>,
    /// Listeners to `/v1/live`.
    pub live: Arc<Live>,
    /// The time.
    pub clock: Clock,
    /// Rows in memory at once.
    pub rows_max: usize,
    /// The gateway stops.
    pub stop: CancellationToken,
}

/// The raw readings of a series, as of the snapshot of a lot.
struct Own<'a> {
    raw: &'a Raw<'a>,
    series: u32,
    /// Those for which any series has a chunk.
    days: &'a [i64],
    /// What is not in chunks yet.
    tail: &'a Points,
}

impl Reviser {
    /// Does a job.
    pub(crate) fn work(&self, job: &Job) -> Revised {
        let mut revised = Revised::default();
        let settling = wait(&job.after, &self.stop).map_err(ReviseError::from).and_then(|_| match job.settle {
            Some(day) => self.places_of(day),
            None => Ok(Vec::new()),
        });
        let settling = match settling {
            Ok(places) => places,
            Err(e) => {
                revised.failed.extend(job.stretches.iter().map(|stretch| (*stretch, e.to_string())));
                revised.unsettled = job.settle.map(|_| e.to_string());
                return revised;
            }
        };
        let places = places(&job.stretches, settling);
        for lot in places.chunks(LOT) {
            self.lot(lot, job.old_until_us, &mut revised);
        }
        if let (Some(day), None) = (job.settle, &revised.unsettled) {
            revised.unsettled = self.remove_rows((day + 1) * DAY_US).err().map(|e| e.to_string());
        }
        revised
    }

    /// All series that have readings on a day.
    fn places_of(&self, day: i64) -> Result<Vec<(u32, i64)>, ReviseError> {
        let raw = Raw::open(&self.db)?;
        let (from_us, to_us) = of_day(day);
        Ok(raw.series_between(from_us, to_us)?.into_iter().map(|series| (series, day)).collect())
    }

    fn lot(&self, lot: &[Place], old_until_us: Micros, revised: &mut Revised) {
        // One that does not fit alone is computed all the same: nobody else would.
        let rows_max = if lot.len() == 1 { usize::MAX } else { self.rows_max };
        match self.try_lot(lot, old_until_us, rows_max, revised) {
            Ok(true) => {}
            Ok(false) => {
                let (left, right) = lot.split_at(lot.len() / 2);
                self.lot(left, old_until_us, revised);
                self.lot(right, old_until_us, revised);
            }
            Err(e) => lot.iter().for_each(|place| fail(place, &e, revised)),
        }
    }

    /// False if what is not in chunks yet does not fit. Done again it changes nothing more.
    fn try_lot(
        &self,
        lot: &[Place],
        old_until_us: Micros,
        rows_max: usize,
        revised: &mut Revised,
    ) -> Result<bool, ReviseError> {
        let raw = Raw::open(&self.db)?;
        let from_us = lot.iter().map(|place| of_day(place.day).0).min().unwrap_or_default();
        let to_us = lot.iter().map(|place| of_day(place.day).1).max().unwrap_or_default();
        let ids: BTreeSet<u32> = lot.iter().map(|place| place.series).collect();
        let ids: Vec<u32> = ids.into_iter().collect();
        let Some(tail) = raw.tail(&Wanted::new(&ids), from_us, to_us, rows_max)? else { return Ok(false) };
        let days = raw.days(from_us, to_us)?;
        let mut pending = Pending::default();
        for place in lot {
            let tail = tail.points(ids.binary_search(&place.series).unwrap_or_default());
            let own = Own { raw: &raw, series: place.series, days: &days, tail };
            if let Err(e) = self.place(&own, place, old_until_us, &mut pending, revised) {
                fail(place, &e, revised);
            }
            if pending.bytes >= SLICE_BYTES || pending.recent.len() >= SLICE_ROWS {
                self.write(&mut pending)?;
            }
        }
        // The snapshot must not pin the log while this is written.
        drop(raw);
        self.write(&mut pending)?;
        Ok(true)
    }

    fn place(
        &self,
        own: &Own<'_>,
        place: &Place,
        old_until_us: Micros,
        pending: &mut Pending,
        revised: &mut Revised,
    ) -> Result<(), ReviseError> {
        let raw = own.raw;
        if is_sealed(raw, place.day, place.series)? {
            revised.sealed += place.dirty.len() as u64;
            return Ok(());
        }
        pending.turn_to(place.series);
        let base = &self.levels.base;
        let (from_us, to_us) = of_day(place.day);
        let rows = pending.rows(raw, base, place.day, place.series)?;
        let before: BTreeMap<Micros, Folded> =
            rows.between(from_us, to_us).iter().map(|row| (row.start_us, row.clone())).collect();
        let received_us = rows.received_us;
        let old = !before.is_empty() || (place.day + 1) * DAY_US <= old_until_us;
        // The first time, an old day is folded whole.
        let folding = old && before.is_empty();
        let wanted = if folding { vec![(from_us, to_us)] } else { place.dirty.clone() };
        let (now, read_us) = match self.compute(own, &wanted) {
            Err(ReviseError::Read(e)) if folding => {
                // What its rows say is better than nothing, and must not hold up the others.
                tracing::error!(series = place.series, "a day is folded as its summaries have it: {e}");
                (rows_of(raw.db(), base.length_us, place)?, self.clock.now_us())
            }
            computed => computed?,
        };
        if folding && now.is_empty() && !has_rows(raw.db(), base.length_us, from_us, to_us)? {
            return Ok(());
        }
        let mut day = Day { place, windows: before, changed: Vec::new(), received_us: received_us.max(read_us) };
        self.compare(raw, &mut day, &wanted, now, old, folding)?;
        let row = |start_us: &Micros| {
            let Folded { start_us, revision, summary } = day.windows[start_us].clone();
            let (series, length_us) = (place.series, base.length_us);
            SummaryRow { series, start_us, length_us, through_seq: raw.last_seq(), revision, summary }
        };
        let changed: Vec<SummaryRow> = day.changed.iter().map(row).collect();
        if !old {
            pending.recent.extend(changed.iter().cloned());
        } else if !day.windows.is_empty() {
            let whole = folding || self.lacks_a_level(raw, place, pending)?;
            if whole || !day.changed.is_empty() {
                pending.fold(&self.levels, raw, &day, whole)?;
                pending.changed.extend(changed.iter().map(|row| (row.series, row.start_us)));
            }
        }
        revised.windows += changed.len() as u64;
        if !changed.is_empty() {
            self.live.publish(|| Event::Windows(Arc::new(changed)));
        }
        Ok(())
    }

    /// True if a level was configured after the day had been folded.
    fn lacks_a_level(&self, raw: &Raw<'_>, place: &Place, pending: &mut Pending) -> Result<bool, ReadError> {
        for level in &self.levels.rollups {
            let (from_us, to_us) = of_day(place.day);
            if pending.rows(raw, level, place.day, place.series)?.between(from_us, to_us).is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What windows come to, and when the latest of their readings was received, about.
    fn compute(
        &self,
        own: &Own<'_>,
        wanted: &[(Micros, Micros)],
    ) -> Result<(BTreeMap<Micros, Summary>, Micros), ReviseError> {
        let Own { raw, series, days, tail } = *own;
        let length_us = self.levels.base.length_us;
        let (mut now, mut received_us, mut cuts) = (BTreeMap::new(), Micros::MIN, Cuts::default());
        for (from_us, to_us) in self.in_pieces(own, wanted)? {
            let touched = days.partition_point(|&d| d < day(from_us))..days.partition_point(|&d| d <= day(to_us - 1));
            let days = &days[touched];
            let tail = tail.slice(tail.between(from_us, to_us));
            let mut points = Points::default();
            raw.each_day::<ReadError>(series, days, &tail, from_us, to_us, |day| {
                points.merge(&day);
                Ok(ControlFlow::Continue(()))
            })?;
            cuts.add(series, &points, windows(&points.time_us, length_us, length_us));
            for &day in days {
                received_us = received_us.max(raw.received_us(day, series)?.unwrap_or(Micros::MIN));
            }
            if !tail.is_empty() {
                received_us = self.clock.now_us();
            }
            if cuts.len() >= self.rows_max {
                std::mem::take(&mut cuts).aggregate(Needs::ALL, |cut| {
                    now.insert(cut.start_us, cut.summarised());
                })?;
            }
        }
        cuts.aggregate(Needs::ALL, |cut| {
            now.insert(cut.start_us, cut.summarised());
        })?;
        Ok((now, received_us))
    }

    /// Stretches of a day cut into ones whose readings fit into memory, whole windows each.
    fn in_pieces(&self, own: &Own<'_>, wanted: &[(Micros, Micros)]) -> Result<Vec<(Micros, Micros)>, ReadError> {
        let Own { raw, series, days, .. } = *own;
        let length_us = self.levels.base.length_us;
        let mut pieces = Vec::new();
        for &(from_us, to_us) in wanted {
            let number = day(from_us);
            let rows =
                if days.binary_search(&number).is_ok() { raw.rows_between(number, series, from_us, to_us)? } else { 0 };
            let parts = (rows / self.rows_max.max(1)) as Micros + 1;
            let windows = (to_us - from_us) / length_us;
            let step_us = (windows / parts).max(1) * length_us;
            let mut begin_us = from_us;
            while begin_us < to_us {
                let end_us = to_us.min(begin_us + step_us);
                pieces.push((begin_us, end_us));
                begin_us = end_us;
            }
        }
        Ok(pieces)
    }

    /// Finds what has come to something else, and its revision.
    fn compare(
        &self,
        raw: &Raw<'_>,
        day: &mut Day<'_>,
        wanted: &[(Micros, Micros)],
        mut now: BTreeMap<Micros, Summary>,
        old: bool,
        folding: bool,
    ) -> Result<(), ReviseError> {
        let (series, length_us) = (day.place.series, self.levels.base.length_us);
        let revised = if folding { revised_rows(raw.db(), length_us, day.place.day, series)? } else { BTreeSet::new() };
        let starts = wanted.iter().flat_map(|&(from_us, to_us)| (from_us..to_us).step_by(length_us as usize));
        for start_us in starts {
            let now = now.remove(&start_us);
            let before = match day.windows.remove(&start_us) {
                Some(before) => Some(before),
                None if old && !folding => None,
                // A row that is not dirty says the same.
                None if folding && !day.place.holds(start_us) && !revised.contains(&start_us) => {
                    now.clone().map(|summary| Folded { start_us, revision: 1, summary })
                }
                None => read_summary(raw.db(), length_us, start_us, series)?,
            };
            let same = match (&before, &now) {
                (None, None) => continue,
                (Some(before), Some(now)) => before.summary.says_the_same(now),
                (Some(before), None) => before.summary.is_empty(),
                (None, Some(_)) => false,
            };
            let window = match before {
                Some(before) if same => before,
                before => {
                    day.changed.push(start_us);
                    let revision = before.map_or(0, |before| before.revision) + 1;
                    Folded { start_us, revision, summary: now.unwrap_or_else(|| Summary::empty(start_us)) }
                }
            };
            day.windows.insert(start_us, window);
        }
        Ok(())
    }

    fn write(&self, pending: &mut Pending) -> Result<(), NotDone> {
        let recent = std::mem::take(&mut pending.recent);
        if !recent.is_empty() {
            self.intake.commit(Step::Revised(recent), &self.stop)?;
        }
        let (rows, remove) = (std::mem::take(&mut pending.rollups), std::mem::take(&mut pending.remove));
        let changed = (self.levels.base.length_us, std::mem::take(&mut pending.changed));
        if !rows.is_empty() {
            self.intake.commit(Step::Rollups { rows, remove, changed }, &self.stop)?;
        }
        pending.bytes = 0;
        Ok(())
    }

    /// Removes the rows of days that are folded, and those of windows of another length.
    fn remove_rows(&self, until_us: Micros) -> Result<(), ReviseError> {
        let former = self.levels.former.iter().map(|level| (level.length_us, Micros::MAX));
        for (length_us, until_us) in former.chain([(self.levels.base.length_us, until_us)]) {
            let mut nth = self.db.prepare_cached(
                "SELECT start_us FROM summary WHERE length_us = ?1 AND start_us < ?2 ORDER BY start_us LIMIT 1 OFFSET ?3",
            )?;
            let mut nth = |n: i64| nth.query_row([length_us, until_us, n], |row| row.get::<_, Micros>(0)).optional();
            while nth(0)?.is_some() {
                let slice_us = nth(REMOVE_ROWS)?.map_or(until_us, |start_us| start_us + 1);
                self.intake.commit(Step::RemoveSummaries { length_us, until_us: slice_us }, &self.stop)?;
            }
        }
        Ok(())
    }
}

fn fail(place: &Place, error: &ReviseError, revised: &mut Revised) {
    revised.failed.extend(place.stretches().into_iter().map(|stretch| (stretch, error.to_string())));
    // The day that is being settled may be among them: its rows must stay.
    revised.unsettled = Some(error.to_string());
}

/// Stretches by series and day, and the days that are to be folded besides.
fn places(stretches: &[Stretch], settling: Vec<(u32, i64)>) -> Vec<Place> {
    let mut places: BTreeMap<(u32, i64), Vec<(Micros, Micros)>> = BTreeMap::new();
    for stretch in stretches {
        for number in day(stretch.from_us)..=day(stretch.to_us - 1) {
            let (from_us, to_us) = of_day(number);
            let (from_us, to_us) = (from_us.max(stretch.from_us), to_us.min(stretch.to_us));
            places.entry((stretch.series, number)).or_default().push((from_us, to_us));
        }
    }
    for place in settling {
        places.entry(place).or_default();
    }
    places.into_iter().map(|((series, day), dirty)| Place { series, day, dirty: joined(dirty) }).collect()
}

/// The same windows, each once.
fn joined(mut ranges: Vec<(Micros, Micros)>) -> Vec<(Micros, Micros)> {
    ranges.sort_unstable();
    let mut joined: Vec<(Micros, Micros)> = Vec::new();
    for (from_us, to_us) in ranges {
        match joined.last_mut() {
            Some((_, end_us)) if from_us <= *end_us => *end_us = to_us.max(*end_us),
            _ => joined.push((from_us, to_us)),
        }
    }
    joined
}

/// What the rows of a day say.
fn rows_of(db: &Connection, length_us: Micros, place: &Place) -> Result<BTreeMap<Micros, Summary>, ReadError> {
    let (from_us, to_us) = of_day(place.day);
    let mut rows = BTreeMap::new();
    for start_us in (from_us..to_us).step_by(length_us as usize) {
        if let Some(row) = read_summary(db, length_us, start_us, place.series)? {
            rows.insert(start_us, row.summary);
        }
    }
    Ok(rows)
}

/// True if any series has a row of a window that starts there.
fn has_rows(db: &Connection, length_us: Micros, from_us: Micros, to_us: Micros) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM summary WHERE length_us = ?1 AND start_us >= ?2 AND start_us < ?3 LIMIT 1")?
        .exists([length_us, from_us, to_us])
}

/// The windows of a day whose rows have been revised.
fn revised_rows(db: &Connection, length_us: Micros, day: i64, series: u32) -> rusqlite::Result<BTreeSet<Micros>> {
    let mut query = db.prepare_cached(
        "SELECT start_us FROM summary WHERE series = ?1 AND start_us >= ?2 AND start_us < ?3 AND length_us = ?4 AND revision > 1",
    )?;
    let rows = query.query_map(params![series, day * DAY_US, (day + 1) * DAY_US, length_us], |row| row.get(0))?;
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_that_overlap_are_computed_once() {
        let stretch = |from_us, to_us| Stretch { series: 3, from_us, to_us };
        let night = DAY_US;
        let places = places(&[stretch(10, 50), stretch(0, 20), stretch(60, 70), stretch(40, night + 5)], vec![(3, 2)]);
        let seen: Vec<_> = places.iter().map(|place| (place.series, place.day, &place.dirty[..])).collect();
        assert_eq!(seen, [(3, 0, &[(0, night)][..]), (3, 1, &[(night, night + 5)][..]), (3, 2, &[][..])]);
    }
}
