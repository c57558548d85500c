//! The thread around the windows: channels, clock, store.
//!
//! Arrives: committed readings, in order of commit. Leaves: summaries as chores for the
//! journal's writer, events for live listeners, progress for answers. Always holds: it never
//! waits for the writer while the writer may be waiting for it; after a restart the readings
//! that open windows still need are taken first, and those already summarised are skipped.

use super::revise::{Job, Revised, Reviser, Stretch};
use super::{OLD_AFTER_US, Progress, Windows};
use crate::archive::levels::Levels;
use crate::archive::{DAY_US, day};
use crate::catalog::Catalog;
use crate::clock::{Clock, Steady};
use crate::journal::{Chore, Committed, Intake, Step, SummaryRow, handover, recover, schema};
use crate::live::{Event, Live};
use crate::metrics::Metrics;
use model::Micros;
use model::time::SECOND_US;
use polars::prelude::PolarsError;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const TICK: Duration = Duration::from_millis(200);
/// Late readings come in swarms: wait until one has passed, but not for ever.
const QUIET: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(5);
/// Each pass over old days writes them anew: wait longer, but no longer than `archive.delay`.
const OLD_QUIET: Duration = Duration::from_secs(5);
const OLD_PATIENCE: Duration = Duration::from_secs(600);
/// Windows computed again in one pass over the raw readings.
const LOT: usize = 20_000;
/// The same for old days.
const OLD_LOT: usize = 2_000;
/// Passes over the raw readings take at most a tenth of the time, as long as each is short.
const REST_MAX: Duration = Duration::from_secs(60);
/// Chores that may wait for the writer before windows stay open for longer.
const CHORES_MAX: usize = 32;
/// How often a restart's beginning is written, though no window has closed.
const CHECKPOINT: Duration = Duration::from_secs(5);
/// How often to look whether a day is to be folded.
const SETTLE: Duration = Duration::from_secs(10);

/// How long windows that have lost readings may take; they are dirty until then, and longer.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// Windows whose summaries a replay remembers at once.
const REPLAY_WINDOWS_MAX: usize = 64;

/// How far each device's windows have got, by device.
pub(crate) type SharedProgress = Arc<RwLock<Vec<Progress>>>;

/// All that the thread needs, handed over by the app.
pub(crate) struct Driver {
    /// The windows, empty.
    pub windows: Windows,
    /// `window.memory`.
    pub memory_bytes: usize,
    /// `archive.delay`.
    pub delay: Duration,
    /// How often to look whether a window is due, see [`look_every`].
    pub look_every: Duration,
    /// `window.length` and where summaries are folded.
    pub levels: Levels,
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
    /// The time that makes days old.
    pub steady: Steady,
    /// Listeners to `/v1/live`.
    pub live: Arc<Live>,
    /// Where progress is told.
    pub progress: SharedProgress,
    /// The store's file.
    pub store: PathBuf,
    /// Windows that have lost readings.
    pub disturbed: Receiver<Disturbed>,
    /// Where a restart begins to read.
    pub replay_from: u64,
    /// The last commit before the start.
    pub last_seq: u64,
    /// The gateway stops.
    pub stop: CancellationToken,
}

/// How often to look whether a window is due: whoever lets commits wait so that little is
/// written does not want two pages more in each of them.
pub(crate) fn look_every(commit_delay: Duration) -> Duration {
    TICK.max((commit_delay * 5).min(Duration::from_secs(30)))
}

/// Windows that have lost readings to others, because those were received at another time.
#[derive(Debug)]
pub(crate) struct Disturbed {
    /// Which, whole windows.
    pub stretches: Vec<Stretch>,
    /// Who is told when they are on disk as dirty, and when they have been computed or time is up.
    pub done: Sender<()>,
}

