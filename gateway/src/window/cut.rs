//! Sorted readings, cut into windows, as a Polars frame.
//!
//! Arrives: [`Points`] of any series with the rows of each window, which may overlap. Leaves:
//! a summary for each window with its numbers. Always holds: no row is hashed or sorted, since
//! a window of sorted rows is a slice; sums of squares are about the mean. Questions and
//! revisions come this way; [`super::frame`] is for rows as they arrive.

use crate::readings::Points;
use model::{Micros, Sketch, Summary};
use polars::prelude::*;
use std::ops::Range;

/// What is to be computed besides count, sum, first and last; the rest is not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Sums of squared deviations.
    pub spread: bool,
    /// Smallest and largest.
    pub extremes: bool,
}

impl Needs {
    /// Whole summaries.
    pub(crate) const ALL: Needs = Needs { spread: true, extremes: true };
}

/// Windows to aggregate together.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    number: Vec<f64>,
    /// Rows that are texts, rising.
    texts: Vec<IdxSize>,
    windows: Vec<Window>,
    rows: Vec<[IdxSize; 2]>,
}

#[derive(Debug)]
struct Window {
    series: u32,
    start_us: Micros,
    first: (Micros, model::Value),
    last: (Micros, model::Value),
}

/// What a window comes to.
pub(crate) struct Cut<'a> {
    /// Whose.
    pub series: u32,
    /// Its start.
    pub start_us: Micros,
    /// Everything but the sketch, which is empty.
    pub summary: Summary,
    /// Its numbers, in order of time.
    pub numbers: &'a [f64],
}

impl Cut<'_> {
    /// The summary with the sketch of its numbers.
    pub(crate) fn summarised(self) -> Summary {
        Summary { sketch: Sketch::of(self.numbers.iter().copied()), ..self.summary }
    }
}

impl Cuts {
    /// Bytes that a row takes here and while it is aggregated.
    pub(crate) const ROW_BYTES: usize = 24;

    /// How many rows.
    pub(crate) fn len(&self) -> usize {
        self.number.len()
    }

    /// Adds readings of a series and its windows: start and rows, none empty.
    pub(crate) fn add(
        &mut self,
        series: u32,
        points: &Points,
        windows: impl IntoIterator<Item = (Micros, Range<usize>)>,
    ) {
        let offset = self.number.len();
        self.number.extend_from_slice(&points.number);
        self.texts.extend(points.texts.iter().map(|(row, _)| row + offset as IdxSize));
        for (start_us, rows) in windows {
            debug_assert!(!rows.is_empty());
            self.rows.push([(offset + rows.start) as IdxSize, rows.len() as IdxSize]);
            let reading = |row: usize| (points.time_us[row], points.value(row).aggregated());
            self.windows.push(Window { series, start_us, first: reading(rows.start), last: reading(rows.end - 1) });
        }
    }

    /// Aggregates all windows, in the order in which they came.
    #[expect(deprecated, reason = "only these take windows as slices; a lazy group_by would hash every row")]
    pub(crate) fn aggregate(self, needs: Needs, mut each: impl FnMut(Cut<'_>)) -> PolarsResult<()> {
        if self.windows.is_empty() {
            return Ok(());
        }
        let Cuts { number, texts, windows, rows } = self;
        let column = if texts.is_empty() {
            Column::new("number".into(), number)
        } else {
            let mut masked: Vec<Option<f64>> = number.into_iter().map(Some).collect();
            texts.iter().for_each(|&row| masked[row as usize] = None);
            Column::new("number".into(), masked)
        };
        let frame = DataFrame::new(column.len(), vec![column])?;
        let overlapping = rows.windows(2).any(|pair| pair[1][0] < pair[0][0] + pair[0][1]);
        // Not declared monotonic: rolling kernels would carry rounding from window to window.
        let groups = GroupsType::new_slice(rows.clone(), overlapping, !overlapping).into_sliceable();
        let grouped = GroupBy::new(&frame, Vec::new(), groups, None);
        let of = |frame: DataFrame| -> PolarsResult<Float64Chunked> { frame.columns()[0].f64().cloned() };
        let sums = of(grouped.sum()?)?;
        let vars = needs.spread.then(|| of(grouped.var(1)?)).transpose()?;
        let mins = needs.extremes.then(|| of(grouped.min()?)).transpose()?;
        let maxs = needs.extremes.then(|| of(grouped.max()?)).transpose()?;
        let get = |column: &Option<Float64Chunked>, at: usize| column.as_ref().and_then(|column| column.get(at));
        let column = frame.columns()[0].f64()?;
        let column = column.downcast_iter().next().map(|array| array.values().as_slice()).unwrap_or_default();
        let mut without_texts = Vec::new();
        for (at, window) in windows.into_iter().enumerate() {
            let (begin, length) = (rows[at][0] as usize, rows[at][1] as usize);
            let own = texts.partition_point(|&row| (row as usize) < begin)
                ..texts.partition_point(|&row| (row as usize) < begin + length);
            let numbers = if own.is_empty() {
                &column[begin..begin + length]
            } else {
                without_texts.clear();
                let is_text = |row: usize| texts[own.clone()].binary_search(&(row as IdxSize)).is_ok();
                without_texts.extend((begin..begin + length).filter(|&row| !is_text(row)).map(|row| column[row]));
                &without_texts[..]
            };
            let count = numbers.len() as u64;
            let summary = Summary {
                count,
                texts: own.len() as u64,
                sum: sums.get(at).unwrap_or(0.0),
                m2: get(&vars, at).unwrap_or(0.0) * count.saturating_sub(1) as f64,
                min: get(&mins, at).unwrap_or(f64::INFINITY),
                max: get(&maxs, at).unwrap_or(f64::NEG_INFINITY),
                first: window.first,
                last: window.last,
                sketch: Sketch::default(),
            };
            each(Cut { series: window.series, start_us: window.start_us, summary, numbers });
        }
        Ok(())
    }
}

/// The rows of each window of sorted times: windows start at every multiple of `every_us` and
/// are `length_us` long; those without rows are left out.
pub(crate) fn windows(
    time_us: &[Micros],
    length_us: Micros,
    every_us: Micros,
) -> impl Iterator<Item = (Micros, Range<usize>)> + '_ {
    // The first window that holds the first reading.
    let first = time_us.first().map_or(0, |&first_us| {
        model::time::window_start(first_us.saturating_sub(length_us), every_us).saturating_add(every_us)
    });
    let (mut start_us, mut begin) = (first, 0);
    std::iter::from_fn(move || {
        loop {
            begin += gallop(&time_us[begin..], start_us);
            let &next_us = time_us.get(begin)?;
            if next_us >= start_us.saturating_add(length_us) {
                // Nothing in this one: on to the first that holds the next reading.
                let start = model::time::window_start(next_us.saturating_sub(length_us), every_us);
                start_us = start.saturating_add(every_us);
                continue;
            }
            let end = begin + gallop(&time_us[begin..], start_us.saturating_add(length_us));
            let window = (start_us, begin..end);
            start_us = start_us.saturating_add(every_us);
            return Some(window);
        }
    })
}

