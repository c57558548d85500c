//! Which days of a series are answered from folded summaries.
//!
//! Arrives: a question, a snapshot. Leaves: for each series the days whose summaries stand for
//! their readings; all others are read. Always holds: they stand for them only where they say
//! the same: whole days, windows that the question's are multiples of, nothing late and nothing
//! moved by a clock that was set that has not been worked in yet, and no quantiles unless
//! reading everything would take too long; or where the readings are retired, and then the
//! answer says so.

use crate::archive::levels::{Level, Levels, sealed_days};
use crate::archive::read::Raw;
use crate::archive::rollup::Folded;
use crate::archive::{DAY_US, chunk_id, day};
use crate::journal::steps::read_ledger;
use crate::journal::{ReadError, schema};
use crate::readings::Points;
use crate::window::dirty::read_blob;
use daemon::aggregates::{Question, Range};
use model::Micros;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Readings that are read for exact quantiles, about; beyond that sketches answer.
const EXACT_READINGS_MAX: i64 = 50_000_000;
/// Chunks looked at to guess how many readings there are.
const SAMPLE: i64 = 64;

pub(super) struct Plan {
    /// Windows that the question's are multiples of.
    aligned: Option<Level>,
    /// They stand for readings also where those are kept.
    instead: bool,
    /// The spans for which there may be such windows.
    spans: Vec<i64>,
    /// Shortest windows first.
    levels: Vec<Level>,
    any_sealed: bool,
    quantiles: bool,
    /// What is dirty, by series.
    dirty: HashMap<u32, Vec<(Micros, Micros)>>,
    /// Where readings of any series are being moved away.
    moving: Vec<(Micros, Micros)>,
}

/// A day that is answered from summaries.
pub(super) struct FoldedDay {
    pub(super) windows: Vec<Folded>,
    /// Its readings are retired: how long the windows are.
    pub(super) resolution_us: Option<Micros>,
}

impl Plan {
    pub(super) fn new(
        question: &Question,
        levels: &Levels,
        raw: &Raw<'_>,
        days: &[i64],
        series: usize,
    ) -> Result<Self, ReadError> {
        let quantiles = !question.quantiles().is_empty();
        let aligned = match question.grid() {
            Some((length_us, every_us)) => levels.coarsest(&[length_us, every_us]),
            None => levels.coarsest(&[]),
        };
        let any_sealed = raw.db().prepare_cached("SELECT 1 FROM retired LIMIT 1")?.exists([])?;
        let instead = aligned.is_some() && (!quantiles || too_many(raw, days, series)?);
        let range = question.range;
        let spans = match aligned {
            Some(level) if instead => Levels::spans(raw, level, day(range.from_us), day(range.to_us - 1))?,
            _ => Vec::new(),
        };
        let mut dirty: HashMap<u32, Vec<(Micros, Micros)>> = HashMap::new();
        let mut moving = Vec::new();
        if !spans.is_empty() {
            let corrections = read_ledger(raw.db())?.waiting.into_iter().filter(|correction| correction.shift_us != 0);
            moving.extend(corrections.map(|correction| (correction.from_us, correction.to_us)));
            let blob: Vec<u8> = schema::meta(raw.db(), "dirty")?.unwrap_or_default();
            for stretch in read_blob(&blob) {
                dirty.entry(stretch.series).or_default().push((stretch.from_us, stretch.to_us));
            }
        }
        Ok(Plan { aligned, instead, spans, levels: levels.all(), any_sealed, quantiles, dirty, moving })
    }

    /// True if every day is read.
    pub(super) fn reads_everything(&self) -> bool {
        self.spans.is_empty() && !self.any_sealed
    }

    /// How many days there are summaries of, at the most.
    pub(super) fn days(&self) -> usize {
        self.aligned.map_or(0, |level| self.spans.len() * level.span_days as usize)
    }

    /// The days of a series that are answered from summaries.
    pub(super) fn folded(
        &self,
        raw: &Raw<'_>,
        series: u32,
        tail: &Points,
        span: Range,
    ) -> Result<BTreeMap<i64, FoldedDay>, ReadError> {
        let mut folded = BTreeMap::new();
        if let (Some(level), true) = (self.aligned, self.instead) {
            self.instead_of_readings(raw, level, series, tail, span, &mut folded)?;
        }
        if self.any_sealed {
            self.sealed(raw, series, span, &mut folded)?;
        }
        Ok(folded)
    }

    fn instead_of_readings(
        &self,
        raw: &Raw<'_>,
        level: Level,
        series: u32,
        tail: &Points,
        span: Range,
        folded: &mut BTreeMap<i64, FoldedDay>,
    ) -> Result<(), ReadError> {
        let in_tail: BTreeSet<i64> = tail.time_us.iter().map(|&us| day(us)).collect();
        let dirty = self.dirty.get(&series).map_or(&[][..], Vec::as_slice);
        for &first_day in &self.spans {
            if first_day * DAY_US >= span.to_us || (first_day + level.span_days) * DAY_US <= span.from_us {
                continue;
            }
            let rows = match level.read(raw, first_day, series, self.quantiles) {
                // The readings are there.
                Ok(None) | Err(ReadError::Rollup { .. }) => continue,
                Ok(Some(rows)) => rows,
                Err(e) => return Err(e),
            };
            for own in rows.windows.chunk_by(|a, b| day(a.start_us) == day(b.start_us)) {
                let number = day(own[0].start_us);
                let (from_us, to_us) = (number * DAY_US, (number + 1) * DAY_US);
                let whole = span.from_us <= from_us && to_us <= span.to_us;
                let mut unsettled = dirty.iter().chain(&self.moving);
                let clean = !unsettled.any(|&(dirty_us, until_us)| dirty_us < to_us && from_us < until_us);
                if whole && clean && !in_tail.contains(&number) {
                    folded.insert(number, FoldedDay { windows: own.to_vec(), resolution_us: None });
                }
            }
        }
        Ok(())
    }

