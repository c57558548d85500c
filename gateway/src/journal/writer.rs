//! The one thread that writes.
//!
//! Natural group commit: it takes whatever queued while the last fsync ran, writes it in one
//! transaction, and only then lets receipts go. Always holds: a receipt leaves after the
//! fsync of its commit; a full disk holds everything back and nothing is lost; any other
//! failed write is fatal, because after a failed fsync nobody knows what is on disk. The log
//! is folded back by another thread; this one only does the small rest.

use super::batch;
use super::changes::Recorder;
use super::handover;
use super::intake::{Intake, Load, Parcel};
use super::pace::Pace;
use super::recover;
use super::removal;
use super::schema::{self, Store};
use super::steps::write_step;
use super::{Cause, Chore, Committed, Inbound, Rejected, Step};
use crate::catalog::{Birth, Catalog};
use crate::clock::Clock;
use crate::listen::Desk;
use crate::listen::mqtt::retained::{Publication, Retained};
use crate::metrics::{Metrics, Usage};
use rusqlite::{Connection, ErrorCode, params};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// The state that a restart needs is written anew at least so often.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(300);
/// It is also written anew after so many readings, so that a restart reads no more than that.
const SNAPSHOT_EVERY_READINGS: u64 = 500_000;
/// How long to wait before a full disk is tried again.
const FULL_DISK_PAUSE: Duration = Duration::from_millis(500);
/// What a commit adds to the log besides its batch, roughly: a few pages and their headers.
const COMMIT_OVERHEAD_BYTES: u64 = 12 << 10;

/// All that the writer needs, handed over by the app.
pub(crate) struct Writer {
    /// The store, which nobody else writes.
    pub store: Store,
    /// The last commit in it.
    pub last_seq: u64,
    /// The queue before it.
    pub intake: Arc<Intake>,
    /// Who is there.
    pub catalog: Arc<Catalog>,
    /// Retained messages, which learn of every commit.
    pub retained: Arc<Retained>,
    /// Where receipts go, by desk.
    pub desks: Vec<Arc<Desk>>,
    /// Where committed readings go.
    pub committed: handover::Sender,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Receive times.
    pub clock: Clock,
    /// `journal.commit_delay`, or longer for `storage.max_written_per_day`.
    pub pace: Pace,
    /// `journal.wal`, bytes.
    pub wal_max: u64,
    /// `limits.rejects`.
    pub rejects_max: usize,
    /// For the uplink, if there is one.
    pub recorder: Option<Recorder>,
    /// Slows every commit; only tests set it.
    pub slow: Duration,
}

/// Why the writer stopped before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// SQLite could not write; what is on disk is not known.
    #[error(
        "the store cannot be written: {0}; nothing more is acknowledged. Check the disk and its filesystem, then start again"
    )]
    Store(#[from] rusqlite::Error),
    /// Nobody moves the log into the file.
    #[error("the checkpoint thread has ended; see the log")]
    Checkpoint,
}

struct State {
    checkpoints: Checkpoints,
    log_bytes: u64,
    snapshot_at: Instant,
    snapshot_seq: u64,
    since_snapshot: u64,
}

impl Writer {
    /// Writes until the intake is closed and empty.
    pub(crate) fn run(mut self) -> Result<(), WriteError> {
        let mut state = State {
            checkpoints: Checkpoints::start(&self.store.path)?,
            log_bytes: 0,
            snapshot_at: Instant::now(),
            snapshot_seq: self.last_seq,
            since_snapshot: 0,
        };
        let mut spare = Parcel::default();
        loop {
            let load = self.intake.take(self.pace.delay(), spare);
            let last = load.last;
            spare = self.process(load, &mut state)?;
            if last {
                return match self.write_snapshot().and_then(|()| self.empty_the_log()) {
                    // Without a snapshot the next start reads more; what the log holds is whole.
                    Err(e) if is_full(&e) => Ok(()),
                    other => Ok(other?),
                };
            }
        }
    }

