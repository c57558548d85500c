//! Summaries of many windows of one series as bytes.
//!
//! Columnar, as chunks are; the buckets of all sketches are columns too. Sums and sums of
//! squares of decimal readings are kept as the whole numbers of decimals that they are: what
//! adding has rounded is rounded back, far within the error that answers may have. Layout,
//! format 1: `format u8, rows varint, length varint, windows (start / length), revisions,
//! counts, texts, first and last (as distance from the start), min, max, first, last, their
//! texts, decimals u8, sums, squares, sketches, xxh3 of all before, low 32 bits,
//! little-endian`. Always holds: damaged bytes are an error, never other summaries.

use super::column::{put_numbers, put_whole, take_numbers, take_whole};
use crate::journal::batch::BatchError::{self, Inconsistent};
use crate::journal::seal::{put_runs, put_texts, seal, take_runs, take_texts, unseal};
use model::decimal::{RAW, choose_decimals, power, put_unsuited, take_unsuited, whole_square, whole_sum};
use model::sketch::Plain;
use model::{Micros, Sketch, Summary, Value, varint};

const FORMAT: u8 = 1;
/// More than windows of a second in a day.
const ROWS_MAX: u64 = 1 << 17;

/// The summary of a window of a series that is known, as is the windows' length.
#[derive(Debug, Clone, PartialEq)]
pub struct Folded {
    /// The window's start.
    pub start_us: Micros,
    /// How often it has been computed to something else, from 1.
    pub revision: u32,
    /// What it says.
    pub summary: Summary,
}

/// Encodes windows of `length_us`, in order of their starts.
pub(crate) fn encode(length_us: Micros, rows: &[Folded]) -> Vec<u8> {
    let mut out = vec![FORMAT];
    varint::put(&mut out, rows.len() as u64);
    varint::put(&mut out, length_us as u64);
    let whole = |out: &mut Vec<u8>, of: &dyn Fn(&Folded) -> i64| {
        put_whole(out, &rows.iter().map(of).collect::<Vec<_>>());
    };
    let runs = |out: &mut Vec<u8>, of: &dyn Fn(&Folded) -> u64| {
        put_runs(out, &rows.iter().map(of).collect::<Vec<_>>(), |_, n| n);
    };
    whole(&mut out, &|row| row.start_us.div_euclid(length_us));
    runs(&mut out, &|row| u64::from(row.revision));
    whole(&mut out, &|row| row.summary.count as i64);
    runs(&mut out, &|row| row.summary.texts);
    whole(&mut out, &|row| row.summary.first.0.wrapping_sub(row.start_us));
    whole(&mut out, &|row| row.summary.last.0.wrapping_sub(row.start_us));
    let mut numbers = |of: &dyn Fn(&Summary) -> f64| -> Vec<f64> {
        let column: Vec<f64> = rows.iter().map(|row| of(&row.summary)).collect();
        put_numbers(&mut out, &column);
        column
    };
    // Without numbers there are no extremes.
    let extreme = |n: f64| if n.is_finite() { n } else { 0.0 };
    let decimals = [
        numbers(&|summary| extreme(summary.min)),
        numbers(&|summary| extreme(summary.max)),
        numbers(&|summary| number(&summary.first.1)),
        numbers(&|summary| number(&summary.last.1)),
    ]
    .iter()
    .map(|column| choose_decimals(column))
    .max()
    .unwrap_or(RAW);
    let texts = |of: &dyn Fn(&Summary) -> &Value| {
        let text = |(row, folded): (usize, &Folded)| match of(&folded.summary) {
            Value::Text(text) => Some((row as u32, text.clone())),
            _ => None,
        };
        rows.iter().enumerate().filter_map(text).collect::<Vec<_>>()
    };
    put_texts(&mut out, &texts(&|summary| &summary.first.1));
    put_texts(&mut out, &texts(&|summary| &summary.last.1));
    out.push(decimals);
    put_moments(&mut out, rows, decimals);
    put_sketches(&mut out, rows);
    seal(out)
}

