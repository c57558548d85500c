//! Readings and summaries for years: compressed, by series and day.
//!
//! Arrives: batches that no restart needs any more. Leaves: chunks, and readings read back by
//! series and day. Always holds: a reading is in a batch or in a chunk that counts, never in
//! neither; of two with one identity the one that was committed last counts, because parts of
//! a day are in order of commit; folding may be interrupted anywhere, and is done again.
//!
//! A day of a series is kept in *parts*: folding adds one, and merges it with those before it
//! once there are several that are not larger, so that parts are few and each reading is
//! written a few times only. When the day is over they become one. Parts that folding adds are
//! small, and those of one fold lie together: a page that is written is full of them. What they
//! become when the day is over lies by series: a question finds the day's rows side by side.

/// Columns of numbers as bytes.
mod column;

/// Readings of one series as bytes.
pub(crate) mod chunk;

/// Batches to chunks, in the background.
pub(crate) mod fold;

/// Readings that were received at a wrong time, put right.
mod correct;

/// Parts of a day, made one.
mod tidy;

/// What removed series have left, swept.
mod sweep;

/// Raw readings by series, from chunks and batches.
pub(crate) mod read;

/// Summaries of one series as bytes.
pub(crate) mod rollup;

/// Lengths of windows, and where their summaries are.
pub(crate) mod levels;

use model::Micros;
use model::time::{SECOND_US, window_start};

/// A chunk holds readings of one such day, UTC.
pub(crate) const DAY_US: Micros = 86_400 * SECOND_US;

const PART_BITS: u32 = 16;
const SERIES_BITS: u32 = 25;
/// Parts below this number lie by series, those from it on by part.
const PARTS_BY_SERIES: i64 = 1 << PART_BITS;
/// Parts are numbered below this.
const PARTS_MAX: i64 = PARTS_BY_SERIES + (1 << (PART_BITS - 1));
/// Set in row ids of parts that lie by part.
const BY_PART: i64 = 1 << (SERIES_BITS + PART_BITS - 1);
/// Series ids are below this; the bit above is [`BY_PART`].
pub(crate) const SERIES_MAX: usize = 1 << (SERIES_BITS - 1);

/// The day that a time is in, counted from the epoch.
pub(crate) fn day(time_us: Micros) -> i64 {
    window_start(time_us, DAY_US) / DAY_US
}

/// A chunk's row id: days of all series lie together, and in each first what lies by series.
pub(crate) fn chunk_id(day: i64, series: u32, part: i64) -> i64 {
    debug_assert!(part < PARTS_MAX && (series as usize) < SERIES_MAX);
    let first = day << (SERIES_BITS + PART_BITS);
    if part < PARTS_BY_SERIES {
        first | (i64::from(series) << PART_BITS) | part
    } else {
        first | BY_PART | ((part - PARTS_BY_SERIES) << SERIES_BITS) | i64::from(series)
    }
}

/// The day of a chunk's row id.
pub(crate) fn day_of(id: i64) -> i64 {
    id >> (SERIES_BITS + PART_BITS)
}

/// The series of a row id.
pub(crate) fn series_of(id: i64) -> u32 {
    let shifted = if id & BY_PART == 0 { id >> PART_BITS } else { id };
    (shifted & (SERIES_MAX as i64 - 1)) as u32
}

/// The part of a chunk's row id.
fn part_of(id: i64) -> i64 {
    if id & BY_PART == 0 { id & (PARTS_BY_SERIES - 1) } else { PARTS_BY_SERIES + ((id & (BY_PART - 1)) >> SERIES_BITS) }
}

/// What is kept, and for how long.
pub(crate) mod retire;

#[cfg(test)]
mod tests;
