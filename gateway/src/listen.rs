//! Messages come in here, by any protocol.
//!
//! Arrives: bytes on sockets. Leaves: parcels for the journal, each with the receipts of those
//! who wait. Always holds: **commit, then acknowledge**: a receipt is settled only after the
//! journal has delivered it to its desk, and in order of arrival; a full journal means that
//! the socket is not read. Deliberately absent: what happens to readings afterwards.

/// From decoded names to series and times: the one door for all protocols.
pub(crate) mod admit;

/// Topics that no rule takes.
pub(crate) mod unmatched;

/// MQTT 3.1.1 and 5.0.
pub(crate) mod mqtt;

/// CoAP.
pub(crate) mod coap;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What is to be done once a commit is on disk.
pub(crate) enum Receipt {
    /// Acknowledge packets of an MQTT connection and pass messages on.
    Mqtt(mqtt::Receipt),
    /// Call this.
    Call(Box<dyn FnOnce() + Send>),
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Receipt::Mqtt(_) => "Mqtt",
            Receipt::Call(_) => "Call",
        })
    }
}

/// Where a thread of listeners takes up its receipts: one wake-up for all of a commit.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    pile: Mutex<Vec<Receipt>>,
    spare: Mutex<Vec<Receipt>>,
    wake: Notify,
}

/// Poisoning only tells that another thread panicked; every critical section of the listeners
/// leaves the data whole, so the data is used.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    /// An empty pile whose capacity has been used before.
    pub(crate) fn spare(&self) -> Vec<Receipt> {
        std::mem::take(&mut *lock(&self.spare))
    }

    /// Puts receipts of a commit on the desk.
    pub(crate) fn deliver(&self, mut receipts: Vec<Receipt>) {
        if receipts.is_empty() {
            *lock(&self.spare) = receipts;
            return;
        }
        let mut pile = lock(&self.pile);
        if pile.is_empty() {
            *pile = receipts;
        } else {
            pile.append(&mut receipts);
        }
        drop(pile);
        self.wake.notify_one();
    }

    /// Waits for receipts and takes them all.
    pub(crate) async fn take(&self) -> Vec<Receipt> {
        loop {
            let pile = std::mem::take(&mut *lock(&self.pile));
            if !pile.is_empty() {
                return pile;
            }
            self.wake.notified().await;
        }
    }

    /// Takes what there is now, at the end.
    pub(crate) fn pile_now(&self) -> Vec<Receipt> {
        std::mem::take(&mut *lock(&self.pile))
    }

    /// Gives a settled pile back, for its capacity.
    pub(crate) fn give_back(&self, mut pile: Vec<Receipt>) {
        pile.clear();
        *lock(&self.spare) = pile;
    }
}
