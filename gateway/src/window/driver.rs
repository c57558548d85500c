//! The thread around the windows: channels, clock, store.
//!
//! Arrives: committed readings, in order of commit. Leaves: summaries as chores for the
//! journal's writer, events for live listeners, progress for answers. Always holds: it never
//! waits for the writer while the writer may be waiting for it; after a restart the readings
//! that open windows still need are taken first, and those already summarised are skipped.

use super::revise::{Revised, Stretch, revise};
use super::{Progress, Windows};
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::journal::{Chore, Committed, Intake, SummaryRow, handover, recover, schema};
use crate::live::{Event, Live};
use crate::metrics::Metrics;
use model::Micros;
use model::time::SECOND_US;
use polars::prelude::PolarsError;
use rusqlite::{Connection, params};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(200);
/// Late readings come in swarms: wait until one has passed, but not for ever.
const QUIET: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(5);
/// Windows computed again in one pass over the raw readings.
const LOT: usize = 20_000;
/// How often a restart's beginning is written, though no window has closed.
const CHECKPOINT: Duration = Duration::from_secs(5);

/// Windows whose summaries a replay remembers at once.
const REPLAY_WINDOWS_MAX: usize = 64;

/// How far each device's windows have got, by device.
pub type SharedProgress = Arc<RwLock<Vec<Progress>>>;

/// All that the thread needs, handed over by the app.
pub struct Driver {
    /// The windows, empty.
    pub windows: Windows,
    /// `window.length`.
    pub length_us: Micros,
    /// `window.memory`.
    pub memory_bytes: usize,
    /// Committed readings.
    pub committed: handover::Receiver,
    /// Where chores go.
    pub intake: Arc<Intake>,
    /// Whose each series is.
    pub catalog: Arc<Catalog>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The time.
    pub clock: Clock,
    /// Listeners to `/v1/live`.
    pub live: Arc<Live>,
    /// Where progress is told.
    pub progress: SharedProgress,
    /// The store's file.
    pub store: PathBuf,
    /// Where a restart begins to read.
    pub replay_from: u64,
    /// The last commit before the start.
    pub last_seq: u64,
}