/// Decodes what [`encode`] wrote; sketches are left empty unless they are asked for.
pub(crate) fn decode(bytes: &[u8], sketches: bool) -> Result<Vec<Folded>, BatchError> {
    let (rows, rest) = unseal(bytes, FORMAT, ROWS_MAX)?;
    let rest = &mut &*rest;
    let length_us = varint::take(rest).and_then(|us| i64::try_from(us).ok()).ok_or(Inconsistent)?;
    let starts: Vec<Micros> =
        take_whole(rest, rows)?.into_iter().map(|window| window.wrapping_mul(length_us)).collect();
    let revisions: Vec<u64> = take_runs(rest, rows, |_, n| Ok(n))?;
    let counts: Vec<i64> = take_whole(rest, rows)?;
    let texts: Vec<u64> = take_runs(rest, rows, |_, n| Ok(n))?;
    let (first_us, last_us) = (take_whole(rest, rows)?, take_whole(rest, rows)?);
    let (min, max) = (take_numbers(rest, rows)?, take_numbers(rest, rows)?);
    let (first, last) = (take_numbers(rest, rows)?, take_numbers(rest, rows)?);
    let (first_texts, last_texts) = (take_texts(rest)?, take_texts(rest)?);
    let decimals = varint::take_byte(rest).ok_or(Inconsistent)?;
    let (sums, squares) = take_moments(rest, &counts, decimals)?;
    let mut sketches = if sketches { take_sketches(rest, rows)? } else { vec![Sketch::default(); rows] };
    let mut folded = Vec::with_capacity(rows);
    for row in 0..rows {
        let count = u64::try_from(counts[row]).map_err(|_| Inconsistent)?;
        let extreme = |n: f64, none: f64| if count > 0 { n } else { none };
        let start_us = starts[row];
        let summary = Summary {
            count,
            texts: texts[row],
            sum: sums[row],
            m2: squares[row],
            min: extreme(min[row], f64::INFINITY),
            max: extreme(max[row], f64::NEG_INFINITY),
            first: (start_us.wrapping_add(first_us[row]), Value::Number(first[row])),
            last: (start_us.wrapping_add(last_us[row]), Value::Number(last[row])),
            sketch: std::mem::take(&mut sketches[row]),
        };
        let revision = u32::try_from(revisions[row]).map_err(|_| Inconsistent)?;
        folded.push(Folded { start_us, revision, summary });
    }
    for (row, text) in first_texts {
        folded.get_mut(row as usize).ok_or(Inconsistent)?.summary.first.1 = Value::Text(text);
    }
    for (row, text) in last_texts {
        folded.get_mut(row as usize).ok_or(Inconsistent)?.summary.last.1 = Value::Text(text);
    }
    Ok(folded)
}

fn number(value: &Value) -> f64 {
    match value {
        Value::Number(n) => *n,
        Value::Bool(b) => f64::from(u8::from(*b)),
        Value::Text(_) => 0.0,
    }
}

/// Of readings with so many decimals, a sum is a whole number of `10^-decimals` and a sum of
/// squares about the mean, times the count, one of `10^-(2 * decimals)`.
fn put_moments(out: &mut Vec<u8>, rows: &[Folded], decimals: u8) {
    let Some(power) = power(decimals) else {
        rows.iter().for_each(|row| out.extend(row.summary.sum.to_le_bytes()));
        rows.iter().for_each(|row| out.extend(row.summary.m2.to_le_bytes()));
        return;
    };
    let sums: Vec<Option<i64>> = rows.iter().map(|row| whole_sum(&row.summary, power)).collect();
    let squares: Vec<Option<i64>> = rows.iter().map(|row| whole_square(&row.summary, power)).collect();
    put_nearly_whole(out, &sums, |row| rows[row].summary.sum);
    put_nearly_whole(out, &squares, |row| rows[row].summary.m2);
}

fn take_moments(rest: &mut &[u8], counts: &[i64], decimals: u8) -> Result<(Vec<f64>, Vec<f64>), BatchError> {
    let rows = counts.len();
    if decimals == RAW {
        let mut column =
            || (0..rows).map(|_| varint::take_f64(rest).ok_or(Inconsistent)).collect::<Result<Vec<_>, _>>();
        return Ok((column()?, column()?));
    }
    let power = power(decimals).ok_or(Inconsistent)?;
    let mut sums: Vec<f64> = take_whole(rest, rows)?.into_iter().map(|whole| whole as f64 / power).collect();
    take_unsuited(rest, &mut sums).ok_or(Inconsistent)?;
    let square = |(whole, &count): (i64, &i64)| whole as f64 / (count.max(1) as f64 * power * power);
    let mut squares: Vec<f64> = take_whole(rest, rows)?.into_iter().zip(counts).map(square).collect();
    take_unsuited(rest, &mut squares).ok_or(Inconsistent)?;
    Ok((sums, squares))
}

