//! Messages, and the last one of each topic that is to be retained.
//!
//! Arrives: retained messages, in order of commit, from the journal's writer: memory and store
//! always agree on which one was last. Leaves: what a new subscription is shown, page by page.
//! Always holds: bounded in number and bytes; what has expired (section 3.3.2.3.3) is not shown.

use crate::clock::Clock;
use crate::listen::lock;
use bytes::Bytes;
use daemon::sparse::Sparse;
use model::Micros;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex};

/// A message on its way to subscribers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publication {
    /// Its topic.
    pub topic: Box<str>,
    /// MQTT 5 properties to pass on, as they came, but for the expiry.
    pub properties: Bytes,
    /// Its payload.
    pub payload: Bytes,
    /// As published.
    pub qos: u8,
    /// As published.
    pub retain: bool,
    /// When it loses its meaning, if ever.
    pub expires_us: Option<Micros>,
    /// The connection it came from; 0 for the gateway itself.
    pub from: u64,
}

impl Publication {
    /// Bytes of memory, roughly.
    pub(crate) fn bytes(&self) -> usize {
        self.topic.len() + self.properties.len() + self.payload.len() + 96
    }

    /// Whole seconds until it expires; `None` if it has.
    pub(crate) fn remaining_s(&self, clock: &Clock) -> Option<Option<u32>> {
        let Some(expires_us) = self.expires_us else { return Some(None) };
        let left_us = expires_us - clock.now_us();
        (left_us > 0).then(|| Some((left_us as u64).div_ceil(1_000_000) as u32))
    }
}

/// Says that a message is passed on and not kept.
pub(super) fn tell_full(topic: &str) {
    static FULL: Sparse = Sparse::new();
    if let Some(unsaid) = FULL.may_say() {
        let topic = &topic[..topic.floor_char_boundary(100)];
        tracing::warn!(topic, unsaid, "not retained: limits.retained or limits.retained_memory reached");
    }
}

/// Topics looked at before others have their turn: a fraction of a millisecond.
const LOOKED_AT_ONCE: usize = 2_000;

/// Retained messages, and where to go on.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// By topic.
    pub messages: Vec<Arc<Publication>>,
    /// There may be more behind this topic.
    pub more_behind: Option<Box<str>>,
}

/// The last message of each topic.
#[derive(Debug)]
pub(crate) struct Retained {
    kept: Mutex<Kept>,
    count_max: usize,
    bytes_max: usize,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Kept {
    by_topic: BTreeMap<Box<str>, Arc<Publication>>,
    bytes: usize,
}

impl Retained {
    /// Nothing yet, with bounds on number and bytes.
    pub(crate) fn new(count_max: usize, bytes_max: usize, clock: Clock) -> Self {
        Retained { kept: Mutex::default(), count_max, bytes_max, clock }
    }

    /// Keeps a message whose commit is on disk; an empty payload removes (section 3.3.1.3).
    pub(crate) fn apply(&self, publication: &Arc<Publication>) {
        let mut kept = lock(&self.kept);
        let replaced = kept.by_topic.remove(&publication.topic);
        kept.bytes -= replaced.map_or(0, |old| old.bytes());
        if !publication.payload.is_empty() {
            kept.bytes += publication.bytes();
            kept.by_topic.insert(publication.topic.clone(), Arc::clone(publication));
        }
    }

    /// True if a message of so many bytes may be retained on `topic`.
    pub(crate) fn has_room(&self, topic: &str, bytes: usize) -> bool {
        let kept = lock(&self.kept);
        let replaced = kept.by_topic.get(topic).map(|old| old.bytes());
        let count = kept.by_topic.len() + usize::from(replaced.is_none());
        count <= self.count_max && kept.bytes - replaced.unwrap_or(0) + bytes <= self.bytes_max
    }

    /// Takes those out for which there is no room, of messages that are to be kept in this order: when each was looked
    /// at, the others that are on their way had not been kept yet.
    pub(crate) fn fit(&self, messages: &mut Vec<Arc<Publication>>) {
        let kept = lock(&self.kept);
        let (mut count, mut bytes) = (kept.by_topic.len(), kept.bytes);
        let mut changed: HashMap<Box<str>, Option<usize>> = HashMap::new();
        messages.retain(|message| {
            let before = changed.get(&message.topic).copied();
            let before = before.unwrap_or_else(|| kept.by_topic.get(&message.topic).map(|old| old.bytes()));
            let after = (!message.payload.is_empty()).then(|| message.bytes());
            let new_count = count - usize::from(before.is_some()) + usize::from(after.is_some());
            let new_bytes = bytes - before.unwrap_or(0) + after.unwrap_or(0);
            if after.is_some() && (new_count > self.count_max || new_bytes > self.bytes_max) {
                tell_full(&message.topic);
                return false;
            }
            (count, bytes) = (new_count, new_bytes);
            changed.insert(message.topic.clone(), after);
            true
        });
    }

