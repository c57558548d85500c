//! Parts of a day, made one.
//!
//! Arrives: days of series that were folded piece by piece. Leaves: steps that replace their
//! parts by one that says the same. Always holds: a day is left alone while it is not over, or
//! still grows; otherwise each of its readings would be written again and again.

use super::fold::{Folder, Interrupted, Place, SLICE_BYTES, pieces};
use super::read::{Parts, Raw};
use super::{DAY_US, PARTS_BY_SERIES, PARTS_MAX, chunk, chunk_id, day, day_of, part_of, series_of};
use crate::journal::{Chunk, ReadError, Step, schema};
use crate::window::OLD_AFTER_US;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::mem::take;
use std::time::{Duration, Instant};

/// Days remembered; those beyond stay in parts.
const UNTIDY_MAX: usize = 200_000;
/// Days with more readings stay in parts, which are large enough by themselves.
const ROWS_MAX: i64 = 500_000;
/// Looked at in one go.
const LOT: usize = 64;
/// A start looks for days that were left in parts only so far back.
const LOOK_BACK_DAYS: i64 = 3;

/// Days of series that may be in several parts, and when they last grew.
#[derive(Debug, Default)]
pub(super) struct Untidy {
    places: BTreeMap<Place, Instant>,
}

impl Untidy {
    pub(super) fn note(&mut self, places: impl Iterator<Item = Place>) {
        let now = Instant::now();
        for place in places {
            if self.places.len() < UNTIDY_MAX || self.places.contains_key(&place) {
                self.places.insert(place, now);
            }
        }
    }
}

/// The rows of a day's chunks, and those that can replace them.
type Whole = (Vec<i64>, Vec<Chunk>);

impl Folder {
    /// What an earlier run may have left in parts.
    pub(super) fn untidy(&self, db: &Connection) -> rusqlite::Result<Untidy> {
        let today = day(self.clock.now_us());
        let mut ids = db.prepare("SELECT id FROM chunk WHERE id >= ?1")?;
        let ids = ids.query_map([chunk_id(today - LOOK_BACK_DAYS, 0, 0)], |row| row.get(0))?;
        let ids = ids.collect::<Result<Vec<i64>, _>>()?;
        let mut untidy = Untidy::default();
        untidy.note(ids.into_iter().filter(|&id| part_of(id) > 0).map(|id| (day_of(id), series_of(id))));
        Ok(untidy)
    }

    /// Makes some days whole; true if there may be more.
    pub(super) fn tidy(&self, db: &Connection, untidy: &mut Untidy) -> Result<bool, Interrupted> {
        let old_until_us = self.clock.now_us() - OLD_AFTER_US;
        let quiet = Duration::from_micros(self.delay_us as u64);
        let is_due =
            |(place, since): &(&Place, &Instant)| (place.0 + 1) * DAY_US <= old_until_us && since.elapsed() >= quiet;
        let due: Vec<Place> = untidy.places.iter().filter(is_due).take(LOT).map(|(place, _)| *place).collect();
        let raw = Raw::open(db)?;
        let mut wholes = Vec::new();
        for place in &due {
            match self.whole(&raw, *place) {
                Ok(whole) => wholes.extend(whole),
                Err(e) => tracing::error!("a day stays in parts: {e}"),
            }
        }
        drop(raw);
        self.rewrite(wholes)?;
        for place in &due {
            untidy.places.remove(place);
        }
        Ok(due.len() == LOT)
    }

    /// Parts of days that have nearly run out of numbers come to lie by series, and numbers begin anew.
    pub(super) fn renumber(&self, db: &Connection, days: impl Iterator<Item = i64>) -> Result<(), Interrupted> {
        for day in days {
            let raw = Raw::open(db)?;
            if raw.next_part(day)? < (PARTS_BY_SERIES + PARTS_MAX) / 2 {
                continue;
            }
            let all = raw.series_by_part(day)?;
            drop(raw);
            let (mut remove, mut ids, mut bytes) = (Vec::new(), Vec::new(), 0);
            for series in all {
                let Parts { counting, covered } = Raw::open(db)?.parts(day, series)?;
                remove.extend(covered);
                for (part, number) in counting.into_iter().zip(0..) {
                    bytes += part.body.len() + 64;
                    ids.push((part.id, chunk_id(day, series, number)));
                    if bytes >= SLICE_BYTES {
                        self.step(Step::Rename { remove: take(&mut remove), ids: take(&mut ids) })?;
                        bytes = 0;
                    }
                }
            }
            self.step(Step::Rename { remove, ids })?;
        }
        Ok(())
    }

    /// A day with its parts put together; nothing if that would not make them fewer.
    fn whole(&self, raw: &Raw<'_>, (day, series): Place) -> Result<Option<Whole>, ReadError> {
        let Parts { counting, covered } = raw.parts(day, series)?;
        let rows: i64 = counting.iter().map(|part| part.readings).sum();
        let fewest = (rows as usize).div_ceil(chunk::ROWS_MAX);
        if counting.len() <= fewest || rows > ROWS_MAX {
            return Ok(None);
        }
        let received_us = counting.iter().map(|part| part.received_us).max().unwrap_or_default();
        let archived_seq = schema::meta::<i64>(raw.db(), "archived_seq")?.unwrap_or(0);
        let chunks = pieces(&raw.chunk(day, series)?, day, series, 0, archived_seq, received_us);
        let remove = counting.iter().map(|part| part.id).chain(covered).collect();
        Ok(Some((remove, chunks)))
    }

    fn rewrite(&self, wholes: Vec<Whole>) -> Result<(), Interrupted> {
        let (mut remove, mut chunks, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (ids, whole) in wholes {
            bytes += whole.iter().map(|chunk| chunk.body.len() + 64).sum::<usize>();
            remove.extend(ids);
            chunks.extend(whole);
            if bytes >= SLICE_BYTES {
                self.step(Step::Rewrite { remove: take(&mut remove), chunks: take(&mut chunks) })?;
                bytes = 0;
            }
        }
        if remove.is_empty() { Ok(()) } else { self.step(Step::Rewrite { remove, chunks }) }
    }
}
