//! Columns of readings as a Polars frame, grouped by series and window.
//!
//! Arrives: rows in order of arrival. Leaves: one [`Group`] per series and window. Always
//! holds: of rows with one identity (series, time) the one that arrived last counts; sums of
//! squares are about the mean (Welford, inside Polars), never naive. The same code closes
//! windows and answers questions.

use model::{Micros, Sketch, Summary, Value};
use polars::prelude::*;

/// Rows to aggregate.
#[derive(Debug, Clone, Default)]
pub(crate) struct Columns {
    /// Series ids.
    pub series: Vec<u32>,
    /// The start of the row's window.
    pub start_us: Vec<Micros>,
    /// Event times.
    pub time_us: Vec<Micros>,
    /// Numbers, booleans as 0 and 1, zero for texts.
    pub number: Vec<f64>,
    /// Row and text of every state text, by row.
    pub texts: Vec<(u32, Box<str>)>,
    /// Some series has a row that is not later than its rows before.
    pub disordered: bool,
}

/// What a group of readings comes to.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    /// Whose.
    pub series: u32,
    /// The start of its window.
    pub start_us: Micros,
    /// Everything but the sketch, which is empty.
    pub summary: Summary,
    /// The numbers, in order of time.
    pub numbers: Series,
}

impl Group {
    /// The numbers as a slice.
    pub(crate) fn numbers(&self) -> &[f64] {
        self.numbers.f64().ok().and_then(|numbers| numbers.cont_slice().ok()).unwrap_or(&[])
    }

    /// The summary with the sketch of its numbers.
    pub(crate) fn summarised(mut self) -> Summary {
        self.summary.sketch = Sketch::of(self.numbers().iter().copied());
        self.summary
    }
}

impl Columns {
    /// How many rows.
    pub(crate) fn len(&self) -> usize {
        self.series.len()
    }

    /// True without rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// Bytes that a row takes here and, while it is aggregated, in Polars.
    pub(crate) const ROW_BYTES: usize = 96;

    /// Adds a row; `text` is the text of a state text.
    #[inline]
    pub(crate) fn push(&mut self, series: u32, start_us: Micros, time_us: Micros, number: f64, text: Option<&str>) {
        if let Some(text) = text {
            self.texts.push((self.series.len() as u32, text.into()));
        }
        self.series.push(series);
        self.start_us.push(start_us);
        self.time_us.push(time_us);
        self.number.push(number);
    }

    /// Aggregates all rows, sorted by series and window.
    pub(crate) fn aggregate(mut self) -> PolarsResult<Vec<Group>> {
        if self.is_empty() {
            return Ok(Vec::new());
        }
        let texts = std::mem::take(&mut self.texts);
        let disordered = self.disordered;
        let frame = self.into_frame(&texts)?.lazy();
        let frame = if disordered { distinct(frame) } else { frame };
        let mut aggregates = vec![
            col("time").first().alias("first_us"),
            col("time").last().alias("last_us"),
            col("number").count().alias("count"),
            col("number").sum().alias("sum"),
            col("number").var(1).alias("var"),
            col("number").min().alias("min"),
            col("number").max().alias("max"),
            col("number").first().alias("first"),
            col("number").last().alias("last"),
            col("number").drop_nulls().implode(true).alias("numbers"),
        ];
        if !texts.is_empty() {
            aggregates.push(col("text").count().alias("texts"));
            aggregates.push(col("text").first().alias("first_text"));
            aggregates.push(col("text").last().alias("last_text"));
        }
        let grouped = frame.group_by([col("series"), col("start")]).agg(aggregates).collect()?;
        let mut groups = read_groups(&grouped, &texts)?;
        groups.sort_unstable_by_key(|group| (group.series, group.start_us));
        Ok(groups)
    }

    fn into_frame(self, texts: &[(u32, Box<str>)]) -> PolarsResult<DataFrame> {
        let height = self.series.len();
        let mut columns = vec![
            Column::new("series".into(), self.series),
            Column::new("start".into(), self.start_us),
            Column::new("time".into(), self.time_us),
        ];
        if texts.is_empty() {
            columns.push(Column::new("number".into(), self.number));
        } else {
            let mut number: Vec<Option<f64>> = self.number.into_iter().map(Some).collect();
            let mut text: Vec<Option<u32>> = vec![None; height];
            for (at, (row, _)) in texts.iter().enumerate() {
                number[*row as usize] = None;
                text[*row as usize] = Some(at as u32);
            }
            columns.push(Column::new("number".into(), number));
            columns.push(Column::new("text".into(), text));
        }
        DataFrame::new(height, columns)
    }
}

/// Rows in order of series and time, of each identity the one that arrived last.
fn distinct(frame: LazyFrame) -> LazyFrame {
    let by = SortMultipleOptions::default().with_maintain_order(true).with_multithreaded(false);
    let next_is_same = col("series").eq(col("series").shift(lit(-1))).and(col("time").eq(col("time").shift(lit(-1))));
    frame.sort(["series", "time"], by).filter(next_is_same.fill_null(lit(false)).not())
}

