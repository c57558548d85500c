//! What happens now, for those who watch.
//!
//! Arrives: committed readings and closed windows. Leaves: the same, to every listener that
//! keeps up. Always holds: a listener that does not keep up loses events, which are counted,
//! and makes nobody wait; without listeners nothing is copied.

use crate::journal::{Committed, SummaryRow};
use std::sync::Arc;
use tokio::sync::broadcast;

/// Events that a slow listener may be behind.
const BEHIND_MAX: usize = 256;

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Readings are on disk.
    Readings(Committed),
    /// Windows closed, or were computed again.
    Windows(Arc<Vec<SummaryRow>>),
}

/// The listeners.
#[derive(Debug)]
pub struct Live {
    sender: broadcast::Sender<Event>,
}

impl Default for Live {
    fn default() -> Self {
        Live { sender: broadcast::Sender::new(BEHIND_MAX) }
    }
}

impl Live {
    /// Tells all listeners, if there are any.
    pub fn publish(&self, event: impl FnOnce() -> Event) {
        if self.sender.receiver_count() > 0 {
            // The last listener may have left just now.
            let _ = self.sender.send(event());
        }
    }

    /// A new listener.
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }
}
