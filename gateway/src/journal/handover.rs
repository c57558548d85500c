//! From the writer to the windows.
//!
//! Arrives: commits, in order. Leaves: several at once, a few times a second. Always holds:
//! bounded in bytes: full means that the writer waits; the receiver is not woken for each of
//! thousands of small commits, because waking a thread costs more than a small commit's rows.

use super::Committed;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What may wait before the receiver is woken early, and before the writer waits.
const PLENTY_BYTES: usize = 256 << 10;
const FULL_BYTES: usize = 8 << 20;
/// How long commits are gathered.
const GATHER: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Committed>,
    bytes: usize,
    /// The receiver waits for anything at all.
    idle: bool,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
    space: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer's end; dropping it tells the receiver that nothing more comes.
#[derive(Debug)]
pub(crate) struct Sender(Arc<Shared>);

/// The windows' end; dropping it lets the writer go on without anybody listening.
#[derive(Debug)]
pub(crate) struct Receiver(Arc<Shared>);

/// What came while the receiver waited.
#[derive(Debug)]
pub(crate) struct Arrived {
    /// In order of commit.
    pub commits: Vec<Committed>,
    /// Nothing more comes.
    pub last: bool,
}

/// Both ends.
pub(crate) fn handover() -> (Sender, Receiver) {
    let shared = Arc::new(Shared::default());
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl Sender {
    /// Hands a commit over; waits if too much is waiting.
    pub(crate) fn send(&self, committed: Committed) {
        let mut state = self.0.state();
        while state.bytes >= FULL_BYTES && !state.closed {
            state = self.0.space.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return;
        }
        let before = state.bytes;
        state.bytes += committed.readings.bytes();
        let plenty = before < PLENTY_BYTES && state.bytes >= PLENTY_BYTES;
        state.waiting.push_back(committed);
        let wake = std::mem::take(&mut state.idle) || plenty;
        drop(state);
        if wake {
            self.0.arrived.notify_one();
        }
    }
}

impl Receiver {
    /// Waits up to `patience` for commits, gathers for a moment, and takes all there are.
    pub(crate) fn take(&self, patience: Duration) -> Arrived {
        let mut state = self.0.state();
        if state.waiting.is_empty() && !state.closed {
            state.idle = true;
            state = self.wait(state, patience, |state| state.waiting.is_empty());
        }
        if !state.waiting.is_empty() {
            state = self.wait(state, GATHER, |state| state.bytes < PLENTY_BYTES);
        }
        state.idle = false;
        state.bytes = 0;
        let arrived = Arrived { commits: state.waiting.drain(..).collect(), last: state.closed };
        drop(state);
        self.0.space.notify_one();
        arrived
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        patience: Duration,
        too_little: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        let waited = self.0.arrived.wait_timeout_while(state, patience, |state| too_little(state) && !state.closed);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.arrived.notify_one();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.space.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readings::Readings;

    fn committed(seq: u64, rows: u32) -> Committed {
        let mut readings = Readings::default();
        (0..rows).for_each(|i| readings.push_number(i, 0, 0.0, 0));
        Committed { seq, received_us: 0, readings: Arc::new(readings) }
    }

    #[test]
    fn commits_come_in_order_and_the_end_is_told_after_the_last() {
        let (sender, receiver) = handover();
        let writer = std::thread::spawn(move || (1..=1_000).for_each(|seq| sender.send(committed(seq, 2_000))));
        let mut seen = Vec::new();
        loop {
            let arrived = receiver.take(Duration::from_secs(5));
            seen.extend(arrived.commits.iter().map(|committed| committed.seq));
            if arrived.last {
                break;
            }
        }
        writer.join().unwrap();
        assert_eq!(seen, (1..=1_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_writer_does_not_wait_for_a_receiver_that_is_gone() {
        let (sender, receiver) = handover();
        sender.send(committed(1, 500_000));
        let writer = std::thread::spawn(move || sender.send(committed(2, 1)));
        drop(receiver);
        writer.join().unwrap();
    }
}
