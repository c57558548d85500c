//! Raw readings by series, from chunks and batches.
//!
//! Arrives: series, days, ranges. Leaves: [`Points`], of each identity the reading that was
//! committed last, as of one snapshot of the store. Always holds: asking for a series and a
//! day touches only that day's chunks of that series; batches are read once for all series of
//! a question; what cannot be decoded is an error, since an answer without it would be wrong.

use super::{BY_PART, DAY_US, PARTS_BY_SERIES, SERIES_BITS, chunk, chunk_id, day, day_of, part_of, series_of};
use crate::journal::{ReadError, batch, schema};
use crate::readings::{Points, Readings};
use model::{Micros, Value};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// A snapshot of all raw readings.
pub struct Raw<'db> {
    snapshot: Transaction<'db>,
    archived_seq: i64,
    last_seq: u64,
}

/// The place of each wanted series, by its id.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    places: Vec<u32>,
    ids: Vec<u32>,
}

/// Readings of wanted series that are not in chunks yet, by place.
#[derive(Debug, Default)]
pub struct Tail {
    by_place: Vec<Points>,
}

const UNWANTED: u32 = u32::MAX;

// The index `chunk_by_part` is found by these very numbers.
const _: () = assert!(BY_PART == 1_099_511_627_776 && (1 << SERIES_BITS) - 1 == 33_554_431);

/// Columns of a series' day, in order of parts, those for which a condition holds: `?1` and `?2`
/// bound the rows that lie by series, `?3` and `?4` are day and series of those that lie by part.
macro_rules! of_place {
    ($columns:literal, $condition:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM chunk WHERE id BETWEEN ?1 AND ?2 AND ",
            $condition,
            " UNION ALL SELECT ",
            $columns,
            " FROM chunk
              WHERE id & 1099511627776 <> 0 AND id >> 41 = ?3 AND id & 33554431 = ?4 AND ",
            $condition,
        )
    };
}

impl Wanted {
    /// These series, in this order.
    pub fn new(ids: &[u32]) -> Self {
        let mut places = vec![UNWANTED; ids.iter().max().map_or(0, |&id| id as usize + 1)];
        ids.iter().enumerate().for_each(|(place, &id)| places[id as usize] = place as u32);
        Wanted { places, ids: ids.to_vec() }
    }

    fn place(&self, series: u32) -> Option<usize> {
        self.places.get(series as usize).filter(|&&place| place != UNWANTED).map(|&place| place as usize)
    }
}

impl Tail {
    /// The readings of the series at a place.
    pub fn points(&self, place: usize) -> &Points {
        &self.by_place[place]
    }
}

impl<'db> Raw<'db> {
    /// A snapshot as of now.
    pub fn open(db: &'db Connection) -> Result<Self, ReadError> {
        let snapshot = db.unchecked_transaction()?;
        let archived_seq = schema::meta::<i64>(&snapshot, "archived_seq")?.unwrap_or(0);
        let newest: Option<i64> = snapshot.query_row("SELECT max(seq) FROM batch", [], |row| row.get(0))?;
        let last_seq = newest.unwrap_or(0).max(archived_seq) as u64;
        Ok(Raw { snapshot, archived_seq, last_seq })
    }

    /// The snapshot, for what else is in the store.
    pub(crate) fn db(&self) -> &Connection {
        &self.snapshot
    }

    /// The last commit that is in it.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// The days within `[from_us, to_us)` for which any series has a chunk.
    pub fn days(&self, from_us: Micros, to_us: Micros) -> Result<Vec<i64>, ReadError> {
        let mut next = self.snapshot.prepare_cached("SELECT id FROM chunk WHERE id >= ?1 ORDER BY id LIMIT 1")?;
        let mut days = Vec::new();
        let mut from = day(from_us);
        let last = day(to_us - 1);
        while from <= last {
            let id: Option<i64> = next.query_row([chunk_id(from, 0, 0)], |row| row.get(0)).optional()?;
            match id.map(day_of) {
                Some(day) if day <= last => {
                    days.push(day);
                    from = day + 1;
                }
                _ => break,
            }
        }
        Ok(days)
    }

