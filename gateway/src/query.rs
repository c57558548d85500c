//! A question to an answer.
//!
//! Arrives: a range, series, windows, statistics. Leaves: rows. Always holds: an answer equals
//! a recomputation from the distinct acknowledged readings in its range, because it is one:
//! raw readings are read back from chunks and batches, of each identity the last one. Memory for a
//! question is bounded: what does not fit is split by series, then by time, and only a single
//! window of a single series that does not fit answers quantiles from its sketch, and says so.
//! Deliberately absent: HTTP.

/// Aggregates over windows.
pub(crate) mod aggregates;

/// How long a question may take.
pub(crate) mod patience;

/// The readings themselves.
pub(crate) mod readings;

use crate::archive::levels::Levels;
use crate::catalog::{Catalog, Series};
use crate::clock::Clock;
use crate::journal::ReadError;
use crate::journal::schema;
use crate::window::driver::SharedProgress;
use daemon::aggregates::Filter;
use model::Micros;
use model::aggregate::is_glob;
use polars::prelude::PolarsError;
use rusqlite::Connection;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryError {
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

impl QueryError {
    /// True if the question took too long, or nobody waits for it any more.
    pub(crate) fn is_interrupted(&self) -> bool {
        match self {
            QueryError::Store(error) | QueryError::Journal(ReadError::Sqlite(error)) => patience::is_interrupted(error),
            _ => false,
        }
    }
}

/// What answers questions.
pub(crate) struct Engine {
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
    pub(crate) fn new(
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
    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The store's file.
    pub(crate) fn store(&self) -> &Path {
        &self.store
    }

    /// The time now.
    pub(crate) fn now_us(&self) -> Micros {
        self.clock.now_us()
    }

    /// Runs something over a connection that only reads.
    pub(crate) fn with_store<T, E: From<rusqlite::Error>>(
        &self,
        ask: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => schema::open_reader(&self.store)?,
        };
        patience::watch(&mut connection)?;
        let answer = ask(&connection);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if answer.is_ok() && idle.len() < IDLE_MAX {
            idle.push(connection);
        }
        answer
    }

    /// The series that a filter lets through, by device and metric.
    fn select(&self, filter: &Filter) -> Vec<Arc<Series>> {
        let mut series = match filter.devices.as_slice() {
            [device] if !is_glob(device) => self.catalog.series_of(device).unwrap_or_default(),
            _ => self.catalog.series(),
        };
        series.retain(|series| filter.matches(&series.device.name, &series.metric));
        series.sort_by(|a, b| (&a.device.name, &a.metric).cmp(&(&b.device.name, &b.metric)));
        series
    }
}

/// The place of each selected series in the answer's order, by series id.
fn ranks(series: &[Arc<Series>]) -> HashMap<u32, u32> {
    series.iter().enumerate().map(|(rank, series)| (series.id, rank as u32)).collect()
}