fn read_groups(grouped: &DataFrame, texts: &[(u32, Box<str>)]) -> PolarsResult<Vec<Group>> {
    let series = grouped.column("series")?.u32()?;
    let start = grouped.column("start")?.i64()?;
    let (first_us, last_us) = (grouped.column("first_us")?.i64()?, grouped.column("last_us")?.i64()?);
    let count = grouped.column("count")?.u32()?;
    let number = |name: &str| grouped.column(name)?.f64();
    let (sum, var, min, max) = (number("sum")?, number("var")?, number("min")?, number("max")?);
    let (first, last) = (number("first")?, number("last")?);
    let numbers = grouped.column("numbers")?.list()?;
    let text = |name: &str| -> PolarsResult<Option<&UInt32Chunked>> {
        if texts.is_empty() { Ok(None) } else { grouped.column(name)?.u32().map(Some) }
    };
    let (text_count, first_text, last_text) = (text("texts")?, text("first_text")?, text("last_text")?);
    let value = |number: Option<f64>, text: Option<&UInt32Chunked>, row: usize| match number {
        Some(number) => Value::Number(number),
        None => {
            let at = text.and_then(|column| column.get(row)).map_or(0, |at| at as usize);
            Value::Text(texts.get(at).map(|(_, text)| text.clone()).unwrap_or_default())
        }
    };
    let mut groups = Vec::with_capacity(grouped.height());
    for row in 0..grouped.height() {
        let n = u64::from(count.get(row).unwrap_or(0));
        let summary = Summary {
            count: n,
            texts: text_count.and_then(|column| column.get(row)).map_or(0, u64::from),
            sum: sum.get(row).unwrap_or(0.0),
            m2: var.get(row).unwrap_or(0.0) * n.saturating_sub(1) as f64,
            min: min.get(row).unwrap_or(f64::INFINITY),
            max: max.get(row).unwrap_or(f64::NEG_INFINITY),
            first: (first_us.get(row).unwrap_or(0), value(first.get(row), first_text, row)),
            last: (last_us.get(row).unwrap_or(0), value(last.get(row), last_text, row)),
            sketch: Sketch::default(),
        };
        groups.push(Group {
            series: series.get(row).unwrap_or(0),
            start_us: start.get(row).unwrap_or(0),
            summary,
            numbers: numbers.get_as_series(row).unwrap_or_default(),
        });
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::sketch::nearest_rank;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const LENGTH_US: Micros = 60;

    type Readings = BTreeMap<Micros, Result<f64, &'static str>>;

    fn plain(rows: &[(u32, Micros, Result<f64, &'static str>)]) -> BTreeMap<(u32, Micros), Readings> {
        let mut groups: BTreeMap<_, Readings> = BTreeMap::new();
        for &(series, time_us, value) in rows {
            let start = model::time::window_start(time_us, LENGTH_US);
            groups.entry((series, start)).or_default().insert(time_us, value);
        }
        groups
    }

    fn columns(rows: &[(u32, Micros, Result<f64, &'static str>)]) -> Columns {
        let mut columns = Columns { disordered: true, ..Columns::default() };
        for &(series, time_us, value) in rows {
            let start = model::time::window_start(time_us, LENGTH_US);
            columns.push(series, start, time_us, value.unwrap_or(0.0), value.err());
        }
        columns
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn groups_equal_a_plain_computation_over_distinct_readings(
            rows in prop::collection::vec(
                (0..4_u32, -200..200_i64, prop_oneof![
                    8 => (1_013.0..1_014.0_f64).prop_map(Ok),
                    1 => prop_oneof![Just("offline"), Just("on fire")].prop_map(Err),
                ]), 1..120),
        ) {
            let want = plain(&rows);
            let got = columns(&rows).aggregate().unwrap();
            prop_assert_eq!(got.len(), want.len());
            for (group, ((series, start), readings)) in got.iter().zip(&want) {
                let numbers: Vec<f64> = readings.values().filter_map(|v| v.ok()).collect();
                let s = &group.summary;
                prop_assert_eq!((group.series, group.start_us), (*series, *start));
                prop_assert_eq!(group.numbers(), &numbers[..]);
                prop_assert_eq!((s.count, s.texts), (numbers.len() as u64, (readings.len() - numbers.len()) as u64));
                let value = |v: &Result<f64, &str>| v.map_or_else(|t| Value::Text(t.into()), Value::Number);
                let (first, last) = (readings.iter().next().unwrap(), readings.iter().next_back().unwrap());
                prop_assert_eq!(&s.first, &(*first.0, value(first.1)));
                prop_assert_eq!(&s.last, &(*last.0, value(last.1)));
                if numbers.is_empty() { continue; }
                let n = numbers.len() as f64;
                let mean = numbers.iter().sum::<f64>() / n;
                prop_assert!((s.sum - mean * n).abs() <= 1e-9 * mean * n);
                if numbers.len() > 1 {
                    let stddev = (numbers.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
                    prop_assert!((s.stddev().unwrap() - stddev).abs() <= 1e-9 * 1_014.0);
                }
                let mut sorted = numbers.clone();
                sorted.sort_by(f64::total_cmp);
                prop_assert_eq!((s.min, s.max), (sorted[0], sorted[sorted.len() - 1]));
                let p95 = sorted[nearest_rank(0.95, s.count).unwrap() as usize - 1];
                let sketched = group.clone().summarised().quantile(0.95).unwrap();
                prop_assert!((sketched - p95).abs() <= 0.0055 * p95);
            }
        }
    }

    #[test]
    fn ordered_rows_need_no_sorting_to_come_out_the_same() {
        let rows: Vec<_> = (0..500).map(|i| (i as u32 % 3, i * 2, Ok(i as f64))).collect();
        let quick = Columns { disordered: false, ..columns(&rows) }.aggregate().unwrap();
        let sorted = columns(&rows).aggregate().unwrap();
        for (a, b) in quick.iter().zip(&sorted) {
            assert_eq!((a.series, a.start_us, &a.summary), (b.series, b.start_us, &b.summary));
        }
        assert_eq!(quick.len(), sorted.len());
    }
}