    /// The series that have readings in `[from_us, to_us)`, or on a day that it touches.
    pub fn series_between(&self, from_us: Micros, to_us: Micros) -> Result<BTreeSet<u32>, ReadError> {
        let mut ids = self.snapshot.prepare_cached("SELECT id FROM chunk WHERE id >= ?1 AND id < ?2")?;
        let ids =
            ids.query_map([chunk_id(day(from_us), 0, 0), chunk_id(day(to_us - 1) + 1, 0, 0)], |row| row.get(0))?;
        let mut series = ids.map(|id| id.map(series_of)).collect::<Result<BTreeSet<u32>, _>>()?;
        self.each_batch(from_us, to_us, |readings| {
            let own = readings.series.iter().zip(&readings.time_us);
            series.extend(own.filter(|(_, us)| (from_us..to_us).contains(us)).map(|(series, _)| series));
            ControlFlow::Continue(())
        })?;
        Ok(series)
    }

    /// When the latest reading in the chunks of a series and day was received.
    pub fn received_us(&self, day: i64, series: u32) -> Result<Option<Micros>, ReadError> {
        let sql = concat!("SELECT max(received_us) FROM (", of_place!("received_us", "true"), ")");
        Ok(self.snapshot.prepare_cached(sql)?.query_row(place(day, series), |row| row.get(0))?)
    }

    /// The readings of a series on a day that are in chunks.
    pub fn chunk(&self, day: i64, series: u32) -> Result<Points, ReadError> {
        self.chunks_between(day, series, Micros::MIN, Micros::MAX)
    }

    /// The same, without those parts that have nothing in `[from_us, to_us)`.
    fn chunks_between(&self, day: i64, series: u32, from_us: Micros, to_us: Micros) -> Result<Points, ReadError> {
        let mut points = Points::default();
        for part in self.parts_between(day, series, from_us, to_us)?.counting {
            if !part.body.is_empty() {
                points.merge(&part.decode()?);
            }
        }
        Ok(points)
    }

    /// How many readings the parts of a series' day have that touch `[from_us, to_us)`.
    pub fn rows_between(&self, day: i64, series: u32, from_us: Micros, to_us: Micros) -> Result<usize, ReadError> {
        let mut query = self.snapshot.prepare_cached(concat!(
            "SELECT coalesce(sum(readings), 0) FROM (",
            of_place!("readings", "seq <= ?5 AND first_us < ?7 AND last_us >= ?6"),
            ")"
        ))?;
        let [first, last, day, series] = place(day, series);
        let all = params![first, last, day, series, self.archived_seq, from_us, to_us];
        Ok(query.query_row(all, |row| row.get::<_, i64>(0))? as usize)
    }

    /// The rows of a series' day, whether they count or not.
    pub fn part_ids(&self, day: i64, series: u32) -> Result<Vec<i64>, ReadError> {
        let mut query = self.snapshot.prepare_cached(of_place!("id", "true"))?;
        Ok(query.query_map(place(day, series), |row| row.get(0))?.collect::<Result<_, _>>()?)
    }

    /// The number of the part that a fold adds to a day, for all series the same. A fold that was
    /// interrupted gets the same again.
    pub(super) fn next_part(&self, day: i64) -> Result<i64, ReadError> {
        let mut query = self
            .snapshot
            .prepare_cached("SELECT id FROM chunk WHERE id BETWEEN ?1 AND ?2 AND seq <= ?3 ORDER BY id DESC LIMIT 1")?;
        let [first, last] = by_part(day);
        let last: Option<i64> = query.query_row([first, last, self.archived_seq], |row| row.get(0)).optional()?;
        Ok(last.map_or(PARTS_BY_SERIES, |id| part_of(id) + 1))
    }

