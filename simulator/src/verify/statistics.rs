//! The witness's own arithmetic: what a gateway should answer for a set of readings.
//!
//! Arrives: readings in the order of time. Leaves: one [`Statistics`] per window.
//! Always holds: sums are compensated (Neumaier 1974) and the deviation is taken about the mean in a
//! second pass, so that the witness errs far less than what it allows others. Deliberately absent:
//! speed, and anything shared with the gateway.

use std::collections::BTreeMap;

/// One reading with its value as aggregates see it (booleans are 0 and 1).
pub(crate) type Sample = (i64, f64);

/// The aggregates of one window.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Statistics {
    pub(crate) count: u64,
    pub(crate) sum: f64,
    pub(crate) mean: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) first: f64,
    pub(crate) last: f64,
    /// The sample standard deviation; a single reading has none.
    pub(crate) stddev: Option<f64>,
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    /// What the allowed errors are measured by.
    pub(crate) magnitude_sum: f64,
    pub(crate) magnitude_max: f64,
}

impl Statistics {
    /// The aggregates of at least one reading.
    pub(crate) fn of(samples: &[Sample]) -> Self {
        let values = || samples.iter().map(|(_, value)| *value);
        let (first, last) = (samples[0].1, samples[samples.len() - 1].1);
        let count = samples.len() as f64;
        let sum = compensated_sum(values());
        let mean = sum / count;
        let squares = compensated_sum(values().map(|value| (value - mean).powi(2)));
        let mut ascending: Vec<f64> = values().collect();
        ascending.sort_unstable_by(f64::total_cmp);
        Self {
            count: samples.len() as u64,
            sum,
            mean,
            min: ascending[0],
            max: ascending[ascending.len() - 1],
            first,
            last,
            stddev: (samples.len() > 1).then(|| (squares / (count - 1.0)).sqrt()),
            p50: nearest_rank(&ascending, 50),
            p95: nearest_rank(&ascending, 95),
            magnitude_sum: compensated_sum(values().map(f64::abs)),
            magnitude_max: values().map(f64::abs).fold(0.0, f64::max),
        }
    }
}

/// The smallest value whose rank is at least the given per cent of the count.
fn nearest_rank(ascending: &[f64], per_cent: usize) -> f64 {
    let rank = (ascending.len() * per_cent).div_ceil(100).max(1);
    ascending[rank - 1]
}

fn compensated_sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0f64, 0.0f64);
    for value in values {
        let next = sum + value;
        lost += if sum.abs() >= value.abs() { (sum - next) + value } else { (value - next) + sum };
        sum = next;
    }
    sum + lost
}

/// A half-open range of time, `[from, to)`, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) from_us: i64,
    pub(crate) to_us: i64,
}

/// The windows of a range that hold readings, keyed by their start: aligned to the epoch and clipped
/// at the range's edges. Without a length the whole range is one window.
pub(crate) fn windows(samples: &[Sample], range: Range, length_us: Option<i64>) -> BTreeMap<i64, (i64, Statistics)> {
    debug_assert!(samples.is_sorted_by_key(|(time_us, _)| *time_us), "readings come in the order of time");
    let inside: Vec<Sample> =
        samples.iter().copied().filter(|(time_us, _)| (range.from_us..range.to_us).contains(time_us)).collect();
    let slot = |time_us: i64| length_us.map_or(0, |length_us| time_us.div_euclid(length_us));
    let window = |chunk: &[Sample]| {
        let (start_us, end_us) = match length_us {
            Some(length_us) => {
                let start_us = slot(chunk[0].0) * length_us;
                (start_us.max(range.from_us), (start_us + length_us).min(range.to_us))
            }
            None => (range.from_us, range.to_us),
        };
        (start_us, (end_us, Statistics::of(chunk)))
    };
    inside.chunk_by(|one, other| slot(one.0) == slot(other.0)).map(window).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> Statistics {
        let samples: Vec<Sample> = (0..).zip(values.iter().copied()).collect();
        Statistics::of(&samples)
    }

    #[test]
    fn a_quantile_is_the_nearest_rank() {
        let ascending: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(nearest_rank(&ascending, 50), 50.0);
        assert_eq!(nearest_rank(&ascending, 95), 95.0);
        // 95 % of 21 is 19.95: the smallest rank that is at least that is 20.
        assert_eq!(nearest_rank(&ascending[..21], 95), 20.0);
        assert_eq!(nearest_rank(&ascending[..1], 50), 1.0);
        assert_eq!(of(&[4.0, 1.0]).p50, 1.0);
    }

    #[test]
    fn the_deviation_is_that_of_a_sample_and_survives_an_offset() {
        assert_eq!(of(&[5.0]).stddev, None);
        let spread = of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).stddev.unwrap();
        assert!((spread - (32.0f64 / 7.0).sqrt()).abs() < 1e-12);
        let pressure = of(&[1e9 + 1.0, 1e9 + 2.0, 1e9 + 3.0]).stddev.unwrap();
        assert!((pressure - 1.0).abs() < 1e-9, "{pressure}");
    }

    #[test]
    fn a_sum_does_not_lose_the_small_beside_the_large() {
        assert_eq!(compensated_sum([1e100, 1.0, -1e100].into_iter()), 1.0);
        assert_eq!(compensated_sum(std::iter::repeat_n(0.1, 1_000_000)), 100_000.0);
    }

    #[test]
    fn first_and_last_follow_time_and_extremes_follow_value() {
        let all = of(&[3.0, -7.0, 9.0, 1.0]);
        assert_eq!((all.first, all.last, all.min, all.max), (3.0, 1.0, -7.0, 9.0));
        assert_eq!((all.magnitude_sum, all.magnitude_max), (20.0, 9.0));
    }

    #[test]
    fn windows_are_aligned_to_the_epoch_and_clipped_at_the_edges() {
        let samples = [(55, 1.0), (59, 2.0), (60, 3.0), (185, 4.0), (200, 5.0)];
        let found = windows(&samples, Range { from_us: 55, to_us: 190 }, Some(60));
        let edges: Vec<(i64, i64, u64)> =
            found.iter().map(|(start, (end, statistics))| (*start, *end, statistics.count)).collect();
        assert_eq!(edges, [(55, 60, 2), (60, 120, 1), (180, 190, 1)]);
        let before_epoch = windows(&[(-1, 1.0)], Range { from_us: -100, to_us: 100 }, Some(60));
        assert_eq!(before_epoch.keys().collect::<Vec<_>>(), [&-60]);
    }

    #[test]
    fn one_window_may_cover_the_whole_range() {
        let found = windows(&[(55, 1.0), (200, 5.0)], Range { from_us: 50, to_us: 201 }, None);
        assert_eq!(found.len(), 1);
        assert_eq!((found[&50].0, found[&50].1.count), (201, 2));
    }
}
