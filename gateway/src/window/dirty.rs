//! Windows that are to be computed again.
//!
//! Arrives: windows, one by one. Leaves: stretches that are due, those of old days apart,
//! because each pass over them writes whole days anew. Always holds: bounded: what becomes too
//! many windows is kept as a few stretches for each series; what a restart has to know fits
//! into a small blob, so that nothing else has to wait for a revision. Layout of the blob: for
//! each stretch varints of series, start and length, starts as zigzag.

use super::Key;
use super::revise::Stretch;
use crate::archive::{DAY_US, day};
use model::time::{PLAUSIBLE_FROM_US, window_start};
use model::{Micros, varint};
use std::collections::BTreeMap;

/// Windows, and old days, kept one by one.
const KEPT_MAX: usize = 100_000;
/// Windows of a series no further apart are computed in one go, with those between.
const NEAR_US: Micros = 6 * 3_600 * 1_000_000;
/// The longest stretch computed in one go.
const STRETCH_US: Micros = 6 * 3_600 * 1_000_000;
/// The longest one of old days.
const OLD_STRETCH_US: Micros = 16 * DAY_US;

/// All dirty windows.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    windows: BTreeMap<Key, ()>,
    /// Of each old day of a series, from the first to the end of the last dirty window.
    old: BTreeMap<(u32, i64), (Micros, Micros)>,
    stretches: BTreeMap<u32, Vec<Stretch>>,
    /// Under way.
    lot: Vec<Stretch>,
    /// What begins later is far off, and kept apart.
    far_us: Micros,
    changed: bool,
}

/// So long after the end of the last old day.
const FAR_US: Micros = 3 * DAY_US;

impl Dirty {
    /// A window has to be computed again.
    pub(crate) fn add(&mut self, (start_us, series): Key, length_us: Micros) {
        self.changed |= self.windows.insert((start_us, series), ()).is_none();
        if self.windows.len() > KEPT_MAX {
            self.collapse(length_us);
        }
    }

    /// The same, of a day that is old.
    pub(crate) fn add_old(&mut self, (start_us, series): Key, length_us: Micros) {
        let end_us = start_us.saturating_add(length_us);
        let (from_us, to_us) = self.old.entry((series, day(start_us))).or_insert_with(|| {
            self.changed = true;
            (start_us, end_us)
        });
        if start_us < *from_us || end_us > *to_us {
            self.changed = true;
            (*from_us, *to_us) = (start_us.min(*from_us), end_us.max(*to_us));
        }
        if self.old.len() > KEPT_MAX {
            self.collapse(length_us);
        }
    }

    /// Days that end here or before are old now.
    pub(crate) fn age(&mut self, old_until_us: Micros, length_us: Micros) {
        self.far_us = old_until_us.saturating_add(FAR_US);
        let recent = self.windows.split_off(&(old_until_us, 0));
        for key in std::mem::replace(&mut self.windows, recent).into_keys() {
            self.add_old(key, length_us);
        }
    }

    /// True if some stretch begins before; those of single windows and days do not count.
    pub(crate) fn has_stretch_before(&self, us: Micros) -> bool {
        self.stretches.values().flatten().any(|stretch| stretch.from_us < us)
    }

    /// Stretches of series, whole windows, have to be computed again.
    pub(crate) fn add_stretches(&mut self, stretches: impl IntoIterator<Item = Stretch>) {
        for stretch in stretches {
            self.changed = true;
            self.stretches.entry(stretch.series).or_default().push(stretch);
        }
    }

    fn collapse(&mut self, length_us: Micros) {
        let mut hulls: BTreeMap<u32, Vec<Stretch>> = BTreeMap::new();
        let lot = std::mem::take(&mut self.lot);
        for stretch in self.hulls(length_us, Micros::MIN, self.far_us) {
            hulls.entry(stretch.series).or_default().push(stretch);
        }
        self.lot = lot;
        self.stretches = hulls;
        self.windows.clear();
        self.old.clear();
    }

    /// True if a window is among them, or may be.
    pub(crate) fn holds(&self, (start_us, series): Key) -> bool {
        let within = |stretch: &Stretch| (stretch.from_us..stretch.to_us).contains(&start_us);
        self.windows.contains_key(&(start_us, series))
            || self
                .old
                .get(&(series, day(start_us)))
                .is_some_and(|&(from_us, to_us)| (from_us..to_us).contains(&start_us))
            || self.stretches.get(&series).is_some_and(|own| own.iter().any(within))
    }

    /// How many there are, stretches and old days counting as one.
    pub(crate) fn len(&self) -> usize {
        self.recent_len() + self.old.len() + self.lot.len()
    }

    /// How many of them are not of old days, as far as that is known.
    pub(crate) fn recent_len(&self) -> usize {
        self.windows.len() + self.stretches.values().map(Vec::len).sum::<usize>()
    }

    /// How many days are old.
    pub(crate) fn old_len(&self) -> usize {
        self.old.len()
    }