    /// The series that have parts of a day that lie by part.
    pub(super) fn series_by_part(&self, day: i64) -> Result<BTreeSet<u32>, ReadError> {
        let mut query = self.snapshot.prepare_cached("SELECT id FROM chunk WHERE id BETWEEN ?1 AND ?2")?;
        Ok(query.query_map(by_part(day), |row| row.get(0).map(series_of))?.collect::<Result<_, _>>()?)
    }

    /// The parts of a series' day.
    pub(super) fn parts(&self, day: i64, series: u32) -> Result<Parts, ReadError> {
        self.parts_between(day, series, Micros::MIN, Micros::MAX)
    }

    /// The same; the bodies of those that have nothing in `[from_us, to_us)` are left out.
    fn parts_between(&self, day: i64, series: u32, from_us: Micros, to_us: Micros) -> Result<Parts, ReadError> {
        let mut query = self.snapshot.prepare_cached(of_place!(
            "id, covers, received_us, readings, CASE WHEN first_us < ?7 AND last_us >= ?6 THEN body ELSE x'' END",
            "seq <= ?5"
        ))?;
        let [first, last, day, series] = place(day, series);
        let mut rows = query.query(params![first, last, day, series, self.archived_seq, from_us, to_us])?;
        let mut parts = Parts::default();
        while let Some(row) = rows.next()? {
            let (id, covers): (i64, i64) = (row.get(0)?, row.get(1)?);
            let kept = parts.counting.partition_point(|part| part_of(part.id) < part_of(id) - covers);
            parts.covered.extend(parts.counting.drain(kept..).map(|part| part.id));
            parts.counting.push(Part { id, received_us: row.get(2)?, readings: row.get(3)?, body: row.get(4)? });
        }
        Ok(parts)
    }

