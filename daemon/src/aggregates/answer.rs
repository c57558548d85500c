//! Rows, from cells.
//!
//! Arrives: cells, by group and start. Leaves: at most `limit` rows in that order, windows
//! clipped at the range's edges, those without readings filled in if that is asked for.

use super::{GroupKey, Question, Starts};
use model::aggregate::Stat;
use model::sketch::nearest_rank;
use model::time::{FIRST_US, LAST_US};
use model::{Micros, Summary, Value};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// A window of a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// In the order of [`Question::group_by`]; `None` for a label that the device has not.
    pub group: GroupKey,
    /// The window's start, clipped.
    pub start_us: Micros,
    /// Its end, clipped.
    pub end_us: Micros,
    /// In the order of [`Question::stats`]; `None` where there are no numbers.
    pub values: Vec<Option<Value>>,
    /// Only late readings can change it.
    pub complete: bool,
    /// Some of its readings are retired: the longest windows of which it was put together.
    pub resolution_us: Option<Micros>,
    window_us: Micros,
}

/// What is answered together.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// What its members share, in the order of [`Question::group_by`].
    pub key: GroupKey,
    /// Windows that end here or before are complete.
    pub complete_until_us: Micros,
}

impl Head {
    /// True if this is the group of a cursor.
    pub fn is(&self, key: &[Option<String>]) -> bool {
        self.key.iter().map(|part| part.as_deref()).eq(key.iter().map(|part| part.as_deref()))
    }

    /// True for the group of a cursor and those that follow it.
    pub fn is_at_or_behind(&self, key: &[Option<String>]) -> bool {
        self.key.iter().map(|part| part.as_deref()).ge(key.iter().map(|part| part.as_deref()))
    }
}

/// Cells by group, counted within a lot, and the start of the window.
pub type Cells = BTreeMap<(usize, Micros), Cell>;

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// By group and start.
    pub rows: Vec<Row>,
    /// There are rows behind the limit.
    pub more: bool,
    /// The relative error of quantiles that came from sketches; `None` if all are exact.
    pub quantile_error: Option<f64>,
}

impl Answer {
    /// Where the next page begins: see [`Question::after`].
    pub fn next(&self) -> Option<(&[Option<Arc<str>>], Micros)> {
        let last = self.rows.last().filter(|_| self.more)?;
        Some((&last.group, last.window_us))
    }
}

/// What a window comes to.
#[derive(Debug, Clone)]
pub struct Cell {
    summary: Summary,
    /// In the order of the quantiles asked; `None` if they come from the sketch.
    quantiles: Option<Vec<f64>>,
    /// Of all series of the group, as long as quantiles are still to be found.
    pub numbers: Vec<f64>,
    /// The sketch of the summary holds what is not among the numbers.
    sketched: bool,
    /// Some of its readings are retired: the longest windows that it was put together from.
    resolution_us: Option<Micros>,
}

impl Cell {
    /// From readings; the sketch is empty, the numbers may be left out if nobody asks for them.
    pub fn of_numbers(summary: Summary, numbers: Vec<f64>) -> Self {
        Cell { summary, quantiles: None, numbers, sketched: false, resolution_us: None }
    }

    /// From a summary with its sketch; its readings are retired if there is a resolution.
    pub fn of_sketch(summary: Summary, resolution_us: Option<Micros>) -> Self {
        Cell { summary, quantiles: None, numbers: Vec::new(), sketched: true, resolution_us }
    }

    /// Adds the cell of other readings.
    pub fn merge(&mut self, mut other: Cell) {
        self.summary.merge(&other.summary);
        self.numbers.append(&mut other.numbers);
        self.sketched |= other.sketched;
        self.resolution_us = self.resolution_us.max(other.resolution_us);
    }

    /// Nothing more comes: the quantiles can be found.
    pub fn settle(&mut self, quantiles: &[f64]) {
        let mut numbers = std::mem::take(&mut self.numbers);
        if self.sketched {
            self.summary.sketch.extend(numbers);
        } else if self.quantiles.is_none() {
            self.quantiles = Some(exact(&mut numbers, quantiles));
        }
    }
}

/// Nearest ranks among numbers, which are left in some order.
fn exact(numbers: &mut [f64], quantiles: &[f64]) -> Vec<f64> {
    let pick = |q: &f64| match nearest_rank(*q, numbers.len() as u64) {
        Some(rank) => *numbers.select_nth_unstable_by(rank as usize - 1, f64::total_cmp).1,
        None => f64::NAN,
    };
    quantiles.iter().map(pick).collect()
}

