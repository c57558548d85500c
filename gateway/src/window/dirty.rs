//! Windows that are to be computed again.
//!
//! Arrives: windows, one by one. Leaves: stretches that are due. Always holds: bounded: what
//! becomes too many windows is kept as a few stretches for each series; what a restart has to
//! know fits into a small blob, so that nothing else has to wait for a revision. Layout of the
//! blob: for each stretch varints of series, start and length, starts as zigzag.

use super::Key;
use super::revise::Stretch;
use model::time::window_start;
use model::{Micros, varint};
use std::collections::BTreeMap;

/// Windows kept one by one.
const WINDOWS_MAX: usize = 100_000;
/// Windows of a series no further apart are computed in one go, with those between.
const NEAR_US: Micros = 6 * 3_600 * 1_000_000;
/// The longest stretch computed in one go.
const STRETCH_US: Micros = 6 * 3_600 * 1_000_000;

/// All dirty windows.
#[derive(Debug, Default)]
pub struct Dirty {
    windows: BTreeMap<Key, ()>,
    stretches: Vec<Stretch>,
    /// Under way.
    lot: Vec<Stretch>,
    changed: bool,
}

impl Dirty {
    /// A window has to be computed again.
    pub fn add(&mut self, (start_us, series): Key, length_us: Micros) {
        self.changed |= self.windows.insert((start_us, series), ()).is_none();
        if self.windows.len() > WINDOWS_MAX {
            self.stretches = self.summary(length_us, Micros::MAX);
            self.windows.clear();
        }
    }

    /// True if a window is among them, or may be.
    pub fn holds(&self, (start_us, series): Key) -> bool {
        let within =
            |stretch: &Stretch| stretch.series == series && (stretch.from_us..stretch.to_us).contains(&start_us);
        self.windows.contains_key(&(start_us, series)) || self.stretches.iter().any(within)
    }

    /// How many there are, stretches counting as one.
    pub fn len(&self) -> usize {
        self.windows.len() + self.stretches.len() + self.lot.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes about `most` windows that `due_us` of their series says are due: those that end
    /// there or before. One lot at a time.
    pub fn take(&mut self, most: usize, length_us: Micros, due_us: impl Fn(u32) -> Micros) -> Vec<Stretch> {
        debug_assert!(self.lot.is_empty());
        let is_due = |&(start_us, series): &Key| start_us.saturating_add(length_us) <= due_us(series);
        let keys: Vec<Key> = self.windows.keys().filter(|key| is_due(key)).take(most).copied().collect();
        for key in &keys {
            self.windows.remove(key);
        }
        let mut lot = join(keys.into_iter().map(|(from_us, series)| one(series, from_us, length_us)).collect());
        let mut room = most.saturating_sub(lot.len());
        let mut rest = Vec::new();
        for mut stretch in std::mem::take(&mut self.stretches) {
            let step_us = (STRETCH_US / length_us).max(1) * length_us;
            while room > 0 && stretch.from_us < stretch.to_us {
                let end_us = stretch.to_us.min(stretch.from_us.saturating_add(step_us));
                let due_end_us = window_start(due_us(stretch.series), length_us).min(end_us);
                if due_end_us <= stretch.from_us {
                    break;
                }
                room -= 1;
                lot.push(Stretch { to_us: due_end_us, ..stretch });
                stretch.from_us = due_end_us;
            }
            if stretch.from_us < stretch.to_us {
                rest.push(stretch);
            }
        }
        self.stretches = rest;
        self.lot = lot.clone();
        lot
    }

    /// The lot has been computed, but for what is given back.
    pub fn done(&mut self, again: impl IntoIterator<Item = Stretch>) {
        self.changed |= !self.lot.is_empty();
        self.lot.clear();
        self.stretches.extend(again);
    }

    /// What a restart has to know, if it has changed since it was last asked for: for each
    /// series a stretch up to `now_us`, and one of what lies in the future.
    pub fn blob(&mut self, length_us: Micros, now_us: Micros) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut out = Vec::new();
        for stretch in self.summary(length_us, now_us) {
            varint::put(&mut out, u64::from(stretch.series));
            varint::put_signed(&mut out, stretch.from_us);
            varint::put(&mut out, (stretch.to_us - stretch.from_us) as u64);
        }
        Some(out)
    }

    /// Takes back what [`Dirty::blob`] wrote, also for windows of another length.
    pub fn restore(&mut self, blob: &[u8], length_us: Micros) {
        let rest = &mut &*blob;
        let mut next = || {
            let series = u32::try_from(varint::take(rest)?).ok()?;
            let from_us = varint::take_signed(rest)?;
            let to_us = from_us.checked_add(i64::try_from(varint::take(rest)?).ok()?)?;
            // Whole windows only: one computed from a part of its readings would be wrong.
            let end_us = window_start(to_us.checked_sub(1)?, length_us).saturating_add(length_us);
            Some(Stretch { series, from_us: window_start(from_us, length_us), to_us: end_us })
        };
        while let Some(stretch) = next() {
            self.stretches.push(stretch);
        }
    }

