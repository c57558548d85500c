//! How long commits wait for company, so that a card lasts.
//!
//! Arrives: what the process has written so far. Leaves: the delay. Always holds: never
//! shorter than `journal.commit_delay`, never longer than devices wait for an answer; without
//! a budget it is `journal.commit_delay`. Pure: no clock, no files.

use std::time::{Duration, Instant};

/// How often the delay is looked at.
const PERIOD: Duration = Duration::from_secs(10);
/// The longest delay: devices that get no answer send again.
const LONGEST: Duration = Duration::from_secs(5);
/// Below it a delay saves nothing.
const SHORTEST: Duration = Duration::from_millis(20);
/// The weight of the last period in the rate; folds and checkpoints come in bursts.
const WEIGHT: f64 = 0.3;
const DAY_S: f64 = 86_400.0;

/// The delay of commits.
#[derive(Debug)]
pub(crate) struct Pace {
    least: Duration,
    delay: Duration,
    /// `storage.max_written_per_day`.
    budget_bytes: Option<u64>,
    since: Instant,
    written_bytes: u64,
    bytes_per_day: Option<f64>,
}

impl Pace {
    /// Commits wait `least`; longer if more than `budget_bytes` would be written in a day.
    pub(crate) fn new(least: Duration, budget_bytes: Option<u64>, now: Instant, written_bytes: u64) -> Self {
        Pace { least, delay: least, budget_bytes, since: now, written_bytes, bytes_per_day: None }
    }

    /// How long a commit waits for company.
    pub(crate) fn delay(&self) -> Duration {
        self.delay
    }

    /// What would be written in a day at the rate of late; nothing before a period is over.
    pub(crate) fn bytes_per_day(&self) -> Option<f64> {
        self.bytes_per_day
    }

    /// True when it is time to say what has been written.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now - self.since >= PERIOD
    }

    /// Takes note of all that the process has written, and chooses the delay.
    pub(crate) fn note(&mut self, now: Instant, written_bytes: u64) {
        let rate = written_bytes.saturating_sub(self.written_bytes) as f64 / (now - self.since).as_secs_f64() * DAY_S;
        let rate = self.bytes_per_day.map_or(rate, |before| before * (1.0 - WEIGHT) + rate * WEIGHT);
        (self.since, self.written_bytes, self.bytes_per_day) = (now, written_bytes, Some(rate));
        let Some(budget) = self.budget_bytes.map(|bytes| bytes as f64) else { return };
        if rate > budget {
            let slower = self.delay.max(SHORTEST).mul_f64((rate / budget).clamp(1.1, 2.0));
            self.delay = slower.min(LONGEST.max(self.least));
        } else if rate < budget * 0.8 {
            let faster = self.delay.mul_f64(0.9);
            self.delay = if faster <= SHORTEST { self.least } else { faster.max(self.least) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a store writes in a day with commits so far apart: pages for each, and the content.
    fn writes(delay: Duration) -> f64 {
        let commits_per_s = 1.0 / delay.as_secs_f64().max(0.01);
        (commits_per_s * 12_000.0 + 500.0) * DAY_S
    }

    fn settle(budget_bytes: Option<u64>) -> Pace {
        let mut now = Instant::now();
        let mut pace = Pace::new(Duration::ZERO, budget_bytes, now, 0);
        let mut written = 0.0;
        for _ in 0..500 {
            assert!(!pace.is_due(now));
            now += PERIOD;
            written += writes(pace.delay()) * PERIOD.as_secs_f64() / DAY_S;
            assert!(pace.is_due(now));
            pace.note(now, written as u64);
        }
        pace
    }

    #[test]
    fn commits_wait_until_the_budget_is_kept_and_no_longer() {
        assert_eq!(settle(None).delay(), Duration::ZERO);
        let generous = settle(Some(1 << 40));
        assert_eq!(generous.delay(), Duration::ZERO);
        let pace = settle(Some(1 << 30));
        let rate = pace.bytes_per_day().unwrap();
        assert!(rate <= 1.1 * f64::from(1 << 30) && rate >= 0.6 * f64::from(1 << 30), "{rate} {:?}", pace.delay());
    }

    #[test]
    fn what_cannot_be_kept_makes_no_device_wait_for_ever() {
        assert_eq!(settle(Some(1 << 20)).delay(), LONGEST);
    }
}