/// Why the thread cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The store cannot be read.
    #[error("the store cannot be read: {0}")]
    Store(#[from] rusqlite::Error),
    /// Polars refused.
    #[error("aggregation failed: {0}")]
    Frame(#[from] PolarsError),
}

struct State {
    store: Connection,
    /// No summary of before the start is later than this.
    summarised_until_us: Micros,
    to_reviser: SyncSender<Vec<Stretch>>,
    from_reviser: Receiver<Revised>,
    revising_since: Option<Instant>,
    dirty_since: Option<Instant>,
    late_at: Instant,
    rest_until: Instant,
    told_at: Instant,
    told_from: u64,
}

impl Driver {
    /// Runs until the writer is gone and everything it committed has been taken.
    pub fn run(mut self) -> Result<(), DriverError> {
        let mut state = self.start()?;
        self.replay(&state)?;
        let mut looked_at = Instant::now();
        loop {
            let arrived = self.committed.take(TICK);
            for committed in &arrived.commits {
                self.take(committed)?;
                self.live.publish(|| Event::Readings(committed.clone()));
            }
            let behind_us = arrived.commits.first().map_or(0, |first| self.clock.now_us() - first.received_us);
            self.metrics.window_lag_s.set(behind_us / SECOND_US);
            if arrived.last {
                return Ok(());
            }
            // Commits come by the thousand; looking whether a window is due need not.
            if looked_at.elapsed() >= TICK {
                looked_at = Instant::now();
                self.close_due(&mut state)?;
                self.revise_dirty(&mut state);
                self.checkpoint(&mut state);
                self.tell();
            }
        }
    }

    fn start(&self) -> Result<State, DriverError> {
        let store = schema::open_reader(&self.store)?;
        let latest: Option<i64> =
            store.query_row("SELECT max(start_us) FROM summary WHERE length_us = ?1", [self.length_us], |row| {
                row.get(0)
            })?;
        let (to_reviser, jobs) = sync_channel::<Vec<Stretch>>(1);
        let (results, from_reviser) = sync_channel::<Revised>(1);
        let reader = schema::open_reader(&self.store)?;
        let (length_us, rows_max) = (self.length_us, self.memory_bytes / super::cut::Cuts::ROW_BYTES);
        std::thread::Builder::new()
            .name("revise".into())
            .spawn(move || {
                while let Ok(stretches) = jobs.recv() {
                    if results.send(revise(&reader, &stretches, length_us, rows_max)).is_err() {
                        return;
                    }
                }
            })
            .expect("a thread can be started");
        let now = Instant::now();
        Ok(State {
            store,
            summarised_until_us: latest.unwrap_or(Micros::MIN),
            to_reviser,
            from_reviser,
            revising_since: None,
            dirty_since: None,
            late_at: now,
            rest_until: now,
            told_at: now,
            told_from: self.replay_from,
        })
    }

    fn learn(&mut self) {
        let (_, series) = self.catalog.counts();
        if series > self.windows.known() {
            let all = self.catalog.series();
            self.windows.learn(all[self.windows.known()..].iter().map(|series| series.device.id));
        }
    }

    /// Takes the readings that open windows needed when the gateway stopped, but for those
    /// that a summary has seen.
    fn replay(&mut self, state: &State) -> Result<(), DriverError> {
        self.learn();
        if let Some(dirty) = schema::meta::<Vec<u8>>(&state.store, "dirty")? {
            self.windows.restore_dirty(&dirty);
        }
        let mut through: HashMap<Micros, HashMap<u32, u64>> = HashMap::new();
        let (windows, length_us) = (&mut self.windows, self.length_us);
        let last_seq = self.last_seq;
        let mut failed = None;
        recover::each_batch(&state.store, self.replay_from, |committed| {
            if committed.seq > last_seq {
                return false;
            }
            if through.len() > REPLAY_WINDOWS_MAX {
                through.clear();
            }
            let taken = windows.take(&committed, |(start_us, series)| {
                let seen = through
                    .entry(start_us)
                    .or_insert_with(|| read_through(&state.store, length_us, start_us).unwrap_or_default());
                seen.get(&series).is_none_or(|&seq| seq < committed.seq)
            });
            failed = taken.err();
            failed.is_none()
        })?;
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    fn take(&mut self, committed: &Committed) -> Result<(), DriverError> {
        self.learn();
        self.windows.take(committed, |_| true)?;
        Ok(())
    }

    fn close_due(&mut self, state: &mut State) -> Result<(), DriverError> {
        let now_us = self.clock.now_us();
        if !self.windows.is_due(now_us) {
            return Ok(());
        }
        let closed = self.windows.close(now_us)?;
        let rows = self.set_aside_summarised(state, closed)?;
        self.metrics.windows_closed.inc_by(rows.len() as u64);
        self.publish(rows);
        Ok(())
    }

    /// A window that was summarised before the start has more readings than are in memory.
    fn set_aside_summarised(&mut self, state: &State, closed: Vec<SummaryRow>) -> Result<Vec<SummaryRow>, DriverError> {
        let mut known: HashMap<Micros, HashMap<u32, u64>> = HashMap::new();
        let mut rows = Vec::with_capacity(closed.len());
        for row in closed {
            if row.start_us <= state.summarised_until_us {
                let seen = match known.entry(row.start_us) {
                    Entry::Occupied(seen) => seen.into_mut(),
                    Entry::Vacant(unknown) => unknown.insert(read_through(&state.store, self.length_us, row.start_us)?),
                };
                if seen.contains_key(&row.series) {
                    self.windows.mark_dirty((row.start_us, row.series));
                    continue;
                }
            }
            rows.push(row);
        }
        Ok(rows)
    }

    fn revise_dirty(&mut self, state: &mut State) {
        match state.from_reviser.try_recv() {
            Ok(revision) => self.revised(state, revision),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
        let late = self.windows.take_late();
        let now = Instant::now();
        if late > 0 {
            self.metrics.late.inc_by(late);
            state.late_at = now;
        }
        if !self.windows.has_dirty() || state.revising_since.is_some() || now < state.rest_until {
            return;
        }
        let dirty_since = *state.dirty_since.get_or_insert(now);
        if now - state.late_at < QUIET && now - dirty_since < PATIENCE {
            return;
        }
        state.dirty_since = None;
        let lot = self.windows.take_dirty(LOT, self.clock.now_us());
        if lot.is_empty() {
            return;
        }
        match state.to_reviser.try_send(lot) {
            Ok(()) => state.revising_since = Some(now),
            Err(TrySendError::Full(lot) | TrySendError::Disconnected(lot)) => self.windows.revised(lot),
        }
    }

    fn revised(&mut self, state: &mut State, revision: Revised) {
        // Passes over the raw readings take at most a tenth of the time, however late things come.
        let took = state.revising_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        state.rest_until = Instant::now() + took * 9;
        for (stretch, error) in &revision.failed {
            tracing::error!(
                series = stretch.series,
                "late readings could not be worked in, and will be tried again: {error}"
            );
        }
        if !revision.failed.is_empty() {
            state.rest_until = state.rest_until.max(Instant::now() + PATIENCE);
        }
        self.windows.revised(revision.failed.into_iter().map(|(stretch, _)| stretch));
        self.metrics.windows_revised.inc_by(revision.rows.len() as u64);
        self.publish(revision.rows);
    }

    fn publish(&mut self, rows: Vec<SummaryRow>) {
        if rows.is_empty() {
            return;
        }
        let rows = Arc::new(rows);
        self.live.publish(|| Event::Windows(Arc::clone(&rows)));
        self.write(Arc::unwrap_or_clone(rows));
    }

    fn write(&mut self, rows: Vec<SummaryRow>) {
        let (replay_from, dirty) = (self.windows.replay_from(), self.windows.dirty_blob(self.clock.now_us()));
        self.intake.push_chore(Chore::Summaries { rows, replay_from, dirty });
    }

    /// Without it a restart would read from where a window last closed.
    fn checkpoint(&mut self, state: &mut State) {
        let replay_from = self.windows.replay_from();
        if replay_from != state.told_from && state.told_at.elapsed() >= CHECKPOINT {
            (state.told_at, state.told_from) = (Instant::now(), replay_from);
            self.write(Vec::new());
        }
    }

    fn tell(&self) {
        let (open, dirty) = self.windows.counts();
        self.metrics.windows_open.set(open as i64);
        self.metrics.windows_dirty.set(dirty as i64);
        if let Ok(mut progress) = self.progress.write() {
            *progress = self.windows.progress();
        }
    }
}

/// Which series have a summary of this window, and up to which sequence.
fn read_through(store: &Connection, length_us: Micros, start_us: Micros) -> rusqlite::Result<HashMap<u32, u64>> {
    let mut query =
        store.prepare_cached("SELECT series, through_seq FROM summary WHERE length_us = ?1 AND start_us = ?2")?;
    let rows = query.query_map(params![length_us, start_us], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))?;
    rows.collect()
}
