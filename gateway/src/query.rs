//! A question to an answer.
//!
//! Arrives: a range, series, windows, statistics. Leaves: rows. Always holds: an answer equals
//! a recomputation from the distinct acknowledged readings in its range, because it is one:
//! raw readings are read back from chunks and batches, of each identity the last one. Memory for a
//! question is bounded: what does not fit is split by series, then by time, and only a single
//! window of a single series that does not fit answers quantiles from its sketch, and says so.
//! Deliberately absent: HTTP.

/// Aggregates over windows.
pub mod aggregates;

/// The readings themselves.
pub mod readings;

use crate::archive::levels::Levels;
use crate::catalog::{Catalog, Series};
use crate::clock::Clock;
use crate::journal::ReadError;
use crate::journal::schema;
use crate::window::driver::SharedProgress;
use model::aggregate::{glob, is_glob};
use model::{Micros, time};
use polars::prelude::PolarsError;
use rusqlite::Connection;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The journal could not be read.
    #[error(transparent)]
    Journal(#[from] ReadError),
    /// The store could not be opened.
    #[error("the store cannot be read: {0}")]
    Store(#[from] rusqlite::Error),
    /// Polars refused.
    #[error("aggregation failed: {0}")]
    Frame(#[from] PolarsError),
}

/// Which series, by patterns; none means all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Device ids or globs.
    pub devices: Vec<String>,
    /// Metric names or globs.
    pub metrics: Vec<String>,
}

impl Filter {
    /// True if the filter lets a series through.
    pub fn matches(&self, device: &str, metric: &str) -> bool {
        let any = |patterns: &[String], name: &str| patterns.is_empty() || patterns.iter().any(|p| glob(p, name));
        any(&self.devices, device) && any(&self.metrics, metric)
    }
}

/// A range of event times, `[from, to)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first microsecond in it.
    pub from_us: Micros,
    /// The first one behind it.
    pub to_us: Micros,
}

impl Range {
    /// A range within the times that can be written.
    pub fn within(from_us: Micros, to_us: Micros) -> Self {
        let clamp = |us: Micros| us.clamp(time::FIRST_US, time::LAST_US + 1);
        Range { from_us: clamp(from_us), to_us: clamp(to_us) }
    }
}

/// What answers questions.
pub struct Engine {
    store: PathBuf,
    catalog: Arc<Catalog>,
    progress: SharedProgress,
    clock: Clock,
    levels: Levels,
    lateness_us: Micros,
    memory_bytes: usize,
    idle: Mutex<Vec<Connection>>,
}

/// Connections that are kept open between questions.
const IDLE_MAX: usize = 4;

impl Engine {
    /// An engine over a store, with its bound on memory for one question.
    pub fn new(
        store: PathBuf,
        catalog: Arc<Catalog>,
        progress: SharedProgress,
        clock: Clock,
        levels: Levels,
        lateness_us: Micros,
        memory_bytes: usize,
    ) -> Self {
        Engine { store, catalog, progress, clock, levels, lateness_us, memory_bytes, idle: Mutex::default() }
    }

    /// Who is there.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The store's file.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The time now.
    pub fn now_us(&self) -> Micros {
        self.clock.now_us()
    }

    /// Runs something over a connection that only reads.
    pub fn with_store<T, E: From<rusqlite::Error>>(
        &self,
        ask: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => schema::open_reader(&self.store)?,
        };
        let answer = ask(&connection);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if answer.is_ok() && idle.len() < IDLE_MAX {
            idle.push(connection);
        }
        answer
    }

    /// The series that a filter lets through, by device and metric.
    fn select(&self, filter: &Filter) -> Vec<Arc<Series>> {
        let mut series = match (filter.devices.as_slice(), filter.metrics.as_slice()) {
            ([device], [metric]) if !is_glob(device) && !is_glob(metric) => {
                self.catalog.find(device, metric).into_iter().collect()
            }
            _ => self.catalog.series(),
        };
        series.retain(|series| filter.matches(&series.device.name, &series.metric));
        series.sort_by(|a, b| (&a.device.name, &a.metric).cmp(&(&b.device.name, &b.metric)));
        series
    }
}

/// A time parameter: RFC 3339, an epoch number, `now`, `now-1h` or `now+5m`.
pub fn parse_time(text: &str, now_us: Micros) -> Result<Micros, String> {
    let bad = || format!("{text:?} is no time: write RFC 3339, an epoch number, now, or for example now-1h");
    if let Some(offset) = text.strip_prefix("now") {
        let Some(sign) = offset.chars().next() else { return Ok(now_us) };
        let span = humantime::parse_duration(offset[sign.len_utf8()..].trim()).map_err(|_| bad())?;
        let span_us = i64::try_from(span.as_micros()).map_err(|_| bad())?;
        return match sign {
            '-' => Ok(now_us.saturating_sub(span_us)),
            // A plus sign that was not percent-encoded arrives as a space.
            '+' | ' ' => Ok(now_us.saturating_add(span_us)),
            _ => Err(bad()),
        };
    }
    let utc = jiff::tz::TimeZone::UTC;
    time::parse(text, &utc)
        .or_else(|_| match text.rsplit_once(' ') {
            Some((stamp, offset)) => time::parse(&format!("{stamp}+{offset}"), &utc),
            None => time::parse(text, &utc),
        })
        .map_err(|_| bad())
}

/// The place of each selected series in the answer's order, by series id.
fn ranks(series: &[Arc<Series>]) -> HashMap<u32, u32> {
    series.iter().enumerate().map(|(rank, series)| (series.id, rank as u32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let now_us = 1_700_000_000_000_000;
        for (text, want) in [
            ("now", now_us),
            ("now-1h", now_us - 3_600_000_000),
            ("now+5m", now_us + 300_000_000),
            ("now 5m", now_us + 300_000_000),
            ("2023-11-14T22:13:20Z", now_us),
            ("2023-11-15T00:13:20+02:00", now_us),
            ("2023-11-15T00:13:20 02:00", now_us),
            ("1700000000", now_us),
        ] {
            assert_eq!(parse_time(text, now_us), Ok(want), "{text}");
        }
        for text in ["", "now*2", "now-x", "tomorrow", "é", "nowé"] {
            assert!(parse_time(text, now_us).is_err(), "{text}");
        }
    }
}