/// Why the thread cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    /// The store cannot be read.
    #[error("the store cannot be read: {0}")]
    Store(#[from] rusqlite::Error),
    /// Polars refused.
    #[error("aggregation failed: {0}")]
    Frame(#[from] PolarsError),
    /// The thread that computes windows again is gone.
    #[error("the revise thread panicked; see the log")]
    Reviser,
}

struct State {
    store: Connection,
    /// No summary of before the start is later than this.
    summarised_until_us: Micros,
    /// No day that was folded before the start ends later than this.
    folded_until_us: Micros,
    to_reviser: SyncSender<Job>,
    from_reviser: Receiver<Revised>,
    revising_since: Option<Instant>,
    late: Swarm,
    old: Swarm,
    rest_until: Instant,
    settle_at: Instant,
    told_at: Instant,
    told_from: u64,
    settling: Option<(Instant, Sender<()>)>,
}

/// Windows to compute again, and a day to fold with them.
type Lot = (Vec<Stretch>, Option<i64>);

/// Readings that come too late, as long as they keep coming.
struct Swarm {
    since: Option<Instant>,
    last: Instant,
    quiet: Duration,
    patience: Duration,
}

impl Swarm {
    fn new(quiet: Duration, patience: Duration) -> Self {
        Swarm { since: None, last: Instant::now(), quiet: quiet.min(patience), patience }
    }

    /// True if it is time to look at what has come.
    fn has_passed(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        now - self.last >= self.quiet || now - since >= self.patience
    }
}

impl Driver {
    /// Runs until the writer is gone and everything it committed has been taken.
    pub(crate) fn run(mut self) -> Result<(), DriverError> {
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
            // Nor need it while the writer waits for its disk: windows stay open until it has taken what is closed.
            if looked_at.elapsed() >= self.look_every && self.intake.chores() < CHORES_MAX {
                looked_at = Instant::now();
                self.age();
                self.close_due(&mut state)?;
                self.take_disturbed(&mut state);
                self.revise_dirty(&mut state)?;
                self.checkpoint(&mut state);
                self.tell();
            }
        }
    }

    fn start(&self) -> Result<State, DriverError> {
        let store = schema::open_reader(&self.store)?;
        let latest: Option<i64> = store.query_row(
            "SELECT max(start_us) FROM summary WHERE length_us = ?1",
            [self.levels.base.length_us],
            |row| row.get(0),
        )?;
        let folded_until_us = self.levels.base.folded_until_us(&store)?.unwrap_or(Micros::MIN);
        let (to_reviser, jobs) = sync_channel::<Job>(1);
        let (results, from_reviser) = sync_channel::<Revised>(1);
        let reviser = Reviser {
            db: schema::open_reader(&self.store)?,
            levels: self.levels.clone(),
            intake: Arc::clone(&self.intake),
            live: Arc::clone(&self.live),
            clock: self.clock.clone(),
            rows_max: self.memory_bytes / super::cut::Cuts::ROW_BYTES,
            stop: self.stop.clone(),
        };
        std::thread::Builder::new()
            .name("revise".into())
            .spawn(move || {
                while let Ok(job) = jobs.recv() {
                    if results.send(reviser.work(&job)).is_err() {
                        return;
                    }
                }
            })
            .expect("a thread can be started");
        let now = Instant::now();
        Ok(State {
            store,
            summarised_until_us: latest.unwrap_or(Micros::MIN),
            folded_until_us,
            to_reviser,
            from_reviser,
            revising_since: None,
            late: Swarm::new(QUIET, PATIENCE),
            old: Swarm::new(OLD_QUIET, self.delay.min(OLD_PATIENCE)),
            rest_until: now,
            settle_at: now,
            told_at: now,
            told_from: self.replay_from,
            settling: None,
        })
    }

    fn age(&mut self) {
        let now_us = self.steady.now_us(&self.clock, Instant::now());
        self.windows.set_old_until(day(now_us - OLD_AFTER_US) * DAY_US);
    }

    fn learn(&mut self) {
        let known = self.windows.known() as u32;
        if self.catalog.ids() > known {
            self.windows.learn(self.catalog.devices_of_series(known));
        }
    }

    /// Takes the readings that open windows needed when the gateway stopped, but for those
    /// that a summary has seen.
    fn replay(&mut self, state: &State) -> Result<(), DriverError> {
        self.learn();
        self.age();
        if let Some(dirty) = schema::meta::<Vec<u8>>(&state.store, "dirty")? {
            self.windows.restore_dirty(&dirty);
        }
        let mut through: HashMap<Micros, HashMap<u32, u64>> = HashMap::new();
        let (length_us, last_seq) = (self.levels.base.length_us, self.last_seq);
        let old_until_us = self.windows.old_until_us();
        let windows = &mut self.windows;
        let mut failed = None;
        recover::each_batch(&state.store, self.replay_from, |committed| {
            if committed.seq > last_seq {
                return false;
            }
            if through.len() > REPLAY_WINDOWS_MAX {
                through.clear();
            }
            let taken = windows.take(&committed, |(start_us, series)| {
                if start_us < old_until_us {
                    // Looked at again: nobody knows whether the window was still open.
                    return true;
                }
                let seen = through
                    .entry(start_us)
                    .or_insert_with(|| read_through(&state.store, length_us, start_us).unwrap_or_default());
                seen.get(&series).is_none_or(|&seq| seq < committed.seq)
            });
            failed = taken.err();
            failed.is_none()
        })?;
        self.windows.begin_behind(last_seq);
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
                    Entry::Vacant(unknown) => {
                        unknown.insert(read_through(&state.store, self.levels.base.length_us, row.start_us)?)
                    }
                };
                if seen.contains_key(&row.series) {
                    self.windows.mark_dirty((row.start_us, row.series));
                    continue;
                }
            }
            // The clock may have been ahead once, so that days that are not over were folded.
            if row.start_us < state.folded_until_us
                && self.levels.base.has(&state.store, day(row.start_us), row.series)?
            {
                self.windows.mark_dirty((row.start_us, row.series));
                continue;
            }
            rows.push(row);
        }
        Ok(rows)
    }

    /// Windows that have lost readings are dirty. Whoever says so waits until that is settled.
    fn take_disturbed(&mut self, state: &mut State) {
        if let Ok(Disturbed { stretches, done }) = self.disturbed.try_recv() {
            self.windows.disturb(stretches);
            self.write(Vec::new());
            state.settling = Some((Instant::now(), done));
            return;
        }
        let (recent, _) = self.windows.dirty_counts();
        let is_settled = recent == 0 && state.revising_since.is_none();
        if let Some((_, done)) = state.settling.take_if(|(since, _)| is_settled || since.elapsed() >= SETTLED_WITHIN) {
            let _ = done.send(());
        }
    }

    fn revise_dirty(&mut self, state: &mut State) -> Result<(), DriverError> {
        match state.from_reviser.try_recv() {
            Ok(revised) => self.revised(state, revised),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Err(DriverError::Reviser),
        }
        let now = Instant::now();
        let (late, old) = self.windows.take_late();
        self.metrics.late.inc_by(late + old);
        state.late.last = if late > 0 { now } else { state.late.last };
        state.old.last = if old > 0 { now } else { state.old.last };
        if state.revising_since.is_some() || now < state.rest_until {
            return Ok(());
        }
        let Some((stretches, settle)) = self.next_lot(state, now)? else { return Ok(()) };
        // What the reviser reads must hold all that has been written about these windows.
        let (done, after) = channel();
        self.intake.push_chore(Chore { step: Step::Barrier, done: Some(done) });
        let job = Job { stretches, old_until_us: self.windows.old_until_us(), settle, after };
        state.to_reviser.try_send(job).map_err(|_| DriverError::Reviser)?;
        state.revising_since = Some(now);
        Ok(())
    }

    fn next_lot(&mut self, state: &mut State, now: Instant) -> Result<Option<Lot>, DriverError> {
        let (recent, old) = self.windows.dirty_counts();
        if recent > 0 && state.late.has_passed(now) {
            state.late.since = None;
            let lot = self.windows.take_dirty(LOT, self.clock.now_us());
            if !lot.is_empty() {
                return Ok(Some((lot, None)));
            }
        }
        if old <= OLD_LOT && now >= state.settle_at && self.windows.old_days_are_known() {
            state.settle_at = now + SETTLE;
            if let Some(day) = self.day_to_settle(state)? {
                state.old.since = None;
                return Ok(Some((self.windows.take_old(OLD_LOT), Some(day))));
            }
        }
        if old > 0 && state.old.has_passed(now) {
            state.old.since = None;
            return Ok(Some((self.windows.take_old(OLD_LOT), None)));
        }
        Ok(None)
    }

    /// The first old day whose summaries are rows still.
    fn day_to_settle(&self, state: &State) -> Result<Option<i64>, DriverError> {
        let old_until_us = self.windows.old_until_us();
        let first = "SELECT start_us FROM summary WHERE length_us = ?1 AND start_us < ?2 ORDER BY start_us LIMIT 1";
        let mut first = state.store.prepare_cached(first)?;
        let mut first = |length_us: Micros, until_us: Micros| {
            first.query_row([length_us, until_us], |row| row.get::<_, Micros>(0)).optional()
        };
        if let Some(start_us) = first(self.levels.base.length_us, old_until_us)? {
            return Ok(Some(day(start_us)));
        }
        for level in &self.levels.former {
            // Rows of another length go with those of any day.
            if first(level.length_us, Micros::MAX)?.is_some() {
                return Ok(Some(day(old_until_us) - 1));
            }
        }
        Ok(None)
    }

    fn revised(&mut self, state: &mut State, revised: Revised) {
        let took = state.revising_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        state.rest_until = Instant::now() + (took * 9).min(REST_MAX);
        for (stretch, error) in &revised.failed {
            tracing::error!(
                series = stretch.series,
                "late readings could not be worked in, and will be tried again: {error}"
            );
        }
        if let Some(error) = &revised.unsettled {
            tracing::error!("summaries of a day could not be folded, and will be tried again: {error}");
            state.settle_at = Instant::now() + REST_MAX;
        }
        if !revised.failed.is_empty() {
            state.rest_until = state.rest_until.max(Instant::now() + PATIENCE);
        }
        self.windows.revised(revised.failed.into_iter().map(|(stretch, _)| stretch));
        self.metrics.sealed_late.inc_by(revised.sealed);
        self.metrics.windows_revised.inc_by(revised.windows);
        self.write(Vec::new());
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
        let (replay_from, through_seq) = (self.windows.replay_from(), self.windows.through_seq());
        let dirty = self.windows.dirty_blob(self.clock.now_us());
        self.intake.push_chore(Chore { step: Step::Windows { rows, replay_from, through_seq, dirty }, done: None });
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
