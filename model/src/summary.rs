//! What is kept of one window of one series.
//!
//! Moments are kept about the mean, never as a naive sum of squares: 1013.25 hPa must keep
//! its variance. Two summaries of disjoint readings merge exactly (Chan, Golub, LeVeque
//! 1979, "Updating formulae and a pairwise algorithm for computing sample variances").

use crate::{Micros, Sketch, Value};

/// The readings of a window in a few numbers. Texts count in `texts`, `first` and `last`
/// only; booleans are 0 and 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// How many numbers.
    pub count: u64,
    /// How many state texts.
    pub texts: u64,
    /// Of the numbers.
    pub sum: f64,
    /// Sum of squared deviations from the mean.
    pub m2: f64,
    /// Smallest number; +infinity if there is none.
    pub min: f64,
    /// Largest number; -infinity if there is none.
    pub max: f64,
    /// The earliest reading, a number or a text.
    pub first: (Micros, Value),
    /// The latest reading, a number or a text.
    pub last: (Micros, Value),
    /// The distribution of the numbers.
    pub sketch: Sketch,
}

impl Summary {
    /// The summary of no readings, for a window that has lost all it had.
    pub fn empty(at_us: Micros) -> Self {
        Summary {
            count: 0,
            texts: 0,
            sum: 0.0,
            m2: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            first: (at_us, Value::Number(0.0)),
            last: (at_us, Value::Number(0.0)),
            sketch: Sketch::default(),
        }
    }

    /// True without readings.
    pub fn is_empty(&self) -> bool {
        self.count == 0 && self.texts == 0
    }

    /// True if both say the same: the last bits of a sum depend on the order of adding, and do
    /// not count.
    pub fn says_the_same(&self, other: &Summary) -> bool {
        let magnitude = (self.count as f64) * self.min.abs().max(self.max.abs());
        let near = |a: f64, b: f64, allowed: f64| a == b || (a - b).abs() <= allowed;
        (self.count, self.texts, &self.first, &self.last) == (other.count, other.texts, &other.first, &other.last)
            && self.min.total_cmp(&other.min).is_eq()
            && self.max.total_cmp(&other.max).is_eq()
            && self.sketch == other.sketch
            && (self.count == 0
                || near(self.sum, other.sum, 1e-11 * magnitude)
                    && near(self.m2, other.m2, 1e-9 * (self.m2 + other.m2) + 1e-20 * magnitude * magnitude))
    }

    /// Of the numbers; `None` without any.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    /// The sample standard deviation (n - 1); `None` below two numbers.
    pub fn stddev(&self) -> Option<f64> {
        (self.count > 1).then(|| (self.m2 / (self.count - 1) as f64).max(0.0).sqrt())
    }

    /// The nearest-rank quantile within the sketch's error, never outside `min..=max`.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        self.sketch.quantile(q).map(|v| v.max(self.min).min(self.max))
    }

    /// Adds the summary of other readings, also if either has none: then its first and last mean
    /// nothing.
    pub fn add(&mut self, other: &Summary) {
        if self.is_empty() {
            self.clone_from(other);
        } else if !other.is_empty() {
            self.merge(other);
        }
    }

    /// Adds the summary of other readings of the same series.
    pub fn merge(&mut self, other: &Summary) {
        self.m2 = match (self.mean(), other.mean()) {
            (Some(ours), Some(theirs)) => {
                let (n, m) = (self.count as f64, other.count as f64);
                let delta = theirs - ours;
                self.m2 + other.m2 + delta * delta * n * m / (n + m)
            }
            (None, Some(_)) => other.m2,
            _ => self.m2,
        };
        self.count = self.count.saturating_add(other.count);
        self.texts = self.texts.saturating_add(other.texts);
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        if other.first.0 < self.first.0 {
            self.first = other.first.clone();
        }
        if other.last.0 >= self.last.0 {
            self.last = other.last.clone();
        }
        self.sketch.merge(&other.sketch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[f64], from: Micros) -> Summary {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        Summary {
            count: values.len() as u64,
            texts: 0,
            sum: values.iter().sum(),
            m2: values.iter().map(|v| (v - mean).powi(2)).sum(),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            first: (from, Value::Number(values[0])),
            last: (from + values.len() as i64 - 1, Value::Number(values[values.len() - 1])),
            sketch: Sketch::of(values.iter().copied()),
        }
    }

    proptest! {
        #[test]
        fn merging_parts_equals_summarising_the_whole(
            values in prop::collection::vec(1_013.0..1_014.0_f64, 2..200),
            cut in 1..200_usize,
        ) {
            let cut = cut.min(values.len() - 1);
            let whole = of(&values, 0);
            let mut merged = of(&values[..cut], 0);
            merged.merge(&of(&values[cut..], cut as i64));
            prop_assert_eq!(merged.count, whole.count);
            prop_assert_eq!((merged.min, merged.max), (whole.min, whole.max));
            prop_assert_eq!((&merged.first, &merged.last), (&whole.first, &whole.last));
            prop_assert_eq!(&merged.sketch, &whole.sketch);
            prop_assert!((merged.sum - whole.sum).abs() <= 1e-9 * whole.sum);
            let (got, want) = (merged.stddev().unwrap(), whole.stddev().unwrap());
            prop_assert!((got - want).abs() <= 1e-9 * 1_014.0, "{} {}", got, want);
        }
    }
}
