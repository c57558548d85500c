//! Windows to columns and back.
//!
//! Windows are sorted by device and time, summaries by metric, so that neighbours in a column
//! resemble each other.

use super::proto::metric::Numbers;
use super::proto::{self, Decimals, Doubles, Labels, Metric, Other, Side, Sketches, Summaries, Text};
use super::{Batch, Device, LENGTHS_MAX, Removed, SUMMARIES_MAX, WINDOWS_MAX, Window, WireError, named};
use WireError::Inconsistent;

/// As far as every engine counts.
const REVISION_MAX: u64 = i64::MAX as u64;
/// Readings of a window, at most.
const COUNT_MAX: u64 = 1 << 53;
use model::decimal::{RAW, choose_decimals, power, scaled, whole_square, whole_sum};
use model::sketch::Plain;
use model::time::{FIRST_US, LAST_US, SECOND_US};
use model::{Sketch, Summary, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

pub(super) fn encode(batch: &Batch) -> Summaries {
    let mut order: Vec<&Window> = batch.windows.iter().collect();
    order.sort_by_key(|window| (window.device, window.length_us, window.start_us));
    let mut windows = proto::Windows::default();
    let mut metrics: BTreeMap<&str, Vec<(usize, &Window, &Summary)>> = BTreeMap::new();
    let (mut device, mut start_s) = (0, 0);
    for (at, window) in order.into_iter().enumerate() {
        let (this_device, this_s) = (i64::from(window.device), window.start_us.div_euclid(SECOND_US));
        windows.device.push(this_device - device);
        windows.start_s.push(this_s - start_s);
        windows.length_s.push((window.length_us / SECOND_US) as u64);
        windows.revision.push(window.revision);
        (device, start_s) = (this_device, this_s);
        for (name, summary) in &window.metrics {
            metrics.entry(name).or_default().push((at, window, summary));
        }
    }
    let mut columns = Vec::new();
    for (name, rows) in metrics {
        let places = places(&rows);
        let suits = |(_, _, summary): &(usize, &Window, &Summary)| decimals_of(summary, places).is_some();
        let (decimal, other): (Vec<_>, Vec<_>) = rows.into_iter().partition(suits);
        columns.extend(
            [(decimal, Some(places)), (other, None)]
                .into_iter()
                .filter(|(rows, _)| !rows.is_empty())
                .map(|(rows, places)| put_metric(name, &rows, places)),
        );
    }
    let device = |device: &Device| proto::Device {
        id: device.id.to_string(),
        labels: device.labels.clone().map(|values| Labels { values }),
    };
    let removed = |removed: &Removed| proto::Removed {
        device: removed.device.to_string(),
        metric: removed.metric.as_deref().unwrap_or_default().to_owned(),
        revision: removed.revision,
    };
    Summaries {
        devices: batch.devices.iter().map(device).collect(),
        windows: Some(windows),
        metrics: columns,
        removed: batch.removed.iter().map(removed).collect(),
    }
}

/// The decimals of most of the values.
fn places(rows: &[(usize, &Window, &Summary)]) -> u8 {
    let values: Vec<f64> = rows.iter().flat_map(|(_, _, summary)| values(summary)).collect();
    match choose_decimals(&values) {
        RAW => 0,
        places => places,
    }
}

/// The values that a summary holds to the bit; of its numbers and texts zeros where there are none.
fn values(summary: &Summary) -> [f64; 4] {
    let number = |value: &Value| value.as_number().unwrap_or(0.0);
    let (first, last) = (number(&summary.first.1), number(&summary.last.1));
    if summary.count == 0 { [0.0, 0.0, first, last] } else { [summary.min, summary.max, first, last] }
}

/// Minimum, maximum, first, last, sum and square as whole numbers.
fn decimals_of(summary: &Summary, places: u8) -> Option<[i64; 6]> {
    let [min, max, first, last] = values(summary).map(|n| scaled(n, places));
    let power = power(places)?;
    Some([min?, max?, first?, last?, whole_sum(summary, power)?, whole_square(summary, power)?])
}

fn put_metric(name: &str, rows: &[(usize, &Window, &Summary)], places: Option<u8>) -> Metric {
    let mut metric = Metric { name: name.into(), ..Metric::default() };
    let mut before = 0;
    for (row, &(at, window, summary)) in rows.iter().enumerate() {
        metric.window.push((at - before) as u64);
        before = at;
        metric.count.push(summary.count);
        metric.first_us.push(summary.first.0 - window.start_us);
        metric.last_us.push(summary.last.0 - window.start_us);
        let text = |value: &Value| match value {
            Value::Text(text) => Some(Text { at: row as u32, text: text.to_string() }),
            _ => None,
        };
        metric.first_text.extend(text(&summary.first.1));
        metric.last_text.extend(text(&summary.last.1));
    }
    if rows.iter().any(|(_, _, summary)| summary.texts > 0) {
        metric.texts = rows.iter().map(|(_, _, summary)| summary.texts).collect();
    }
    let summaries = || rows.iter().map(|&(_, _, summary)| summary);
    metric.sketches = Some(put_sketches(summaries().map(|summary| &summary.sketch)));
    metric.numbers = Some(match places {
        Some(places) => Numbers::Decimals(put_decimals(summaries(), places)),
        None => Numbers::Doubles(put_doubles(summaries())),
    });
    metric
}

fn put_decimals<'a>(summaries: impl Iterator<Item = &'a Summary>, places: u8) -> Decimals {
    let mut columns = Decimals { places: u32::from(places), ..Decimals::default() };
    let mut before = 0;
    for summary in summaries {
        let Some([min, max, first, last, sum, square]) = decimals_of(summary, places) else { continue };
        columns.min.push(min - before);
        columns.max.push((max - min) as u64);
        columns.first.push(first - min);
        columns.last.push(last - min);
        columns.sum.push(sum.wrapping_sub((summary.count as i64).wrapping_mul(min)));
        columns.square.push(square);
        before = min;
    }
    columns
}

