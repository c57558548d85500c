//! Aggregates over windows.
//!
//! Series are answered group by group, day by day: what is in memory is one lot of windows.
//! A lot that does not fit is split by group, then by the starts of its windows; only a single
//! window of a single group that does not fit is computed from parts, whose quantiles come
//! from sketches, and the answer says so.

/// Series that are answered together.
mod group;

/// Which days are answered from summaries.
mod plan;

use super::{Engine, QueryError};
use crate::archive::DAY_US;
use crate::archive::day;
use crate::archive::read::{Raw, Tail, Wanted};
use crate::archive::rollup::Folded;
use crate::readings::Points;
use crate::window::cut::{Cut, Cuts, Needs, windows};
use daemon::aggregates::answer::{Cell, Cells, Sink};
use daemon::aggregates::{Answer, Question, Range, Starts};
use group::Group;
use model::Micros;
use model::aggregate::Stat;
use model::time::{SECOND_US, window_start};
use plan::{FoldedDay, Plan};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// Rows of one aggregation in Polars: enough for its fixed costs, little for the memory.
const LOT_ROWS: usize = 128 << 10;
/// A range as short as this is read, however many readings its parts have besides.
const SPLIT_LEAST_US: Micros = 60 * SECOND_US;
/// Windows kept at once.
const CELLS_MAX: usize = 50_000;
/// Groups that share a lot, if their windows are few.
const LOT_GROUPS: usize = 256;

/// One question on its way.
struct Task<'a> {
    question: &'a Question,
    quantiles: Vec<f64>,
    raw: &'a Raw<'a>,
    /// Not in chunks yet, of all series asked for; `None` if that is too much at once.
    tail: Option<(Vec<u32>, Tail)>,
    days: Vec<i64>,
    plan: Plan,
    rows_max: usize,
}

impl Engine {
    /// Answers a question.
    pub(crate) fn aggregates(&self, question: &Question) -> Result<Answer, QueryError> {
        let mut groups = self.groups(question);
        if let Some((key, _)) = &question.after {
            groups.retain(|group| group.head.is_at_or_behind(key));
        }
        let mut sink = Sink::new(question);
        if groups.is_empty() {
            return Ok(sink.finish());
        }
        let rows_max = (self.memory_bytes / Cuts::ROW_BYTES).max(1_000);
        self.with_store(|db| {
            let raw = Raw::open(db)?;
            let (from_us, to_us) = (question.range.from_us, question.range.to_us);
            let mut ids: Vec<u32> = groups.iter().flat_map(|group| group.series.iter().map(|s| s.id)).collect();
            ids.sort_unstable();
            let tail = raw.tail(&Wanted::new(&ids), from_us, to_us, rows_max / 2)?.map(|tail| (ids, tail));
            let days = raw.days(from_us, to_us)?;
            let series = groups.iter().map(|group| group.series.len()).sum();
            let plan = Plan::new(question, &self.levels, &raw, &days, series)?;
            let task = Task { question, quantiles: question.quantiles(), raw: &raw, tail, days, plan, rows_max };
            // Of the group that the page before ended in, only the rest.
            let (first, from_us) = match &question.after {
                Some((key, start_us)) if groups[0].head.is(key) => (1, start_us.saturating_add(1)),
                _ => (0, Micros::MIN),
            };
            let (begun, whole) = groups.split_at(first);
            let mut flow = task.answer(begun, task.starts(from_us), &mut sink)?;
            for lot in whole.chunks(task.lot_groups()) {
                if flow.is_break() {
                    break;
                }
                flow = task.answer(lot, task.starts(Micros::MIN), &mut sink)?;
            }
            Ok(sink.finish())
        })
    }
}

