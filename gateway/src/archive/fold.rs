//! Batches to chunks, in the background.
//!
//! Arrives: batches up to the commit that a restart still needs. Leaves: chores for the
//! journal's writer: new parts first, slice by slice, which nobody reads yet; then in one step
//! `meta.archived_seq` rises, from which moment the parts count and the batches do not; then
//! what has been replaced is removed, again slice by slice. Always holds: a slice is small, so
//! that no commit waits noticeably; a fold that was interrupted is done again over the same
//! batches (`meta.folding_seq`) and gives the same parts.

use super::levels::Levels;
use super::read::{Builder, Parts, Raw};
use super::retire::{Growth, Retention};
use super::tidy::Untidy;
use super::{DAY_US, chunk, chunk_id, day, part_of};
use crate::catalog::Catalog;
use crate::clock::{Clock, Steady};
use crate::journal::intake::NotDone;
use crate::journal::removal::Sweep;
use crate::journal::{Chunk, Intake, ReadError, Step, batch, schema};
use crate::metrics::Metrics;
use crate::readings::Points;
use crate::window::driver::Disturbed;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use model::Micros;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often to look whether there is something to fold, at the least.
const TICK: Duration = Duration::from_millis(500);
/// Readings folded at once, and how many of them are in memory meanwhile.
const LOT_ROWS: i64 = 1_000_000;
const PASS_ROWS: i64 = 400_000;
/// Fold when so many readings of each series wait, about, however young they are: between
/// these bounds in all. The upper one bounds what a question has to look through.
const WORTHWHILE: i64 = 256;
const WAITING_MIN: i64 = 20_000;
const WAITING_MAX: i64 = 1_000_000;
/// The same for batches: each costs a question its own.
const BATCHES_MAX: i64 = 20_000;
/// Parts of about one size that are left alone.
const TIER: usize = 7;
/// How often to look whether something is too old, or too much.
const RETIRE_EVERY: Duration = Duration::from_secs(10);
/// What one commit carries for the archive.
pub(crate) const SLICE_BYTES: usize = 128 << 10;
const SLICE_BATCHES: i64 = 64;

/// All that the thread needs, handed over by the app.
pub(crate) struct Folder {
    /// The store's file.
    pub store: PathBuf,
    /// Where chores go.
    pub intake: Arc<Intake>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where summaries are folded.
    pub levels: Levels,
    /// `retention`.
    pub retention: Retention,
    /// How the store grows, for whoever asks.
    pub growth: Arc<Mutex<Growth>>,
    /// `archive.delay`, by the stamps of the journal.
    pub delay_us: Micros,
    /// The time.
    pub clock: Clock,
    /// Who is there.
    pub catalog: Arc<Catalog>,
    /// Where it is told which windows have lost readings.
    pub disturbed: SyncSender<Disturbed>,
    /// The gateway stops.
    pub stop: CancellationToken,
}

/// Why the thread cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FoldError {
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// SQLite refuses.
    #[error("the store cannot be read: {0}")]
    Store(#[from] rusqlite::Error),
    /// The writer had no room for a step.
    #[error("the disk is full")]
    Full,
}

pub(super) enum Interrupted {
    /// The gateway stops; the fold is done again at the next start.
    Stopped,
    Failed(FoldError),
}

impl<E: Into<FoldError>> From<E> for Interrupted {
    fn from(e: E) -> Self {
        Interrupted::Failed(e.into())
    }
}

/// A day of a series.
pub(super) type Place = (i64, u32);

struct State {
    /// The time for what deletes.
    steady: Steady,
    retired_at: Option<Instant>,
    /// Since when the store has been above its budget with nothing to go but rollups.
    pressed: Option<Instant>,
    untidy: Untidy,
    waiting: Waiting,
    /// The removed series that have been looked for.
    swept: Sweep,
}

/// What waits to be folded, as far as it has been looked through.
#[derive(Default)]
struct Waiting {
    archived_seq: i64,
    through_seq: i64,
    oldest_us: Option<Micros>,
    batches: i64,
    readings: i64,
    /// The last commit of the next lot.
    lot: Option<i64>,
    lot_readings: i64,
}