fn put_doubles<'a>(summaries: impl Iterator<Item = &'a Summary>) -> Doubles {
    let mut columns = Doubles::default();
    for summary in summaries {
        let [min, max, first, last] = values(summary);
        columns.min.push(min);
        columns.max.push(max);
        columns.first.push(first);
        columns.last.push(last);
        columns.sum.push(summary.sum);
        columns.m2.push(summary.m2);
    }
    columns
}

fn put_sketches<'a>(sketches: impl Iterator<Item = &'a Sketch>) -> Sketches {
    let (mut plain, mut other) = (Vec::new(), Vec::new());
    for (at, sketch) in sketches.enumerate() {
        plain.push(sketch.plain().unwrap_or_else(|| {
            other.push(Other { at: at as u32, sketch: sketch.to_bytes() });
            Plain::default()
        }));
    }
    let zero: Vec<u64> = plain.iter().map(|plain| plain.zero).collect();
    Sketches {
        zero: if zero.iter().any(|&n| n > 0) { zero } else { Vec::new() },
        positive: put_side(plain.iter().map(|plain| &plain.positive[..])),
        negative: put_side(plain.iter().map(|plain| &plain.negative[..])),
        other,
    }
}

fn put_side<'a>(sides: impl Iterator<Item = &'a [(i32, u64)]>) -> Option<Side> {
    let mut columns = Side::default();
    let mut before = 0;
    for buckets in sides {
        columns.buckets.push(buckets.len() as u64);
        let Some(&(lowest, _)) = buckets.first() else { continue };
        columns.lowest.push(i64::from(lowest) - before);
        before = i64::from(lowest);
        columns.gap.extend(buckets.windows(2).map(|pair| (i64::from(pair[1].0) - i64::from(pair[0].0)) as u64));
        columns.values.extend(buckets.iter().map(|&(_, count)| count));
    }
    (!columns.lowest.is_empty()).then_some(columns)
}

pub(super) fn decode(message: Summaries) -> Result<Batch, WireError> {
    let columns = message.windows.unwrap_or_default();
    let rows = columns.device.len();
    let summaries: usize = message.metrics.iter().map(|metric| metric.window.len()).sum();
    if rows > WINDOWS_MAX || summaries > SUMMARIES_MAX {
        return Err(WireError::TooMany(rows.max(summaries)));
    }
    let devices: Vec<Device> = message
        .devices
        .into_iter()
        .map(|device| Ok(Device { id: named(&device.id)?, labels: device.labels.map(|labels| labels.values) }))
        .collect::<Result<_, WireError>>()?;
    let mut windows = take_windows(columns, devices.len())?;
    let lengths: BTreeSet<i64> = windows.iter().map(|window| window.length_us).collect();
    if lengths.len() > LENGTHS_MAX {
        return Err(Inconsistent("windows of too many lengths"));
    }
    let mut names: HashMap<String, Arc<str>> = HashMap::new();
    for mut metric in message.metrics {
        let name = match names.get(&metric.name) {
            Some(name) => Arc::clone(name),
            None => named(&metric.name)?,
        };
        names.insert(std::mem::take(&mut metric.name), Arc::clone(&name));
        take_metric(metric, &name, &mut windows)?;
    }
    if windows.iter().any(|window| window.metrics.is_empty()) {
        return Err(Inconsistent("a window without metrics"));
    }
    let removed = message.removed.into_iter().map(take_removed).collect::<Result<_, _>>()?;
    Ok(Batch { devices, windows, removed })
}

