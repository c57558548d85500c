//! Aggregates over windows.

use super::{Engine, Filter, QueryError, Range};
use crate::catalog::Series;
use crate::journal::scan::scan;
use crate::window::frame::{Columns, Group};
use model::aggregate::{Stat, Window};
use model::sketch::nearest_rank;
use model::time::window_start;
use model::{Micros, Sketch, Summary, Value};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// Of which series.
    pub filter: Filter,
    /// Over which range.
    pub range: Range,
    /// In which windows, clipped at the range's edges.
    pub window: Window,
    /// Which statistics.
    pub stats: Vec<Stat>,
    /// Also windows without readings.
    pub fill: bool,
    /// At most so many rows.
    pub limit: usize,
    /// Only rows behind this one: device, metric, start.
    pub after: Option<(String, String, Micros)>,
}

/// A window of a series.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Whose.
    pub device: Arc<str>,
    /// Of what.
    pub metric: Arc<str>,
    /// The window's start, clipped.
    pub start_us: Micros,
    /// Its end, clipped.
    pub end_us: Micros,
    /// In the order of [`Question::stats`]; `None` where there are no numbers.
    pub values: Vec<Option<Value>>,
    /// Only late readings can change it.
    pub complete: bool,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// By device, metric and start.
    pub rows: Vec<Row>,
    /// There are rows behind the limit.
    pub more: bool,
    /// The relative error of quantiles that came from sketches; `None` if all are exact.
    pub quantile_error: Option<f64>,
}

/// What a window comes to.
struct Cell {
    summary: Summary,
    /// In the order of the quantiles asked; `None` if they come from the sketch.
    quantiles: Option<Vec<f64>>,
}

type Cells = BTreeMap<(u32, Micros), Cell>;

impl Engine {
    /// Answers a question.
    pub fn aggregates(&self, question: &Question) -> Result<Answer, QueryError> {
        let mut series = self.select(&question.filter);
        if let Some((device, metric, _)) = &question.after {
            series.retain(|s| (&*s.device.name, &*s.metric) >= (device.as_str(), metric.as_str()));
        }
        let mut rows = Vec::new();
        let (mut more, mut quantile_error) = (false, None);
        // Series by series in lots, so that a page needs no more than its own.
        for lot in series.chunks(lot_size(question, series.len())) {
            let ids: Vec<u32> = lot.iter().map(|series| series.id).collect();
            let cells = self.with_store(|db| self.cells(db, question, &ids, question.range))?;
            for series in lot {
                more |= self.series_rows(question, series, &cells, &mut rows, &mut quantile_error);
                if more {
                    return Ok(Answer { rows, more, quantile_error });
                }
            }
        }
        Ok(Answer { rows, more, quantile_error })
    }

    /// Appends the rows of one series; true if the limit cut them short.
    fn series_rows(
        &self,
        question: &Question,
        series: &Series,
        cells: &Cells,
        rows: &mut Vec<Row>,
        quantile_error: &mut Option<f64>,
    ) -> bool {
        let after_us = match &question.after {
            Some((device, metric, start_us)) if **device == *series.device.name && **metric == *series.metric => {
                Some(*start_us)
            }
            _ => None,
        };
        let own = cells.range((series.id, Micros::MIN)..=(series.id, Micros::MAX));
        let own: BTreeMap<Micros, &Cell> = own.map(|((_, start_us), cell)| (*start_us, cell)).collect();
        let starts: Box<dyn Iterator<Item = Micros>> = match question.window {
            Window::Tumbling(length_us) if question.fill => {
                // A later page begins where the one before ended, however long the range is.
                let first = window_start(question.range.from_us.max(after_us.unwrap_or(Micros::MIN)), length_us);
                Box::new((first..question.range.to_us).step_by(length_us as usize))
            }
            Window::All if question.fill => Box::new(std::iter::once(question.range.from_us)),
            _ => Box::new(own.keys().copied()),
        };
        for start_us in starts {
            let (clipped_us, end_us) = clip(question, start_us);
            if after_us.is_some_and(|after_us| clipped_us <= after_us) {
                continue;
            }
            if rows.len() >= question.limit {
                return true;
            }
            let cell = own.get(&start_us).copied();
            if let Some(Cell { summary, quantiles: None }) = cell
                && question.stats.iter().any(|stat| matches!(stat, Stat::Quantile(_)))
            {
                *quantile_error = Some(summary.sketch.error().max(quantile_error.unwrap_or(0.0)));
            }
            rows.push(Row {
                device: (*series.device.name).into(),
                metric: (*series.metric).into(),
                start_us: clipped_us,
                end_us,
                values: values(question, cell),
                complete: self.is_complete(series.device.id, end_us),
            });
        }
        false
    }