/// What is whole, and behind it, raw, what is not.
fn put_nearly_whole(out: &mut Vec<u8>, column: &[Option<i64>], raw: impl Fn(usize) -> f64) {
    let (mut previous, mut unsuited) = (0, Vec::new());
    let whole: Vec<i64> = column
        .iter()
        .enumerate()
        .map(|(row, whole)| {
            previous = whole.unwrap_or_else(|| {
                unsuited.push((row, raw(row)));
                previous
            });
            previous
        })
        .collect();
    put_whole(out, &whole);
    put_unsuited(out, &unsuited);
}

/// Sketches with the default mapping as columns of all their buckets, the others one by one.
fn put_sketches(out: &mut Vec<u8>, rows: &[Folded]) {
    let plain: Vec<Option<Plain>> = rows.iter().map(|row| row.summary.sketch.plain()).collect();
    let others: Vec<usize> = (0..rows.len()).filter(|&row| plain[row].is_none()).collect();
    varint::put(out, others.len() as u64);
    for row in others {
        let bytes = rows[row].summary.sketch.to_bytes();
        varint::put(out, row as u64);
        varint::put(out, bytes.len() as u64);
        out.extend(bytes);
    }
    let plain: Vec<Plain> = plain.into_iter().map(Option::unwrap_or_default).collect();
    put_runs(out, &plain.iter().map(|plain| plain.zero).collect::<Vec<_>>(), |_, n| n);
    put_side(out, &plain.iter().map(|plain| &plain.positive[..]).collect::<Vec<_>>());
    put_side(out, &plain.iter().map(|plain| &plain.negative[..]).collect::<Vec<_>>());
}

type Bucket = (i32, u64);

/// How many buckets each sketch has, then the indexes of the first ones, the gaps to the
/// others, and all counts.
fn put_side(out: &mut Vec<u8>, side: &[&[Bucket]]) {
    let buckets = || side.iter().copied().flatten();
    out.push(u8::from(buckets().next().is_some()));
    if buckets().next().is_none() {
        return;
    }
    let gaps =
        |own: &&[Bucket]| own.windows(2).map(|pair| i64::from(pair[1].0) - i64::from(pair[0].0)).collect::<Vec<_>>();
    put_whole(out, &side.iter().map(|own| own.len() as i64).collect::<Vec<_>>());
    put_whole(out, &side.iter().filter_map(|own| own.first()).map(|&(index, _)| i64::from(index)).collect::<Vec<_>>());
    put_whole(out, &side.iter().flat_map(gaps).collect::<Vec<_>>());
    put_whole(out, &buckets().map(|&(_, count)| count as i64).collect::<Vec<_>>());
}

fn take_side(rest: &mut &[u8], rows: usize) -> Result<Vec<Vec<Bucket>>, BatchError> {
    if varint::take_byte(rest).ok_or(Inconsistent)? == 0 {
        return Ok(vec![Vec::new(); rows]);
    }
    let size = |n: i64| usize::try_from(n).ok().filter(|&n| n <= model::sketch::BUCKETS_MAX).ok_or(Inconsistent);
    let sizes: Vec<usize> = take_whole(rest, rows)?.into_iter().map(size).collect::<Result<_, _>>()?;
    let (buckets, filled) = (sizes.iter().sum::<usize>(), sizes.iter().filter(|&&size| size > 0).count());
    let mut indexes = take_whole(rest, filled)?.into_iter();
    let mut gaps = take_whole(rest, buckets - filled)?.into_iter();
    let mut counts = take_whole(rest, buckets)?.into_iter();
    let own = |size: usize| {
        let mut index = 0_i64;
        let bucket = |at: usize| {
            index = if at == 0 { indexes.next() } else { gaps.next().and_then(|gap| index.checked_add(gap)) }?;
            Some((i32::try_from(index).ok()?, u64::try_from(counts.next()?).ok()?))
        };
        (0..size).map(bucket).collect::<Option<Vec<Bucket>>>().ok_or(Inconsistent)
    };
    sizes.into_iter().map(own).collect()
}

