//! The readings themselves, of each identity the last one.
//!
//! Memory is bounded by the limit: only that many rows are kept while the journal is read.

use super::{Engine, Filter, QueryError, Range, ranks};
use crate::journal::scan::scan;
use model::time::{FIRST_US, LAST_US};
use model::{Micros, Value};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// In which order, and where to go on.
#[derive(Debug, Clone)]
pub struct Page {
    /// Latest first.
    pub descending: bool,
    /// At most so many rows.
    pub limit: usize,
    /// Only rows behind this one: time, device, metric.
    pub after: Option<(Micros, String, String)>,
}

/// A reading as an answer shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Whose.
    pub device: Arc<str>,
    /// Of what.
    pub metric: Arc<str>,
    /// When.
    pub time_us: Micros,
    /// The value.
    pub value: Value,
}

/// The rows of a page, and whether there are more.
pub type Rows = (Vec<Row>, bool);

impl Engine {
    /// Reads the readings of a range.
    pub fn readings(&self, filter: &Filter, range: Range, page: &Page) -> Result<Rows, QueryError> {
        let series = self.select(filter);
        let ranks = ranks(&series);
        // Negated times turn "latest first" into "smallest first".
        let key = |time_us: Micros, rank: u32| if page.descending { (-time_us, rank) } else { (time_us, rank) };
        let after = page.after.as_ref().map(|(time_us, device, metric)| {
            let rank = series.partition_point(|s| (&*s.device.name, &*s.metric) <= (device.as_str(), metric.as_str()));
            // The first rank that may still come at this very time.
            key((*time_us).clamp(FIRST_US, LAST_US), rank as u32)
        });
        let mut kept: BTreeMap<(Micros, u32), Value> = BTreeMap::new();
        let mut more = false;
        self.with_store(|db| {
            scan(db, range.from_us, range.to_us, |batch| {
                for row in 0..batch.len() {
                    let time_us = batch.time_us[row];
                    if time_us < range.from_us || time_us >= range.to_us {
                        continue;
                    }
                    let Some(&rank) = ranks.get(&batch.series[row]) else { continue };
                    let key = key(time_us, rank);
                    if after.is_some_and(|after| key < after) {
                        continue;
                    }
                    if kept.len() >= page.limit && kept.last_key_value().is_some_and(|(last, _)| key > *last) {
                        more = true;
                        continue;
                    }
                    kept.insert(key, batch.value(row));
                    if kept.len() > page.limit {
                        kept.pop_last();
                        more = true;
                    }
                }
                ControlFlow::Continue(())
            })
        })?;
        let row = |((time, rank), value): ((Micros, u32), Value)| {
            let series = &series[rank as usize];
            let time_us = if page.descending { -time } else { time };
            Row { device: (*series.device.name).into(), metric: (*series.metric).into(), time_us, value }
        };
        Ok((kept.into_iter().map(row).collect(), more))
    }
}
