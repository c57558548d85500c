//! What time it is: the only place that asks.
//!
//! Always holds: tests can hold time still and move it. Deliberately absent: sleeping.

use model::Micros;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

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
