//! Who has shown that it receives what it asks for.
//!
//! Anybody can write another's address on a datagram. So until a client has sent back an Echo value (RFC 9175,
//! section 2.3), what it asks for is answered with three times as many bytes at most (section 2.6 there): large
//! representations come in small blocks, each with the value. Pure: no socket, no clock. Always holds: bounded.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The option's number.
pub(super) const ECHO: u16 = 252;
/// Answers are so many times as long as their request.
const TIMES: usize = 3;
/// What a response has besides its payload: header, token, format, block, tag, age, Echo, marker.
const AROUND: usize = 30;
/// How long a value is good, and a client known.
const GOOD: Duration = Duration::from_secs(120);
const KNOWN_MAX: usize = 10_000;

/// All who have.
#[derive(Debug)]
pub(super) struct Reach {
    secret: u64,
    begun: Instant,
    known: HashMap<SocketAddr, Instant>,
}

impl Reach {
    /// Nobody yet; `secret` is what others must not guess.
    pub(super) fn new(secret: u64, now: Instant) -> Self {
        Reach { secret, begun: now, known: HashMap::new() }
    }

    fn at(&self, from: SocketAddr, period: u64) -> [u8; 8] {
        xxh3_64_with_seed(format!("{from} {period}").as_bytes(), self.secret).to_be_bytes()
    }

    fn period(&self, now: Instant) -> u64 {
        (now - self.begun).as_secs() / GOOD.as_secs()
    }

    /// The value that a client is to send back.
    pub(super) fn value(&self, from: SocketAddr, now: Instant) -> [u8; 8] {
        self.at(from, self.period(now))
    }

    /// A client has sent a value.
    pub(super) fn note(&mut self, from: SocketAddr, value: &[u8], now: Instant) {
        let period = self.period(now);
        let is_right = [period, period.saturating_sub(1)].iter().any(|period| self.at(from, *period) == value);
        if !is_right {
            return;
        }
        if self.known.len() >= KNOWN_MAX {
            self.known.retain(|_, since| now - *since < GOOD);
        }
        if self.known.len() < KNOWN_MAX {
            self.known.insert(from, now);
        }
    }

    /// How many bytes of payload may answer a request of `bytes`; all for whoever is known.
    pub(super) fn room(&self, from: SocketAddr, bytes: usize, now: Instant) -> Option<usize> {
        let is_known = self.known.get(&from).is_some_and(|since| now - *since < GOOD);
        (!is_known).then(|| (bytes * TIMES).saturating_sub(AROUND))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_sends_back_what_it_got_may_have_it_all() {
        let now = Instant::now();
        let mut reach = Reach::new(7, now);
        let (a, b): (SocketAddr, SocketAddr) = ("10.0.0.1:5683".parse().unwrap(), "10.0.0.2:5683".parse().unwrap());
        assert_eq!(reach.room(a, 21, now), Some(33));
        let value = reach.value(a, now);
        reach.note(b, &value, now);
        assert!(reach.room(b, 21, now).is_some(), "another's value");
        reach.note(a, &value, now + GOOD);
        assert_eq!(reach.room(a, 21, now + GOOD), None);
        reach.note(b, &reach.value(b, now), now + GOOD * 2);
        assert!(reach.room(b, 21, now + GOOD * 2).is_some(), "too old");
    }
}
