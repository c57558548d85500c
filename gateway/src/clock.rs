//! What time it is: the only place that asks.
//!
//! Always holds: tests can hold time still and move it; whether the time can be believed is
//! known wherever it is asked for. Deliberately absent: sleeping.

/// The time as it has run since the machine was started, and what a leap of it says.
mod line;

/// What is known of the system's clock, shared.
mod trust;

/// Watches the system's clock.
mod watch;

pub(crate) use line::{Correction, Start};
use model::Micros;
use model::time::SECOND_US;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
pub(crate) use trust::{Ledger, Trust};
pub(crate) use watch::watch;

/// A clock, cheap to clone.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The operating system's, and what is known of it.
    System(Arc<Trust>),
    /// A test's: microseconds since the epoch.
    Manual(Arc<AtomicI64>),
}

/// Whether the gateway's own clock can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quality {
    /// Somebody vouches for it: the kernel says that it is synchronised, or it has run for a day.
    Vouched,
    /// Nothing speaks against it.
    Set,
    /// It runs from some earlier time, as on a Pi without battery before it has heard of the time.
    Unset,
}

/// No correct clock shows less: 2026-01-01T00:00:00Z.
const RELEASE_US: Micros = 1_767_225_600_000_000;

impl Clock {
    /// The operating system's.
    pub fn system() -> Self {
        Clock::System(Arc::default())
    }

    /// Microseconds since the Unix epoch.
    pub fn now_us(&self) -> Micros {
        match self {
            Clock::System(_) => wall_us(),
            Clock::Manual(us) => us.load(Ordering::Relaxed),
        }
    }

    /// Whether it can be believed.
    pub fn quality(&self) -> Quality {
        self.quality_at(self.now_us())
    }

    /// The same, where it shows `now_us`.
    pub fn quality_at(&self, now_us: Micros) -> Quality {
        match self {
            Clock::System(trust) => trust.quality_at(now_us),
            Clock::Manual(_) if now_us < RELEASE_US => Quality::Unset,
            Clock::Manual(_) => Quality::Vouched,
        }
    }

    /// What is known of the system's clock.
    pub fn trust(&self) -> Option<&Arc<Trust>> {
        match self {
            Clock::System(trust) => Some(trust),
            Clock::Manual(_) => None,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place")]
fn wall_us() -> Micros {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_micros() as Micros,
        Err(before) => -(before.duration().as_micros() as Micros),
    }
}

/// A clock that does not believe a leap at once: what deletes things must not follow a clock
/// that is wrong for a minute. It starts as the wall clock shows, runs as time passes, and
/// takes over a leap forward that has lasted for a day; a leap back it takes over at once, and so
/// it does a clock that has only now been set.
#[derive(Debug)]
pub(crate) struct Steady {
    base: Instant,
    base_us: Micros,
    leapt: Option<Instant>,
    unset: bool,
}

/// Less is no leap.
const LEAP_US: Micros = 3_600 * SECOND_US;
/// So long a leap has to last.
const BELIEVED_AFTER: Duration = Duration::from_secs(24 * 3_600);

impl Steady {
    /// Begins with what the clock shows.
    pub(crate) fn new(clock: &Clock, now: Instant) -> Self {
        let wall_us = clock.now_us();
        Steady::at(wall_us, clock.quality_at(wall_us), now)
    }

    fn at(wall_us: Micros, quality: Quality, now: Instant) -> Self {
        Steady { base: now, base_us: wall_us, leapt: None, unset: quality == Quality::Unset }
    }

    /// The time.
    pub(crate) fn now_us(&mut self, clock: &Clock, now: Instant) -> Micros {
        let wall_us = clock.now_us();
        self.follow(wall_us, clock.quality_at(wall_us), now)
    }

    fn follow(&mut self, wall_us: Micros, quality: Quality, now: Instant) -> Micros {
        let expected_us = self.base_us + (now - self.base).as_micros() as Micros;
        let was_set = self.unset && quality != Quality::Unset;
        if wall_us <= expected_us + LEAP_US || was_set {
            *self = Steady::at(wall_us, quality, now);
            return wall_us;
        }
        let leapt = *self.leapt.get_or_insert(now);
        if now - leapt < BELIEVED_AFTER {
            return expected_us;
        }
        *self = Steady::at(wall_us, quality, now);
        wall_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leap_forward_is_believed_when_it_has_lasted() {
        let (start, day) = (Instant::now(), Duration::from_secs(86_400));
        let us = |time: Duration| time.as_micros() as Micros;
        let mut steady = Steady::at(0, Quality::Set, start);
        let mut now_us = |us, now| steady.follow(us, Quality::Set, now);
        assert_eq!(now_us(us(day), start + day), us(day));
        // A year ahead for an hour, and back.
        let hour = Duration::from_secs(3_600);
        let ahead = us(day * 365);
        assert_eq!(now_us(us(day + hour) + ahead, start + day + hour), us(day + hour));
        assert_eq!(now_us(us(day + hour * 2), start + day + hour * 2), us(day + hour * 2));
        // Ahead for good.
        for hours in 3..27 {
            let passed = day + hour * hours;
            assert_eq!(now_us(us(passed) + ahead, start + passed), us(passed));
        }
        let passed = day + hour * 27;
        assert_eq!(now_us(us(passed) + ahead, start + passed), us(passed) + ahead);
        assert_eq!(now_us(5, start + passed), 5, "and back at once");
    }

    #[test]
    fn a_clock_that_has_been_set_is_believed_at_once() {
        let start = Instant::now();
        let mut steady = Steady::at(60 * SECOND_US, Quality::Unset, start);
        assert_eq!(steady.follow(61 * SECOND_US, Quality::Unset, start), 61 * SECOND_US);
        assert_eq!(steady.follow(RELEASE_US, Quality::Set, start), RELEASE_US);
        let ahead_us = RELEASE_US + 9 * LEAP_US;
        assert_eq!(steady.follow(ahead_us, Quality::Set, start), RELEASE_US, "but no further leap");
    }
}
