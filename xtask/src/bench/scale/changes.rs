//! What a gateway has to send, and what of it waits.
//!
//! All windows of a minute close within some seconds after it; what has closed by one look of the
//! gateway is one change, and changes are numbered. Always holds: a gateway's changes follow from
//! the time alone. Pure.

use super::wheel::{PER_S, Step};
use std::ops::Range;

/// Looks in a second: `TICK` of `gateway/src/window/driver.rs` is 200 ms.
pub(super) const LOOKS_PER_S: u32 = 5;
pub(super) const LOOK_EVERY: Step = PER_S / LOOKS_PER_S;

/// When windows of one gateway close.
#[derive(Debug, Clone, Copy)]
pub(super) struct Closing {
    /// `window.length`.
    pub(super) window: Step,
    /// `window.lateness`.
    pub(super) lateness: Step,
    /// Looks over which the windows of a minute close, as their devices do not read in step.
    pub(super) looks: u32,
}

impl Closing {
    /// When a change is made, by a gateway that looks `offset` after the full second.
    pub(super) fn made_at(self, change: u32, offset: Step) -> Step {
        let (minute, look) = (change / self.looks, change % self.looks);
        (minute + 1) * self.window + self.lateness + look * LOOK_EVERY + offset
    }

    /// How many changes there are at a time.
    pub(super) fn made_by(self, now: Step, offset: Step) -> u32 {
        let Some(since) = now.checked_sub(self.window + self.lateness + offset) else { return 0 };
        since / self.window * self.looks + (since % self.window / LOOK_EVERY + 1).min(self.looks)
    }
}

/// Changes that are neither acknowledged nor under way: ranges in their order, none empty, none
/// touching the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Waiting(Vec<Range<u32>>);

impl Waiting {
    /// The first changes of a range that wait, at most so many; they are under way from now on.
    pub(super) fn take(&mut self, within: Range<u32>, most: u32) -> Option<Range<u32>> {
        let at = self.0.iter().position(|range| range.end > within.start)?;
        let range = self.0[at].clone();
        let from = range.start.max(within.start);
        let to = range.end.min(within.end).min(from.saturating_add(most));
        if from >= to {
            return None;
        }
        match (from > range.start, to < range.end) {
            (false, false) => drop(self.0.remove(at)),
            (false, true) => self.0[at].start = to,
            (true, false) => self.0[at].end = from,
            (true, true) => {
                self.0[at].end = from;
                self.0.insert(at + 1, to..range.end);
            }
        }
        Some(from..to)
    }

    /// These wait, perhaps again.
    pub(super) fn put(&mut self, changes: Range<u32>) {
        if changes.is_empty() {
            return;
        }
        let at = self.0.iter().position(|range| range.start > changes.start).unwrap_or(self.0.len());
        let (mut start, mut end, mut from, mut to) = (changes.start, changes.end, at, at);
        if at > 0 && self.0[at - 1].end == start {
            (start, from) = (self.0[at - 1].start, at - 1);
        }
        if self.0.get(at).is_some_and(|next| next.start == end) {
            (end, to) = (self.0[at].end, at + 1);
        }
        self.0.splice(from..to, std::iter::once(start..end));
    }

    /// True if any of a range waits.
    pub(super) fn any_within(&self, within: Range<u32>) -> bool {
        let first = self.0.iter().find(|range| range.end > within.start);
        first.is_some_and(|first| first.start.max(within.start) < within.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use std::collections::BTreeSet;

    #[test]
    fn changes_are_made_in_the_seconds_after_lateness() {
        let closing = Closing { window: 60 * PER_S, lateness: 10 * PER_S, looks: 50 };
        let at = |s: u32| s * PER_S;
        assert_eq!(
            (closing.made_at(0, 0), closing.made_at(5, 0), closing.made_at(50, 7)),
            (at(70), at(71), at(130) + 7)
        );
        assert_eq!((closing.made_by(at(69), 0), closing.made_by(at(70), 0), closing.made_by(at(129), 0)), (0, 1, 50));
        assert!((0..120).all(|n| closing.made_by(closing.made_at(n, 3), 3) == n + 1));
        assert!((1..120).all(|n| closing.made_by(closing.made_at(n, 3) - 1, 3) == n));
    }

    /// Beside a plain set of numbers.
    #[test]
    fn what_waits_is_taken_once() {
        let mut rng = StdRng::seed_from_u64(3);
        let (mut waiting, mut plain, mut taken) = (Waiting::default(), BTreeSet::new(), Vec::new());
        waiting.put(0..200);
        plain.extend(0..200_u32);
        for _ in 0..2_000 {
            if rng.random_bool(0.5) {
                let (from, most) = (rng.random_range(0..200), rng.random_range(1..9));
                let within = from..rng.random_range(from..=200);
                assert_eq!(waiting.any_within(within.clone()), plain.range(within.clone()).next().is_some());
                let got = waiting.take(within.clone(), most);
                assert_eq!(got.as_ref().map(|range| range.start), plain.range(within).next().copied());
                if let Some(range) = got {
                    assert!(range.clone().all(|n| plain.remove(&n)) && range.len() <= most as usize);
                    taken.push(range);
                }
            } else if !taken.is_empty() {
                let range: Range<u32> = taken.swap_remove(rng.random_range(0..taken.len()));
                plain.extend(range.clone());
                waiting.put(range);
            }
            assert!(waiting.0.windows(2).all(|pair| pair[0].end < pair[1].start));
            assert_eq!(waiting.0.iter().cloned().flatten().collect::<BTreeSet<u32>>(), plain);
        }
    }
}