    /// Of days whose readings are retired, windows that suit, or else the shortest there are.
    fn sealed(
        &self,
        raw: &Raw<'_>,
        series: u32,
        span: Range,
        folded: &mut BTreeMap<i64, FoldedDay>,
    ) -> Result<(), ReadError> {
        for (from_day, to_day) in sealed_days(raw, series, day(span.from_us), day(span.to_us - 1) + 1)? {
            for number in from_day..to_day {
                let whole = span.from_us <= number * DAY_US && (number + 1) * DAY_US <= span.to_us;
                let suits = self.aligned.filter(|_| whole);
                let mut found = FoldedDay { windows: Vec::new(), resolution_us: None };
                for level in suits.iter().chain(&self.levels) {
                    let rows = level.read(raw, number, series, self.quantiles)?.unwrap_or_default();
                    let own = rows.between(number * DAY_US, (number + 1) * DAY_US);
                    if !own.is_empty() {
                        let within = own.iter().filter(|row| (span.from_us..span.to_us).contains(&row.start_us));
                        found.windows = within.cloned().collect();
                        found.resolution_us = Some(level.length_us);
                        break;
                    }
                }
                folded.insert(number, found);
            }
        }
        Ok(())
    }
}

/// True if there are more readings than are read for exact quantiles, as far as a few chunks of
/// the first day tell.
fn too_many(raw: &Raw<'_>, days: &[i64], series: usize) -> Result<bool, ReadError> {
    let days_of_series = (days.len() * series) as i64;
    let Some(&first) = days.first().filter(|_| days_of_series > EXACT_READINGS_MAX / 86_400) else {
        return Ok(false);
    };
    let sample =
        "SELECT coalesce(avg(readings), 0) FROM (SELECT readings FROM chunk WHERE id >= ?1 ORDER BY id LIMIT ?2)";
    let average: f64 = raw.db().query_row(sample, [chunk_id(first, 0, 0), SAMPLE], |row| row.get(0))?;
    Ok(average as i64 * days_of_series > EXACT_READINGS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::rollup::encode;
    use crate::clock::{Correction, Ledger};
    use crate::journal::steps::write_ledger;
    use daemon::aggregates::Filter;
    use model::Summary;
    use model::aggregate::{Stat, Window};
    use model::time::SECOND_US;

    /// A whole day's question to a store that has the day's summaries.
    #[test]
    fn days_that_readings_are_moved_away_from_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let store = schema::open(directory.path()).unwrap();
        let db = &store.connection;
        let levels = Levels::settle(db, 60 * SECOND_US, &[]).unwrap();
        let (number, from_us) = (20_000, 20_000 * DAY_US);
        let summary = Summary { texts: 1, ..Summary::empty(from_us) };
        let body = encode(levels.base.length_us, &[Folded { start_us: from_us, revision: 0, summary }]);
        let row = rusqlite::params![levels.base.id(number, 0), from_us, 1, from_us, from_us + 60 * SECOND_US, body];
        db.execute("INSERT INTO rollup VALUES (?1, ?2, ?3, ?4, ?5, ?6)", row).unwrap();

        let span = Range { from_us, to_us: from_us + DAY_US };
        let question = Question {
            filter: Filter::default(),
            range: span,
            window: Window::All,
            every_us: None,
            stats: vec![Stat::Count],
            group_by: Vec::new(),
            fill: false,
            limit: 10,
            after: None,
        };
        let folded_days = |waiting: &[(Micros, Micros, Micros)]| {
            let correction = |&(from_us, to_us, shift_us)| Correction { from_us, to_us, shift_us, from_seq: 0 };
            let waiting = waiting.iter().map(correction).collect();
            write_ledger(db, &Ledger { unset: None, waiting }).unwrap();
            let raw = Raw::open(db).unwrap();
            let plan = Plan::new(&question, &levels, &raw, &[], 1).unwrap();
            let folded = plan.folded(&raw, 0, &Points::default(), span).unwrap();
            folded.into_keys().collect::<Vec<_>>()
        };
        let hour_us = 3_600 * SECOND_US;
        assert_eq!(folded_days(&[]), [number]);
        assert_eq!(folded_days(&[(from_us + hour_us, from_us + 2 * hour_us, DAY_US)]), [0; 0]);
        // Right after all, and another day.
        assert_eq!(folded_days(&[(from_us, from_us + hour_us, 0)]), [number]);
        assert_eq!(folded_days(&[(from_us - hour_us, from_us, DAY_US)]), [number]);
    }
}
