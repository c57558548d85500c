//! What time it is: the only place that asks.
//!
//! Always holds: tests can hold time still and move it. Deliberately absent: sleeping.

use model::Micros;
use model::time::SECOND_US;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A clock, cheap to clone.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The operating system's.
    #[default]
    System,
    /// A test's: microseconds since the epoch.
    Manual(Arc<AtomicI64>),
}

/// Whether the gateway's own clock can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quality {
    /// It has been set: it is past the release of this program.
    Set,
    /// It runs from some earlier time, as on a Pi without battery before NTP.
    Unset,
}

/// No correct clock shows less: 2026-01-01T00:00:00Z.
const RELEASE_US: Micros = 1_767_225_600_000_000;

impl Clock {
    /// Microseconds since the Unix epoch.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn now_us(&self) -> Micros {
        match self {
            Clock::System => match SystemTime::now().duration_since(UNIX_EPOCH) {
                Ok(since) => since.as_micros() as Micros,
                Err(before) => -(before.duration().as_micros() as Micros),
            },
            Clock::Manual(us) => us.load(Ordering::Relaxed),
        }
    }

    /// Whether it is known to be set.
    pub fn quality(&self) -> Quality {
        if self.now_us() >= RELEASE_US { Quality::Set } else { Quality::Unset }
    }
}

/// A clock that does not believe a leap at once: what deletes things must not follow a clock
/// that is wrong for a minute. It starts as the wall clock shows, runs as time passes, and
/// takes over a leap forward that has lasted for a day; a leap back it takes over at once.
#[derive(Debug)]
pub struct Steady {
    base: Instant,
    base_us: Micros,
    leapt: Option<Instant>,
}

/// Less is no leap.
const LEAP_US: Micros = 3_600 * SECOND_US;
/// So long a leap has to last.
const BELIEVED_AFTER: Duration = Duration::from_secs(24 * 3_600);

impl Steady {
    /// Begins with what the wall clock shows.
    pub fn new(wall_us: Micros, now: Instant) -> Self {
        Steady { base: now, base_us: wall_us, leapt: None }
    }

    /// The time, where the wall clock shows `wall_us`.
    pub fn now_us(&mut self, wall_us: Micros, now: Instant) -> Micros {
        let expected_us = self.base_us + (now - self.base).as_micros() as Micros;
        if wall_us <= expected_us + LEAP_US {
            *self = Steady::new(wall_us, now);
            return wall_us;
        }
        let leapt = *self.leapt.get_or_insert(now);
        if now - leapt < BELIEVED_AFTER {
            return expected_us;
        }
        *self = Steady::new(wall_us, now);
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
        let mut steady = Steady::new(0, start);
        assert_eq!(steady.now_us(us(day), start + day), us(day));
        // A year ahead for an hour, and back.
        let hour = Duration::from_secs(3_600);
        let ahead = us(day * 365);
        assert_eq!(steady.now_us(us(day + hour) + ahead, start + day + hour), us(day + hour));
        assert_eq!(steady.now_us(us(day + hour * 2), start + day + hour * 2), us(day + hour * 2));
        // Ahead for good.
        for hours in 3..27 {
            let passed = day + hour * hours;
            assert_eq!(steady.now_us(us(passed) + ahead, start + passed), us(passed));
        }
        let passed = day + hour * 27;
        assert_eq!(steady.now_us(us(passed) + ahead, start + passed), us(passed) + ahead);
        assert_eq!(steady.now_us(5, start + passed), 5, "and back at once");
    }
}
