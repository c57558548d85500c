//! Rows to a shard's part of an answer, whatever engine they come from.
//!
//! Days and hours that are not stale come from rollups; everything else from the windows
//! themselves: also those that do not fit into an hour, where there is no whole day, and those that do
//! not fit into a day. What is merged is a summary per group and start. Pure.

use super::{Partial, Question, ShardError, add_cell, check_cells};
use daemon::aggregates::{GroupBy, GroupKey, Range};
use model::aggregate::glob;
use model::time::{SECOND_US, window_start};
use model::{Micros, Summary};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Rollups are per hour and per day.
pub(super) const HOUR_US: Micros = 3_600 * SECOND_US;
pub(super) const DAY_US: Micros = 24 * HOUR_US;

/// True if windows of this length never reach beyond such an hour or day.
pub(super) fn fits(length_us: Micros, whole_us: Micros) -> bool {
    length_us > 0 && whole_us % length_us == 0
}

/// Where the parts of a range come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spans {
    /// Begins and ends between hours: read window by window.
    pub(super) edges: [Range; 2],
    /// Whole hours: rollups, but for the stale ones.
    pub(super) hours: Range,
    /// Whole days among them, if the question's windows are whole days.
    pub(super) days: Range,
}

impl Spans {
    pub(super) fn of(question: &Question) -> Self {
        let Range { from_us, to_us } = question.range;
        let suits = |whole_us: Micros| match question.grid {
            None => true,
            Some((length_us, every_us)) => length_us % whole_us == 0 && every_us % whole_us == 0,
        };
        let whole = |range: Range, whole_us: Micros| {
            let begin_us = window_start(range.from_us.saturating_add(whole_us - 1), whole_us);
            let end_us = window_start(range.to_us, whole_us);
            let empty = Range { from_us: range.from_us, to_us: range.from_us };
            if suits(whole_us) && begin_us < end_us { Range { from_us: begin_us, to_us: end_us } } else { empty }
        };
        let hours = whole(question.range, HOUR_US);
        if hours.from_us >= hours.to_us {
            return Spans { edges: [question.range, hours], hours, days: hours };
        }
        let edges = [Range { from_us, to_us: hours.from_us }, Range { from_us: hours.to_us, to_us }];
        Spans { edges, hours, days: whole(hours, DAY_US) }
    }
}

/// A device that a question is about.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) id: i64,
    pub(super) name: Arc<str>,
    pub(super) gateway: Arc<str>,
    pub(super) labels: BTreeMap<String, String>,
}

impl Question {
    /// True if the filter lets a device of a gateway through.
    pub(super) fn wants(&self, device: &str, gateway: &str) -> bool {
        let any = |patterns: &[String], name: &str| patterns.is_empty() || patterns.iter().any(|p| glob(p, name));
        any(&self.filter.devices, device) && any(&self.gateways, gateway)
    }

    /// True if labels have to be read.
    pub(super) fn wants_labels(&self) -> bool {
        self.group_by.iter().any(|by| matches!(by, GroupBy::Label(_)))
    }
}

/// An answer on its way.
pub(super) struct Merger<'a> {
    question: &'a Question,
    /// Names seen before: shared, and whether they are asked for.
    metrics: HashMap<String, (Arc<str>, bool)>,
    partial: Partial,
}

impl<'a> Merger<'a> {
    pub(super) fn new(question: &'a Question) -> Self {
        Merger { question, metrics: HashMap::new(), partial: Partial::new() }
    }

    /// Adds a window of a device with all its metrics.
    pub(super) fn add(&mut self, device: &Asked, length_us: Micros, start_us: Micros, row: Vec<(String, Summary)>) {
        let question = self.question;
        for (name, summary) in row {
            let (metric, wanted) = self.metrics.entry(name).or_insert_with_key(|name| {
                let wanted = question.filter.wants(name);
                (name.as_str().into(), wanted)
            });
            if !*wanted || summary.is_empty() {
                continue;
            }
            let part = |by: &GroupBy| match by {
                GroupBy::Device => Some(Arc::clone(&device.name)),
                GroupBy::Metric | GroupBy::Tag(_) => by.of_metric(metric),
                GroupBy::Gateway => Some(Arc::clone(&device.gateway)),
                GroupBy::Label(name) => device.labels.get(name).map(|value| value.as_str().into()),
            };
            let group: GroupKey = question.group_by.iter().map(part).collect();
            for (window_us, end_us) in question.windows_of(start_us) {
                let beyond_us = (start_us + length_us > end_us).then_some(length_us);
                add_cell(&mut self.partial, (group.clone(), window_us), &summary, beyond_us);
            }
        }
    }

    /// An error if there is more than one answer may hold.
    pub(super) fn check(&self) -> Result<(), ShardError> {
        check_cells(&self.partial, self.question.cells_max)
    }

    pub(super) fn finish(self) -> Partial {
        self.partial
    }
}
