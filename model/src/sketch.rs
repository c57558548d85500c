//! The distribution of a window's numbers, small and mergeable.
//!
//! A base-2 exponential histogram as OpenTelemetry defines it (data model, "Exponential
//! Histogram"): bucket *i* holds `base^i < |v| <= base^(i+1)` with `base = 2^(2^-scale)`.
//! At scale 6 a quantile's relative error is at most `(base-1)/(base+1)` = 0.55 %. Relative
//! error is useless for offset sensors (1 % of 1013 hPa is 10 hPa), so a metric may instead
//! choose linear bins: bucket *i* holds `i*width <= |v| < (i+1)*width`, absolute error `width/2`.
//!
//! Always holds: merging never loses a count. More than [`BUCKETS_MAX`] buckets halve the
//! scale (exactly, bucket pairs join) and set [`Sketch::degraded`]. Deliberately absent: the
//! values themselves; the smallest and largest live in the summary.

use crate::varint;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// The scale a sketch starts with.
pub const SCALE: i8 = 6;
/// How many buckets a sketch may hold before it coarsens.
pub const BUCKETS_MAX: usize = 1_024;
const FORMAT: u8 = 1;
/// Scales that a base can be computed for, and coarse enough for any values.
const SCALES: RangeInclusive<i8> = -8..=20;
/// Where the powers of two of all magnitudes lie, and one more to either side.
const POWERS: RangeInclusive<f64> = -1_076.0..=1_025.0;

/// How values map to buckets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mapping {
    /// Relative error; `base = 2^(2^-scale)`.
    Exponential {
        /// -8 to 20, coarser below.
        scale: i8,
    },
    /// Absolute error; bins of `width`.
    Linear {
        /// The width of a bin in the metric's own unit, positive.
        width: f64,
    },
}

impl Default for Mapping {
    fn default() -> Self {
        Mapping::Exponential { scale: SCALE }
    }
}

/// Why bytes are not a sketch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SketchError {
    /// Written by a version of the format that this build does not know.
    #[error("sketch format {0} is unknown, this build reads format 1")]
    Format(u8),
    /// Cut short, or fields that contradict each other.
    #[error("sketch bytes are damaged")]
    Damaged,
}

type Buckets = BTreeMap<i32, u64>;

/// A sparse histogram of numbers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sketch {
    mapping: Mapping,
    zero: u64,
    positive: Buckets,
    negative: Buckets,
    degraded: bool,
}

/// The buckets of a sketch with the default mapping, for formats that keep many together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plain {
    /// How many zeros.
    pub zero: u64,
    /// Index and count of buckets of positive values, rising.
    pub positive: Vec<(i32, u64)>,
    /// Index and count of buckets of negative values, rising.
    pub negative: Vec<(i32, u64)>,
}

impl TryFrom<Plain> for Sketch {
    type Error = SketchError;

    fn try_from(plain: Plain) -> Result<Self, SketchError> {
        let is_rising = |side: &[(i32, u64)]| side.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if !is_rising(&plain.positive) || !is_rising(&plain.negative) {
            return Err(SketchError::Damaged);
        }
        let (positive, negative) = (plain.positive.into_iter().collect(), plain.negative.into_iter().collect());
        let sketch = Sketch { zero: plain.zero, positive, negative, ..Sketch::default() };
        if sketch.is_possible() { Ok(sketch) } else { Err(SketchError::Damaged) }
    }
}

impl Sketch {
    /// An empty sketch over `mapping`.
    pub fn new(mapping: Mapping) -> Self {
        Sketch { mapping, ..Sketch::default() }
    }