fn take_removed(removed: proto::Removed) -> Result<Removed, WireError> {
    let proto::Removed { device, metric, revision } = removed;
    let metric = Some(metric).filter(|metric| !metric.is_empty());
    let metric = metric.map(|metric| named(&metric)).transpose()?;
    Ok(Removed { device: named(&device)?, metric, revision: known_revision(revision)? })
}

fn known_revision(revision: u64) -> Result<u64, WireError> {
    Some(revision).filter(|&revision| revision <= REVISION_MAX).ok_or(Inconsistent("a revision beyond all numbers"))
}

fn take_windows(columns: proto::Windows, devices: usize) -> Result<Vec<Window>, WireError> {
    let rows = columns.device.len();
    if [columns.start_s.len(), columns.length_s.len(), columns.revision.len()] != [rows; 3] {
        return Err(Inconsistent("columns of windows differ in length"));
    }
    let (mut device, mut start_s) = (0_i64, 0_i64);
    let mut windows = Vec::with_capacity(rows);
    for row in 0..rows {
        device = device.checked_add(columns.device[row]).ok_or(Inconsistent("a device's number overflows"))?;
        start_s = start_s.checked_add(columns.start_s[row]).ok_or(Inconsistent("a start overflows"))?;
        let start_us = start_s.checked_mul(SECOND_US).filter(|us| (FIRST_US..=LAST_US).contains(us));
        let length_us = i64::try_from(columns.length_s[row]).ok().and_then(|s| s.checked_mul(SECOND_US));
        let is_aligned = |us: &i64| start_us.is_some_and(|start_us| start_us % us == 0);
        windows.push(Window {
            device: u32::try_from(device)
                .ok()
                .filter(|&device| (device as usize) < devices)
                .ok_or(Inconsistent("a window of no device"))?,
            start_us: start_us.ok_or(Inconsistent("a start out of all times"))?,
            length_us: length_us
                .filter(|&us| us > 0 && us <= 3_660 * 86_400 * SECOND_US)
                .filter(is_aligned)
                .ok_or(Inconsistent("a window without length, or not at a multiple of it"))?,
            revision: known_revision(columns.revision[row])?,
            metrics: BTreeMap::new(),
        });
    }
    Ok(windows)
}

fn take_metric(metric: Metric, name: &Arc<str>, windows: &mut [Window]) -> Result<(), WireError> {
    let rows = metric.window.len();
    let same = [metric.count.len(), metric.first_us.len(), metric.last_us.len()] == [rows; 3];
    if !same || !(metric.texts.is_empty() || metric.texts.len() == rows) {
        return Err(Inconsistent("columns of a metric differ in length"));
    }
    let mut sketches = take_sketches(metric.sketches.unwrap_or_default(), rows)?;
    let numbers = match metric.numbers {
        Some(Numbers::Decimals(columns)) => take_decimals(&columns, &metric.count)?,
        Some(Numbers::Doubles(columns)) => take_doubles(columns, rows)?,
        None => return Err(Inconsistent("a metric without numbers")),
    };
    let mut first = texts(metric.first_text);
    let mut last = texts(metric.last_text);
    let mut at = 0_usize;
    for row in 0..rows {
        let gap = usize::try_from(metric.window[row]).map_err(|_| Inconsistent("a window's number overflows"))?;
        at = at.saturating_add(gap);
        let window = windows.get_mut(at).ok_or(Inconsistent("a summary of no window"))?;
        let [min, max, first_number, last_number, sum, m2] = numbers[row];
        let time = |offset: i64| window.start_us.checked_add(offset).ok_or(Inconsistent("a time overflows"));
        let value = |text: Option<Box<str>>, number: f64| text.map_or(Value::Number(number), Value::Text);
        let count = metric.count[row];
        let some = count > 0;
        let summary = Summary {
            count,
            texts: metric.texts.get(row).copied().unwrap_or(0),
            sum: if some { sum } else { 0.0 },
            m2: if some { m2 } else { 0.0 },
            min: if some { min } else { f64::INFINITY },
            max: if some { max } else { f64::NEG_INFINITY },
            first: (time(metric.first_us[row])?, value(first.remove(&row), first_number)),
            last: (time(metric.last_us[row])?, value(last.remove(&row), last_number)),
            sketch: std::mem::take(&mut sketches[row]),
        };
        check(&summary)?;
        if window.metrics.insert(Arc::clone(name), summary).is_some() {
            return Err(Inconsistent("two summaries of one metric and window"));
        }
    }
    Ok(())
}