    /// Aggregates series over a range; splits what does not fit into memory.
    fn cells(
        &self,
        db: &rusqlite::Connection,
        question: &Question,
        ids: &[u32],
        range: Range,
    ) -> Result<Cells, QueryError> {
        match self.gather(db, question, ids, range)? {
            Some(columns) => {
                let groups = columns.aggregate()?;
                // Only halves of a range may have to be merged, which takes sketches.
                let halved = range != question.range;
                Ok(groups.into_iter().map(|group| cell(question, group, halved)).collect())
            }
            None if ids.len() > 1 => {
                let (left, right) = ids.split_at(ids.len() / 2);
                let mut cells = self.cells(db, question, left, range)?;
                cells.append(&mut self.cells(db, question, right, range)?);
                Ok(cells)
            }
            None => self.halves(db, question, ids, range),
        }
    }

    /// One series that does not fit: two halves of the time, merged where they share a window.
    fn halves(
        &self,
        db: &rusqlite::Connection,
        question: &Question,
        ids: &[u32],
        range: Range,
    ) -> Result<Cells, QueryError> {
        let mut middle_us = self.middle(db, ids, range)?;
        if let Window::Tumbling(length_us) = question.window {
            let aligned = window_start(middle_us, length_us);
            if aligned > range.from_us {
                middle_us = aligned;
            }
        }
        let (left, right) = (Range { to_us: middle_us, ..range }, Range { from_us: middle_us, ..range });
        let mut cells = self.cells(db, question, ids, left)?;
        for (key, mut late) in self.cells(db, question, ids, right)? {
            match cells.remove(&key) {
                None => {
                    cells.insert(key, late);
                }
                Some(mut early) => {
                    early.summary.merge(&late.summary);
                    late = Cell { summary: early.summary, quantiles: None };
                    cells.insert(key, late);
                }
            }
        }
        Ok(cells)
    }

    /// A time that has readings of the series on both sides.
    fn middle(&self, db: &rusqlite::Connection, ids: &[u32], range: Range) -> Result<Micros, QueryError> {
        let (mut first, mut last, mut sample) = (Micros::MAX, Micros::MIN, Vec::new());
        let mut nth = 0_u64;
        scan(db, range.from_us, range.to_us, |batch| {
            for row in 0..batch.len() {
                let time_us = batch.time_us[row];
                if ids.contains(&batch.series[row]) && (range.from_us..range.to_us).contains(&time_us) {
                    (first, last) = (first.min(time_us), last.max(time_us));
                    nth += 1;
                    if nth.is_multiple_of(64) {
                        sample.push(time_us);
                    }
                }
            }
            ControlFlow::Continue(())
        })?;
        sample.sort_unstable();
        let middle = sample.get(sample.len() / 2).copied().unwrap_or(first);
        Ok(middle.clamp(first.saturating_add(1), last.max(first.saturating_add(1))))
    }