    /// The sketch of `values`, at the default scale.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sketch = Sketch::default();
        sketch.extend(values);
        sketch
    }

    /// Adds every value. Neighbours usually share a bucket, so runs are counted first.
    pub fn extend(&mut self, values: impl IntoIterator<Item = f64>) {
        let mut run: Option<(bool, i32, u64)> = None;
        for value in values {
            debug_assert!(value.is_finite());
            if value == 0.0 {
                self.zero += 1;
                continue;
            }
            let (negative, index) = (value < 0.0, self.mapping.index(value.abs()));
            match &mut run {
                Some((n, i, count)) if *n == negative && *i == index => *count += 1,
                _ => {
                    if let Some(full) = run.replace((negative, index, 1)) {
                        self.add(full);
                    }
                }
            }
        }
        if let Some(last) = run {
            self.add(last);
        }
        self.coarsen_to_fit();
    }

    fn add(&mut self, (negative, index, count): (bool, i32, u64)) {
        let side = if negative { &mut self.negative } else { &mut self.positive };
        add_to(side.entry(index).or_default(), count);
    }

    /// Adds all of `other`; the coarser scale wins.
    pub fn merge(&mut self, other: &Sketch) {
        self.degraded |= other.degraded;
        add_to(&mut self.zero, other.zero);
        match (self.mapping, other.mapping) {
            (Mapping::Exponential { scale: ours }, Mapping::Exponential { scale: theirs }) => {
                let shift = (ours - theirs).max(0);
                (0..shift).for_each(|_| self.halve());
                let shift = (theirs - ours).max(0);
                add_all(&mut self.positive, &other.positive, shift);
                add_all(&mut self.negative, &other.negative, shift);
            }
            (ours, theirs) if ours == theirs => {
                add_all(&mut self.positive, &other.positive, 0);
                add_all(&mut self.negative, &other.negative, 0);
            }
            // A metric whose mapping was reconfigured: both are re-binned by their middles.
            (ours, theirs) => {
                self.degraded = true;
                for (&index, &count) in &other.positive {
                    self.add((false, ours.index(theirs.middle(index)), count));
                }
                for (&index, &count) in &other.negative {
                    self.add((true, ours.index(theirs.middle(index)), count));
                }
            }
        }
        self.coarsen_to_fit();
    }

    /// How many values it has seen.
    pub fn count(&self) -> u64 {
        let of = |side: &Buckets| side.values().fold(0_u64, |sum, n| sum.saturating_add(*n));
        self.zero.saturating_add(of(&self.positive)).saturating_add(of(&self.negative))
    }

    /// True if the bound on buckets made it coarser than it was asked to be.
    pub fn degraded(&self) -> bool {
        self.degraded
    }

    /// The greatest relative error of a quantile, or the absolute one for linear bins.
    pub fn error(&self) -> f64 {
        match self.mapping {
            Mapping::Exponential { scale } => {
                let base = base(scale);
                (base - 1.0) / (base + 1.0)
            }
            Mapping::Linear { width } => width / 2.0,
        }
    }

    /// The value at rank `ceil(q * count)`, within [`Sketch::error`]; `None` if empty.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        let mut left = nearest_rank(q, count)?;
        for (&index, &n) in self.negative.iter().rev() {
            if left <= n {
                return Some(-self.mapping.middle(index));
            }
            left -= n;
        }
        if left <= self.zero {
            return Some(0.0);
        }
        left -= self.zero;
        for (&index, &n) in &self.positive {
            if left <= n {
                return Some(self.mapping.middle(index));
            }
            left -= n;
        }
        unreachable!("a rank is never above the count")
    }

    fn coarsen_to_fit(&mut self) {
        while self.positive.len() + self.negative.len() > BUCKETS_MAX {
            self.degraded = true;
            self.halve();
        }
    }

    /// Joins bucket pairs: the next coarser mapping, exactly.
    fn halve(&mut self) {
        self.mapping = match self.mapping {
            Mapping::Exponential { scale } => Mapping::Exponential { scale: scale - 1 },
            Mapping::Linear { width } => Mapping::Linear { width: width * 2.0 },
        };
        for side in [&mut self.positive, &mut self.negative] {
            let fine = std::mem::take(side);
            add_all(side, &fine, 1);
        }
    }

    /// Its buckets, if the mapping is the default one and no coarser.
    pub fn plain(&self) -> Option<Plain> {
        let side = |buckets: &Buckets| buckets.iter().map(|(&index, &count)| (index, count)).collect();
        (self.mapping == Mapping::default() && !self.degraded).then(|| Plain {
            zero: self.zero,
            positive: side(&self.positive),
            negative: side(&self.negative),
        })
    }

    /// The sketch as bytes: format, mapping, zeros, then both sides as gaps and counts.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![FORMAT, u8::from(self.degraded)];
        match self.mapping {
            Mapping::Exponential { scale } => out.extend([0, scale as u8]),
            Mapping::Linear { width } => {
                out.push(1);
                out.extend(width.to_le_bytes());
            }
        }
        varint::put(&mut out, self.zero);
        for side in [&self.positive, &self.negative] {
            varint::put(&mut out, side.len() as u64);
            let mut previous = 0_i64;
            for (&index, &count) in side {
                varint::put_signed(&mut out, i64::from(index) - previous);
                varint::put(&mut out, count);
                previous = i64::from(index);
            }
        }
        out
    }

    /// Reads what [`Sketch::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SketchError> {
        match bytes.first() {
            Some(&FORMAT) => Sketch::parse(&mut &bytes[1..]).ok_or(SketchError::Damaged),
            Some(&other) => Err(SketchError::Format(other)),
            None => Err(SketchError::Damaged),
        }
    }

    fn parse(rest: &mut &[u8]) -> Option<Self> {
        let degraded = match varint::take_byte(rest)? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let mapping = match varint::take_byte(rest)? {
            0 => Mapping::Exponential { scale: varint::take_byte(rest)? as i8 },
            1 => Mapping::Linear { width: varint::take_f64(rest)? },
            _ => return None,
        };
        let zero = varint::take(rest)?;
        let (positive, negative) = (take_side(rest)?, take_side(rest)?);
        let sketch = Sketch { mapping, zero, positive, negative, degraded };
        (rest.is_empty() && sketch.is_possible()).then_some(sketch)
    }

    /// True for what adding values and merging can lead to: bytes from elsewhere may say anything.
    fn is_possible(&self) -> bool {
        let indexes = || [&self.positive, &self.negative].into_iter().flat_map(BTreeMap::keys);
        let is_mapping = match self.mapping {
            Mapping::Exponential { scale } => {
                let power = |index: &i32| f64::from(*index) * f64::exp2(-f64::from(scale));
                SCALES.contains(&scale) && indexes().map(power).all(|power| POWERS.contains(&power))
            }
            // The middle of any bucket is finite.
            Mapping::Linear { width } => width > 0.0 && width.is_normal() && (width * f64::exp2(32.0)).is_finite(),
        };
        is_mapping && self.positive.len() + self.negative.len() <= BUCKETS_MAX
    }
}

