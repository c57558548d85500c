//! Readings that were received at a wrong time, put right.
//!
//! Arrives: corrections, once the clock has been set. Leaves: steps that take readings out of
//! their batches and chunks and bring them in again at the right time, as if they came now;
//! then windows that have lost some are dirty, and what was held back is a change for the
//! uplink. Always holds: each step moves its readings in one transaction; done again after an
//! interruption it moves what is left; no fold is under way meanwhile.

use super::fold::{FoldError, Folder, Interrupted, pieces};
use super::read::{Parts, Raw};
use super::{chunk_id, day, series_of};
use crate::clock::{Clock, Correction, Trust};
use crate::journal::changes::stretches;
use crate::journal::{Moved, ReadError, Step, batch, schema};
use crate::readings::{Points, Readings, flag};
use crate::window::driver::Disturbed;
use crate::window::revise::Stretch;
use model::time::{PLAUSIBLE_FROM_US, window_start};
use rusqlite::{Connection, params};
use std::collections::BTreeSet;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Batches looked through for one step.
const SLICE_BATCHES: usize = 64;
/// Readings moved in one step, about.
const SLICE_ROWS: usize = 20_000;
/// Changes for the uplink in one step.
const SLICE_CHANGES: usize = 1_000;

impl Folder {
    /// Keeps what a restart has to know of the clock, and makes the corrections that wait.
    pub(super) fn keep_time(&self, db: &Connection) -> Result<(), Interrupted> {
        let Clock::System(trust) = &self.clock else { return Ok(()) };
        loop {
            let next = trust.next_correction();
            // What is to be made now is on disk first: questions and a restart know of it.
            self.keep_ledger(trust)?;
            let Some(correction) = next else { return Ok(()) };
            let moved = self.correct(db, &correction)?;
            trust.corrected(correction);
            // Nothing that was held back may be forgotten.
            self.forward(&correction).inspect_err(|_| trust.restore(vec![correction]))?;
            self.metrics.corrected.inc_by(moved);
            if correction.shift_us != 0 {
                let by_s = correction.shift_us / 1_000_000;
                tracing::info!("the clock has been set: {moved} readings were received {by_s} s later than they said");
            }
        }
    }

    fn keep_ledger(&self, trust: &Trust) -> Result<(), Interrupted> {
        match trust.changed() {
            Some(ledger) => self.step(Step::Clock(ledger)).inspect_err(|_| trust.not_kept()),
            None => Ok(()),
        }
    }

    /// Moves all readings that a correction concerns; how many there were.
    fn correct(&self, db: &Connection, correction: &Correction) -> Result<u64, Interrupted> {
        if correction.shift_us == 0 {
            return Ok(0);
        }
        // Whatever comes later is put right by the writer before it is stored. All that is there has been counted.
        self.step(Step::Snapshot)?;
        let moved = self.correct_batches(db, correction)? + self.correct_chunks(db, correction)?;
        self.catalog.correct(correction);
        self.step(Step::Received(*correction))?;
        self.step(Step::Snapshot)?;
        self.disturb(correction)?;
        Ok(moved)
    }

    fn correct_batches(&self, db: &Connection, correction: &Correction) -> Result<u64, Interrupted> {
        let archived_seq = schema::meta::<i64>(db, "archived_seq")?.unwrap_or(0);
        let last: Option<i64> = db.query_row("SELECT max(seq) FROM batch", [], |row| row.get(0))?;
        let (mut after, mut moved) = (archived_seq.max(correction.from_seq - 1), 0);
        loop {
            let slice = slice_of(db, after..last.unwrap_or(0), correction)?;
            let Some(until) = slice.until else { return Ok(moved) };
            after = until;
            moved += slice.moved.readings.len() as u64;
            if !slice.moved.readings.is_empty() {
                self.step(Step::Move(Box::new(slice.moved)))?;
            }
        }
    }

    fn correct_chunks(&self, db: &Connection, correction: &Correction) -> Result<u64, Interrupted> {
        let mut count = 0;
        for place in places(db, correction)? {
            loop {
                let raw = Raw::open(db)?;
                let moved = of_chunks(&raw, place, correction);
                drop(raw);
                match moved {
                    Ok(Some(moved)) => {
                        count += moved.readings.len() as u64;
                        self.step(Step::Move(Box::new(moved)))?;
                    }
                    Ok(None) => break,
                    Err(e) => {
                        // What cannot be read stays where it is, and holds up nothing else.
                        tracing::error!("{e}");
                        break;
                    }
                }
            }
        }
        Ok(count)
    }