    /// The rows of series in a range, or nothing if they do not fit.
    fn gather(
        &self,
        db: &rusqlite::Connection,
        question: &Question,
        ids: &[u32],
        range: Range,
    ) -> Result<Option<Columns>, QueryError> {
        let rows_max = (self.memory_bytes / Columns::ROW_BYTES).max(1_000);
        let mut wanted = vec![false; ids.iter().max().map_or(0, |&id| id as usize + 1)];
        ids.iter().for_each(|&id| wanted[id as usize] = true);
        let mut columns = Columns { disordered: true, ..Columns::default() };
        let mut fits = true;
        scan(db, range.from_us, range.to_us, |batch| {
            for row in 0..batch.len() {
                let (series, time_us) = (batch.series[row], batch.time_us[row]);
                let is_wanted = wanted.get(series as usize).copied().unwrap_or(false);
                if !is_wanted || time_us < range.from_us || time_us >= range.to_us {
                    continue;
                }
                let start_us = match question.window {
                    Window::All => question.range.from_us,
                    Window::Tumbling(length_us) => window_start(time_us, length_us),
                };
                columns.push(series, start_us, time_us, batch.number[row], batch.text(row));
            }
            if columns.len() > rows_max {
                columns.compact();
                fits = columns.len() <= rows_max * 3 / 4;
            }
            if fits { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(fits.then_some(columns))
    }
}

/// With `fill`, a lot is what a page can show; without, all series share one pass.
fn lot_size(question: &Question, all: usize) -> usize {
    match question.window {
        Window::Tumbling(length_us) if question.fill => {
            let windows = (question.range.to_us - question.range.from_us) / length_us + 2;
            (question.limit / windows.max(1) as usize + 1).clamp(1, all.max(1))
        }
        _ => all.max(1),
    }
}

fn clip(question: &Question, start_us: Micros) -> (Micros, Micros) {
    match question.window {
        Window::All => (question.range.from_us, question.range.to_us),
        Window::Tumbling(length_us) => {
            (start_us.max(question.range.from_us), start_us.saturating_add(length_us).min(question.range.to_us))
        }
    }
}

fn cell(question: &Question, group: Group, halved: bool) -> ((u32, Micros), Cell) {
    let quantiles = question.stats.iter().filter_map(|stat| match stat {
        Stat::Quantile(q) => Some(*q),
        _ => None,
    });
    let quantiles: Vec<f64> = quantiles.collect();
    let key = (group.series, group.start_us);
    if quantiles.is_empty() {
        return (key, Cell { summary: group.summary, quantiles: Some(Vec::new()) });
    }
    let mut sorted = group.numbers().to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let pick = |q: &f64| nearest_rank(*q, sorted.len() as u64).map_or(f64::NAN, |rank| sorted[rank as usize - 1]);
    let exact = quantiles.iter().map(pick).collect();
    let sketch = if halved { Sketch::of(sorted.iter().copied()) } else { Sketch::default() };
    (key, Cell { summary: Summary { sketch, ..group.summary }, quantiles: Some(exact) })
}

fn values(question: &Question, cell: Option<&Cell>) -> Vec<Option<Value>> {
    let mut nth_quantile = 0;
    let value = |stat: &Stat| {
        let Some(Cell { summary, quantiles }) = cell else {
            return matches!(stat, Stat::Count | Stat::TextCount).then_some(Value::Number(0.0));
        };
        let some = summary.count > 0;
        let number = |n: f64| some.then_some(Value::Number(n));
        match stat {
            Stat::Count => Some(Value::Number(summary.count as f64)),
            Stat::TextCount => Some(Value::Number(summary.texts as f64)),
            Stat::Sum => number(summary.sum),
            Stat::Mean => summary.mean().map(Value::Number),
            Stat::Min => number(summary.min),
            Stat::Max => number(summary.max),
            Stat::First => Some(summary.first.1.clone()),
            Stat::Last => Some(summary.last.1.clone()),
            Stat::Stddev => summary.stddev().map(Value::Number),
            Stat::Quantile(q) => {
                nth_quantile += 1;
                match quantiles {
                    Some(exact) => exact.get(nth_quantile - 1).copied().filter(|_| some).map(Value::Number),
                    None => summary.quantile(*q).map(Value::Number),
                }
            }
        }
    };
    question.stats.iter().map(value).collect()
}

impl Answer {
    /// Where the next page begins.
    pub fn next(&self) -> Option<(&str, &str, Micros)> {
        let last = self.rows.last().filter(|_| self.more)?;
        Some((&last.device, &last.metric, last.start_us))
    }
}

/// Whether a statistic is a whole number.
pub fn is_count(stat: Stat) -> bool {
    matches!(stat, Stat::Count | Stat::TextCount)
}
