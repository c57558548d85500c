//! Dirty windows, computed again from the raw readings.
//!
//! Arrives: stretches of series. Leaves: the summaries of all their windows as of the last
//! commit; whoever writes them keeps only what has changed. Always holds: `through_seq` is the
//! last commit of the snapshot that was read; a lot whose readings do not fit into memory is
//! split, and one stretch that cannot be read does not hold up the others.

use super::cut::{Cuts, Needs, windows};
use crate::archive::read::{Raw, Wanted};
use crate::journal::{ReadError, SummaryRow};
use crate::readings::Points;
use model::Micros;
use polars::prelude::PolarsError;
use rusqlite::Connection;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// Some windows of a series: whole ones, within `[from_us, to_us)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Whose.
    pub series: u32,
    /// The start of the first.
    pub from_us: Micros,
    /// The end of the last.
    pub to_us: Micros,
}

/// Why windows could not be computed again.
#[derive(Debug, thiserror::Error)]
pub enum ReviseError {
    /// The store could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Polars refused.
    #[error("aggregation failed: {0}")]
    Frame(#[from] PolarsError),
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Revised {
    /// The windows that have readings.
    pub rows: Vec<SummaryRow>,
    /// What could not be read.
    pub failed: Vec<(Stretch, String)>,
}

/// Computes all windows of the stretches from their readings.
pub fn revise(db: &Connection, stretches: &[Stretch], length_us: Micros, rows_max: usize) -> Revised {
    let mut revised = Revised::default();
    if stretches.is_empty() {
        return revised;
    }
    match try_revise(db, stretches, length_us, rows_max) {
        Ok(Some(rows)) => revised.rows = rows,
        Err(error) if stretches.len() == 1 => revised.failed.push((stretches[0], error.to_string())),
        Ok(None) | Err(_) => {
            // Also one that does not fit alone is computed: nobody else would.
            let rows_max = if stretches.len() == 1 { usize::MAX } else { rows_max };
            let (left, right) = stretches.split_at(stretches.len() / 2);
            for half in [left, right] {
                let mut part = revise(db, half, length_us, rows_max);
                revised.rows.append(&mut part.rows);
                revised.failed.append(&mut part.failed);
            }
        }
    }
    revised
}

/// Nothing if what is not in chunks yet does not fit.
fn try_revise(
    db: &Connection,
    stretches: &[Stretch],
    length_us: Micros,
    rows_max: usize,
) -> Result<Option<Vec<SummaryRow>>, ReviseError> {
    let raw = Raw::open(db)?;
    let from_us = stretches.iter().map(|stretch| stretch.from_us).min().unwrap_or_default();
    let to_us = stretches.iter().map(|stretch| stretch.to_us).max().unwrap_or_default();
    let ids: BTreeSet<u32> = stretches.iter().map(|stretch| stretch.series).collect();
    let ids: Vec<u32> = ids.into_iter().collect();
    let Some(tail) = raw.tail(&Wanted::new(&ids), from_us, to_us, rows_max)? else { return Ok(None) };
    let days = raw.days(from_us, to_us)?;
    let (mut rows, mut cuts) = (Vec::new(), Cuts::default());
    for stretch in stretches {
        let place = ids.binary_search(&stretch.series).unwrap_or_default();
        let mut points = Points::default();
        raw.each_day::<ReadError>(stretch.series, &days, tail.points(place), stretch.from_us, stretch.to_us, |day| {
            points.merge(&day);
            Ok(ControlFlow::Continue(()))
        })?;
        cuts.add(stretch.series, &points, windows(&points.time_us, length_us, length_us));
        if cuts.len() >= rows_max {
            summarise(std::mem::take(&mut cuts), length_us, raw.last_seq(), &mut rows)?;
        }
    }
    summarise(cuts, length_us, raw.last_seq(), &mut rows)?;
    Ok(Some(rows))
}

fn summarise(cuts: Cuts, length_us: Micros, through_seq: u64, rows: &mut Vec<SummaryRow>) -> Result<(), PolarsError> {
    cuts.aggregate(Needs::ALL, |cut| {
        let (series, start_us) = (cut.series, cut.start_us);
        rows.push(SummaryRow { series, start_us, length_us, through_seq, summary: cut.summarised() });
    })
}
