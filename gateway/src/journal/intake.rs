//! What waits for the commit.
//!
//! Arrives: parcels, from any thread. Leaves: one load that holds all of them, in order of
//! arrival. Always holds: bounded in bytes; a parcel is taken whole or not at all; full means
//! the sender waits ([`Intake::push`]) and is woken when the writer has taken the load.

use super::{Chore, Inbound, Rejected, Step};
use crate::listen::Receipt;
use crate::listen::mqtt::retained::Publication;
use crate::readings::Readings;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What one pass over a socket brings.
#[derive(Debug, Default)]
pub(crate) struct Parcel {
    /// Readings to store.
    pub readings: Readings,
    /// Undecodable messages to keep.
    pub rejects: Vec<Rejected>,
    /// Messages to retain; those without payload remove.
    pub retain: Vec<Arc<Publication>>,
    /// QoS 2 identifiers to remember or forget.
    pub inbound: Vec<Inbound>,
    /// Who waits for the commit, at which desk.
    pub receipts: Vec<(usize, Receipt)>,
    /// Bytes of memory held by receipts (messages to pass on).
    pub carried: usize,
}

impl Parcel {
    /// True if there is nothing to store and nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.receipts.is_empty() && self.content_is_empty()
    }

    /// True if there is nothing to store.
    pub(crate) fn content_is_empty(&self) -> bool {
        self.readings.is_empty() && self.rejects.is_empty() && self.retain.is_empty() && self.inbound.is_empty()
    }

    fn bytes(&self) -> usize {
        let rejects: usize = self.rejects.iter().map(|r| r.payload.len() + r.source.len() + r.detail.len() + 128).sum();
        let retain = self.retain.len() * 64;
        self.readings.bytes() + rejects + retain + self.inbound.len() * 64 + self.receipts.len() * 64 + self.carried
    }

    fn append(&mut self, other: &mut Parcel) {
        self.readings.append(&mut other.readings);
        self.rejects.append(&mut other.rejects);
        self.retain.append(&mut other.retain);
        self.inbound.append(&mut other.inbound);
        self.receipts.append(&mut other.receipts);
        self.carried += std::mem::take(&mut other.carried);
    }
}

#[derive(Debug, Default)]
struct State {
    waiting: Parcel,
    bytes: usize,
    since: Option<Instant>,
    chores: Vec<Chore>,
    idle: bool,
    closed: bool,
}

/// The queue before the writer.
#[derive(Debug)]
pub(crate) struct Intake {
    state: Mutex<State>,
    work: Condvar,
    space: Notify,
    bytes_max: usize,
}

/// What the writer takes at once.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// All that waited.
    pub parcel: Parcel,
    /// Work for between two batches.
    pub chores: Vec<Chore>,
    /// The intake is closed and this is the last load.
    pub last: bool,
}

/// What became of a parcel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The intake is full; the parcel is as it was.
    No,
    /// It is on its way.
    Yes,
    /// It is on its way as soon as somebody calls [`Intake::wake`].
    WakeWriter,
}

/// The gateway is draining and takes nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the gateway is shutting down")]
pub(crate) struct Closed;

/// Why a step is not on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotDone {
    /// The gateway stops.
    #[error("the gateway is shutting down")]
    Stopped,
    /// The writer had no room for it.
    #[error("the disk is full")]
    Full,
}

/// Waits until a chore is on disk: returns its bytes.
pub(crate) fn wait(committed: &Receiver<u64>, stop: &CancellationToken) -> Result<u64, NotDone> {
    loop {
        match committed.recv_timeout(Duration::from_millis(500)) {
            Ok(bytes) => return Ok(bytes),
            Err(_) if stop.is_cancelled() => return Err(NotDone::Stopped),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(NotDone::Full),
        }
    }
}

impl Intake {
    /// An intake for at most `bytes_max` of what waits.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Intake { state: Mutex::default(), work: Condvar::new(), space: Notify::new(), bytes_max }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the parcel, which is then empty, or leaves it as it is because the intake is full.
    pub(crate) fn try_push(&self, parcel: &mut Parcel) -> Result<bool, Closed> {
        let taken = self.try_push_quietly(parcel)?;
        if taken == Taken::WakeWriter {
            self.wake();
        }
        Ok(taken != Taken::No)
    }

    /// The same, but the sender wakes the writer itself, once for several parcels.
    pub(crate) fn try_push_quietly(&self, parcel: &mut Parcel) -> Result<Taken, Closed> {
        let bytes = parcel.bytes();
        let mut state = self.state();
        if state.closed {
            return Err(Closed);
        }
        if state.bytes >= self.bytes_max {
            return Ok(Taken::No);
        }
        state.bytes += bytes;
        state.waiting.append(parcel);
        if state.since.is_none() {
            state.since = Some(Instant::now());
        }
        // A writer that waits for company needs no word of every guest.
        let wake = state.idle || state.bytes >= self.bytes_max;
        Ok(if wake { Taken::WakeWriter } else { Taken::Yes })
    }

