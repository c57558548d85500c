//! Memory for one purpose, and who has how much of it.
//!
//! Always holds: all together have at most as much as there is, and each at most half of it; but whoever is alone
//! may have all, so that what one may send at most always fits, and one hold at a time may go beyond, where holds
//! would wait for each other. It is given back when its hold is dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// All of it.
#[derive(Debug)]
pub struct Memory {
    held: Mutex<Held>,
    freed: Notify,
    most: usize,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    by_owner: HashMap<Arc<str>, usize>,
    /// A hold that may go beyond, so that holds which wait for each other come to an end: see
    /// [`Hold::take_when_free`].
    beyond: Option<u64>,
    holds: u64,
}

/// A part of it.
#[derive(Debug)]
pub struct Hold {
    memory: Arc<Memory>,
    owner: Arc<str>,
    bytes: usize,
    id: u64,
}

impl Memory {
    /// So many bytes.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Memory { held: Mutex::default(), freed: Notify::new(), most })
    }

    /// Nothing yet, for this owner.
    pub fn hold(self: &Arc<Self>, owner: &Arc<str>) -> Hold {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.holds += 1;
        Hold { memory: Arc::clone(self), owner: Arc::clone(owner), bytes: 0, id: held.holds }
    }
}

impl Hold {
    /// How much it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes more; false if there is none now.
    pub fn take(&mut self, more: usize) -> bool {
        let mut held = self.memory.held.lock().unwrap_or_else(PoisonError::into_inner);
        let of_owner = held.by_owner.get(&self.owner).copied().unwrap_or_default();
        let fits = held.total + more <= self.memory.most && of_owner + more <= self.memory.most / 2;
        if !fits && held.total != self.bytes && held.beyond != Some(self.id) {
            return false;
        }
        held.total += more;
        *held.by_owner.entry(Arc::clone(&self.owner)).or_default() += more;
        self.bytes += more;
        true
    }

    /// Takes more as soon as there is some. Holds grow bit by bit and might all wait for each other: one of them at a
    /// time, the first that finds none, may go beyond, so that it ends and the others have what it had.
    pub async fn take_when_free(&mut self, more: usize) {
        loop {
            let memory = Arc::clone(&self.memory);
            let freed = memory.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.take(more) {
                return;
            }
            // Whoever has nothing yet waits: it holds up nobody.
            if self.bytes > 0 {
                let mut held = memory.held.lock().unwrap_or_else(PoisonError::into_inner);
                if held.beyond.is_none() {
                    held.beyond = Some(self.id);
                    continue;
                }
            }
            freed.await;
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.memory.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.total -= self.bytes;
        if held.beyond == Some(self.id) {
            held.beyond = None;
        }
        if let Some(of_owner) = held.by_owner.get_mut(&self.owner) {
            *of_owner -= self.bytes;
            if *of_owner == 0 {
                held.by_owner.remove(&self.owner);
            }
        }
        drop(held);
        self.memory.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four bodies that each need half: bit by bit, none of them alone would ever end.
    #[tokio::test]
    async fn holds_that_wait_for_each_other_come_to_an_end() {
        let memory = Memory::new(100);
        let grow = |owner: &'static str| {
            let memory = Arc::clone(&memory);
            tokio::spawn(async move {
                let mut hold = memory.hold(&owner.into());
                for _ in 0..50 {
                    hold.take_when_free(1).await;
                    tokio::task::yield_now().await;
                }
            })
        };
        let all = [grow("a"), grow("a"), grow("b"), grow("c")];
        for one in all {
            tokio::time::timeout(std::time::Duration::from_secs(10), one).await.expect("it ends").unwrap();
        }
        assert_eq!(memory.held.lock().unwrap().total, 0);
    }

    #[test]
    fn nobody_takes_it_all_from_others() {
        let memory = Memory::new(100);
        let (mut a, mut b) = (memory.hold(&"a".into()), memory.hold(&"b".into()));
        assert!(a.take(90), "alone");
        assert!(!b.take(20));
        assert!(b.take(10));
        assert!(!a.take(1));
        drop(a);
        assert!(b.take(40));
        assert!(!memory.hold(&"b".into()).take(1), "more than half");
        assert!(memory.hold(&"c".into()).take(50));
    }
}