    /// Readings of wanted series in `[from_us, to_us)` that are not in chunks yet; nothing if
    /// they are more than `rows_max`.
    pub fn tail(
        &self,
        wanted: &Wanted,
        from_us: Micros,
        to_us: Micros,
        rows_max: usize,
    ) -> Result<Option<Tail>, ReadError> {
        let mut builders: Vec<Builder> = Vec::new();
        builders.resize_with(wanted.ids.len(), Builder::default);
        let mut count = 0;
        self.each_batch(from_us, to_us, |readings| {
            for row in 0..readings.len() {
                let time_us = readings.time_us[row];
                if let Some(place) = wanted.place(readings.series[row])
                    && (from_us..to_us).contains(&time_us)
                {
                    builders[place].push(time_us, readings.flags[row], readings.number[row], readings.text(row));
                    count += 1;
                }
            }
            if count > rows_max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if count > rows_max {
            return Ok(None);
        }
        Ok(Some(Tail { by_place: builders.into_iter().map(Builder::finish).collect() }))
    }

    /// Calls `each` with every reading of wanted series in `[from_us, to_us)` that is not in
    /// chunks yet, in order of commit: series, time and value.
    pub fn each_unfolded(
        &self,
        wanted: &Wanted,
        from_us: Micros,
        to_us: Micros,
        mut each: impl FnMut(u32, Micros, &dyn Fn() -> Value),
    ) -> Result<(), ReadError> {
        self.each_batch(from_us, to_us, |readings| {
            for row in 0..readings.len() {
                let (series, time_us) = (readings.series[row], readings.time_us[row]);
                if wanted.place(series).is_some() && (from_us..to_us).contains(&time_us) {
                    each(series, time_us, &|| readings.value(row));
                }
            }
            ControlFlow::Continue(())
        })
    }

    /// Calls `each` with every batch that is not in chunks yet and touches `[from_us, to_us)`.
    fn each_batch(
        &self,
        from_us: Micros,
        to_us: Micros,
        mut each: impl FnMut(&Readings) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let mut batches = self.snapshot.prepare_cached(
            "SELECT seq, body FROM batch WHERE seq > ?1 AND last_us >= ?2 AND first_us < ?3 ORDER BY seq",
        )?;
        let mut rows = batches.query(params![self.archived_seq, from_us, to_us])?;
        while let Some(row) = rows.next()? {
            let seq: i64 = row.get(0)?;
            let body = row.get_ref(1)?.as_blob().unwrap_or_default();
            let readings = batch::decode(body).map_err(|error| ReadError::Batch { seq: seq as u64, error })?;
            if each(&readings).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The readings of a series on a day, those of them in `[from_us, to_us)`.
    pub fn day(
        &self,
        series: u32,
        day: i64,
        tail: &Points,
        from_us: Micros,
        to_us: Micros,
    ) -> Result<Points, ReadError> {
        let mut points = self.chunks_between(day, series, from_us, to_us)?;
        let in_tail = tail.between(day * DAY_US, (day + 1) * DAY_US);
        if !in_tail.is_empty() {
            points.merge(&tail.slice(in_tail));
        }
        let rows = points.between(from_us, to_us);
        Ok(if rows.len() == points.len() { points } else { points.slice(rows) })
    }

    /// Calls `each` with the readings of a series, day by day in order of time;
    /// `days` are those of [`Raw::days`].
    pub fn each_day<E: From<ReadError>>(
        &self,
        series: u32,
        days: &[i64],
        tail: &Points,
        from_us: Micros,
        to_us: Micros,
        mut each: impl FnMut(Points) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        let in_tail: BTreeSet<i64> = tail.time_us.iter().map(|&us| day(us)).collect();
        let all: BTreeSet<i64> = days.iter().copied().chain(in_tail.iter().copied()).collect();
        for day in all {
            let points = self.day(series, day, tail, from_us, to_us)?;
            if !points.is_empty() && each(points)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// The first and the last id that lie by part on a day.
fn by_part(day: i64) -> [i64; 2] {
    [chunk_id(day, 0, PARTS_BY_SERIES), chunk_id(day + 1, 0, 0) - 1]
}

/// What [`of_place`] asks for.
fn place(day: i64, series: u32) -> [i64; 4] {
    [chunk_id(day, series, 0), chunk_id(day, series, PARTS_BY_SERIES - 1), day, i64::from(series)]
}

/// What there is of a series' day.
#[derive(Default)]
pub(super) struct Parts {
    /// Those that count, in order of commit.
    pub(super) counting: Vec<Part>,
    /// Ids of those that have been replaced, and not removed because a fold was interrupted.
    pub(super) covered: Vec<i64>,
}

/// One part of a series' day.
pub(super) struct Part {
    pub(super) id: i64,
    pub(super) received_us: Micros,
    pub(super) readings: i64,
    pub(super) body: Vec<u8>,
}

impl Part {
    pub(super) fn decode(&self) -> Result<Points, ReadError> {
        chunk::decode(&self.body).map_err(|error| ReadError::Chunk { id: self.id, error })
    }
}

/// Readings of a series in order of commit, to be put in order of time.
#[derive(Debug, Default)]
pub(super) struct Builder {
    points: Points,
    /// Those that are not later than all before, in order of commit.
    disordered: Vec<Points>,
}

impl Builder {
    #[inline]
    pub(super) fn push(&mut self, time_us: Micros, flags: u8, number: f64, text: Option<&str>) {
        if self.points.time_us.last().is_none_or(|&last| last < time_us) {
            return self.points.push(time_us, flags, number, text);
        }
        // A new run begins whenever time steps back; runs are merged in order of commit.
        let run = std::mem::take(&mut self.points);
        self.disordered.push(run);
        self.points.push(time_us, flags, number, text);
    }

    /// All readings, of each time the one that was committed last.
    pub(super) fn finish(mut self) -> Points {
        if self.disordered.is_empty() {
            return self.points;
        }
        self.disordered.push(self.points);
        let mut runs = self.disordered;
        // Neighbours first: each reading is moved a logarithmic number of times.
        while runs.len() > 1 {
            let mut merged = Vec::with_capacity(runs.len().div_ceil(2));
            let mut pairs = runs.into_iter();
            while let Some(mut older) = pairs.next() {
                if let Some(newer) = pairs.next() {
                    older.merge(&newer);
                }
                merged.push(older);
            }
            runs = merged;
        }
        runs.pop().unwrap_or_default()
    }
}