    /// Wakes the writer.
    pub(crate) fn wake(&self) {
        self.state().idle = false;
        self.work.notify_one();
    }

    /// Waits until the parcel fits; until then it stays with its sender, who may stop waiting.
    pub(crate) async fn push(&self, parcel: &mut Parcel) -> Result<(), Closed> {
        if parcel.is_empty() {
            return Ok(());
        }
        loop {
            let space = self.space.notified();
            tokio::pin!(space);
            space.as_mut().enable();
            if self.try_push(parcel)? {
                return Ok(());
            }
            space.await;
        }
    }

    /// Hands the writer a step and waits until it is on disk: returns its bytes.
    pub(crate) fn commit(&self, step: Step, stop: &CancellationToken) -> Result<u64, NotDone> {
        let (done, committed) = channel();
        self.push_chore(Chore { step, done: Some(done) });
        wait(&committed, stop)
    }

    /// Chores that the writer has not taken yet.
    pub(crate) fn chores(&self) -> usize {
        self.state().chores.len()
    }

    /// Hands the writer a chore; never waits. Whoever does has at most one under way, but for the windows' thread, which
    /// closes no windows while [`Intake::chores`] are many.
    pub(crate) fn push_chore(&self, chore: Chore) {
        let mut state = self.state();
        state.chores.push(chore);
        state.idle = false;
        drop(state);
        self.work.notify_one();
    }

    /// Takes nothing more; the writer commits what waits and then stops.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.idle = false;
        drop(state);
        self.work.notify_one();
        self.space.notify_waiters();
    }

    /// Waits for work, then until its oldest parcel is `delay` old, and takes all there is.
    /// `spare` is an empty load whose capacity is used again.
    pub(crate) fn take(&self, delay: Duration, mut spare: Parcel) -> Load {
        let mut state = self.state();
        loop {
            let ready = match state.since {
                _ if state.closed || state.bytes >= self.bytes_max => true,
                Some(since) => delay.is_zero() || since.elapsed() >= delay,
                None => !state.chores.is_empty(),
            };
            if ready {
                break;
            }
            state.idle = state.since.is_none();
            let patience = state.since.map(|since| delay.saturating_sub(since.elapsed()));
            state = match patience {
                Some(patience) => self.work.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0,
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        std::mem::swap(&mut state.waiting, &mut spare);
        state.bytes = 0;
        state.since = None;
        state.idle = false;
        let load = Load { parcel: spare, chores: std::mem::take(&mut state.chores), last: state.closed };
        drop(state);
        self.space.notify_waiters();
        load
    }

    /// Bytes waiting, for the metrics.
    pub(crate) fn depth(&self) -> usize {
        self.state().bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel(rows: u32) -> Parcel {
        let mut parcel = Parcel::default();
        (0..rows).for_each(|i| parcel.readings.push_number(i, 0, 0.0, 0));
        parcel
    }

    #[test]
    fn a_full_intake_leaves_the_parcel_with_its_sender() {
        let intake = Intake::new(100);
        assert_eq!(intake.try_push(&mut parcel(10)), Ok(true));
        let mut late = parcel(1);
        assert_eq!(intake.try_push(&mut late), Ok(false));
        assert_eq!(late.readings.len(), 1);
        assert_eq!(intake.take(Duration::ZERO, Parcel::default()).parcel.readings.len(), 10);
        assert_eq!(intake.try_push(&mut late), Ok(true));
        assert!(late.is_empty());
    }

    #[test]
    fn a_closed_intake_gives_up_what_it_holds_and_takes_no_more() {
        let intake = Intake::new(100);
        assert_eq!(intake.try_push(&mut parcel(3)), Ok(true));
        intake.close();
        assert_eq!(intake.try_push(&mut parcel(1)), Err(Closed));
        let load = intake.take(Duration::from_secs(60), Parcel::default());
        assert!(load.last);
        assert_eq!(load.parcel.readings.len(), 3);
    }

    #[tokio::test]
    async fn a_waiting_sender_is_woken_by_the_writer() {
        let intake = std::sync::Arc::new(Intake::new(10));
        assert_eq!(intake.try_push(&mut parcel(1)), Ok(true));
        let sender = tokio::spawn({
            let intake = std::sync::Arc::clone(&intake);
            async move { intake.push(&mut parcel(2)).await }
        });
        while intake.take(Duration::ZERO, Parcel::default()).parcel.readings.len() != 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(sender.await.unwrap(), Ok(()));
    }
}