fn take_sketches(rest: &mut &[u8], rows: usize) -> Result<Vec<Sketch>, BatchError> {
    let mut others = Vec::new();
    for _ in 0..varint::take(rest).ok_or(Inconsistent)? {
        let row = varint::take(rest).ok_or(Inconsistent)? as usize;
        let length = varint::take(rest).ok_or(Inconsistent)? as usize;
        let (bytes, after) = rest.split_at_checked(length).ok_or(Inconsistent)?;
        *rest = after;
        others.push((row, Sketch::from_bytes(bytes).map_err(|_| Inconsistent)?));
    }
    let zeros: Vec<u64> = take_runs(rest, rows, |_, n| Ok(n))?;
    let (positive, negative) = (take_side(rest, rows)?, take_side(rest, rows)?);
    let sides = positive.into_iter().zip(negative);
    let plain = zeros.into_iter().zip(sides).map(|(zero, (positive, negative))| Plain { zero, positive, negative });
    let mut sketches = plain.map(Sketch::try_from).collect::<Result<Vec<Sketch>, _>>().map_err(|_| Inconsistent)?;
    for (row, sketch) in others {
        *sketches.get_mut(row).ok_or(Inconsistent)? = sketch;
    }
    Ok(sketches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readings::{Points, flag};
    use crate::window::cut::{Cuts, Needs, windows};
    use proptest::prelude::*;

    const LENGTH_US: Micros = 60_000_000;

    fn summaries(points: &Points) -> Vec<Folded> {
        let (mut cuts, mut rows) = (Cuts::default(), Vec::new());
        cuts.add(0, points, windows(&points.time_us, LENGTH_US, LENGTH_US));
        cuts.aggregate(Needs::ALL, |cut| {
            rows.push(Folded { start_us: cut.start_us, revision: 1, summary: cut.summarised() });
        })
        .unwrap();
        rows
    }

    fn points(rows: Vec<(i64, Result<f64, String>)>) -> Points {
        let mut points = Points::default();
        let mut time_us = 1_700_000_000_000_000;
        for (step_us, value) in rows {
            time_us += step_us;
            match value {
                Ok(n) => points.push(time_us, flag::NUMBER, n, None),
                Err(text) => points.push(time_us, flag::TEXT, 0.0, Some(&text)),
            }
        }
        points
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn summaries_come_back_saying_the_same(
            rows in prop::collection::vec((1..40_000_000_i64, prop_oneof![
                6 => (10_000..10_400_i32).prop_map(|n| Ok(f64::from(n) / 10.0)),
                2 => (-1e6..1e6_f64).prop_map(Ok),
                1 => prop_oneof![Just(0.0), Just(-0.0), Just(1e300), Just(-1e-300)].prop_map(Ok),
                1 => "[a-zäß]{0,5}".prop_map(Err),
            ]), 0..300),
            revised in any::<prop::sample::Index>(),
        ) {
            let mut rows = summaries(&points(rows));
            if !rows.is_empty() {
                let at = revised.index(rows.len());
                rows[at].revision = 7;
                rows[at].summary = if at % 2 == 0 { Summary::empty(rows[at].start_us) } else { rows[at].summary.clone() };
            }
            let bytes = encode(LENGTH_US, &rows);
            let back = decode(&bytes, true).unwrap();
            prop_assert_eq!(back.len(), rows.len());
            for (back, row) in back.iter().zip(&rows) {
                prop_assert_eq!((back.start_us, back.revision), (row.start_us, row.revision));
                prop_assert!(back.summary.says_the_same(&row.summary), "{:?} {:?}", back, row);
                let (Some(got), Some(want)) = (back.summary.stddev(), row.summary.stddev()) else { continue };
                let largest = row.summary.min.abs().max(row.summary.max.abs());
                prop_assert!(got == want || (got - want).abs() <= 1e-11 * largest, "{} {}", got, want);
            }
            for (without, with) in decode(&bytes, false).unwrap().iter().zip(back) {
                prop_assert_eq!(&without.summary, &Summary { sketch: Sketch::default(), ..with.summary });
            }
        }

        #[test]
        fn damage_is_noticed(at in 0..2_000_usize, bit in 0..8_u8) {
            let rows = (0..600).map(|i| (10_000_000, Ok(f64::from(i % 70) / 4.0))).collect();
            let mut bytes = encode(LENGTH_US, &summaries(&points(rows)));
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(decode(&bytes, true), Err(BatchError::Checksum));
        }
    }

    #[test]
    fn a_minute_of_a_sensor_takes_a_few_bytes() {
        let reading = |i: u32| (10_000_000, Ok((21.0 + (f64::from(i) / 500.0).sin() * 3.0 * 10.0).round() / 10.0));
        let rows = summaries(&points((0..8_640).map(reading).collect()));
        let bytes = encode(LENGTH_US, &rows).len();
        assert!(bytes < rows.len() * 12, "{bytes} bytes for {} windows", rows.len());
    }
}