impl Folder {
    /// Folds until `stop`. A damaged batch stops the folding, not the gateway.
    pub(crate) fn run(self) -> Result<(), rusqlite::Error> {
        let db = schema::open_reader(&self.store)?;
        let steady = Steady::new(&self.clock, Instant::now());
        let mut state = State {
            steady,
            retired_at: None,
            pressed: None,
            untidy: self.untidy(&db)?,
            waiting: Waiting::default(),
            swept: Sweep::default(),
        };
        while !self.stop.is_cancelled() {
            match self.work(&db, &mut state) {
                Ok(true) => {}
                Ok(false) => std::thread::sleep(self.tick()),
                Err(Interrupted::Stopped) => return Ok(()),
                Err(Interrupted::Failed(e)) => {
                    tracing::error!("readings stay in the journal, which makes answers slow: {e}");
                    self.pause();
                }
            }
        }
        Ok(())
    }

    /// Does a little of what there is to do; true if there may be more.
    fn work(&self, db: &Connection, state: &mut State) -> Result<bool, Interrupted> {
        let folded = self.fold_what_is_due(db, state);
        // A fold that was interrupted would give other parts if readings were moved before it is done.
        if schema::meta::<i64>(db, "folding_seq")?.is_none() {
            self.keep_time(db)?;
        }
        let mut more = folded?;
        if state.retired_at.is_none_or(|at| at.elapsed() >= RETIRE_EVERY.min(self.tick() * 20)) {
            let now_us = state.steady.now_us(&self.clock, Instant::now());
            self.sweep(db, &mut state.swept)?;
            self.retire(db, now_us, &mut state.pressed)?;
            self.metrics.retention_passes.inc();
            state.retired_at = Some(Instant::now());
        }
        if !more {
            more = self.tidy(db, &mut state.untidy)?;
        }
        Ok(more)
    }

    /// How often to look.
    fn tick(&self) -> Duration {
        TICK.min(Duration::from_micros(self.delay_us as u64 / 2)).max(Duration::from_millis(10))
    }

    /// Waits a minute, or for the end.
    fn pause(&self) {
        for _ in 0..120 {
            if self.stop.is_cancelled() {
                return;
            }
            std::thread::sleep(TICK);
        }
    }

    /// Folds one lot if it is time; true if there may be more.
    fn fold_what_is_due(&self, db: &Connection, state: &mut State) -> Result<bool, Interrupted> {
        let archived_seq = schema::meta::<i64>(db, "archived_seq")?.unwrap_or(0);
        let started: Option<i64> = schema::meta(db, "folding_seq")?;
        if let Some(seq) = started.filter(|&seq| seq > archived_seq) {
            self.fold(db, state, archived_seq, seq)?;
            return Ok(true);
        }
        if started.is_some() {
            self.remove_batches(db, archived_seq)?;
            self.step(Step::Folded)?;
            return Ok(true);
        }
        let Some(seq) = self.due(db, archived_seq, &mut state.waiting)? else { return Ok(false) };
        let snapshot: Option<i64> = db.query_row("SELECT seq FROM snapshot", [], |row| row.get(0)).optional()?;
        if snapshot.is_none_or(|snapshot| snapshot < seq) {
            // A restart takes the latest of each series from there, and then only from batches.
            self.step(Step::Snapshot)?;
        }
        self.step(Step::Begin { seq })?;
        self.fold(db, state, archived_seq, seq)?;
        Ok(true)
    }

    /// The last commit of the next lot, if it is time to fold one. What is small is not worth
    /// it: every part of a day of a series is a page written, however few its readings.
    fn due(&self, db: &Connection, archived_seq: i64, waiting: &mut Waiting) -> Result<Option<i64>, FoldError> {
        let replay_from = schema::meta::<i64>(db, "replay_from")?.unwrap_or(1);
        if waiting.archived_seq != archived_seq {
            *waiting = Waiting { archived_seq, through_seq: archived_seq, ..Waiting::default() };
        }
        let mut query = db
            .prepare_cached("SELECT seq, received_us, readings FROM batch WHERE seq > ?1 AND seq <= ?2 ORDER BY seq")?;
        let mut rows = query.query(params![waiting.through_seq, replay_from - 1])?;
        while let Some(row) = rows.next()? {
            let readings: i64 = row.get(2)?;
            waiting.through_seq = row.get(0)?;
            waiting.oldest_us.get_or_insert(row.get(1)?);
            waiting.batches += 1;
            waiting.readings += readings;
            if waiting.lot.is_none() || waiting.lot_readings + readings <= LOT_ROWS {
                waiting.lot = Some(waiting.through_seq);
                waiting.lot_readings += readings;
            }
        }
        let series = db.query_row("SELECT coalesce(max(id), 0) FROM series", [], |row| row.get::<_, i64>(0))?;
        let many = (series * WORTHWHILE).clamp(WAITING_MIN, WAITING_MAX);
        let old = waiting.oldest_us.is_some_and(|us| (self.clock.now_us() - us).abs() >= self.delay_us);
        Ok(waiting.lot.filter(|_| old || waiting.readings >= many || waiting.batches >= BATCHES_MAX))
    }

