//! Misfortune on purpose: messages sent twice, messages held back, clocks that are off.
//!
//! Arrives: a source of messages and a seed. Leaves: the same messages, some marked to be sent twice,
//! some out of order. Always holds: nothing is lost and nothing invented; whatever was held back
//! leaves at the latest when the source is over. The number of messages held is bounded; beyond the
//! bound a message simply travels in order. Deliberately absent: cut connections, which are the MQTT
//! driver's, since only it has one to cut.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use crate::message::Message;
use crate::send::{Next, Source};

/// Held messages per connection: a few seconds of a busy sensor, a few megabytes at most.
const HELD_MAX: usize = 4_096;
const HELD_BACK_S: std::ops::Range<f64> = 0.2..5.0;

/// How likely each misfortune is, per message.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Odds {
    pub(crate) duplicate: f64,
    pub(crate) disorder: f64,
}

/// A source whose messages meet misfortune.
pub(crate) struct Faulty<S> {
    source: S,
    odds: Odds,
    dice: SmallRng,
    held: BinaryHeap<Reverse<Held>>,
    /// The inner source has nothing more to say.
    dry: bool,
}

/// Ordered by when it leaves; the place breaks ties in the order of arrival.
struct Held {
    leaves: Instant,
    place: u64,
    message: Message,
}

impl<S: Source> Faulty<S> {
    pub(crate) fn new(source: S, odds: Odds, seed: u64) -> Self {
        let dice = SmallRng::seed_from_u64(seed);
        Self { source, odds, dice, held: BinaryHeap::new(), dry: false }
    }

    fn hold_back(&mut self, now: Instant, message: Message) {
        let leaves = now + Duration::from_secs_f64(self.dice.random_range(HELD_BACK_S));
        let place = *message.ids.start();
        self.held.push(Reverse(Held { leaves, place, message }));
    }

    fn released(&mut self, now: Instant) -> Option<Message> {
        let due = self.held.peek().is_some_and(|Reverse(held)| self.dry || held.leaves <= now);
        if due { self.held.pop().map(|Reverse(held)| held.message) } else { None }
    }
}

impl<S: Source> Source for Faulty<S> {
    fn next(&mut self, now: Instant) -> Next {
        loop {
            if let Some(message) = self.released(now) {
                return Next::Message(message);
            }
            if self.dry {
                return Next::Over;
            }
            match self.source.next(now) {
                Next::Message(mut message) => {
                    message.twice = self.dice.random_bool(self.odds.duplicate);
                    if !self.dice.random_bool(self.odds.disorder) || self.held.len() >= HELD_MAX {
                        return Next::Message(message);
                    }
                    self.hold_back(now, message);
                }
                Next::NotBefore(wake) => {
                    let earliest = self.held.peek().map_or(wake, |Reverse(held)| wake.min(held.leaves));
                    return Next::NotBefore(earliest);
                }
                Next::Over => self.dry = true,
            }
        }
    }

    fn finish(&mut self) {
        self.source.finish();
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.leaves, self.place).cmp(&(other.leaves, other.place))
    }
}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Held {}

/// A constant error of a device's clock, drawn evenly from plus or minus `skew`.
pub(crate) fn clock_error_us(device_trait: f64, skew: Duration) -> i64 {
    ((2.0 * device_trait - 1.0) * skew.as_micros() as f64).round() as i64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::message::Composer;

    /// Says a thousand messages, one every ten milliseconds.
    struct Metronome {
        composer: Composer,
        started: Instant,
        said: u32,
    }

    impl Source for Metronome {
        fn next(&mut self, now: Instant) -> Next {
            let due = self.started + Duration::from_millis(10) * self.said;
            if self.said == 1_000 {
                Next::Over
            } else if due > now {
                Next::NotBefore(due)
            } else {
                self.said += 1;
                Next::Message(self.composer.number("d", "m", "1"))
            }
        }

        fn finish(&mut self) {
            self.said = 1_000;
        }
    }

    /// Plays the metronome through faults on an imagined clock; ids and marks in order of leaving.
    fn played(odds: Odds) -> Vec<(u64, bool)> {
        let started = Instant::now();
        let composer = Composer::new(Arc::new(AtomicU64::new(0)), "mqtt/1", false);
        let mut source = Faulty::new(Metronome { composer, started, said: 0 }, odds, 42);
        let (mut now, mut left) = (started, Vec::new());
        loop {
            match source.next(now) {
                Next::Message(message) => left.push((*message.ids.start(), message.twice)),
                Next::NotBefore(wake) => now = wake,
                Next::Over => return left,
            }
        }
    }

    #[test]
    fn without_faults_every_message_leaves_in_order() {
        let left = played(Odds::default());
        assert_eq!(left, (0..1_000).map(|id| (id, false)).collect::<Vec<_>>());
    }

    #[test]
    fn disorder_changes_the_order_and_loses_nothing() {
        let left = played(Odds { disorder: 0.3, duplicate: 0.0 });
        let mut ids: Vec<u64> = left.iter().map(|(id, _)| *id).collect();
        let late = ids.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!(late > 100, "only {late} late messages");
        ids.sort_unstable();
        assert_eq!(ids, (0..1_000).collect::<Vec<_>>());
    }

    #[test]
    fn duplicates_come_about_as_often_as_asked() {
        let left = played(Odds { disorder: 0.0, duplicate: 0.2 });
        let twice = left.iter().filter(|(_, twice)| *twice).count();
        assert!((130..270).contains(&twice), "{twice} of 1000");
    }

    #[test]
    fn a_clock_error_stays_within_the_skew() {
        let skew = Duration::from_secs(3);
        assert_eq!(clock_error_us(0.0, skew), -3_000_000);
        assert_eq!(clock_error_us(0.5, skew), 0);
        assert!(clock_error_us(0.999_999, skew) < 3_000_000);
    }
}