/// Rows on their way.
pub struct Sink<'a> {
    question: &'a Question,
    rows: Vec<Row>,
    more: bool,
    quantile_error: Option<f64>,
}

impl<'a> Sink<'a> {
    /// Rows for a question.
    pub fn new(question: &'a Question) -> Self {
        Sink { question, rows: Vec::new(), more: false, quantile_error: None }
    }

    /// The answer.
    pub fn finish(self) -> Answer {
        Answer { rows: self.rows, more: self.more, quantile_error: self.quantile_error }
    }

    /// Takes the windows of some groups that start among `starts`; breaks when it is full.
    pub fn take<'h>(
        &mut self,
        heads: impl IntoIterator<Item = &'h Head>,
        starts: Starts,
        cells: Cells,
    ) -> ControlFlow<()> {
        let mut cells = cells.into_iter().peekable();
        for (at, head) in heads.into_iter().enumerate() {
            let mut empty = self.empty_windows(starts);
            while let Some(((_, start_us), cell)) = cells.next_if(|((group, _), _)| *group == at) {
                while let Some(before_us) = empty.next_if(|&empty_us| empty_us < start_us) {
                    self.put(head, before_us, None)?;
                }
                empty.next_if_eq(&start_us);
                self.put(head, start_us, Some(cell))?;
            }
            for start_us in empty {
                self.put(head, start_us, None)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// All windows among `starts` if those without readings are asked for.
    fn empty_windows(&self, starts: Starts) -> std::iter::Peekable<Box<dyn Iterator<Item = Micros>>> {
        let windows: Box<dyn Iterator<Item = Micros>> = match self.question.grid() {
            _ if !self.question.fill => Box::new(std::iter::empty()),
            None => Box::new(std::iter::once(self.question.range.from_us)),
            Some((_, every_us)) => {
                let first_us = model::time::window_start(starts.from_us - 1, every_us) + every_us;
                Box::new((first_us..starts.to_us).step_by(every_us as usize))
            }
        };
        windows.peekable()
    }

    fn put(&mut self, head: &Head, window_us: Micros, cell: Option<Cell>) -> ControlFlow<()> {
        if self.rows.len() >= self.question.limit {
            self.more = true;
            return ControlFlow::Break(());
        }
        let range = self.question.range;
        let (start_us, end_us) = match self.question.grid() {
            // An end that nobody gave is where the readings end.
            None => {
                let read = cell.as_ref().filter(|cell| cell.summary.count + cell.summary.texts > 0);
                let first_us = read.map(|cell| cell.summary.first.0).filter(|_| range.from_us == FIRST_US);
                let behind_us = read.map(|cell| cell.summary.last.0 + 1).filter(|_| range.to_us >= LAST_US);
                (first_us.unwrap_or(range.from_us), behind_us.unwrap_or(range.to_us))
            }
            Some((length_us, _)) => {
                (window_us.max(range.from_us), window_us.saturating_add(length_us).min(range.to_us))
            }
        };
        let resolution_us = cell.as_ref().and_then(|cell| cell.resolution_us);
        // Windows shorter than what is left are as long as that.
        let end_us = resolution_us.map_or(end_us, |us| end_us.max(start_us.saturating_add(us)));
        if let Some(Cell { summary, quantiles: None, .. }) = &cell
            && self.question.stats.iter().any(|stat| matches!(stat, Stat::Quantile(_)))
        {
            self.quantile_error = Some(summary.sketch.error().max(self.quantile_error.unwrap_or(0.0)));
        }
        self.rows.push(Row {
            group: head.key.clone(),
            start_us,
            end_us,
            values: values(&self.question.stats, cell.as_ref()),
            complete: end_us <= head.complete_until_us,
            resolution_us,
            window_us,
        });
        ControlFlow::Continue(())
    }
}

fn values(stats: &[Stat], cell: Option<&Cell>) -> Vec<Option<Value>> {
    let mut nth_quantile = 0;
    let value = |stat: &Stat| {
        let Some(Cell { summary, quantiles, .. }) = cell else {
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
    stats.iter().map(value).collect()
}

/// Whether a statistic is a whole number.
pub fn is_count(stat: Stat) -> bool {
    matches!(stat, Stat::Count | Stat::TextCount)
}
