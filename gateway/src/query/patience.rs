//! How long a question may take.
//!
//! Arrives: a deadline, and word that nobody waits any more. Leaves: an interrupted read, soon after either.
//! Always holds: whatever a question reads, it reads through a connection that looks at its patience every few
//! steps, so that a question over thousands of days ends as quickly as one over a single large one.

use rusqlite::Connection;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Steps of SQLite's machine from one look to the next: some microseconds.
const STEPS: std::ffi::c_int = 500;

thread_local! {
    /// Of the question that this thread answers.
    static CURRENT: RefCell<Option<Patience>> = const { RefCell::new(None) };
}

/// The end of a question.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    until: Instant,
    given_up: Arc<AtomicBool>,
}

/// Whoever waits for the answer; gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Waiter(Arc<AtomicBool>);

impl Patience {
    /// Until then, or until the waiter has gone.
    pub(crate) fn until(until: Instant) -> (Self, Waiter) {
        let given_up = Arc::new(AtomicBool::new(false));
        (Patience { until, given_up: Arc::clone(&given_up) }, Waiter(given_up))
    }

    fn is_over(&self) -> bool {
        self.given_up.load(Ordering::Relaxed) || Instant::now() >= self.until
    }

    /// Answers a question on this thread with this patience.
    pub(crate) fn answer<T>(self, question: impl FnOnce() -> T) -> T {
        CURRENT.set(Some(self));
        let answer = question();
        CURRENT.set(None);
        answer
    }
}

/// Lets reads through the connection end with the patience of the question that this thread answers, if it
/// answers one.
pub(super) fn watch(connection: &mut Connection) -> rusqlite::Result<()> {
    match CURRENT.with_borrow(Clone::clone) {
        Some(patience) => connection.progress_handler(STEPS, Some(move || patience.is_over())),
        None => connection.progress_handler(STEPS, None::<fn() -> bool>),
    }
}

/// True if a read was interrupted.
pub(crate) fn is_interrupted(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted)
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