impl Task<'_> {
    /// All windows of the question that start at `from_us` or later.
    fn starts(&self, from_us: Micros) -> Starts {
        Starts { from_us: self.question.first_start_us().max(from_us), to_us: self.question.range.to_us }
    }

    /// How many groups have about as many windows as may be kept at once.
    fn lot_groups(&self) -> usize {
        let windows = self.question.grid().map_or(1, |(_, every_us)| {
            let days = (self.days.len() + self.plan.days()) as Micros + 1;
            let range = self.question.range;
            ((days * DAY_US).min(range.to_us - range.from_us) / every_us) as usize + 1
        });
        (CELLS_MAX / windows).clamp(1, LOT_GROUPS)
    }

    /// Answers groups in order; breaks when the answer is full.
    fn answer(&self, groups: &[Group], starts: Starts, sink: &mut Sink<'_>) -> Result<ControlFlow<()>, QueryError> {
        let is_past_the_only_one = self.question.grid().is_none() && starts.from_us > self.question.range.from_us;
        if groups.is_empty() || is_past_the_only_one {
            return Ok(ControlFlow::Continue(()));
        }
        if let Some(cells) = self.cells(groups, starts)? {
            return Ok(sink.take(groups.iter().map(|group| &group.head), starts, cells));
        }
        if groups.len() > 1 {
            let (left, right) = groups.split_at(groups.len() / 2);
            if self.answer(left, starts, sink)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            return self.answer(right, starts, sink);
        }
        let first_us = self.first_start(starts);
        let middle_us = self.question.grid().and_then(|(_, every_us)| {
            let windows = (starts.to_us - first_us + every_us - 1) / every_us;
            (windows > 1).then(|| first_us + windows / 2 * every_us)
        });
        match middle_us {
            Some(middle_us) => {
                if self.answer(groups, Starts { to_us: middle_us, ..starts }, sink)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                self.answer(groups, Starts { from_us: middle_us, ..starts }, sink)
            }
            None => {
                let cell = self.in_parts(&groups[0], self.span(starts))?;
                let key = (0, first_us);
                Ok(sink.take(
                    groups.iter().map(|group| &group.head),
                    starts,
                    cell.map(|cell| (key, cell)).into_iter().collect(),
                ))
            }
        }
    }

    /// The first window among `starts`.
    fn first_start(&self, starts: Starts) -> Micros {
        match self.question.grid() {
            Some((_, every_us)) => window_start(starts.from_us - 1, every_us) + every_us,
            None => self.question.range.from_us,
        }
    }

    /// The times that windows starting there can hold.
    fn span(&self, starts: Starts) -> Range {
        let range = self.question.range;
        match self.question.grid() {
            None => range,
            Some((length_us, every_us)) => {
                let last_us = window_start(starts.to_us - 1, every_us);
                Range {
                    from_us: range.from_us.max(self.first_start(starts)),
                    to_us: range.to_us.min(last_us.saturating_add(length_us)),
                }
            }
        }
    }

    /// The readings of a series that are not in chunks yet; nothing if there are too many.
    fn with_tail<T>(
        &self,
        ids: &[u32],
        span: Range,
        read: impl FnOnce(&dyn Fn(u32) -> Points) -> Result<T, QueryError>,
    ) -> Result<Option<T>, QueryError> {
        let of = |ids: &[u32], tail: &Tail, series: u32| {
            let place = ids.binary_search(&series).ok();
            place
                .map(|place| tail.points(place))
                .map_or_else(Points::default, |points| points.slice(points.between(span.from_us, span.to_us)))
        };
        if let Some((ids, tail)) = &self.tail {
            return read(&|series| of(ids, tail, series)).map(Some);
        }
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        match self.raw.tail(&Wanted::new(&ids), span.from_us, span.to_us, self.rows_max)? {
            Some(tail) => read(&|series| of(&ids, &tail, series)).map(Some),
            None => Ok(None),
        }
    }

    /// The windows of some groups; nothing if they do not fit into memory.
    fn cells(&self, groups: &[Group], starts: Starts) -> Result<Option<Cells>, QueryError> {
        let span = self.span(starts);
        if span.from_us >= span.to_us {
            return Ok(Some(Cells::new()));
        }
        let ids: Vec<u32> = groups.iter().flat_map(|group| group.series.iter().map(|series| series.id)).collect();
        let cells = self.with_tail(&ids, span, |tail| {
            let mut lot = Lot::new(self, starts);
            for (at, group) in groups.iter().enumerate() {
                let several = group.series.len() > 1;
                for series in &group.series {
                    lot.places.push((at, several || !self.plan.reads_everything()));
                    if !lot.series(series.id, &tail(series.id), span)? {
                        return Ok(None);
                    }
                }
                if lot.cells.len() > self.question.limit {
                    break;
                }
            }
            lot.finish()
        })?;
        Ok(cells.flatten())
    }

    /// The days of a series that are read, and what stands for the others.
    fn days_of(&self, series: u32, tail: &Points, span: Range) -> Result<Days, QueryError> {
        let folded = if self.plan.reads_everything() {
            BTreeMap::new()
        } else {
            self.plan.folded(self.raw, series, tail, span)?
        };
        let in_tail = tail.time_us.iter().map(|&us| day(us));
        let in_chunks = self.days.iter().copied().filter(|&d| (day(span.from_us)..=day(span.to_us - 1)).contains(&d));
        let read = in_tail.chain(in_chunks).filter(|day| !folded.contains_key(day)).collect();
        Ok(Days { folded, read })
    }

    /// One window of one group, too large to be in memory at once.
    fn in_parts(&self, group: &Group, span: Range) -> Result<Option<Cell>, QueryError> {
        let mut whole: Option<Cell> = None;
        for series in &group.series {
            let mut pieces = vec![span];
            while let Some(piece) = pieces.pop() {
                let Some(parts) = self.piece(series.id, piece)? else {
                    let middle_us = piece.from_us + (piece.to_us - piece.from_us) / 2;
                    pieces.push(Range { from_us: middle_us, ..piece });
                    pieces.push(Range { to_us: middle_us, ..piece });
                    continue;
                };
                for part in parts {
                    match &mut whole {
                        Some(whole) => whole.merge(part),
                        None => whole = Some(part),
                    }
                }
            }
        }
        Ok(whole)
    }

    /// A stretch of a series, a cell for each day; nothing if it does not fit.
    fn piece(&self, series: u32, span: Range) -> Result<Option<Vec<Cell>>, QueryError> {
        let alone = span.to_us - span.from_us < 2;
        let cells = self.with_tail(&[series], span, |tail| {
            let tail = tail(series);
            let Days { folded, read } = self.days_of(series, &tail, span)?;
            let mut rows = 0;
            for &day in &read {
                rows = rows.max(self.raw.rows_between(day, series, span.from_us, span.to_us)?);
            }
            if rows > self.rows_max && span.to_us - span.from_us > SPLIT_LEAST_US {
                return Ok(None);
            }
            let mut cells = Vec::new();
            for day in read {
                let points = self.raw.day(series, day, &tail, span.from_us, span.to_us)?;
                if !points.is_empty() {
                    let mut cuts = Cuts::default();
                    cuts.add(series, &points, [(span.from_us, 0..points.len())]);
                    cuts.aggregate(Needs::ALL, |cut| cells.push(Cell::of_sketch(cut.summarised(), None)))?;
                }
            }
            for day in folded.into_values() {
                let cell = |row: Folded| Cell::of_sketch(row.summary, day.resolution_us);
                cells.extend(day.windows.into_iter().filter(|row| !row.summary.is_empty()).map(cell));
            }
            Ok(Some(cells))
        })?;
        let cells = cells.flatten();
        Ok(if alone { Some(cells.unwrap_or_default()) } else { cells })
    }
}