    /// Windows that may have lost readings are dirty; returns when that is on disk and, if it does not
    /// take long, when they have been computed again.
    fn disturb(&self, correction: &Correction) -> Result<(), Interrupted> {
        let (series, length_us) = (self.catalog.ids(), self.levels.base.length_us);
        let from_us = window_start(correction.from_us, length_us);
        let to_us = window_start(correction.to_us, length_us) + length_us;
        let stretches = (0..series).map(|series| Stretch { series, from_us, to_us }).collect();
        let (done, settled) = channel();
        if self.disturbed.send(Disturbed { stretches, done }).is_err() {
            return Err(Interrupted::Stopped);
        }
        loop {
            match settled.recv_timeout(Duration::from_millis(500)) {
                Ok(()) => return self.step(Step::Barrier),
                Err(_) if self.stop.is_cancelled() => return Err(Interrupted::Stopped),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Interrupted::Stopped),
            }
        }
    }

    /// What was held back may be sent now.
    fn forward(&self, correction: &Correction) -> Result<(), Interrupted> {
        let Correction { from_us, to_us, .. } = *correction;
        if to_us <= PLAUSIBLE_FROM_US {
            return Ok(());
        }
        let length_us = self.levels.base.length_us;
        let mut changes = Vec::new();
        for device in self.catalog.devices() {
            let series = self.catalog.series_of(&device.name).map_or(0, |series| series.len());
            let range = window_start(from_us, length_us)..to_us;
            for change in stretches(device.id, series, length_us, range) {
                changes.push(change);
                if changes.len() >= SLICE_CHANGES {
                    self.step(Step::Changes(std::mem::take(&mut changes)))?;
                }
            }
        }
        self.step(Step::Changes(changes))
    }
}

/// Some batches, and what is to be moved of them.
struct Slice {
    moved: Moved,
    /// The last batch looked at.
    until: Option<i64>,
}

fn slice_of(db: &Connection, seqs: std::ops::Range<i64>, correction: &Correction) -> Result<Slice, FoldError> {
    let mut query = db.prepare_cached(
        "SELECT seq, body FROM batch WHERE seq > ?1 AND seq <= ?2 AND last_us >= ?3 AND first_us < ?4 ORDER BY seq",
    )?;
    let mut rows = query.query(params![seqs.start, seqs.end, correction.from_us, correction.to_us])?;
    let mut slice = Slice { moved: Moved::default(), until: None };
    let mut looked_at = 0;
    while let Some(row) = rows.next()? {
        let seq: i64 = row.get(0)?;
        slice.until = Some(seq);
        let body = row.get_ref(1)?.as_blob().unwrap_or_default();
        match batch::decode(body) {
            Ok(readings) => {
                if let Some(left) = take_wrong(&readings, correction, &mut slice.moved.readings) {
                    slice.moved.batches.push((seq, left));
                }
            }
            // What cannot be read stays where it is, and is named.
            Err(error) => tracing::error!("{}", ReadError::Batch { seq: seq as u64, error }),
        }
        looked_at += 1;
        if looked_at >= SLICE_BATCHES || slice.moved.readings.len() >= SLICE_ROWS {
            break;
        }
    }
    Ok(slice)
}

/// Adds those that were received at a wrong time to `moved`, at the right one; what is left, if any were.
fn take_wrong(readings: &Readings, correction: &Correction, moved: &mut Readings) -> Option<Readings> {
    let is_wrong = |row: usize| correction.concerns(readings.time_us[row], readings.flags[row]);
    if !(0..readings.len()).any(is_wrong) {
        return None;
    }
    let mut left = Readings::default();
    for row in 0..readings.len() {
        let (series, time_us, value) = (readings.series[row], readings.time_us[row], readings.value(row));
        let flags = readings.flags[row] & !flag::KIND;
        if is_wrong(row) {
            moved.push(series, time_us + correction.shift_us, value, corrected(flags));
        } else {
            left.push(series, time_us, value, flags);
        }
    }
    Some(left)
}

fn corrected(flags: u8) -> u8 {
    flags & !flag::CLOCK_UNSET | flag::MOVED
}

