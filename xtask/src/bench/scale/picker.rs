//! Which daemon a gateway pushes to: `cloud-sync/uplink/src/picker.rs` in steps of time, round
//! robin over equal weights, with its circuit breakers.
//!
//! Arrives: the time, and what came of each push. Leaves: a daemon, or when to ask again. Pure.

use super::wheel::{PER_S, Step};

const FAILURES_MAX: u32 = 3;
const OPEN_LEAST: Step = PER_S;
const OPEN_MOST: Step = 30 * PER_S;

#[derive(Debug, Clone, Copy)]
struct Breaker {
    failures: u32,
    open_until: Option<Step>,
    open_for: Step,
    probing: bool,
}

impl Breaker {
    const CLOSED: Breaker = Breaker { failures: 0, open_until: None, open_for: OPEN_LEAST, probing: false };

    fn is_free(&self, now: Step) -> bool {
        self.open_until.is_none_or(|until| until <= now && !self.probing)
    }
}

/// The daemons as one gateway knows them.
#[derive(Debug, Clone)]
pub(super) struct Picker {
    breakers: Vec<Breaker>,
    next: usize,
}

impl Picker {
    pub(super) fn new(daemons: usize, next: usize) -> Self {
        Picker { breakers: vec![Breaker::CLOSED; daemons], next }
    }

    /// They have not answered for long; `until` says when each is tried again.
    pub(super) fn open(&mut self, mut until: impl FnMut() -> Step) {
        for breaker in &mut self.breakers {
            *breaker =
                Breaker { failures: FAILURES_MAX, open_until: Some(until()), open_for: OPEN_MOST, probing: false };
        }
    }

    pub(super) fn pick(&mut self, now: Step) -> Result<usize, Step> {
        let many = self.breakers.len();
        let is_probe = |breaker: &Breaker| breaker.is_free(now) && breaker.open_until.is_some();
        let probe = self.breakers.iter().position(is_probe);
        let in_turn = || (0..many).map(|n| (self.next + n) % many).find(|&at| self.breakers[at].is_free(now));
        let Some(at) = probe.or_else(in_turn) else {
            let until = self.breakers.iter().filter_map(|breaker| breaker.open_until).min();
            return Err(until.filter(|&until| until > now).unwrap_or(now + OPEN_LEAST));
        };
        if probe.is_none() {
            self.next = (at + 1) % many;
        }
        self.breakers[at].probing = probe.is_some();
        Ok(at)
    }

    /// It answered, if only that it has no room.
    pub(super) fn succeeded(&mut self, at: usize) {
        self.breakers[at] = Breaker::CLOSED;
    }

    pub(super) fn failed(&mut self, at: usize, now: Step) {
        let breaker = &mut self.breakers[at];
        breaker.failures += 1;
        if breaker.probing || breaker.failures == FAILURES_MAX {
            breaker.open_until = Some(now + breaker.open_for);
            breaker.open_for = (breaker.open_for * 2).min(OPEN_MOST);
            breaker.probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_fails_is_left_alone_for_longer_and_longer() {
        let mut picker = Picker::new(2, 0);
        assert_eq!((picker.pick(0), picker.pick(0), picker.pick(0)), (Ok(0), Ok(1), Ok(0)));
        (0..FAILURES_MAX).for_each(|_| picker.failed(0, 0));
        assert!((0..9).all(|_| picker.pick(50) == Ok(1)));
        assert_eq!((picker.pick(PER_S), picker.pick(PER_S)), (Ok(0), Ok(1)), "one push tries it");
        picker.failed(0, PER_S);
        (0..FAILURES_MAX).for_each(|_| picker.failed(1, PER_S));
        assert_eq!(picker.pick(PER_S), Err(2 * PER_S), "the other one is the first to be back");
        picker.succeeded(1);
        assert_eq!(picker.pick(PER_S), Ok(1));
    }
}
