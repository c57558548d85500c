//! Words for the log that cannot be made to flood it: the first is said, then one a minute with how many were not.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(60);

/// One thing that may be said often.
#[derive(Debug, Default)]
pub struct Sparse {
    state: Mutex<(Option<Instant>, u64)>,
}

impl Sparse {
    /// For statics.
    pub const fn new() -> Self {
        Sparse { state: Mutex::new((None, 0)) }
    }

    /// `Some` if it may be said now, with how often it was not since the last time.
    pub fn may_say(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.is_some_and(|said| said.elapsed() < EVERY) {
            state.1 += 1;
            return None;
        }
        state.0 = Some(Instant::now());
        Some(std::mem::take(&mut state.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_and_the_next_are_counted() {
        let sparse = Sparse::new();
        assert_eq!(sparse.may_say(), Some(0));
        assert_eq!(sparse.may_say(), None);
        assert_eq!(sparse.state.lock().unwrap().1, 1);
    }
}