/// The rank (from 1) of quantile `q` among `count` values: `ceil(q * count)`, at least 1. A
/// product that is whole in decimals may come out a hair above it in binary; that hair is
/// taken off before rounding up.
pub fn nearest_rank(q: f64, count: u64) -> Option<u64> {
    let product = q * count as f64 * (1.0 - 4.0 * f64::EPSILON);
    (count > 0).then(|| (product.ceil() as u64).clamp(1, count))
}

fn base(scale: i8) -> f64 {
    f64::exp2(f64::exp2(-f64::from(scale)))
}

impl Mapping {
    /// The bucket of a magnitude.
    pub fn index(self, magnitude: f64) -> i32 {
        match self {
            Mapping::Exponential { scale } => {
                ((magnitude.log2() * f64::exp2(f64::from(scale))).ceil() as i32).saturating_sub(1)
            }
            Mapping::Linear { width } => (magnitude / width) as i32,
        }
    }

    /// The point of bucket `index` whose error to both ends is equal.
    fn middle(self, index: i32) -> f64 {
        match self {
            Mapping::Exponential { scale } => {
                let base = base(scale);
                let low = f64::exp2(f64::from(index) * f64::exp2(-f64::from(scale)));
                (low * (2.0 * base / (base + 1.0))).min(f64::MAX)
            }
            Mapping::Linear { width } => (f64::from(index) + 0.5) * width,
        }
    }
}

/// As far as one can count: buckets of a damaged store may hold any number.
fn add_to(count: &mut u64, more: u64) {
    *count = count.saturating_add(more);
}

fn add_all(side: &mut Buckets, other: &Buckets, shift: i8) {
    for (&index, &count) in other {
        add_to(side.entry(index >> shift.min(31)).or_default(), count);
    }
}

