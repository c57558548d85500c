//! What a damaged disk may present, with a checksum that matches all the same: an error or rows, and rows can be
//! written again.

use super::choice;
use crate::archive::{chunk as chunks, rollup as rollups};
use crate::journal::{batch as batches, recover, seal::seal};
use model::{Sketch, Summary};

/// Longer than what is written in one piece.
const BYTES_MAX: usize = 256 << 10;

fn sealed(data: &[u8]) -> Vec<u8> {
    seal(data[..data.len().min(BYTES_MAX)].to_vec())
}

/// Readings of one commit, without their checksum.
pub fn batch(data: &[u8]) {
    let Ok(readings) = batches::decode(&sealed(data)) else { return };
    let rows = readings.len();
    assert_eq!([readings.time_us.len(), readings.flags.len(), readings.number.len()], [rows; 3]);
    (0..rows.min(1_000)).for_each(|row| drop(readings.value(row)));
    let bytes = batches::encode(&readings);
    let again = batches::decode(&bytes).expect("what has been written");
    assert_eq!(batches::encode(&again), bytes);
}

/// Readings of a series, without their checksum.
pub fn chunk(data: &[u8]) {
    let Ok(points) = chunks::decode(&sealed(data)) else { return };
    let rows = points.len();
    assert!(rows <= chunks::ROWS_MAX);
    assert_eq!([points.flags.len(), points.number.len()], [rows; 2]);
    (0..rows).for_each(|row| drop(points.value(row)));
    let bytes = chunks::encode(&points);
    let again = chunks::decode(&bytes).expect("what has been written");
    assert_eq!(chunks::encode(&again), bytes);
}

/// Summaries of a series, without their checksum.
pub fn rollup(data: &[u8]) {
    let bytes = sealed(data);
    let Ok(rows) = rollups::decode(&bytes, true) else { return };
    assert_eq!(rollups::decode(&bytes, false).map(|rows| rows.len()), Ok(rows.len()));
    let mut all = Summary::empty(0);
    for row in &rows {
        all.add(&row.summary);
    }
    let _ = (all.stddev(), all.quantile(0.5));
    let bytes = rollups::encode(60_000_000, &rows);
    assert_eq!(rollups::decode(&bytes, true).map(|again| again.len()), Ok(rows.len()));
}

/// One sketch or two; the first byte says where the second begins.
pub fn sketch(data: &[u8]) {
    let (at, data) = choice(data);
    let (a, b) = data.split_at(usize::from(at).min(data.len()));
    let Ok(a) = Sketch::from_bytes(a) else { return };
    read(&a);
    if let Ok(b) = Sketch::from_bytes(b) {
        let count = a.count().saturating_add(b.count());
        let mut merged = a;
        merged.merge(&b);
        assert_eq!(merged.count(), count);
        read(&merged);
    }
}

fn read(sketch: &Sketch) {
    let again = Sketch::from_bytes(&sketch.to_bytes());
    assert_eq!(again.as_ref(), Ok(sketch));
    for q in [0.0, 0.5, 1.0] {
        let value = sketch.quantile(q);
        assert_eq!(value.is_some(), sketch.count() > 0);
        assert!(value.is_none_or(f64::is_finite), "{value:?}");
    }
    assert!(sketch.error() > 0.0);
}

/// The latest readings at a stop.
pub fn snapshot(data: &[u8]) {
    let data = &data[..data.len().min(BYTES_MAX)];
    const SERIES: usize = 1_000;
    if let Some(latest) = recover::parse_snapshot(data, SERIES) {
        assert!(latest.iter().all(|(id, _)| (*id as usize) < SERIES));
    }
}