    fn process(&mut self, mut load: Load, state: &mut State) -> Result<Parcel, WriteError> {
        let received_us = self.clock.now_us();
        if let Some(trust) = self.clock.trust() {
            trust.correct(&mut load.parcel.readings);
        }
        let mut moved = bring_in(&mut load);
        if !load.parcel.retain.is_empty() {
            self.retained.fit(&mut load.parcel.retain);
        }
        let has_content = !load.parcel.content_is_empty() || !load.chores.is_empty() || self.catalog.has_births();
        if has_content {
            let started = Instant::now();
            self.commit_patiently(&mut load, &mut moved, received_us, state)?;
            self.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
            self.metrics.commits.inc();
        }
        let readings = std::mem::take(&mut load.parcel.readings);
        if !readings.is_empty() {
            self.last_seq += 1;
            self.catalog.note(&readings, received_us);
            self.metrics.readings.inc_by((readings.len() - moved) as u64);
            state.since_snapshot += readings.len() as u64;
        }
        load.parcel.retain.iter().for_each(|publication| self.retained.apply(publication));
        self.hand_out(&mut load.parcel);
        if !readings.is_empty() {
            let committed = Committed { seq: self.last_seq, received_us, readings: Arc::new(readings) };
            self.committed.send(committed);
        }
        self.fold_log_back(state)?;
        self.keep_pace();
        let mut spare = load.parcel;
        spare.rejects.clear();
        spare.retain.clear();
        spare.inbound.clear();
        spare.carried = 0;
        Ok(spare)
    }

    /// Looks whether too much is written.
    fn keep_pace(&mut self) {
        let now = Instant::now();
        if self.pace.is_due(now) {
            self.pace.note(now, Usage::now().written_bytes);
            self.metrics.commit_delay_s.set(self.pace.delay().as_secs_f64());
            self.metrics.written_per_day.set(self.pace.bytes_per_day().unwrap_or_default() as i64);
        }
    }

    fn hand_out(&self, parcel: &mut Parcel) {
        let mut piles: Vec<Vec<_>> = self.desks.iter().map(|desk| desk.spare()).collect();
        for (desk, receipt) in parcel.receipts.drain(..) {
            piles[desk].push(receipt);
        }
        for (desk, pile) in self.desks.iter().zip(piles) {
            desk.deliver(pile);
        }
    }

