//! What happens now, for those who watch.
//!
//! Arrives: committed readings and closed windows. Leaves: the same, to every listener that
//! keeps up. Always holds: a listener that does not keep up loses events, which are counted,
//! and makes nobody wait; what is kept for listeners that are behind is bounded in number and bytes;
//! without listeners nothing is copied.

use crate::journal::{Committed, SummaryRow};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Events that a slow listener may be behind.
const BEHIND_MAX: usize = 256;
/// Bytes of events that are kept for those who are behind; the newest is kept however large it is.
const BEHIND_BYTES: usize = 8 << 20;
/// A row of a window, roughly.
const ROW_BYTES: usize = 400;

/// Something that happened.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// Readings are on disk.
    Readings(Committed),
    /// Windows closed, or were computed again.
    Windows(Arc<Vec<SummaryRow>>),
}

impl Event {
    fn bytes(&self) -> usize {
        match self {
            Event::Readings(committed) => committed.readings.bytes(),
            Event::Windows(rows) => rows.len() * ROW_BYTES,
        }
    }
}

/// Events that somebody may still want, by number.
#[derive(Debug, Default)]
struct Recent {
    events: VecDeque<Event>,
    /// The number of the first of them.
    first: u64,
    bytes: usize,
}

/// The listeners.
#[derive(Debug)]
pub(crate) struct Live {
    sender: broadcast::Sender<u64>,
    recent: Mutex<Recent>,
}

impl Default for Live {
    fn default() -> Self {
        Live { sender: broadcast::Sender::new(BEHIND_MAX), recent: Mutex::default() }
    }
}

impl Live {
    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all listeners, if there are any.
    pub(crate) fn publish(&self, event: impl FnOnce() -> Event) {
        if self.sender.receiver_count() == 0 {
            let mut recent = self.recent();
            recent.first += recent.events.len() as u64;
            recent.events.clear();
            recent.bytes = 0;
            return;
        }
        let event = event();
        let mut recent = self.recent();
        recent.bytes += event.bytes();
        recent.events.push_back(event);
        while recent.events.len() > BEHIND_MAX || (recent.events.len() > 1 && recent.bytes > BEHIND_BYTES) {
            let gone = recent.events.pop_front().map_or(0, |gone| gone.bytes());
            recent.bytes -= gone;
            recent.first += 1;
        }
        let number = recent.first + recent.events.len() as u64 - 1;
        drop(recent);
        // The last listener may have left just now.
        let _ = self.sender.send(number);
    }

    /// A new listener.
    pub(crate) fn listen(self: &Arc<Self>) -> Listener {
        Listener { live: Arc::clone(self), numbers: self.sender.subscribe() }
    }

    /// How many listen.
    pub(crate) fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }

    fn event(&self, number: u64) -> Option<Event> {
        let recent = self.recent();
        let at = number.checked_sub(recent.first)?;
        recent.events.get(usize::try_from(at).ok()?).cloned()
    }
}

/// Hears events in their order.
#[derive(Debug)]
pub(crate) struct Listener {
    live: Arc<Live>,
    numbers: broadcast::Receiver<u64>,
}

impl Listener {
    /// The next event, or how many were missed before it.
    pub(crate) async fn recv(&mut self) -> Result<Event, RecvError> {
        let number = self.numbers.recv().await?;
        self.live.event(number).ok_or(RecvError::Lagged(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readings::Readings;

    fn commit(seq: u64, rows: usize) -> Event {
        let mut readings = Readings::default();
        (0..rows).for_each(|row| readings.push_number(0, row as i64, 1.0, 0));
        Event::Readings(Committed { seq, received_us: 0, readings: Arc::new(readings) })
    }

    #[tokio::test]
    async fn what_is_kept_for_those_who_are_behind_is_bounded_in_bytes() {
        let live = Arc::new(Live::default());
        let mut slow = live.listen();
        for seq in 0..100 {
            live.publish(|| commit(seq, 100_000));
        }
        assert!(live.recent().bytes <= BEHIND_BYTES);
        let (mut missed, mut heard) = (0, Vec::new());
        for _ in 0..100 {
            match slow.recv().await {
                Ok(Event::Readings(committed)) => heard.push(committed.seq),
                Ok(Event::Windows(_)) => {}
                Err(RecvError::Lagged(n)) => missed += n,
                Err(RecvError::Closed) => break,
            }
        }
        assert_eq!(missed + heard.len() as u64, 100);
        assert_eq!(heard.last(), Some(&99));
        drop(slow);
        live.publish(|| commit(100, 1));
        assert_eq!(live.recent().bytes, 0);
    }
}
