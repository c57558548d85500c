//! What is known of the system's clock, shared.
//!
//! Arrives: what the watcher sees. Leaves: whether the time can be believed, which readings are
//! to be corrected, and which windows may be wrong. Always holds: asking costs two loads; a
//! correction is known to the writer before anybody looks for what is stored already.

use super::line::{Correction, Unset};
use super::watch::boot_us;
use super::{Quality, RELEASE_US};
use crate::readings::Readings;
use model::Micros;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Corrections whose readings may still be on their way to the store.
const CORRECTIONS_MAX: usize = 64;

/// What is known of the system's clock.
#[derive(Debug, Default)]
pub struct Trust {
    vouched: AtomicBool,
    doubted: AtomicBool,
    known: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// All of this run.
    corrections: Vec<Correction>,
    ledger: Ledger,
    changed: bool,
}

/// What a restart has to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// The clock is unset.
    pub unset: Option<Unset>,
    /// Corrections that have not been made yet.
    pub waiting: Vec<Correction>,
}

impl Trust {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn quality_at(&self, now_us: Micros) -> Quality {
        if now_us < RELEASE_US || self.doubted.load(Ordering::Relaxed) {
            return Quality::Unset;
        }
        if self.vouched.load(Ordering::Relaxed) { Quality::Vouched } else { Quality::Set }
    }

    /// What the watcher sees.
    pub(super) fn tell(&self, vouched: bool, unset: Option<Unset>, corrections: Vec<Correction>) {
        let mut state = self.state();
        self.vouched.store(vouched, Ordering::Relaxed);
        self.doubted.store(unset.is_some(), Ordering::Relaxed);
        let is_like = match (&unset, &state.ledger.unset) {
            (Some(unset), Some(before)) => unset.is_like(before),
            (unset, before) => unset.is_none() && before.is_none(),
        };
        state.changed |= !is_like || !corrections.is_empty();
        state.ledger.unset = unset;
        for correction in corrections {
            if state.corrections.len() < CORRECTIONS_MAX && correction.shift_us != 0 {
                state.corrections.push(correction);
            }
            state.ledger.waiting.push(correction);
        }
        self.known.store(state.corrections.len(), Ordering::Release);
    }

    /// By how much the clock has been set forward since the start, all in all; 0 if it was not.
    pub fn shift_us(&self) -> Micros {
        let shift_us: Micros = self.state().corrections.iter().map(|correction| correction.shift_us).sum();
        shift_us.max(0)
    }

    /// True if something is held back from forwarding.
    pub fn holds_anything_back(&self) -> bool {
        let state = self.state();
        state.ledger.unset.is_some() || !state.ledger.waiting.is_empty()
    }

    /// Puts back what waited when the gateway stopped, or could not be done to its end: it is first again.
    pub fn restore(&self, waiting: Vec<Correction>) {
        let mut state = self.state();
        state.changed |= !waiting.is_empty();
        state.ledger.waiting.splice(0..0, waiting);
    }

    /// Puts readings right that were received at a time that turned out to be wrong.
    pub fn correct(&self, readings: &mut Readings) {
        if self.known.load(Ordering::Acquire) > 0 {
            self.state().corrections.iter().for_each(|correction| correction.apply(readings));
        }
    }

    /// What a restart has to know, if that has changed since it was last asked for.
    pub fn changed(&self) -> Option<Ledger> {
        let mut state = self.state();
        std::mem::take(&mut state.changed).then(|| state.ledger.clone())
    }

    /// What was given could not be kept: it is given again.
    pub fn not_kept(&self) {
        self.state().changed = true;
    }

    /// The next correction to be made.
    pub fn next_correction(&self) -> Option<Correction> {
        self.state().ledger.waiting.first().copied()
    }

    /// It has been made.
    pub fn corrected(&self, correction: Correction) {
        let mut state = self.state();
        state.ledger.waiting.retain(|waiting| *waiting != correction);
        state.changed = true;
    }

    /// True if a window must not be forwarded, or not yet: unstamped readings in it were, or may
    /// have been, received at another time.
    pub fn holds_back(&self, from_us: Micros, to_us: Micros) -> bool {
        self.state().ledger.holds_back(from_us, to_us)
    }
}

impl Ledger {
    /// The same, by what is known of it.
    pub fn holds_back(&self, from_us: Micros, to_us: Micros) -> bool {
        crate::decode::is_unset(from_us)
            || self.unset.as_ref().is_some_and(|unset| unset.touches(from_us, to_us, boot_us()))
            || self.waiting.iter().any(|waiting| waiting.from_us < to_us && from_us < waiting.to_us)
    }
}
