//! Messages seen before (RFC 7252, section 4.2 and 4.5).
//!
//! Arrives: endpoint, message id, fingerprint. Leaves: whether a request is new, a repetition
//! of one still being worked on, or one that has its answer. Always holds: bounded; beyond
//! the bound the oldest exchange is forgotten. A busy sender's 16-bit ids come round within
//! EXCHANGE_LIFETIME, so a repetition must also have the same token and payload.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// EXCHANGE_LIFETIME with the default parameters (section 4.8.2).
const LIFETIME: Duration = Duration::from_secs(247);

/// An endpoint's message id.
pub(super) type Key = (SocketAddr, u16);

/// What is known of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing: work on it.
    New,
    /// Somebody works on it: the answer will come.
    Pending,
    /// This was the answer.
    Answered(Vec<u8>),
}

#[derive(Debug)]
struct Exchange {
    fingerprint: u64,
    since: Instant,
    answer: Option<Vec<u8>>,
}

/// The exchanges of the last minutes.
#[derive(Debug)]
pub(super) struct Exchanges {
    by_key: HashMap<Key, Exchange>,
    order: VecDeque<(Key, Instant)>,
    max: usize,
}

impl Exchanges {
    pub(super) fn new(max: usize) -> Self {
        Exchanges { by_key: HashMap::new(), order: VecDeque::new(), max }
    }

    /// Looks a request up and remembers it.
    pub(super) fn see(&mut self, key: Key, fingerprint: u64, now: Instant) -> Seen {
        self.forget_old(now);
        if let Some(exchange) = self.by_key.get(&key)
            && exchange.fingerprint == fingerprint
            && now.duration_since(exchange.since) < LIFETIME
        {
            return exchange.answer.clone().map_or(Seen::Pending, Seen::Answered);
        }
        self.by_key.insert(key, Exchange { fingerprint, since: now, answer: None });
        self.order.push_back((key, now));
        Seen::New
    }

    /// Remembers the answer to a request.
    pub(super) fn answer(&mut self, key: Key, fingerprint: u64, answer: &[u8]) {
        if let Some(exchange) = self.by_key.get_mut(&key)
            && exchange.fingerprint == fingerprint
        {
            exchange.answer = Some(answer.to_vec());
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some(&(key, since)) = self.order.front() {
            if now.duration_since(since) < LIFETIME && self.order.len() < self.max {
                break;
            }
            self.order.pop_front();
            if self.by_key.get(&key).is_some_and(|exchange| exchange.since == since) {
                self.by_key.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(mid: u16) -> Key {
        (SocketAddr::from(([127, 0, 0, 1], 5000)), mid)
    }

    #[test]
    fn a_repetition_joins_the_exchange_and_then_gets_its_answer() {
        let (mut exchanges, now) = (Exchanges::new(10), Instant::now());
        assert_eq!(exchanges.see(key(1), 7, now), Seen::New);
        assert_eq!(exchanges.see(key(1), 7, now), Seen::Pending);
        exchanges.answer(key(1), 7, b"ok");
        assert_eq!(exchanges.see(key(1), 7, now), Seen::Answered(b"ok".to_vec()));
        assert_eq!(exchanges.see(key(1), 8, now), Seen::New, "an id that came round");
        assert_eq!(exchanges.see(key(1), 8, now + LIFETIME), Seen::New, "after its lifetime");
    }

    #[test]
    fn beyond_the_bound_the_oldest_is_forgotten() {
        let (mut exchanges, now) = (Exchanges::new(3), Instant::now());
        (0..5).for_each(|mid| drop(exchanges.see(key(mid), 0, now)));
        assert_eq!(exchanges.by_key.len(), 3);
        assert_eq!(exchanges.see(key(4), 0, now), Seen::Pending);
        assert_eq!(exchanges.see(key(0), 0, now), Seen::New);
    }
}