/// Days of series that have chunks where the times were wrong.
fn places(db: &Connection, correction: &Correction) -> Result<BTreeSet<(i64, u32)>, FoldError> {
    let (first, last) = (day(correction.from_us), day(correction.to_us));
    let mut ids = db
        .prepare("SELECT id FROM chunk WHERE id >= ?1 AND id < ?2 AND last_us >= ?3 AND first_us < ?4 AND seq >= ?5")?;
    let Correction { from_us, to_us, from_seq, .. } = *correction;
    let range = params![chunk_id(first, 0, 0), chunk_id(last + 1, 0, 0), from_us, to_us, from_seq];
    let ids = ids.query_map(range, |row| row.get::<_, i64>(0))?;
    Ok(ids.map(|id| id.map(|id| (super::day_of(id), series_of(id)))).collect::<Result<_, _>>()?)
}

/// What is to be moved next of a day of a series.
fn of_chunks(raw: &Raw<'_>, (day, series): (i64, u32), correction: &Correction) -> Result<Option<Moved>, ReadError> {
    let points = raw.chunk(day, series)?;
    let is_wrong = |row: usize| correction.concerns(points.time_us[row], points.flags[row]);
    if !(0..points.len()).any(is_wrong) {
        return Ok(None);
    }
    let (mut moved, mut left) = (Moved::default(), Points::default());
    for row in 0..points.len() {
        let (time_us, flags) = (points.time_us[row], points.flags[row]);
        // The rest goes with the next step.
        if is_wrong(row) && moved.readings.len() < SLICE_ROWS {
            let flags = corrected(flags & !flag::KIND);
            moved.readings.push(series, time_us + correction.shift_us, points.value(row), flags);
        } else {
            left.push(time_us, flags, points.number[row], points.text(row));
        }
    }
    let Parts { counting, covered } = raw.parts(day, series)?;
    let received_us = counting.iter().map(|part| part.received_us).max().unwrap_or_default();
    let archived_seq = schema::meta::<i64>(raw.db(), "archived_seq")?.unwrap_or(0);
    moved.chunks = pieces(&left, day, series, 0, archived_seq, received_us);
    moved.remove = counting.iter().map(|part| part.id).chain(covered).collect();
    Ok(Some(moved))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::steps::write_step;
    use model::Micros;
    use proptest::prelude::*;

    #[test]
    fn what_is_done_again_after_an_interruption_shifts_nothing_twice() {
        let directory = tempfile::tempdir().unwrap();
        let db = schema::open(directory.path()).unwrap().connection;
        db.execute("INSERT INTO batch VALUES (1, 50, 0, 0, 0, x'')", []).unwrap();
        let correction = Correction { from_us: 0, to_us: 100, shift_us: 20, from_seq: 0 };
        for _ in 0..2 {
            write_step(&db, &Step::Received(correction)).unwrap();
            let received_us: i64 = db.query_row("SELECT received_us FROM batch", [], |row| row.get(0)).unwrap();
            assert_eq!(received_us, 70);
        }
    }

    proptest! {
        #[test]
        fn each_reading_is_either_left_or_moved(rows in prop::collection::vec((0..3_u32, 0..100_i64, 0..64_u8), 0..40)) {
            let correction = Correction { from_us: 20, to_us: 60, shift_us: 1_000, from_seq: 0 };
            let mut readings = Readings::default();
            for &(series, time_us, flags) in &rows {
                readings.push_number(series, time_us, time_us as f64, (flags << 2) & !flag::MOVED);
            }
            let mut moved = Readings::default();
            let left = take_wrong(&readings, &correction, &mut moved).unwrap_or_else(|| readings.clone());
            prop_assert_eq!(left.len() + moved.len(), rows.len());
            let wrong = |&(_, us, flags): &(u32, Micros, u8)| {
                let flags = (flags << 2) & !flag::MOVED;
                (20..60).contains(&us) && flags & flag::CLOCK_UNSET != 0 && flags & flag::STAMPED == 0
            };
            prop_assert_eq!(moved.len(), rows.iter().filter(|row| wrong(row)).count());
            for row in 0..moved.len() {
                prop_assert_eq!(moved.time_us[row], moved.number[row] as Micros + 1_000);
                prop_assert_eq!(moved.flags[row] & (flag::CLOCK_UNSET | flag::MOVED), flag::MOVED);
            }
            // What is on its way is put right in place.
            let mut apply = readings.clone();
            correction.apply(&mut apply);
            let changed = apply.time_us.iter().zip(&readings.time_us).filter(|(a, b)| a != b).count();
            prop_assert_eq!(changed, moved.len());
        }
    }
}