    /// Commits; on a full disk waits for space and tries again.
    fn commit_patiently(
        &mut self,
        load: &mut Load,
        moved: &mut usize,
        received_us: i64,
        state: &mut State,
    ) -> Result<(), WriteError> {
        let births = self.catalog.take_births();
        loop {
            let many = SNAPSHOT_EVERY_READINGS.max(self.catalog.counts().1 as u64 * 10);
            let snapshot_due = state.snapshot_seq < self.last_seq
                && (state.snapshot_at.elapsed() >= SNAPSHOT_EVERY || state.since_snapshot >= many);
            match self.commit(load, &births, received_us, snapshot_due) {
                Ok(bytes) => {
                    self.metrics.disk_full.set(0);
                    state.log_bytes += bytes + COMMIT_OVERHEAD_BYTES;
                    if snapshot_due {
                        (state.snapshot_at, state.snapshot_seq) = (Instant::now(), self.last_seq);
                        state.since_snapshot = 0;
                    }
                    for done in load.chores.drain(..).filter_map(|chore| chore.done) {
                        // Who does not wait any more is started anew with the gateway.
                        let _ = done.send(bytes);
                    }
                    return Ok(());
                }
                Err(e) if is_full(&e) => {
                    if self.metrics.disk_full.set(1) == 0 {
                        tracing::error!("the disk is full: nothing is acknowledged until there is space");
                    }
                    if !self.store.connection.is_autocommit() {
                        self.store.connection.execute_batch("ROLLBACK")?;
                    }
                    // Readings first: the others are told that their steps failed, and try later.
                    load.chores.retain(|chore| matches!(chore.step, Step::Windows { .. }));
                    let own = load.parcel.readings.len() - std::mem::take(moved);
                    load.parcel.readings.truncate(own);
                    std::thread::sleep(FULL_DISK_PAUSE);
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn commit(&mut self, load: &Load, births: &[Birth], received_us: i64, snapshot: bool) -> rusqlite::Result<u64> {
        let db = &self.store.connection;
        let mut bytes = 0;
        db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let last_seq = self.last_seq + u64::from(!load.parcel.readings.is_empty());
        write_births(db, births, last_seq, received_us)?;
        if let Some(recorder) = &mut self.recorder {
            recorder.begin();
            bytes += self.metrics.written(Cause::Uplink, recorder.births(db, births, received_us)?);
        }
        if snapshot {
            bytes += self.metrics.written(Cause::Snapshot, recover::write_snapshot(db, &self.catalog, self.last_seq)?);
        }
        let readings = &load.parcel.readings;
        if !readings.is_empty() {
            let body = batch::encode(readings);
            let (first, last) = readings.span();
            let row = params![self.last_seq as i64 + 1, received_us, readings.len() as i64, first, last, body];
            db.prepare_cached("INSERT INTO batch VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(row)?;
            bytes += self.metrics.written(Cause::Journal, body.len() as u64);
        }
        let rejects = write_rejects(db, &load.parcel.rejects, self.rejects_max)?;
        bytes += self.metrics.written(Cause::Messages, rejects + write_retained(db, &load.parcel.retain)?);
        write_inbound(db, &load.parcel.inbound)?;
        for Chore { step, .. } in &load.chores {
            let written = match step {
                Step::Snapshot => recover::write_snapshot(db, &self.catalog, self.last_seq)?,
                step => write_step(db, step)?,
            };
            bytes += self.metrics.written(step.cause(), written);
            if let Some(recorder) = &mut self.recorder {
                bytes += self.metrics.written(Cause::Uplink, recorder.record(db, step, received_us)?);
            }
        }
        if !self.slow.is_zero() {
            std::thread::sleep(self.slow);
        }
        db.prepare_cached("COMMIT")?.execute([])?;
        if let Some(recorder) = &self.recorder {
            recorder.committed();
        }
        Ok(bytes)
    }

    fn write_snapshot(&self) -> rusqlite::Result<()> {
        let db = &self.store.connection;
        db.execute_batch("BEGIN IMMEDIATE")?;
        recover::write_snapshot(db, &self.catalog, self.last_seq)?;
        db.execute_batch("COMMIT")
    }

    /// At the end everything is in one file, if nobody reads just now.
    fn empty_the_log(&self) -> rusqlite::Result<()> {
        self.store.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    }

    /// When the log is long, another thread moves most of it into the file; then this one
    /// moves the rest, after which SQLite starts the log from its beginning.
    fn fold_log_back(&self, state: &mut State) -> Result<(), WriteError> {
        if state.checkpoints.take_done() {
            let db = &self.store.connection;
            let row = |row: &rusqlite::Row<'_>| Ok::<(i64, i64), rusqlite::Error>((row.get(1)?, row.get(2)?));
            match db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], row) {
                Ok((log, done)) => {
                    let left = log - done;
                    state.log_bytes = left.max(0) as u64 * 4096;
                }
                // The log holds all that the file has no room for; it is folded back later.
                Err(e) if is_full(&e) => tracing::warn!("the log cannot be folded back: the disk is full"),
                Err(e) => return Err(e.into()),
            }
        } else if state.log_bytes >= self.wal_max && !state.checkpoints.ask() {
            return Err(WriteError::Checkpoint);
        }
        Ok(())
    }
}

/// Readings that get other times come in again with what has come now, behind it.
fn bring_in(load: &mut Load) -> usize {
    let before = load.parcel.readings.len();
    for chore in &mut load.chores {
        if let Step::Move(moved) = &mut chore.step {
            load.parcel.readings.append(&mut moved.readings);
        }
    }
    load.parcel.readings.len() - before
}

fn is_full(e: &rusqlite::Error) -> bool {
    e.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

/// The thread that moves pages from the log into the file, off the commit path.
struct Checkpoints {
    ask: SyncSender<()>,
    done: Arc<AtomicBool>,
    asked: bool,
}

impl Checkpoints {
    fn start(path: &Path) -> rusqlite::Result<Self> {
        let connection = schema::open_checkpointer(path)?;
        let (ask, asked) = sync_channel(1);
        let done = Arc::new(AtomicBool::new(false));
        let thread_done = Arc::clone(&done);
        std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || serve_checkpoints(&connection, &asked, &thread_done))
            .expect("a thread can be started");
        Ok(Checkpoints { ask, done, asked: false })
    }

    /// False if the thread is gone, so that the log would grow for ever.
    fn ask(&mut self) -> bool {
        if self.asked {
            return true;
        }
        match self.ask.try_send(()) {
            Ok(()) => self.asked = true,
            Err(TrySendError::Full(())) => {}
            Err(TrySendError::Disconnected(())) => return false,
        }
        true
    }

    fn take_done(&mut self) -> bool {
        let done = self.done.swap(false, Ordering::AcqRel);
        self.asked &= !done;
        done
    }
}

fn serve_checkpoints(connection: &Connection, asked: &Receiver<()>, done: &AtomicBool) {
    while asked.recv().is_ok() {
        if let Err(e) = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
            tracing::warn!("the log could not be folded back yet: {e}");
        }
        done.store(true, Ordering::Release);
    }
}

pub(super) fn write_births(db: &Connection, births: &[Birth], seq: u64, now_us: i64) -> rusqlite::Result<()> {
    for birth in births {
        match birth {
            Birth::Device(device) => db
                .prepare_cached("INSERT OR IGNORE INTO device (id, name, created_us, era) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![device.id, &*device.name, now_us, device.era()])?,
            Birth::Series(series) => db
                .prepare_cached("INSERT OR IGNORE INTO series VALUES (?1, ?2, ?3, NULL)")?
                .execute(params![series.id, series.device.id, &*series.metric])?,
            Birth::Unit(series) => db
                .prepare_cached("UPDATE series SET unit = ?2 WHERE id = ?1")?
                .execute(params![series.id, series.unit().as_deref()])?,
            Birth::Labels(device) => {
                db.prepare_cached("DELETE FROM label WHERE device = ?1")?.execute([device.id])?;
                let mut insert = db.prepare_cached("INSERT INTO label VALUES (?1, ?2, ?3)")?;
                device
                    .labels()
                    .iter()
                    .try_for_each(|(name, value)| insert.execute(params![device.id, &**name, &**value]).map(drop))?;
                0
            }
            Birth::Removed(removed) => {
                removal::write(db, removed, seq, now_us)?;
                0
            }
        };
    }
    Ok(())
}

fn write_rejects(db: &Connection, rejects: &[Rejected], keep: usize) -> rusqlite::Result<u64> {
    let mut bytes = 0;
    for reject in rejects {
        bytes += reject.payload.len() as u64 + 256;
        db.prepare_cached("INSERT INTO reject VALUES (NULL, ?1, ?2, ?3, ?4, ?5)")?.execute(params![
            reject.received_us,
            reject.source,
            reject.reason,
            reject.detail,
            &*reject.payload
        ])?;
    }
    if !rejects.is_empty() {
        let newest: i64 = db.last_insert_rowid();
        db.prepare_cached("DELETE FROM reject WHERE id <= ?1")?.execute([newest - keep as i64])?;
    }
    Ok(bytes)
}

fn write_retained(db: &Connection, retained: &[Arc<Publication>]) -> rusqlite::Result<u64> {
    let mut bytes = 0;
    for publication in retained {
        let topic = &*publication.topic;
        if publication.payload.is_empty() {
            db.prepare_cached("DELETE FROM retained WHERE topic = ?1")?.execute([topic])?;
            continue;
        }
        bytes += publication.bytes() as u64;
        db.prepare_cached("INSERT OR REPLACE INTO retained VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
            topic,
            publication.qos,
            &publication.properties[..],
            &publication.payload[..],
            publication.expires_us
        ])?;
    }
    Ok(bytes)
}

fn write_inbound(db: &Connection, inbound: &[Inbound]) -> rusqlite::Result<()> {
    for change in inbound {
        match change {
            Inbound::Stored { client, pkid, hash } => db
                .prepare_cached("INSERT OR REPLACE INTO inbound VALUES (?1, ?2, ?3)")?
                .execute(params![&**client, pkid, *hash as i64])?,
            Inbound::Released { client, pkid } => db
                .prepare_cached("DELETE FROM inbound WHERE client = ?1 AND pkid = ?2")?
                .execute(params![&**client, pkid])?,
            Inbound::Forgotten { client } => {
                db.prepare_cached("DELETE FROM inbound WHERE client = ?1")?.execute([&**client])?
            }
        };
    }
    Ok(())
}
