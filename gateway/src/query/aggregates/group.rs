//! Series that are answered together.
//!
//! Arrives: the series that a filter lets through, and what to group by. Leaves: groups in the
//! answer's order. Without `group_by` every series is a group of its own.

use crate::catalog::Series;
use crate::query::Engine;
use daemon::aggregates::answer::Head;
use daemon::aggregates::{GroupBy, GroupKey, Question};
use model::Micros;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

/// Series that are answered together.
pub(super) struct Group {
    pub(super) head: Head,
    pub(super) series: Vec<Arc<Series>>,
}

impl Engine {
    pub(super) fn groups(&self, question: &Question) -> Vec<Group> {
        let mut groups: BTreeMap<GroupKey, Vec<Arc<Series>>> = BTreeMap::new();
        for series in self.select(&question.filter) {
            let part = |by: &GroupBy| match by {
                GroupBy::Device => Some(Arc::clone(&series.device.name)),
                GroupBy::Metric | GroupBy::Tag(_) => by.of_metric(&series.metric),
                GroupBy::Gateway => None,
                GroupBy::Label(name) => series.device.label(name),
            };
            groups.entry(question.group_by.iter().map(part).collect()).or_default().push(series);
        }
        let progress = self.progress.read().unwrap_or_else(PoisonError::into_inner);
        let passed_us = self.clock.now_us().saturating_sub(self.lateness_us);
        let complete = |series: &Arc<Series>| {
            let progress = progress.get(series.device.id as usize).copied().unwrap_or_default();
            progress.closed_through_us.max(progress.open_from_us.min(passed_us))
        };
        let group = |(key, series): (GroupKey, Vec<Arc<Series>>)| {
            let complete_until_us = series.iter().map(complete).min().unwrap_or(Micros::MIN);
            Group { head: Head { key, complete_until_us }, series }
        };
        groups.into_iter().map(group).collect()
    }
}