    fn fold(&self, db: &Connection, state: &mut State, archived_seq: i64, seq: i64) -> Result<(), Interrupted> {
        let mut replaced = Vec::new();
        for pass in passes(db, archived_seq, seq)? {
            self.fold_series(db, state, archived_seq..seq, pass, &mut replaced)?;
        }
        self.step(Step::Count { seq })?;
        for ids in replaced.chunks(512) {
            self.step(Step::Remove(ids.to_vec()))?;
        }
        self.remove_batches(db, seq)?;
        self.step(Step::Folded)?;
        Ok(())
    }

    /// Writes the parts of some series from the batches behind `lot.start` up to `lot.end`.
    fn fold_series(
        &self,
        db: &Connection,
        state: &mut State,
        lot: Range<i64>,
        series: Range<u32>,
        replaced: &mut Vec<i64>,
    ) -> Result<(), Interrupted> {
        let (mut places, received_us) = read_batches(db, &lot, &series)?;
        places.retain(|((_, series), _)| self.catalog.has(*series));
        let days: BTreeSet<i64> = places.iter().map(|((day, _), _)| *day).collect();
        self.renumber(db, days.iter().copied())?;
        state.untidy.note(places.iter().map(|(place, _)| *place));
        let raw = Raw::open(db)?;
        let part = |day| Ok((day, raw.next_part(day)?));
        let parts = days.into_iter().map(part).collect::<Result<BTreeMap<i64, i64>, ReadError>>()?;
        let (mut slice, mut slice_bytes) = (Vec::new(), 0);
        for ((day, series), builder) in places {
            let new = New { part: parts[&day], seq: lot.end, received_us };
            let (chunks, covered) = merged(&raw, (day, series), builder.finish(), new)?;
            replaced.extend(covered);
            slice_bytes += chunks.iter().map(|chunk| chunk.body.len() + 64).sum::<usize>();
            slice.extend(chunks);
            if slice_bytes >= SLICE_BYTES {
                self.step(Step::Chunks(std::mem::take(&mut slice)))?;
                slice_bytes = 0;
            }
        }
        // The snapshot must not pin the log while what follows is written.
        drop(raw);
        self.step(Step::Chunks(slice))
    }

    fn remove_batches(&self, db: &Connection, seq: i64) -> Result<(), Interrupted> {
        loop {
            let last: Option<i64> = db.query_row(
                "SELECT max(seq) FROM (SELECT seq FROM batch WHERE seq <= ?1 ORDER BY seq LIMIT ?2)",
                [seq, SLICE_BATCHES],
                |row| row.get(0),
            )?;
            let Some(last) = last else { return Ok(()) };
            self.step(Step::RemoveBatches { seq: last })?;
        }
    }

    /// Hands the writer a step and waits until it is on disk.
    pub(super) fn step(&self, step: Step) -> Result<(), Interrupted> {
        match self.intake.commit(step, &self.stop) {
            Ok(_) => Ok(()),
            Err(NotDone::Stopped) => Err(Interrupted::Stopped),
            Err(NotDone::Full) => Err(FoldError::Full.into()),
        }
    }
}

/// Ranges of series whose readings fit into memory, if all have about as many.
fn passes(db: &Connection, archived_seq: i64, seq: i64) -> rusqlite::Result<Vec<Range<u32>>> {
    let sum = "SELECT coalesce(sum(readings), 0) FROM batch WHERE seq > ?1 AND seq <= ?2";
    let readings: i64 = db.query_row(sum, [archived_seq, seq], |row| row.get(0))?;
    let series: u32 = db.query_row("SELECT coalesce(max(id) + 1, 1) FROM series", [], |row| row.get(0))?;
    let passes = (readings as u64).div_ceil(PASS_ROWS as u64).clamp(1, u64::from(series));
    let bound = |pass: u64| (u64::from(series) * pass / passes) as u32;
    Ok((0..passes).map(|pass| bound(pass)..if pass + 1 == passes { u32::MAX } else { bound(pass + 1) }).collect())
}