    /// Up to `most` messages that `filter` matches, by topic, behind the topic `after`. Only topics that begin as the
    /// filter does are looked at, and not many of them at once.
    pub(crate) fn page(&self, filter: &str, after: Option<&str>, most: usize) -> Page {
        let kept = lock(&self.kept);
        let alive = |kept: &&Arc<Publication>| kept.remaining_s(&self.clock).is_some();
        let mut page = Page::default();
        let Some(wild) = filter.find(['+', '#']) else {
            let one = kept.by_topic.get(filter).filter(|_| after.is_none());
            page.messages.extend(one.into_iter().filter(alive).cloned());
            return page;
        };
        // `a/#` is also `a` itself (section 4.7.1.2).
        let begin = filter[..wild].strip_suffix('/').unwrap_or(&filter[..wild]);
        let from = match after {
            Some(after) if after >= begin => Bound::Excluded(after),
            _ => Bound::Included(begin),
        };
        let all = kept.by_topic.range::<str, _>((from, Bound::Unbounded)).map(|(_, kept)| kept);
        for (looked, kept) in all.take_while(|kept| kept.topic.starts_with(begin)).enumerate() {
            if page.messages.len() == most || looked == LOOKED_AT_ONCE {
                return page;
            }
            page.more_behind = Some(kept.topic.clone());
            if super::router::matches(filter, &kept.topic) && alive(&kept) {
                page.messages.push(Arc::clone(kept));
            }
        }
        page.more_behind = None;
        page
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        lock(&self.kept).by_topic.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI64, Ordering};

    fn message(topic: &str, payload: &'static str, expires_us: Option<Micros>) -> Arc<Publication> {
        Arc::new(Publication {
            topic: topic.into(),
            properties: Bytes::new(),
            payload: payload.into(),
            qos: 1,
            retain: true,
            expires_us,
            from: 0,
        })
    }

    #[test]
    fn the_last_message_of_a_topic_is_kept_until_an_empty_one_removes_it() {
        let retained = Retained::new(10, 10_000, Clock::system());
        for topic in ["a/1", "a/2", "b"] {
            retained.apply(&message(topic, "old", None));
        }
        retained.apply(&message("a/1", "new", None));
        retained.apply(&message("b", "", None));
        assert_eq!(retained.count(), 2);
        let first = retained.page("a/#", None, 1);
        assert_eq!((&*first.messages[0].topic, &first.messages[0].payload[..]), ("a/1", &b"new"[..]));
        assert_eq!(first.more_behind.as_deref(), Some("a/1"));
        let second = retained.page("a/#", Some("a/1"), 9);
        assert!(second.more_behind.is_none());
        assert_eq!(second.messages.iter().map(|kept| &*kept.topic).collect::<Vec<_>>(), ["a/2"]);
        assert!(retained.page("a/2", Some("a/2"), 9).messages.is_empty());
    }

    #[test]
    fn a_page_looks_at_few_topics_and_all_are_found() {
        let retained = Retained::new(100_000, usize::MAX, Clock::system());
        (0..5_000).for_each(|i| retained.apply(&message(&format!("a/{i}/x"), "1", None)));
        retained.apply(&message("a", "1", None));
        for (filter, want) in [("a/#", 5_001), ("a/+/y", 0), ("+/77/x", 1), ("a/4999/#", 1), ("b/#", 0)] {
            let (mut after, mut found, mut pages) = (None, 0, 0);
            loop {
                let page = retained.page(filter, after.as_deref(), 64);
                found += page.messages.len();
                pages += 1;
                match page.more_behind {
                    Some(behind) => after = Some(behind),
                    None => break,
                }
            }
            assert_eq!(found, want, "{filter}");
            assert!(pages >= want / 64, "{filter}: {pages}");
        }
    }

    #[test]
    fn what_has_expired_is_not_shown() {
        let now = Arc::new(AtomicI64::new(1_000_000));
        let retained = Retained::new(10, 10_000, Clock::Manual(Arc::clone(&now)));
        let kept = message("a", "x", Some(3_500_000));
        retained.apply(&kept);
        assert_eq!(kept.remaining_s(&retained.clock), Some(Some(3)));
        assert_eq!(retained.page("#", None, 9).messages.len(), 1);
        now.store(3_500_000, Ordering::Relaxed);
        assert!(retained.page("#", None, 9).messages.is_empty() && retained.page("a", None, 9).messages.is_empty());
    }

    #[test]
    fn beyond_its_bounds_there_is_no_room_but_for_what_replaces() {
        let retained = Retained::new(1, 10_000, Clock::system());
        retained.apply(&message("a", "x", None));
        assert!(retained.has_room("a", 100) && !retained.has_room("b", 100) && !retained.has_room("a", 20_000));
    }

    #[test]
    fn of_what_comes_together_only_what_has_room_is_kept() {
        let retained = Retained::new(2, 10_000, Clock::system());
        retained.apply(&message("a", "x", None));
        let come = [("b", "1"), ("c", "2"), ("b", "3"), ("a", ""), ("d", "4"), ("e", "5")];
        let mut messages: Vec<_> = come.iter().map(|(topic, payload)| message(topic, payload, None)).collect();
        retained.fit(&mut messages);
        let left: Vec<_> = messages.iter().map(|message| (&*message.topic, &message.payload[..])).collect();
        assert_eq!(left, [("b", &b"1"[..]), ("b", b"3"), ("a", b""), ("d", b"4")]);
    }
}
