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
/// For so long the middle one stays the middle one: every push asks.
const MIDDLE: Duration = Duration::from_secs(1);
/// No clock that somebody has set says less: 2026-01-01.
const SET_FROM_US: Micros = 1_767_225_600_000_000;
/// How far gateways may be ahead of a clock that somebody has set, and be believed.
const AHEAD_MOST_US: Micros = 31 * 24 * 3_600_000_000;
/// Gateways that are remembered.
const GATEWAYS_MAX: usize = 10_000;

/// What gateways say of the time.
#[derive(Debug)]
pub(crate) struct Witnesses {
    /// Their clocks are compared with one that nobody sets: ours may leap between two words of theirs.
    base: Instant,
    heard: Mutex<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    /// When each was heard, and what its clock said at the base, by that.
    gateways: HashMap<String, (Instant, Micros)>,
    /// The middle one of those heard of late, as of when.
    middle: Option<(Instant, Option<Micros>)>,
}

/// What they say of our clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
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
    /// Nobody has said anything yet.
    pub(crate) fn new(now: Instant) -> Self {
        Witnesses { base: now, heard: Mutex::default() }
    }

    fn since_base_us(&self, now: Instant) -> Micros {
        Micros::try_from(now.saturating_duration_since(self.base).as_micros()).unwrap_or(Micros::MAX)
    }

    /// A gateway says what time it is.
    pub(crate) fn note(&self, gateway: &str, theirs_us: Micros, now: Instant) {
        let at_base_us = theirs_us.saturating_sub(self.since_base_us(now));
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let gateways = &mut heard.gateways;
        if gateways.len() >= GATEWAYS_MAX && !gateways.contains_key(gateway) {
            gateways.retain(|_, (at, _)| now.saturating_duration_since(*at) < HEARD / 2);
            if gateways.len() >= GATEWAYS_MAX {
                return;
            }
        }
        if gateways.insert(gateway.to_owned(), (now, at_base_us)).is_none() {
            heard.middle = None;
        }
    }

    /// The time by which what comes is stamped: the later one, if most gateways say another than we. A stamp of long
    /// ago has it retired before its time as soon as clocks are right; one that is ahead only keeps it for longer.
    pub(crate) fn time_us(&self, ours_us: Micros, now: Instant) -> Micros {
        match self.verdict(ours_us, now) {
            Verdict::Wrong(ahead_us) if ours_us < SET_FROM_US => ours_us.saturating_sub(ahead_us),
            Verdict::Wrong(ahead_us) => ours_us.saturating_add((-ahead_us).clamp(0, AHEAD_MOST_US)),
            Verdict::Right | Verdict::Unknown => ours_us,
        }
    }

    /// What those that were heard of late say of our clock.
    pub(crate) fn verdict(&self, ours_us: Micros, now: Instant) -> Verdict {
        let Some(at_base_us) = self.middle(now) else { return Verdict::Unknown };
        let theirs_us = at_base_us.saturating_add(self.since_base_us(now));
        if agree(theirs_us, ours_us) { Verdict::Right } else { Verdict::Wrong(ours_us.saturating_sub(theirs_us)) }
    }

    fn middle(&self, now: Instant) -> Option<Micros> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, middle)) = heard.middle
            && now.saturating_duration_since(at) < MIDDLE
        {
            return middle;
        }
        let late = heard.gateways.values().filter(|(at, _)| now.saturating_duration_since(*at) < HEARD);
        let mut clocks: Vec<Micros> = late.map(|(_, at_base_us)| *at_base_us).collect();
        let at = clocks.len() / 2;
        let middle = (!clocks.is_empty()).then(|| *clocks.select_nth_unstable(at).1);
        heard.middle = Some((now, middle));
        middle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME_US: Micros = 1_800_000_000_000_000;

    #[test]
    fn most_of_those_heard_of_late_decide() {
        let now = Instant::now();
        let witnesses = Witnesses::new(now);
        assert_eq!(witnesses.verdict(TIME_US, now), Verdict::Unknown);
        witnesses.note("a gateway without a clock", 0, now);
        assert_eq!(witnesses.verdict(TIME_US, now), Verdict::Wrong(TIME_US));
        witnesses.note("b", TIME_US, now);
        witnesses.note("c", TIME_US + 5, now);
        assert_eq!(witnesses.verdict(TIME_US, now), Verdict::Right);
        let later = now + HEARD;
        assert_eq!(witnesses.verdict(TIME_US + 3_600_000_000, later), Verdict::Unknown);
        assert!(!agree(0, Micros::MAX) && !agree(Micros::MIN, Micros::MAX));
    }

    #[test]
    fn a_leap_of_our_clock_is_seen_before_anybody_is_heard_again() {
        let now = Instant::now();
        let witnesses = Witnesses::new(now);
        witnesses.note("a", TIME_US, now);
        let later = now + Duration::from_secs(60);
        let (right_us, day_us) = (TIME_US + 60_000_000, 86_400_000_000);
        assert_eq!(witnesses.verdict(right_us, later), Verdict::Right);
        for leap_us in [2 * day_us, -2 * day_us, -TIME_US] {
            assert_eq!(witnesses.verdict(right_us + leap_us, later), Verdict::Wrong(leap_us));
            let stamp_us = witnesses.time_us(right_us + leap_us, later);
            assert_eq!(stamp_us, right_us + leap_us.max(0), "what comes is stamped by the later one");
        }
        let (year_us, stamp_us) = (365 * day_us, right_us - 365 * day_us + AHEAD_MOST_US);
        assert_eq!(witnesses.time_us(right_us - year_us, later), stamp_us, "but not by any that is ahead");
    }
}
