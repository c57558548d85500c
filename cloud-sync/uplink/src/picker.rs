//! Which endpoint, and which of them are down.
//!
//! Each endpoint has a circuit breaker: after [`FAILURES_MAX`] failures in a row it is left
//! alone for a time that doubles; then one push may try it, and what comes of that decides.
//! Arrives: the time, outcomes, a random number. Leaves: an endpoint. Pure.

use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

const FAILURES_MAX: u32 = 3;
const OPEN_LEAST: Duration = Duration::from_secs(1);
const OPEN_MOST: Duration = Duration::from_secs(30);

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// In turn, as often as their weights say.
    #[default]
    RoundRobin,
    /// At random, by weight.
    Random,
    /// Of two at random the one with less under way.
    TwoChoices,
}

#[derive(Debug, Clone)]
struct Breaker {
    weight: u32,
    /// Rises by the weight at every choice, falls by all weights when chosen (smooth weighted
    /// round robin, as nginx does it).
    credit: i64,
    under_way: u32,
    failures: u32,
    open_until: Option<Instant>,
    open_for: Duration,
    probing: bool,
}

/// The endpoints.
#[derive(Debug, Clone)]
pub(super) struct Picker {
    balance: Balance,
    endpoints: Vec<Breaker>,
}

impl Picker {
    pub(super) fn new(balance: Balance, weights: impl IntoIterator<Item = u32>) -> Self {
        let breaker = |weight| Breaker {
            weight,
            credit: 0,
            under_way: 0,
            failures: 0,
            open_until: None,
            open_for: OPEN_LEAST,
            probing: false,
        };
        Picker { balance, endpoints: weights.into_iter().map(breaker).collect() }
    }

    /// An endpoint for a push, which must be told how it went; or when to ask again.
    pub(super) fn pick(&mut self, now: Instant, random: u64) -> Result<usize, Instant> {
        let free: Vec<usize> = (0..self.endpoints.len()).filter(|&at| self.endpoints[at].is_free(now)).collect();
        if free.is_empty() {
            let until = self.endpoints.iter().filter_map(|endpoint| endpoint.open_until).min();
            // One that is being tried will tell soon.
            return Err(until.filter(|&until| until > now).unwrap_or(now + OPEN_LEAST));
        }
        // One that may be back is tried first: only that can tell.
        let probe = free.iter().copied().find(|&at| self.endpoints[at].open_until.is_some());
        let at = match (probe, self.balance) {
            (Some(at), _) => at,
            (None, Balance::RoundRobin) => self.next_in_turn(&free),
            (None, Balance::Random) => self.by_weight(&free, random),
            (None, Balance::TwoChoices) => {
                let (one, other) = (self.by_weight(&free, random), self.by_weight(&free, random.rotate_left(32)));
                let load = |at: usize| f64::from(self.endpoints[at].under_way) / f64::from(self.endpoints[at].weight);
                if load(other) < load(one) { other } else { one }
            }
        };
        let chosen = &mut self.endpoints[at];
        chosen.probing = chosen.open_until.is_some();
        chosen.under_way += 1;
        Ok(at)
    }

    fn next_in_turn(&mut self, free: &[usize]) -> usize {
        let mut total = 0;
        for &at in free {
            let endpoint = &mut self.endpoints[at];
            endpoint.credit += i64::from(endpoint.weight);
            total += i64::from(endpoint.weight);
        }
        let best = free.iter().copied().rev().max_by_key(|&at| self.endpoints[at].credit);
        let best = best.expect("there is one that is free");
        self.endpoints[best].credit -= total;
        best
    }

    fn by_weight(&self, free: &[usize], random: u64) -> usize {
        let total: u64 = free.iter().map(|&at| u64::from(self.endpoints[at].weight)).sum();
        let mut left = random % total.max(1);
        for &at in free {
            let weight = u64::from(self.endpoints[at].weight);
            if left < weight {
                return at;
            }
            left -= weight;
        }
        free[0]
    }