    /// Takes about `most` windows that `due_us` of their series says are due: those that end
    /// there or before. One lot at a time.
    pub(crate) fn take(
        &mut self,
        most: usize,
        length_us: Micros,
        old_until_us: Micros,
        due_us: impl Fn(u32) -> Micros,
    ) -> Vec<Stretch> {
        debug_assert!(self.lot.is_empty());
        let is_due = |&(start_us, series): &Key| start_us.saturating_add(length_us) <= due_us(series);
        let keys: Vec<Key> = self.windows.keys().filter(|key| is_due(key)).take(most).copied().collect();
        for key in &keys {
            self.windows.remove(key);
        }
        let mut lot = join(keys.into_iter().map(|(from_us, series)| one(series, from_us, length_us)).collect());
        let mut room = most.saturating_sub(lot.len());
        for stretch in self.stretches.values_mut().flatten() {
            let due_us = window_start(due_us(stretch.series), length_us);
            while room > 0 && stretch.from_us < stretch.to_us {
                // Old days are written whole, so they are better computed whole.
                let longest_us = if stretch.from_us < old_until_us { OLD_STRETCH_US } else { STRETCH_US };
                let step_us = (longest_us / length_us).max(1) * length_us;
                let end_us = stretch.to_us.min(stretch.from_us.saturating_add(step_us)).min(due_us);
                if end_us <= stretch.from_us {
                    break;
                }
                room -= 1;
                lot.push(Stretch { to_us: end_us, ..*stretch });
                stretch.from_us = end_us;
            }
        }
        self.stretches.retain(|_, own| {
            own.retain(|stretch| stretch.from_us < stretch.to_us);
            !own.is_empty()
        });
        self.lot = lot.clone();
        lot
    }

    /// Takes about `most` old days, with the windows of them that are dirty.
    pub(crate) fn take_old(&mut self, most: usize) -> Vec<Stretch> {
        debug_assert!(self.lot.is_empty());
        let rest = self.old.keys().nth(most).copied();
        let taken = match rest {
            Some(rest) => {
                let rest = self.old.split_off(&rest);
                std::mem::replace(&mut self.old, rest)
            }
            None => std::mem::take(&mut self.old),
        };
        let stretch = |((series, _), (from_us, to_us))| Stretch { series, from_us, to_us };
        self.lot = taken.into_iter().map(stretch).collect();
        self.lot.clone()
    }

    /// The lot has been computed, but for what is given back.
    pub(crate) fn done(&mut self, again: impl IntoIterator<Item = Stretch>) {
        self.changed |= !self.lot.is_empty();
        self.lot.clear();
        self.add_stretches(again);
    }

    /// What a restart has to know, if it has changed since it was last asked for: for each
    /// series a stretch of old days, one up to `now_us`, and one of what lies in the future.
    pub(crate) fn blob(&mut self, length_us: Micros, old_until_us: Micros, now_us: Micros) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        Some(write_blob(&self.hulls(length_us, old_until_us, now_us)))
    }

    /// Takes back what [`Dirty::blob`] wrote, also for windows of another length.
    pub(crate) fn restore(&mut self, blob: &[u8], length_us: Micros) {
        let stretches = read_blob(blob);
        // Whole windows only: one computed from a part of its readings would be wrong.
        self.add_stretches(stretches.map(|stretch| Stretch {
            from_us: window_start(stretch.from_us, length_us),
            to_us: window_start(stretch.to_us - 1, length_us).saturating_add(length_us),
            ..stretch
        }));
    }

    /// All there is as at most four stretches for each series: what was received before a clock was set
    /// lies decades before the rest.
    fn hulls(&self, length_us: Micros, old_until_us: Micros, now_us: Micros) -> Vec<Stretch> {
        let windows = self.windows.keys().map(|&(from_us, series)| one(series, from_us, length_us));
        let old = self.old.iter().map(|(&(series, _), &(from_us, to_us))| Stretch { series, from_us, to_us });
        let stretches = self.stretches.values().flatten().chain(&self.lot).copied();
        let mut hulls: BTreeMap<(u32, u8), Stretch> = BTreeMap::new();
        for stretch in windows.chain(old).chain(stretches) {
            let bounds = [PLAUSIBLE_FROM_US - 1, old_until_us.saturating_sub(1), now_us];
            let class = bounds.iter().filter(|&&bound_us| stretch.from_us > bound_us).count() as u8;
            let hull = hulls.entry((stretch.series, class)).or_insert(stretch);
            hull.from_us = hull.from_us.min(stretch.from_us);
            hull.to_us = hull.to_us.max(stretch.to_us);
        }
        hulls.into_values().collect()
    }
}

/// Stretches as bytes.
pub(crate) fn write_blob(stretches: &[Stretch]) -> Vec<u8> {
    let mut out = Vec::new();
    for stretch in stretches {
        varint::put(&mut out, u64::from(stretch.series));
        varint::put_signed(&mut out, stretch.from_us);
        varint::put(&mut out, (stretch.to_us - stretch.from_us) as u64);
    }
    out
}

