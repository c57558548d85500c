//! Topics that no rule takes: ordinary publish/subscribe, or a device that nobody has told the gateway about.
//!
//! Arrives: a topic, the size of its message, the time. Leaves: the topics that spoke last. Always holds:
//! bounded; a topic that is remembered is counted without a lock.

use hashbrown::HashMap;
use model::Micros;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Topics remembered; the one that has been silent for longest makes room for a new one.
const TOPICS_MAX: usize = 500;
/// What is remembered of a topic's name.
const TOPIC_BYTES_MAX: usize = 256;

/// What is known of one topic.
#[derive(Debug, Default)]
pub(crate) struct Topic {
    messages: AtomicU64,
    bytes: AtomicU64,
    last_us: AtomicI64,
}

impl Topic {
    /// Counts a message.
    pub(crate) fn count(&self, bytes: usize, now_us: Micros) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.store(bytes as u64, Ordering::Relaxed);
        self.last_us.store(now_us, Ordering::Relaxed);
    }
}

/// A topic as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Seen {
    /// Its name, or the beginning of a very long one.
    pub topic: String,
    /// Messages since the start.
    pub messages: u64,
    /// The size of the last one's payload.
    pub bytes: u64,
    /// When that came.
    #[serde(skip)]
    pub last_us: Micros,
}

/// The topics that spoke last.
#[derive(Debug, Default)]
pub(crate) struct Unmatched {
    topics: Mutex<HashMap<Box<str>, Arc<Topic>>>,
}

impl Unmatched {
    fn topics(&self) -> MutexGuard<'_, HashMap<Box<str>, Arc<Topic>>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a message on a topic.
    pub(crate) fn see(&self, topic: &str, bytes: usize, now_us: Micros) -> Arc<Topic> {
        let name = &topic[..topic.floor_char_boundary(TOPIC_BYTES_MAX)];
        let mut topics = self.topics();
        if topics.len() >= TOPICS_MAX && !topics.contains_key(name) {
            let oldest = topics.iter().min_by_key(|(_, seen)| seen.last_us.load(Ordering::Relaxed));
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                topics.remove(&oldest);
            }
        }
        let seen = Arc::clone(topics.entry(name.into()).or_default());
        seen.count(bytes, now_us);
        seen
    }

    /// All that are remembered, the latest first.
    pub(crate) fn newest(&self) -> Vec<Seen> {
        let topics = self.topics();
        let rows = topics.iter().map(|(topic, seen)| Seen {
            topic: topic.to_string(),
            messages: seen.messages.load(Ordering::Relaxed),
            bytes: seen.bytes.load(Ordering::Relaxed),
            last_us: seen.last_us.load(Ordering::Relaxed),
        });
        let mut rows: Vec<Seen> = rows.collect();
        rows.sort_by(|a, b| b.last_us.cmp(&a.last_us).then_with(|| a.topic.cmp(&b.topic)));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topics_that_spoke_last_are_kept() {
        let unmatched = Unmatched::default();
        for i in 0..TOPICS_MAX as i64 + 10 {
            unmatched.see(&format!("t/{i}"), 3, i);
        }
        unmatched.see("t/400", 7, 1_000_000);
        let newest = unmatched.newest();
        assert_eq!(newest.len(), TOPICS_MAX);
        assert_eq!((&*newest[0].topic, newest[0].messages, newest[0].bytes), ("t/400", 2, 7));
        assert_eq!(newest.last().unwrap().topic, "t/10");
    }
}