/// The readings of some series in the batches behind `lot.start` up to `lot.end`, by day and
/// series, and when the last of them was received.
fn read_batches(
    db: &Connection,
    lot: &Range<i64>,
    series: &Range<u32>,
) -> Result<(Vec<(Place, Builder)>, Micros), FoldError> {
    let mut query =
        db.prepare_cached("SELECT seq, received_us, body FROM batch WHERE seq > ?1 AND seq <= ?2 ORDER BY seq")?;
    let mut rows = query.query([lot.start, lot.end])?;
    let mut lots: HashMap<Place, Builder, RandomState> = HashMap::default();
    let mut received_us = Micros::MIN;
    while let Some(row) = rows.next()? {
        let seq: i64 = row.get(0)?;
        received_us = received_us.max(row.get(1)?);
        let body = row.get_ref(2)?.as_blob().unwrap_or_default();
        let readings = batch::decode(body).map_err(|error| ReadError::Batch { seq: seq as u64, error })?;
        for row in 0..readings.len() {
            let (time_us, own) = (readings.time_us[row], readings.series[row]);
            if !series.contains(&own) {
                continue;
            }
            let builder = lots.entry((day(time_us), own)).or_default();
            builder.push(time_us, readings.flags[row], readings.number[row], readings.text(row));
        }
    }
    let mut lots: Vec<_> = lots.into_iter().collect();
    lots.sort_unstable_by_key(|(place, _)| *place);
    Ok((lots, received_us))
}

/// What all new parts of a day have in common.
struct New {
    part: i64,
    seq: i64,
    received_us: Micros,
}

/// New parts for a day of a series, merged with those before that are not larger, and the ids
/// of those that they replace.
fn merged(
    raw: &Raw<'_>,
    (day, series): Place,
    new: Points,
    New { part: next, seq, mut received_us }: New,
) -> Result<(Vec<Chunk>, Vec<i64>), ReadError> {
    let Parts { counting: parts, covered: mut replaced } = raw.parts(day, series)?;
    let sizes: Vec<i64> = parts.iter().map(|part| part.readings).collect();
    let mut keep = kept_parts(&sizes, new.len() as i64);
    let mut decoded = Vec::new();
    while keep + decoded.len() < parts.len() {
        let at = parts.len() - 1 - decoded.len();
        match parts[at].decode() {
            Ok(points) => decoded.push(points),
            Err(e) => {
                // A damaged part stays as it is, and holds nothing up.
                tracing::error!("{e}");
                keep = at + 1;
            }
        }
    }
    let mut points = Points::default();
    for (part, own) in parts[keep..].iter().zip(decoded.into_iter().rev()) {
        points.merge(&own);
        received_us = received_us.max(part.received_us);
    }
    points.merge(&new);
    let covers = parts.get(keep).map_or(0, |part| next - part_of(part.id));
    let mut chunks = pieces(&points, day, series, next, seq, received_us);
    chunks.iter_mut().take(1).for_each(|chunk| chunk.covers = covers);
    replaced.extend(parts[keep..].iter().map(|part| part.id));
    Ok((chunks, replaced))
}

/// How many of the parts before stay as they are when one of so many readings is added: a
/// merge takes in several of about one size, so that each reading is written a few times only.
fn kept_parts(sizes: &[i64], new: i64) -> usize {
    let (mut keep, mut rows) = (sizes.len(), new);
    loop {
        let tier = sizes[..keep].iter().rev().take_while(|&&size| size <= 2 * rows).count();
        let merged = rows + sizes[keep - tier..keep].iter().sum::<i64>();
        if tier < TIER || merged > chunk::ROWS_MAX as i64 {
            return keep;
        }
        (keep, rows) = (keep - tier, merged);
    }
}

/// The readings of a day of a series as parts, numbered from `part` on.
pub(super) fn pieces(points: &Points, day: i64, series: u32, part: i64, seq: i64, received_us: Micros) -> Vec<Chunk> {
    debug_assert!(points.time_us.iter().all(|us| (day * DAY_US..(day + 1) * DAY_US).contains(us)));
    let begins = (0..points.len()).step_by(chunk::ROWS_MAX);
    let piece = |(number, begin): (usize, usize)| {
        let piece = points.slice(begin..points.len().min(begin + chunk::ROWS_MAX));
        Chunk {
            id: chunk_id(day, series, part + number as i64),
            covers: 0,
            seq,
            received_us,
            readings: piece.len() as i64,
            first_us: piece.time_us[0],
            last_us: piece.time_us[piece.len() - 1],
            body: chunk::encode(&piece),
        }
    };
    begins.enumerate().map(piece).collect()
}