/// The stretches that [`write_blob`] wrote.
pub fn read_blob(blob: &[u8]) -> impl Iterator<Item = Stretch> + '_ {
    let mut rest = blob;
    std::iter::from_fn(move || {
        let series = u32::try_from(varint::take(&mut rest)?).ok()?;
        let from_us = varint::take_signed(&mut rest)?;
        let to_us = from_us.checked_add(i64::try_from(varint::take(&mut rest)?).ok()?)?;
        (from_us < to_us).then_some(Stretch { series, from_us, to_us })
    })
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
    /// No day is old.
    const NEVER: Micros = Micros::MIN;

    fn stretch(series: u32, from_us: Micros, to_us: Micros) -> Stretch {
        Stretch { series, from_us, to_us }
    }

    #[test]
    fn neighbours_are_computed_in_one_go_and_the_future_waits() {
        let mut dirty = Dirty::default();
        for start_us in [0, LENGTH_US, HOUR_US, 20 * HOUR_US, 900 * HOUR_US] {
            dirty.add((start_us, 7), LENGTH_US);
        }
        dirty.add((0, 8), LENGTH_US);
        let lot = dirty.take(100, LENGTH_US, NEVER, |_| 100 * HOUR_US);
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
    fn old_days_are_taken_day_by_day() {
        let mut dirty = Dirty::default();
        for start_us in [5 * LENGTH_US, 0, 30 * HOUR_US] {
            dirty.add_old((start_us, 7), LENGTH_US);
        }
        assert!(dirty.take(100, LENGTH_US, NEVER, |_| 100 * HOUR_US).is_empty());
        assert_eq!(dirty.take_old(1), [stretch(7, 0, 6 * LENGTH_US)]);
        dirty.done([]);
        assert_eq!(dirty.take_old(9), [stretch(7, 30 * HOUR_US, 30 * HOUR_US + LENGTH_US)]);
        dirty.done([]);
        assert_eq!(dirty.len(), 0);
    }

    #[test]
    fn a_restart_finds_what_was_dirty_also_what_was_under_way() {
        let mut dirty = Dirty::default();
        dirty.add_old((0, 1), LENGTH_US);
        dirty.add((30 * HOUR_US, 1), LENGTH_US);
        dirty.add((35 * HOUR_US, 1), LENGTH_US);
        dirty.add((900 * HOUR_US, 1), LENGTH_US);
        dirty.take(1, LENGTH_US, 24 * HOUR_US, |_| 31 * HOUR_US);
        let blob = dirty.blob(LENGTH_US, 24 * HOUR_US, 100 * HOUR_US).unwrap();
        assert_eq!(dirty.blob(LENGTH_US, 24 * HOUR_US, 100 * HOUR_US), None);
        assert_eq!(
            read_blob(&blob).collect::<Vec<_>>(),
            [
                stretch(1, 0, LENGTH_US),
                stretch(1, 30 * HOUR_US, 35 * HOUR_US + LENGTH_US),
                stretch(1, 900 * HOUR_US, 900 * HOUR_US + LENGTH_US)
            ]
        );
        let mut restored = Dirty::default();
        restored.restore(&blob, LENGTH_US);
        assert!(restored.holds((0, 1)) && restored.holds((35 * HOUR_US, 1)) && restored.holds((900 * HOUR_US, 1)));
        assert!(!restored.holds((500 * HOUR_US, 1)) && !restored.holds((0, 2)));
    }

    #[test]
    fn windows_of_another_length_are_computed_whole() {
        let mut dirty = Dirty::default();
        dirty.add((HOUR_US + 5 * LENGTH_US, 1), LENGTH_US);
        let blob = dirty.blob(LENGTH_US, NEVER, 100 * HOUR_US).unwrap();
        let mut restored = Dirty::default();
        restored.restore(&blob, HOUR_US);
        let lot = restored.take(10, HOUR_US, NEVER, |_| 100 * HOUR_US);
        assert_eq!(lot, [stretch(1, HOUR_US, 2 * HOUR_US)]);
    }

    #[test]
    fn very_many_windows_become_a_stretch_and_are_taken_piece_by_piece() {
        let mut dirty = Dirty::default();
        dirty.age(2 * KEPT_MAX as i64 * LENGTH_US, LENGTH_US);
        for i in 0..=KEPT_MAX as i64 {
            dirty.add((i * LENGTH_US, 3), LENGTH_US);
        }
        assert_eq!(dirty.len(), 1);
        let mut windows = 0;
        loop {
            let lot = dirty.take(10, LENGTH_US, NEVER, |_| Micros::MAX - LENGTH_US);
            if lot.is_empty() {
                break;
            }
            windows += lot.iter().map(|stretch| (stretch.to_us - stretch.from_us) / LENGTH_US).sum::<i64>();
            dirty.done([]);
        }
        assert_eq!(windows, KEPT_MAX as i64 + 1);
        assert_eq!(dirty.len(), 0);
    }
}
