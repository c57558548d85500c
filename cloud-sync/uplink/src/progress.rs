//! What has been acknowledged.
//!
//! Changes are numbers that rise. Each is acknowledged, under way, or waiting. Always holds: what
//! [`Progress::take`] gives is neither acknowledged nor under way; forgetting what is under way
//! (a restart) makes it wait again. Pure.

use model::varint;
use rangemap::RangeSet;
use std::ops::Range;

/// Ranges that are kept on disk; more are forgotten, which sends them again.
const RANGES_MAX: usize = 64;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Progress {
    acknowledged: RangeSet<u64>,
    under_way: RangeSet<u64>,
}

impl Progress {
    /// Everything below is acknowledged.
    pub(super) fn done_below(&self) -> u64 {
        self.acknowledged.first().filter(|first| first.start <= 1).map_or(1, |first| first.end)
    }

    /// The first changes of a range that wait; they are under way from now on.
    pub(super) fn take(&mut self, within: Range<u64>) -> Option<Range<u64>> {
        let from = within.start.max(self.done_below());
        if from >= within.end {
            return None;
        }
        let within = from..within.end;
        let free = self.acknowledged.gaps(&within).find_map(|gap| self.under_way.gaps(&gap).next())?;
        self.under_way.insert(free.clone());
        Some(free)
    }

    /// The cloud has them.
    pub(super) fn acknowledge(&mut self, changes: Range<u64>) {
        if !changes.is_empty() {
            self.under_way.remove(changes.clone());
            self.acknowledged.insert(changes);
        }
    }

    /// They are not under way any more.
    pub(super) fn put_back(&mut self, changes: Range<u64>) {
        if !changes.is_empty() {
            self.under_way.remove(changes);
        }
    }

    /// They have to be sent again.
    pub(super) fn rewind(&mut self, changes: Range<u64>) {
        if !changes.is_empty() {
            self.acknowledged.remove(changes);
        }
    }

    /// True if all of them are acknowledged.
    pub(super) fn has(&self, changes: &Range<u64>) -> bool {
        self.acknowledged.gaps(changes).next().is_none()
    }

    /// How many of the changes below `end` are not acknowledged.
    pub(super) fn waiting_below(&self, end: u64) -> u64 {
        self.acknowledged.gaps(&(1..end.max(1))).map(|gap| gap.end - gap.start).sum()
    }

    /// Those below `end` that are not acknowledged.
    pub(super) fn waiting(&self, end: u64) -> Vec<Range<u64>> {
        self.acknowledged.gaps(&(1..end.max(1))).collect()
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let ranges: Vec<_> = self.acknowledged.iter().take(RANGES_MAX).collect();
        varint::put(out, ranges.len() as u64);
        let mut before = 0;
        for range in ranges {
            varint::put(out, range.start - before);
            varint::put(out, range.end - range.start);
            before = range.end;
        }
    }

    pub(super) fn read(rest: &mut &[u8]) -> Option<Self> {
        let mut progress = Progress::default();
        let mut before = 0_u64;
        for _ in 0..varint::take(rest)? {
            let start = before.checked_add(varint::take(rest)?)?;
            before = start.checked_add(varint::take(rest)?)?;
            progress.acknowledge(start..before);
        }
        Some(progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Debug, Clone)]
    enum Act {
        Take(u64, u64),
        Acknowledge(usize),
        PutBack(usize),
        Rewind(u64, u64),
        Restart,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (1..60_u64, 0..20_u64).prop_map(|(from, n)| Act::Take(from, from + n)),
            3 => any::<usize>().prop_map(Act::Acknowledge),
            2 => any::<usize>().prop_map(Act::PutBack),
            1 => (1..60_u64, 0..9_u64).prop_map(|(from, n)| Act::Rewind(from, from + n)),
            1 => Just(Act::Restart),
        ]
    }

    proptest! {
        /// Beside a plain set of numbers.
        #[test]
        fn no_change_is_lost_or_taken_twice(acts in prop::collection::vec(act(), 0..80)) {
            let mut progress = Progress::default();
            let mut acknowledged: BTreeSet<u64> = BTreeSet::new();
            let mut taken: Vec<Range<u64>> = Vec::new();
            for act in acts {
                match act {
                    Act::Take(from, to) => {
                        let free = |n: &u64| !acknowledged.contains(n) && !taken.iter().any(|r| r.contains(n));
                        let first = (from..to).find(free);
                        let got = progress.take(from..to);
                        prop_assert_eq!(got.as_ref().map(|range| range.start), first);
                        if let Some(range) = got {
                            prop_assert!(range.clone().all(|n| free(&n)) && range.end <= to);
                            taken.push(range);
                        }
                    }
                    Act::Acknowledge(at) if !taken.is_empty() => {
                        let range = taken.swap_remove(at % taken.len());
                        acknowledged.extend(range.clone());
                        progress.acknowledge(range);
                    }
                    Act::PutBack(at) if !taken.is_empty() => progress.put_back(taken.swap_remove(at % taken.len())),
                    Act::Rewind(from, to) => {
                        acknowledged.retain(|n| !(from..to).contains(n));
                        progress.rewind(from..to);
                    }
                    Act::Restart => {
                        let mut bytes = Vec::new();
                        progress.put(&mut bytes);
                        progress = Progress::read(&mut &bytes[..]).unwrap();
                        taken.clear();
                    }
                    _ => {}
                }
                prop_assert_eq!(progress.done_below(), (1..).find(|n| !acknowledged.contains(n)).unwrap());
                prop_assert_eq!(progress.waiting_below(80), 79 - acknowledged.iter().filter(|n| **n < 80).count() as u64);
            }
        }
    }
}