/// That a summary can be merged and asked for quantiles.
fn check(summary: &Summary) -> Result<(), WireError> {
    let Summary { count, texts, min, max, sketch, .. } = summary;
    let is_right = if *count > 0 { min <= max } else { true };
    if is_right && count.checked_add(*texts).is_some_and(|n| n <= COUNT_MAX) && sketch.count() == *count {
        Ok(())
    } else {
        Err(Inconsistent("a summary that contradicts itself"))
    }
}

fn texts(texts: Vec<Text>) -> HashMap<usize, Box<str>> {
    texts.into_iter().map(|text| (text.at as usize, text.text.into())).collect()
}

fn take_decimals(columns: &Decimals, counts: &[u64]) -> Result<Vec<[f64; 6]>, WireError> {
    let rows = counts.len();
    let lengths = [&columns.min, &columns.first, &columns.last, &columns.sum, &columns.square].map(Vec::len);
    if lengths != [rows; 5] || columns.max.len() != rows {
        return Err(Inconsistent("columns of numbers differ in length"));
    }
    let power = u8::try_from(columns.places).ok().and_then(power).ok_or(Inconsistent("too many decimals"))?;
    let mut min = 0_i64;
    let number = |row: usize| {
        min = min.wrapping_add(columns.min[row]);
        let count = counts[row];
        let whole = |n: i64| min.wrapping_add(n) as f64 / power;
        let sum = columns.sum[row].wrapping_add((count as i64).wrapping_mul(min)) as f64 / power;
        let m2 = columns.square[row] as f64 / (count.max(1) as f64 * power * power);
        [whole(0), whole(columns.max[row] as i64), whole(columns.first[row]), whole(columns.last[row]), sum, m2]
    };
    Ok((0..rows).map(number).collect())
}

fn take_doubles(columns: Doubles, rows: usize) -> Result<Vec<[f64; 6]>, WireError> {
    let Doubles { min, max, first, last, sum, m2 } = columns;
    if [&min, &max, &first, &last, &sum, &m2].map(Vec::len) != [rows; 6] {
        return Err(Inconsistent("columns of numbers differ in length"));
    }
    let numbers: Vec<[f64; 6]> =
        (0..rows).map(|row| [min[row], max[row], first[row], last[row], sum[row], m2[row]]).collect();
    // Sums of huge numbers may be infinite.
    if numbers.iter().all(|row| row[..4].iter().all(|n| n.is_finite())) {
        Ok(numbers)
    } else {
        Err(Inconsistent("a number is not finite"))
    }
}

fn take_sketches(columns: Sketches, rows: usize) -> Result<Vec<Sketch>, WireError> {
    if !(columns.zero.is_empty() || columns.zero.len() == rows) {
        return Err(Inconsistent("columns of sketches differ in length"));
    }
    let (positive, negative) = (take_side(columns.positive, rows)?, take_side(columns.negative, rows)?);
    let plain = |(row, (positive, negative))| {
        let zero = columns.zero.get(row).copied().unwrap_or(0);
        Sketch::try_from(Plain { zero, positive, negative }).map_err(|_| Inconsistent("a sketch of no values"))
    };
    let mut sketches: Vec<Sketch> =
        positive.into_iter().zip(negative).enumerate().map(plain).collect::<Result<_, WireError>>()?;
    for Other { at, sketch } in columns.other {
        let place = sketches.get_mut(at as usize).ok_or(Inconsistent("a sketch of no summary"))?;
        *place = Sketch::from_bytes(&sketch).map_err(|_| Inconsistent("a damaged sketch"))?;
    }
    Ok(sketches)
}

type Buckets = Vec<(i32, u64)>;

fn take_side(columns: Option<Side>, rows: usize) -> Result<Vec<Buckets>, WireError> {
    const SHORT: WireError = Inconsistent("columns of buckets end too early");
    let Some(columns) = columns else { return Ok(vec![Buckets::new(); rows]) };
    if columns.buckets.len() != rows {
        return Err(Inconsistent("columns of sketches differ in length"));
    }
    let mut lowest = columns.lowest.into_iter();
    let mut gaps = columns.gap.into_iter();
    let mut values = columns.values.into_iter();
    let mut before = 0_i64;
    let mut sides = Vec::with_capacity(rows);
    for many in columns.buckets {
        let mut buckets = Buckets::new();
        let mut index = 0_i64;
        for nth in 0..many {
            if nth == 0 {
                index = before.wrapping_add(lowest.next().ok_or(SHORT)?);
                before = index;
            } else {
                index = index.wrapping_add(gaps.next().ok_or(SHORT)? as i64);
            }
            let bucket = i32::try_from(index).map_err(|_| Inconsistent("a bucket out of range"))?;
            buckets.push((bucket, values.next().ok_or(SHORT)?));
        }
        sides.push(buckets);
    }
    Ok(sides)
}