    /// All there is as at most two stretches for each series: before and after `now_us`.
    fn summary(&self, length_us: Micros, now_us: Micros) -> Vec<Stretch> {
        let windows = self.windows.keys().map(|&(from_us, series)| one(series, from_us, length_us));
        let mut hulls: BTreeMap<(u32, bool), Stretch> = BTreeMap::new();
        for stretch in windows.chain(self.stretches.iter().copied()).chain(self.lot.iter().copied()) {
            let hull = hulls.entry((stretch.series, stretch.from_us > now_us)).or_insert(stretch);
            hull.from_us = hull.from_us.min(stretch.from_us);
            hull.to_us = hull.to_us.max(stretch.to_us);
        }
        hulls.into_values().collect()
    }
}

fn one(series: u32, from_us: Micros, length_us: Micros) -> Stretch {
    Stretch { series, from_us, to_us: from_us.saturating_add(length_us) }
}

/// Neighbours of one series become one stretch, as long as it is not too long.
fn join(mut stretches: Vec<Stretch>) -> Vec<Stretch> {
    stretches.sort_unstable_by_key(|stretch| (stretch.series, stretch.from_us));
    let mut joined: Vec<Stretch> = Vec::new();
    for stretch in stretches {
        match joined.last_mut() {
            Some(last)
                if last.series == stretch.series
                    && stretch.from_us - last.to_us <= NEAR_US
                    && stretch.to_us - last.from_us <= STRETCH_US =>
            {
                last.to_us = last.to_us.max(stretch.to_us);
            }
            _ => joined.push(stretch),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH_US: Micros = 60_000_000;
    const HOUR_US: Micros = 3_600_000_000;

    #[test]
    fn neighbours_are_computed_in_one_go_and_the_future_waits() {
        let mut dirty = Dirty::default();
        for start_us in [0, LENGTH_US, HOUR_US, 20 * HOUR_US, 900 * HOUR_US] {
            dirty.add((start_us, 7), LENGTH_US);
        }
        dirty.add((0, 8), LENGTH_US);
        let lot = dirty.take(100, LENGTH_US, |_| 100 * HOUR_US);
        let stretch = |series, from_us, to_us| Stretch { series, from_us, to_us };
        let far = 20 * HOUR_US;
        assert_eq!(
            lot,
            [stretch(7, 0, HOUR_US + LENGTH_US), stretch(7, far, far + LENGTH_US), stretch(8, 0, LENGTH_US)]
        );
        assert!(dirty.holds((900 * HOUR_US, 7)) && !dirty.holds((0, 7)));
        dirty.done([]);
        assert_eq!(dirty.len(), 1);
    }

    #[test]
    fn a_restart_finds_what_was_dirty_also_what_was_under_way() {
        let mut dirty = Dirty::default();
        dirty.add((0, 1), LENGTH_US);
        dirty.add((5 * HOUR_US, 1), LENGTH_US);
        dirty.add((900 * HOUR_US, 1), LENGTH_US);
        dirty.take(1, LENGTH_US, |_| HOUR_US);
        let blob = dirty.blob(LENGTH_US, 100 * HOUR_US).unwrap();
        assert_eq!(dirty.blob(LENGTH_US, 100 * HOUR_US), None);
        let mut restored = Dirty::default();
        restored.restore(&blob, LENGTH_US);
        assert!(restored.holds((0, 1)) && restored.holds((5 * HOUR_US, 1)) && restored.holds((900 * HOUR_US, 1)));
        assert!(!restored.holds((500 * HOUR_US, 1)) && !restored.holds((0, 2)));
    }

    #[test]
    fn windows_of_another_length_are_computed_whole() {
        let mut dirty = Dirty::default();
        dirty.add((HOUR_US + 5 * LENGTH_US, 1), LENGTH_US);
        let blob = dirty.blob(LENGTH_US, 100 * HOUR_US).unwrap();
        let mut restored = Dirty::default();
        restored.restore(&blob, HOUR_US);
        let lot = restored.take(10, HOUR_US, |_| 100 * HOUR_US);
        assert_eq!(lot, [Stretch { series: 1, from_us: HOUR_US, to_us: 2 * HOUR_US }]);
    }

    #[test]
    fn very_many_windows_become_a_stretch_and_are_taken_piece_by_piece() {
        let mut dirty = Dirty::default();
        for i in 0..=WINDOWS_MAX as i64 {
            dirty.add((i * LENGTH_US, 3), LENGTH_US);
        }
        assert_eq!(dirty.len(), 1);
        let mut windows = 0;
        loop {
            let lot = dirty.take(10, LENGTH_US, |_| Micros::MAX - LENGTH_US);
            if lot.is_empty() {
                break;
            }
            windows += lot.iter().map(|stretch| (stretch.to_us - stretch.from_us) / LENGTH_US).sum::<i64>();
            dirty.done([]);
        }
        assert_eq!(windows, WINDOWS_MAX as i64 + 1);
        assert!(dirty.is_empty());
    }
}