/// How many times are before `us`: near ones are found quickly.
fn gallop(time_us: &[Micros], us: Micros) -> usize {
    let mut step = 1;
    while step < time_us.len() && time_us[step] < us {
        step *= 2;
    }
    let (low, high) = (step / 2, time_us.len().min(step + 1));
    low + time_us[low..high].partition_point(|&time| time < us)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readings::flag;
    use model::Value;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Rows = BTreeMap<Micros, Result<f64, &'static str>>;

    fn points(rows: &Rows) -> Points {
        let mut points = Points::default();
        for (&us, value) in rows {
            match value {
                Ok(n) => points.push(us, flag::NUMBER, *n, None),
                Err(text) => points.push(us, flag::TEXT, 0.0, Some(text)),
            }
        }
        points
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn windows_equal_a_plain_computation_over_their_readings(
            rows in prop::collection::btree_map(-300..300_i64, prop_oneof![
                8 => (1_013.0..1_014.0_f64).prop_map(Ok),
                1 => prop_oneof![Just("offline"), Just("on fire")].prop_map(Err),
            ], 1..120),
            (every, times) in (1..80_i64, 1..4_i64),
        ) {
            let (length, points) = (every * times, points(&rows));
            let mut cuts = Cuts::default();
            cuts.add(7, &points, windows(&points.time_us, length, every));
            let mut want = Vec::new();
            let first = (-300 - length).div_euclid(every) * every;
            for start in (first..300).step_by(every as usize) {
                let own: Vec<_> = rows.range(start..start + length).collect();
                if !own.is_empty() { want.push((start, own)); }
            }
            let mut got = 0;
            cuts.aggregate(Needs::ALL, |cut| {
                let (start, own) = &want[got];
                got += 1;
                let numbers: Vec<f64> = own.iter().filter_map(|(_, v)| v.ok()).collect();
                assert_eq!((cut.series, cut.start_us, cut.numbers), (7, *start, &numbers[..]));
                let value = |v: &Result<f64, &str>| v.map_or_else(|t| Value::Text(t.into()), Value::Number);
                assert_eq!(cut.summary.first, (*own[0].0, value(own[0].1)));
                assert_eq!(cut.summary.last, (*own[own.len() - 1].0, value(own[own.len() - 1].1)));
                assert_eq!((cut.summary.count, cut.summary.texts as usize), (numbers.len() as u64, own.len() - numbers.len()));
                if numbers.is_empty() { return; }
                let n = numbers.len() as f64;
                let mean = numbers.iter().sum::<f64>() / n;
                assert!((cut.summary.sum - mean * n).abs() <= 1e-9 * mean * n);
                if numbers.len() > 1 {
                    let stddev = (numbers.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
                    assert!((cut.summary.stddev().unwrap() - stddev).abs() <= 1e-9 * 1_014.0);
                }
                let sorted = |f: fn(f64, f64) -> f64| numbers.iter().copied().reduce(f).unwrap();
                assert_eq!((cut.summary.min, cut.summary.max), (sorted(f64::min), sorted(f64::max)));
            }).unwrap();
            prop_assert_eq!(got, want.len());
        }
    }
}