/// Where the windows of a series come from, by day.
struct Days {
    /// From summaries.
    folded: BTreeMap<i64, FoldedDay>,
    /// From readings.
    read: BTreeSet<i64>,
}

/// Windows being computed together.
struct Lot<'a> {
    task: &'a Task<'a>,
    starts: Starts,
    cuts: Cuts,
    /// By series in `cuts`: its group, and whether that has others.
    places: Vec<(usize, bool)>,
    cells: Cells,
    /// Windows of the series under way that start earlier have been taken.
    taken_until_us: Micros,
    numbers: usize,
}

impl<'a> Lot<'a> {
    fn new(task: &'a Task<'a>, starts: Starts) -> Self {
        Lot {
            task,
            starts,
            cuts: Cuts::default(),
            places: Vec::new(),
            cells: Cells::new(),
            taken_until_us: 0,
            numbers: 0,
        }
    }

    /// Adds the windows of a series; false if they do not fit.
    fn series(&mut self, series: u32, tail: &Points, span: Range) -> Result<bool, QueryError> {
        let place = self.places.len() as u32 - 1;
        self.taken_until_us = self.starts.from_us;
        let Days { mut folded, read } = self.task.days_of(series, tail, span)?;
        let all: BTreeSet<i64> = read.into_iter().chain(folded.keys().copied()).collect();
        let mut waiting = Points::default();
        for day in all {
            if let Some(day) = folded.remove(&day) {
                self.take_folded(day);
            } else {
                let rows = self.task.raw.rows_between(day, series, span.from_us, span.to_us)?;
                if rows + waiting.len() > self.task.rows_max && span.to_us - span.from_us > SPLIT_LEAST_US {
                    return Ok(false);
                }
                let points = self.task.raw.day(series, day, tail, span.from_us, span.to_us)?;
                if points.is_empty() {
                    continue;
                }
                if waiting.is_empty() {
                    waiting = points;
                } else {
                    waiting.merge(&points);
                }
                if !self.take_whole(place, &mut waiting, (day + 1) * DAY_US)? {
                    return Ok(false);
                }
            }
            let fits = waiting.len() <= self.task.rows_max && (self.cells.len() <= CELLS_MAX || self.is_enough());
            if !fits {
                return Ok(false);
            }
            if self.is_enough() {
                break;
            }
        }
        self.take_whole(place, &mut waiting, Micros::MAX)
    }

