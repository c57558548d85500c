//! Memory that all connections share, and what each has taken of it.
//!
//! Always holds: what a connection holds is counted for as long as it holds it; a connection
//! that would exceed the whole is ended (0x97), and the others are not disturbed.

use super::packet::{Violation, reason};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Memory for one purpose, of all connections.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    max: usize,
    what: &'static str,
}

/// What one connection holds of it.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

/// What every connection may hold, however many there are.
const FREE_BYTES: usize = 4 << 10;

impl Budget {
    /// A budget, and the words for a connection that exceeds it.
    pub(super) fn new(max: usize, what: &'static str) -> Arc<Self> {
        Arc::new(Budget { used: AtomicUsize::new(0), max, what })
    }

    /// What all hold together.
    #[cfg(any(test, fuzzing))]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// A connection that holds nothing yet.
    pub(super) fn charge(self: &Arc<Self>) -> Charge {
        Charge { budget: Arc::clone(self), bytes: 0 }
    }
}

impl Charge {
    /// Now it holds so many bytes; an error if that is too much.
    pub(super) fn set(&mut self, bytes: usize) -> Result<(), Violation> {
        let used = &self.budget.used;
        let now = if bytes >= self.bytes {
            let more = bytes - self.bytes;
            used.fetch_add(more, Ordering::Relaxed) + more
        } else {
            used.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            0
        };
        self.bytes = bytes;
        if now > self.budget.max && bytes > FREE_BYTES {
            return Err(Violation { code: reason::QUOTA, what: self.budget.what });
        }
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What waits for all subscribers together.
#[derive(Debug)]
pub(super) struct Waiting {
    bytes: AtomicUsize,
    max: usize,
}

impl Waiting {
    /// So many bytes.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Waiting { bytes: AtomicUsize::new(0), max })
    }

    /// What waits.
    #[cfg(any(test, fuzzing))]
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// What waits for one subscriber is now so much, instead of `before`.
    pub(super) fn change(&self, before: usize, now: usize) {
        if now >= before {
            self.bytes.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.bytes.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// True if there is no room for more.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_exceeds_the_whole_is_told_and_what_is_let_go_can_be_taken_again() {
        let budget = Budget::new(100_000, "full");
        let (mut a, mut b) = (budget.charge(), budget.charge());
        assert!(a.set(90_000).is_ok());
        assert!(b.set(FREE_BYTES).is_ok());
        assert_eq!(b.set(20_000).unwrap_err().what, "full");
        b.set(0).unwrap();
        drop(a);
        assert!(b.set(100_000).is_ok());
    }
}
