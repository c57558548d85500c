//! What a run has come to.
//!
//! Arrives: every push with its answer, every change that is stored. Leaves: rates by second, and
//! how late. Always holds: what is *old* was made before the trouble ended, everything else is
//! *fresh*; how late a change is counts from its windows' closing to the reply. Pure.

use super::cloud::{Load, Verdict};
use super::wheel::{PER_S, Step, seconds};
use hdrhistogram::Histogram;

/// Later than two days is as late as that.
const LATEST_MS: u64 = 2 * 86_400_000;

/// One second; heartbeats do not count.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Second {
    /// Batches that came, whether they were let in or not.
    pub(super) pushes: u32,
    /// Batches that were refused, for want of room or as a shard is known to be down.
    pub(super) refused: u32,
    /// Batches that one shard did not take.
    pub(super) failed: u32,
    /// Batches that were not answered in time.
    pub(super) timed_out: u32,
    /// Summaries that came.
    pub(super) offered: f64,
    /// Summaries that came and were not acknowledged.
    pub(super) in_vain: f64,
    /// Changes that were stored and are fresh.
    pub(super) fresh: u32,
    /// Changes that were stored and are old.
    pub(super) old: u32,
}

/// How late something was.
#[derive(Debug, Clone)]
pub(super) struct Late(Histogram<u64>);

impl Late {
    fn new() -> Self {
        Late(Histogram::new_with_max(LATEST_MS, 3).expect("three digits are a precision"))
    }

    pub(super) fn record(&mut self, steps: f64) {
        self.0.saturating_record((steps * 1e3 / f64::from(PER_S)).round() as u64);
    }

    /// Seconds that a share of all did not exceed.
    pub(super) fn at(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    /// The same as text, without decimals; nothing if there was nothing.
    pub(super) fn text(&self, quantile: f64) -> String {
        if self.0.is_empty() { "-".into() } else { format!("{:.0}", self.at(quantile)) }
    }
}

/// How late, of gateways that the trouble hits, and of the others.
#[derive(Debug, Clone)]
pub(super) struct Both {
    pub(super) hit: Late,
    pub(super) others: Late,
}

impl Both {
    fn new() -> Self {
        Both { hit: Late::new(), others: Late::new() }
    }

    fn record(&mut self, is_hit: bool, steps: f64) {
        if is_hit { &mut self.hit } else { &mut self.others }.record(steps);
    }
}

/// A run.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    begin: Step,
    /// When the trouble ends.
    ends: Step,
    /// By seconds since the begin.
    pub(super) seconds: Vec<Second>,
    /// How long pushes that were let in waited for their turn.
    pub(super) queue: Late,
    /// How late old changes were, of those made since the begin.
    pub(super) old: Both,
    /// How late fresh ones were.
    pub(super) fresh: Both,
    /// Old changes that are not stored.
    pub(super) old_left: u64,
    /// Fresh changes that are.
    pub(super) fresh_stored: u64,
    /// When the last old one was stored, in seconds since the trouble's end.
    pub(super) caught_up_s: Option<f64>,
}

impl Tally {
    pub(super) fn new(begin: Step, ends: Step) -> Self {
        Tally {
            begin,
            ends,
            seconds: Vec::new(),
            queue: Late::new(),
            old: Both::new(),
            fresh: Both::new(),
            old_left: 0,
            fresh_stored: 0,
            caught_up_s: None,
        }
    }

    fn second(&mut self, now: Step) -> &mut Second {
        let at = ((now - self.begin) / PER_S) as usize;
        if self.seconds.len() <= at {
            self.seconds.resize(at + 1, Second::default());
        }
        &mut self.seconds[at]
    }

    /// A push comes to a daemon.
    pub(super) fn came(&mut self, now: Step, load: Load) {
        let Load::Batch { summaries } = load else { return };
        let second = self.second(now);
        second.pushes += 1;
        second.offered += summaries;
    }

    /// It has ended.
    pub(super) fn ended(&mut self, now: Step, summaries: f64, verdict: Verdict) {
        if summaries == 0.0 || verdict == Verdict::Stored {
            return;
        }
        let second = self.second(now);
        second.in_vain += summaries;
        match verdict {
            Verdict::Stored => {}
            Verdict::Busy(_) => second.refused += 1,
            Verdict::Failed => second.failed += 1,
            Verdict::TimedOut => second.timed_out += 1,
        }
    }

    /// A change is stored.
    pub(super) fn stored(&mut self, now: Step, made: Step, is_hit: bool) {
        let late = f64::from(now - made);
        if made >= self.ends {
            self.second(now).fresh += 1;
            self.fresh_stored += 1;
            self.fresh.record(is_hit, late);
            return;
        }
        self.second(now).old += 1;
        self.old_left -= 1;
        if made >= self.begin {
            self.old.record(is_hit, late);
        }
        if self.old_left == 0 {
            self.caught_up_s = Some(seconds(now.saturating_sub(self.ends)));
        }
    }

    /// The sum of something over all seconds.
    pub(super) fn total(&self, of: impl Fn(&Second) -> f64) -> f64 {
        self.seconds.iter().map(of).sum()
    }

    /// The highest second beside the mean.
    pub(super) fn peak_to_mean(&self, of: impl Fn(&Second) -> f64) -> f64 {
        let peak = self.seconds.iter().map(&of).fold(0.0, f64::max);
        peak / (self.total(of) / self.seconds.len().max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_fresh_changes_are_told_apart() {
        let mut tally = Tally::new(10 * PER_S, 20 * PER_S);
        tally.old_left = 2;
        tally.stored(21 * PER_S, 9 * PER_S, true);
        assert_eq!(tally.caught_up_s, None);
        tally.stored(25 * PER_S, 15 * PER_S, true);
        tally.stored(25 * PER_S, 22 * PER_S, false);
        assert_eq!((tally.caught_up_s, tally.fresh_stored), (Some(5.0), 1));
        let late = (tally.old.hit.at(0.5).round(), tally.fresh.others.at(0.99).round());
        assert_eq!(late, (10.0, 3.0), "one was made before the begin");
        assert_eq!((tally.seconds[11].old, tally.seconds[15].old, tally.seconds[15].fresh), (1, 1, 1));
    }

    #[test]
    fn what_is_not_acknowledged_came_in_vain() {
        let mut tally = Tally::new(0, 0);
        let load = Load::Batch { summaries: 10.0 };
        for verdict in [Verdict::Stored, Verdict::Busy(100), Verdict::Failed, Verdict::TimedOut] {
            tally.came(5, load);
            tally.ended(PER_S, 10.0, verdict);
        }
        tally.came(5, Load::Heartbeat);
        tally.ended(PER_S, 0.0, Verdict::Busy(100));
        assert_eq!((tally.total(|s| s.offered), tally.total(|s| s.in_vain)), (40.0, 30.0));
        let Second { pushes, .. } = tally.seconds[0];
        let Second { refused, failed, timed_out, .. } = tally.seconds[1];
        assert_eq!((pushes, refused, failed, timed_out), (4, 1, 1, 1));
        assert!((tally.peak_to_mean(|s| s.offered) - 2.0).abs() < 1e-9);
    }
}