    /// Adds the windows of a day that is answered from summaries.
    fn take_folded(&mut self, day: FoldedDay) {
        let Some(&(group, _)) = self.places.last() else { return };
        let range_us = self.task.question.range.from_us;
        for row in day.windows.into_iter().filter(|row| !row.summary.is_empty()) {
            let cell = Cell::of_sketch(row.summary, day.resolution_us);
            let Some((length_us, every_us)) = self.task.question.grid() else {
                merge(&mut self.cells, (group, range_us), cell);
                continue;
            };
            let first_us = window_start(row.start_us - length_us, every_us) + every_us;
            for start_us in (first_us..=row.start_us).step_by(every_us as usize) {
                if (self.starts.from_us..self.starts.to_us).contains(&start_us) {
                    merge(&mut self.cells, (group, start_us), cell.clone());
                }
            }
        }
    }

    /// Takes the windows that end at `until_us` or before out of `waiting`.
    fn take_whole(&mut self, place: u32, waiting: &mut Points, until_us: Micros) -> Result<bool, QueryError> {
        let question = self.task.question;
        let Some((length_us, every_us)) = question.grid() else {
            if until_us == Micros::MAX && !waiting.is_empty() {
                let points = std::mem::take(waiting);
                self.cuts.add(place, &points, [(question.range.from_us, 0..points.len())]);
            }
            return self.flush_if_large();
        };
        let starts = self.taken_until_us..self.starts.to_us;
        let is_whole = |start_us: Micros| start_us.saturating_add(length_us) <= until_us;
        let whole = windows(&waiting.time_us, length_us, every_us)
            .filter(|(start_us, _)| starts.contains(start_us) && is_whole(*start_us));
        self.cuts.add(place, waiting, whole);
        if until_us == Micros::MAX {
            *waiting = Points::default();
        } else {
            // The first window that is not whole yet begins here.
            let open_us = window_start(until_us.saturating_sub(length_us), every_us).saturating_add(every_us);
            self.taken_until_us = open_us.max(starts.start);
            let rest = waiting.between(open_us, Micros::MAX);
            *waiting = waiting.slice(rest);
        }
        self.flush_if_large()
    }

    fn flush_if_large(&mut self) -> Result<bool, QueryError> {
        if self.cuts.len() >= LOT_ROWS { self.flush() } else { Ok(true) }
    }

    /// Aggregates what has been added; false if it does not fit.
    fn flush(&mut self) -> Result<bool, QueryError> {
        let cuts = std::mem::take(&mut self.cuts);
        let Lot { task, places, cells, numbers, .. } = self;
        cuts.aggregate(needs(task.question), |cut| {
            let (group, several) = places[cut.series as usize];
            *numbers += add(cells, (group, cut.start_us), cut, &task.quantiles, several);
        })?;
        Ok(*numbers <= task.rows_max)
    }

    /// True if there are more windows than the answer takes, and none of them is still to grow.
    fn is_enough(&self) -> bool {
        self.cells.len() > self.task.question.limit && self.places.last().is_none_or(|(_, several)| !several)
    }

    fn finish(mut self) -> Result<Option<Cells>, QueryError> {
        if !self.flush()? {
            return Ok(None);
        }
        let quantiles = &self.task.quantiles;
        self.cells.values_mut().for_each(|cell| cell.settle(quantiles));
        Ok(Some(self.cells))
    }
}

/// What the question needs besides counts and sums.
fn needs(question: &Question) -> Needs {
    Needs {
        spread: question.stats.contains(&Stat::Stddev),
        extremes: question.stats.iter().any(|stat| matches!(stat, Stat::Min | Stat::Max)),
    }
}

/// Adds a window to its cell; says how many numbers are kept for it.
fn add(cells: &mut Cells, key: (usize, Micros), cut: Cut<'_>, quantiles: &[f64], several: bool) -> usize {
    let numbers = if quantiles.is_empty() { Vec::new() } else { cut.numbers.to_vec() };
    let mut cell = Cell::of_numbers(cut.summary, numbers);
    if !several {
        cell.settle(quantiles);
        cells.insert(key, cell);
        return 0;
    }
    let kept = cell.numbers.len();
    merge(cells, key, cell);
    kept
}

fn merge(cells: &mut Cells, key: (usize, Micros), cell: Cell) {
    match cells.entry(key) {
        Entry::Vacant(vacant) => drop(vacant.insert(cell)),
        Entry::Occupied(mut whole) => whole.get_mut().merge(cell),
    }
}
