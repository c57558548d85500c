//! Whether this daemon's clock can be believed.
//!
//! Arrives: what gateways say of the time, as they are heard. Leaves: a word on our own clock. What is retired by a
//! clock that is ahead is gone for good, so nothing is retired unless somebody has confirmed the time: most of the
//! gateways that were heard of late, and the clock of a shard that has one. Pure.

use model::Micros;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Clocks agree if they differ by no more.
const AGREED_US: Micros = 300_000_000;
/// What was heard longer ago says nothing any more.
const HEARD: Duration = Duration::from_secs(3_600);
/// No clock that somebody has set says less: 2026-01-01.
const SET_FROM_US: Micros = 1_767_225_600_000_000;
/// Gateways that are remembered.
const GATEWAYS_MAX: usize = 10_000;

/// What gateways say of the time.
#[derive(Debug, Default)]
pub struct Witnesses(Mutex<HashMap<String, (Instant, Micros)>>);

/// What they say of our clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody was heard of late.
    Unknown,
    /// Most agree.
    Right,
    /// Most do not; by so much we are ahead of the middle one.
    Wrong(Micros),
}

/// True if a clock that says `theirs_us` confirms one that says `ours_us`.
pub(super) fn agree(theirs_us: Micros, ours_us: Micros) -> bool {
    (ours_us.saturating_sub(theirs_us)).abs() <= AGREED_US
}

impl Witnesses {
    /// A gateway says what time it is.
    pub fn note(&self, gateway: &str, theirs_us: Micros, ours_us: Micros, now: Instant) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.len() >= GATEWAYS_MAX && !heard.contains_key(gateway) {
            heard.retain(|_, (at, _)| now.saturating_duration_since(*at) < HEARD / 2);
            if heard.len() >= GATEWAYS_MAX {
                return;
            }
        }
        heard.insert(gateway.to_owned(), (now, ours_us.saturating_sub(theirs_us)));
    }

    /// The time, as far as anybody knows it: a machine whose clock nobody has set must not stamp what comes as being
    /// of long ago, or it is retired as soon as somebody does.
    pub fn time_us(&self, ours_us: Micros, now: Instant) -> Micros {
        // Every push asks; only a clock that nobody has set is worth asking all for.
        if ours_us >= SET_FROM_US {
            return ours_us;
        }
        match self.verdict(now) {
            Verdict::Wrong(ahead_us) => ours_us.saturating_sub(ahead_us),
            Verdict::Right | Verdict::Unknown => ours_us,
        }
    }

    /// What those that were heard of late say.
    pub fn verdict(&self, now: Instant) -> Verdict {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let late = heard.values().filter(|(at, _)| now.saturating_duration_since(*at) < HEARD);
        let mut ahead: Vec<Micros> = late.map(|(_, ahead_us)| *ahead_us).collect();
        ahead.sort_unstable();
        match ahead.get(ahead.len() / 2) {
            None => Verdict::Unknown,
            Some(&middle_us) if agree(0, middle_us) => Verdict::Right,
            Some(&middle_us) => Verdict::Wrong(middle_us),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_those_heard_of_late_decide() {
        let (witnesses, now) = (Witnesses::default(), Instant::now());
        assert_eq!(witnesses.verdict(now), Verdict::Unknown);
        witnesses.note("a gateway without a clock", 0, 1_000_000_000_000_000, now);
        assert_eq!(witnesses.verdict(now), Verdict::Wrong(1_000_000_000_000_000));
        witnesses.note("b", 1_000_000_000_000_000, 1_000_000_000_000_005, now);
        witnesses.note("c", 1_000_000_000_000_000, 1_000_000_000_000_005, now);
        assert_eq!(witnesses.verdict(now), Verdict::Right);
        assert_eq!(witnesses.verdict(now + HEARD), Verdict::Unknown);
        let unset = Witnesses::default();
        unset.note("a", SET_FROM_US + 7, 5, now);
        assert_eq!(unset.time_us(6, now), SET_FROM_US + 8);
        assert_eq!(witnesses.time_us(9, now), 9);
        assert!(!agree(0, Micros::MAX) && !agree(Micros::MIN, Micros::MAX));
    }
}
