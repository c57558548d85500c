//! Dirty windows, computed again from the journal.
//!
//! Arrives: keys of windows. Leaves: their summaries as of the last commit. All keys of a lot
//! share one pass over the journal; a lot whose readings do not fit into memory is split.
//! Always holds: `through_seq` is the last commit of the snapshot that was read.

use super::Key;
use super::frame::Columns;
use crate::journal::SummaryRow;
use crate::journal::recover::RecoverError;
use crate::journal::scan::scan;
use model::Micros;
use model::time::window_start;
use polars::prelude::PolarsError;
use rusqlite::Connection;
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Why windows could not be computed again; they stay dirty.
#[derive(Debug, thiserror::Error)]
pub enum ReviseError {
    /// The journal could not be read.
    #[error(transparent)]
    Journal(#[from] RecoverError),
    /// Polars refused.
    #[error("aggregation failed: {0}")]
    Frame(#[from] PolarsError),
}

/// Computes the windows with these keys from all their readings.
pub fn revise(
    db: &Connection,
    keys: &[Key],
    length_us: Micros,
    rows_max: usize,
) -> Result<Vec<SummaryRow>, ReviseError> {
    let (Some(first), Some(last)) = (keys.iter().min(), keys.iter().max()) else { return Ok(Vec::new()) };
    let (from_us, to_us) = (first.0, last.0 + length_us);
    let wanted: HashSet<Key> = keys.iter().copied().collect();
    let mut columns = Columns { disordered: true, ..Columns::default() };
    let mut too_many = false;
    let through_seq = scan(db, from_us, to_us, |readings| {
        for row in 0..readings.len() {
            let (series, time_us) = (readings.series[row], readings.time_us[row]);
            let start_us = window_start(time_us, length_us);
            if (from_us..to_us).contains(&time_us) && wanted.contains(&(start_us, series)) {
                columns.push(series, start_us, time_us, readings.number[row], readings.text(row));
            }
        }
        too_many = columns.len() > rows_max && keys.len() > 1;
        if too_many { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if too_many {
        drop(columns);
        let (left, right) = keys.split_at(keys.len() / 2);
        let mut rows = revise(db, left, length_us, rows_max)?;
        rows.extend(revise(db, right, length_us, rows_max)?);
        return Ok(rows);
    }
    let row = |group: super::frame::Group| SummaryRow {
        series: group.series,
        start_us: group.start_us,
        length_us,
        through_seq,
        summary: group.summarised(),
    };
    Ok(columns.aggregate()?.into_iter().map(row).collect())
}
