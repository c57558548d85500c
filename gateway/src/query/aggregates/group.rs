//! Series that are answered together.
//!
//! Arrives: the series that a filter lets through, and what to group by. Leaves: groups in the
//! answer's order. Without `group_by` every series is a group of its own.

use super::Question;
use crate::catalog::Series;
use crate::query::Engine;
use model::Micros;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, PoisonError};

/// What is answered together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GroupBy {
    /// Each device by itself.
    Device,
    /// Each metric by itself.
    Metric,
    /// Devices with the same value of this label; those without it have null.
    Label(String),
}

impl FromStr for GroupBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "device" => Ok(GroupBy::Device),
            "metric" => Ok(GroupBy::Metric),
            _ => match text.strip_prefix("label:") {
                Some(name) if !name.is_empty() => Ok(GroupBy::Label(name.to_owned())),
                _ => Err(format!("{text:?} is neither device nor metric nor label:NAME")),
            },
        }
    }
}

impl fmt::Display for GroupBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GroupBy::Device => f.write_str("device"),
            GroupBy::Metric => f.write_str("metric"),
            GroupBy::Label(name) => write!(f, "label:{name}"),
        }
    }
}

/// What the members of a group share, in the order of `group_by`.
pub(super) type GroupKey = Vec<Option<Arc<str>>>;

/// Series that are answered together.
pub(super) struct Group {
    pub(super) key: GroupKey,
    pub(super) series: Vec<Arc<Series>>,
    /// Windows that end here or before are complete.
    pub(super) complete_until_us: Micros,
}

impl Group {
    pub(super) fn is(&self, key: &[Option<String>]) -> bool {
        self.key.iter().map(|part| part.as_deref()).eq(key.iter().map(|part| part.as_deref()))
    }

    pub(super) fn is_at_or_behind(&self, key: &[Option<String>]) -> bool {
        self.key.iter().map(|part| part.as_deref()).ge(key.iter().map(|part| part.as_deref()))
    }
}

impl Engine {
    pub(super) fn groups(&self, question: &Question) -> Vec<Group> {
        let mut groups: BTreeMap<GroupKey, Vec<Arc<Series>>> = BTreeMap::new();
        for series in self.select(&question.filter) {
            let part = |by: &GroupBy| match by {
                GroupBy::Device => Some(Arc::clone(&series.device.name)),
                GroupBy::Metric => Some(Arc::clone(&series.metric)),
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
            Group { key, series, complete_until_us }
        };
        groups.into_iter().map(group).collect()
    }
}