    /// The endpoint answered, if only with a refusal.
    pub(super) fn succeeded(&mut self, at: usize) {
        let endpoint = &mut self.endpoints[at];
        endpoint.under_way = endpoint.under_way.saturating_sub(1);
        endpoint.failures = 0;
        endpoint.open_until = None;
        endpoint.open_for = OPEN_LEAST;
        endpoint.probing = false;
    }

    /// The endpoint did not answer, or could not do it.
    pub(super) fn failed(&mut self, at: usize, now: Instant) {
        let endpoint = &mut self.endpoints[at];
        endpoint.under_way = endpoint.under_way.saturating_sub(1);
        endpoint.failures += 1;
        if endpoint.probing || endpoint.failures == FAILURES_MAX {
            endpoint.open_until = Some(now + endpoint.open_for);
            endpoint.open_for = (endpoint.open_for * 2).min(OPEN_MOST);
            endpoint.probing = false;
        }
    }

    /// What `/v1/status` says of an endpoint.
    pub(super) fn state(&self, at: usize, now: Instant) -> &'static str {
        match &self.endpoints[at] {
            Breaker { probing: true, .. } => "half-open",
            Breaker { open_until: Some(until), .. } if *until > now => "open",
            Breaker { open_until: Some(_), .. } => "half-open",
            _ => "closed",
        }
    }
}

impl Breaker {
    fn is_free(&self, now: Instant) -> bool {
        match self.open_until {
            None => true,
            Some(until) => until <= now && !self.probing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(balance: Balance) -> [u32; 3] {
        let now = Instant::now();
        let mut picker = Picker::new(balance, [1, 2, 1]);
        let mut chosen = [0; 3];
        let mut random = 7_u64;
        for _ in 0..4_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = picker.pick(now, random ^ (random >> 29)).unwrap();
            chosen[at] += 1;
            picker.succeeded(at);
        }
        chosen
    }

    #[test]
    fn shares_follow_the_weights() {
        assert_eq!(shares(Balance::RoundRobin), [1_000, 2_000, 1_000]);
        for balance in [Balance::Random, Balance::TwoChoices] {
            let [one, two, three] = shares(balance);
            assert!(two > one + three / 2 && one > 500 && three > 500, "{one} {two} {three}");
        }
    }

    #[test]
    fn an_endpoint_that_is_down_is_left_alone_and_tried_by_one_push_at_a_time() {
        let now = Instant::now();
        let mut picker = Picker::new(Balance::RoundRobin, [1, 1]);
        for _ in 0..FAILURES_MAX {
            while picker.pick(now, 0).unwrap() != 0 {
                picker.succeeded(1);
            }
            picker.failed(0, now);
        }
        assert_eq!(picker.state(0, now), "open");
        assert!((0..10).all(|_| picker.pick(now, 0) == Ok(1)));
        let later = now + OPEN_LEAST;
        assert_eq!((picker.pick(later, 0), picker.pick(later, 0)), (Ok(0), Ok(1)));
        picker.failed(0, later);
        assert_eq!(picker.pick(later + OPEN_LEAST, 0), Ok(1), "it is left alone for longer");
        let much_later = later + OPEN_LEAST * 2;
        assert_eq!(picker.pick(much_later, 0), Ok(0));
        picker.succeeded(0);
        assert_eq!(picker.state(0, much_later), "closed");
    }

    #[test]
    fn without_any_endpoint_it_says_when_to_ask_again() {
        let now = Instant::now();
        let mut picker = Picker::new(Balance::TwoChoices, [1]);
        for _ in 0..FAILURES_MAX {
            assert_eq!(picker.pick(now, 3), Ok(0));
            picker.failed(0, now);
        }
        assert_eq!(picker.pick(now, 3), Err(now + OPEN_LEAST));
    }
}
