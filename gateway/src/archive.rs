//! Readings and summaries for years: compressed, by series and day.
//!
//! Arrives: batches that no restart needs any more. Leaves: chunks, and readings read back by
//! series and day. Always holds: a reading is in a batch or in a chunk that counts, never in
//! neither; of two with one identity the one that was committed last counts, because parts of
//! a day are in order of commit; folding may be interrupted anywhere, and is done again.
//!
//! A day of a series is kept in *parts*: folding adds one, and merges it with those before it
//! once there are several that are not larger, so that parts are few and each reading is
//! written a few times only. When the day is over they become one.

/// Columns of numbers as bytes.
mod column;

/// Readings of one series as bytes.
pub mod chunk;

/// Batches to chunks, in the background.
pub mod fold;

/// Readings that were received at a wrong time, put right.
mod correct;

/// Parts of a day, made one.
mod tidy;

/// Raw readings by series, from chunks and batches.
pub mod read;

/// Summaries of one series as bytes.
pub mod rollup;

/// Lengths of windows, and where their summaries are.
pub mod levels;

use model::Micros;
use model::time::{SECOND_US, window_start};

/// A chunk holds readings of one such day, UTC.
pub const DAY_US: Micros = 86_400 * SECOND_US;

const PART_BITS: u32 = 16;
const SERIES_BITS: u32 = 25;
/// Parts of a day are numbered below this.
const PARTS_MAX: i64 = 1 << PART_BITS;
/// Series ids are below this.
pub const SERIES_MAX: usize = 1 << SERIES_BITS;

/// The day that a time is in, counted from the epoch.
pub fn day(time_us: Micros) -> i64 {
    window_start(time_us, DAY_US) / DAY_US
}

/// A chunk's row id: days of all series lie together, parts of a day side by side.
pub fn chunk_id(day: i64, series: u32, part: i64) -> i64 {
    debug_assert!(part < PARTS_MAX && (series as usize) < SERIES_MAX);
    (day << (SERIES_BITS + PART_BITS)) | (i64::from(series) << PART_BITS) | part
}

/// The day of a chunk's row id.
pub fn day_of(id: i64) -> i64 {
    id >> (SERIES_BITS + PART_BITS)
}

/// The series of a row id.
pub fn series_of(id: i64) -> u32 {
    ((id >> PART_BITS) & (SERIES_MAX as i64 - 1)) as u32
}

fn part_of(id: i64) -> i64 {
    id & (PARTS_MAX - 1)
}

/// What is kept, and for how long.
pub mod retire;

#[cfg(test)]
mod tests;