fn take_side(rest: &mut &[u8]) -> Option<Buckets> {
    let mut side = Buckets::new();
    let mut index = 0_i64;
    let many = varint::take(rest).filter(|&many| many <= BUCKETS_MAX as u64)?;
    for nth in 0..many {
        let gap = varint::take_signed(rest).filter(|&gap| nth == 0 || gap > 0)?;
        index = index.checked_add(gap)?;
        side.insert(i32::try_from(index).ok()?, varint::take(rest)?);
    }
    Some(side)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exact(values: &[f64], q: f64) -> f64 {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[nearest_rank(q, sorted.len() as u64).unwrap() as usize - 1]
    }

    #[test]
    fn at_scale_six_the_stated_error_is_below_point_55_percent() {
        assert!(Sketch::default().error() < 0.0055);
    }

    #[test]
    fn ranks_are_those_of_decimal_arithmetic() {
        for (per_mille, n) in [(999_u64, 1_000_u64), (999, 3_000), (70, 100), (70, 600), (950, 20), (500, 7), (1, 1)] {
            let want = (per_mille * n).div_ceil(1_000).max(1);
            assert_eq!(nearest_rank(per_mille as f64 / 10.0 / 100.0, n), Some(want), "{per_mille} of {n}");
        }
    }

    #[test]
    fn too_many_buckets_coarsen_and_say_so() {
        let values: Vec<f64> = (0..4_000).map(|i| f64::exp2(f64::from(i) / 64.0)).collect();
        let sketch = Sketch::of(values.iter().copied());
        assert!(sketch.degraded());
        assert_eq!(sketch.count(), 4_000);
        let (got, want) = (sketch.quantile(0.5).unwrap(), exact(&values, 0.5));
        assert!((got - want).abs() <= want * sketch.error() * 1.000_001, "{got} {want}");
    }

    #[test]
    fn linear_bins_keep_an_offset_sensor_apart() {
        let values: Vec<f64> = (0..1_000).map(|i| 1_013.0 + f64::from(i) / 1_000.0).collect();
        let mut sketch = Sketch::new(Mapping::Linear { width: 0.01 });
        sketch.extend(values.iter().copied());
        let (got, want) = (sketch.quantile(0.9).unwrap(), exact(&values, 0.9));
        assert!((got - want).abs() <= 0.005 + 1e-9, "{got} {want}");
    }

    #[test]
    fn damaged_bytes_are_refused() {
        let bytes = Sketch::of([1.0, -2.0, 0.0]).to_bytes();
        for cut in 0..bytes.len() {
            assert!(Sketch::from_bytes(&bytes[..cut]).is_err(), "{cut}");
        }
        assert_eq!(Sketch::from_bytes(&[9]), Err(SketchError::Format(9)));
    }

    #[test]
    fn what_no_values_lead_to_is_refused() {
        let side = |many: u64, step: i64| {
            let mut out = Vec::new();
            varint::put(&mut out, many);
            (0..many).for_each(|_| {
                varint::put_signed(&mut out, step);
                out.push(1);
            });
            out
        };
        let of = |mapping: &[u8], side: Vec<u8>| {
            Sketch::from_bytes(&[&[FORMAT, 0], mapping, &[0], &side, &[0]].concat()).map(|sketch| sketch.count())
        };
        let linear = |width: f64| [&[1], &width.to_le_bytes()[..]].concat();
        assert_eq!(of(&[0, 6], side(1_024, 1)), Ok(1_024));
        assert_eq!(of(&linear(0.5), side(3, 7)), Ok(3));
        for (mapping, side) in [
            (vec![0, 6], side(1_025, 1)),
            (vec![0, 6], side(2, 0)),
            (vec![0, 6], side(1, 70_000)),
            (vec![0, 100], side(1, 1)),
            (vec![0, 200], side(1, 1)),
            (linear(-0.5), side(1, 1)),
            (linear(0.0), side(1, 1)),
            (linear(5e-324), side(1, 1)),
            (linear(f64::NAN), side(1, 1)),
            (linear(1e307), side(1, 1)),
        ] {
            assert_eq!(of(&mapping, side), Err(SketchError::Damaged), "{mapping:?}");
        }
        let plain = |positive| Sketch::try_from(Plain { zero: 0, positive, negative: Vec::new() });
        assert!(plain(vec![(1, 1), (2, 1)]).is_ok());
        assert!(plain(vec![(2, 1), (1, 1)]).is_err() && plain(vec![(i32::MAX, 1)]).is_err());
    }

    proptest! {
        #[test]
        fn any_split_merges_to_the_same_sketch_within_the_stated_error(
            values in prop::collection::vec(-1e6..1e6_f64, 1..300),
            cut in 0..300_usize,
            q in 0.0..=1.0_f64,
        ) {
            let cut = cut.min(values.len());
            let whole = Sketch::of(values.iter().copied());
            let mut merged = Sketch::of(values[..cut].iter().copied());
            merged.merge(&Sketch::of(values[cut..].iter().copied()));
            prop_assert_eq!(&whole, &merged);
            prop_assert_eq!(&Sketch::from_bytes(&whole.to_bytes()).unwrap(), &whole);
            let (got, want) = (whole.quantile(q).unwrap(), exact(&values, q));
            prop_assert!((got - want).abs() <= want.abs() * whole.error() * (1.0 + 1e-9), "{} {}", got, want);
        }
    }
}
