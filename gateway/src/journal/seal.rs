//! What batches and chunks have in common: a format in front, a checksum behind, and columns.
//!
//! Always holds: damaged bytes are an error, never other readings.

use super::batch::BatchError::{self, Inconsistent};
use model::varint;
use xxhash_rust::xxh3::xxh3_64;

/// Row and text of every state text, by row.
pub(crate) type Texts = Vec<(u32, Box<str>)>;

/// Appends the checksum: xxh3 of all before, low 32 bits, little-endian.
pub(crate) fn seal(mut out: Vec<u8>) -> Vec<u8> {
    let sum = xxh3_64(&out) as u32;
    out.extend(sum.to_le_bytes());
    out
}

/// The rows and what follows them, if the checksum and the format are right.
pub(crate) fn unseal(bytes: &[u8], format: u8, rows_max: u64) -> Result<(usize, &[u8]), BatchError> {
    let (content, sum) = bytes.split_last_chunk::<4>().ok_or(BatchError::Checksum)?;
    if xxh3_64(content) as u32 != u32::from_le_bytes(*sum) {
        return Err(BatchError::Checksum);
    }
    let mut rest = content;
    let found = varint::take_byte(&mut rest).ok_or(Inconsistent)?;
    if found != format {
        return Err(BatchError::Format(found));
    }
    let rows = varint::take(&mut rest).ok_or(Inconsistent)?;
    if rows > rows_max { Err(Inconsistent) } else { Ok((rows as usize, rest)) }
}

/// LZ4 makes at most so many bytes of one.
const PACKED_TIMES: usize = 255;

/// Unpacks LZ4 behind its size, which is believed only as far as the bytes can come to it.
pub(crate) fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let (size, packed) = lz4_flex::block::uncompressed_size(packed).ok()?;
    let is_possible = size <= packed.len().saturating_mul(PACKED_TIMES);
    if is_possible { lz4_flex::block::decompress(packed, size).ok() } else { None }
}

pub(crate) fn put_texts(out: &mut Vec<u8>, texts: &Texts) {
    varint::put(out, texts.len() as u64);
    for (row, text) in texts {
        varint::put(out, u64::from(*row));
        varint::put(out, text.len() as u64);
        out.extend_from_slice(text.as_bytes());
    }
}

pub(crate) fn take_texts(rest: &mut &[u8]) -> Result<Texts, BatchError> {
    let mut texts = Vec::new();
    for _ in 0..varint::take(rest).ok_or(Inconsistent)? {
        let row = u32::try_from(varint::take(rest).ok_or(Inconsistent)?).map_err(|_| Inconsistent)?;
        texts.push((row, varint::take_str(rest).ok_or(Inconsistent)?.into()));
    }
    Ok(texts)
}

/// Runs of one value: its code and how often it stands there.
pub(crate) fn put_runs<T: Copy + PartialEq + Default>(out: &mut Vec<u8>, column: &[T], code: impl Fn(T, T) -> u64) {
    let mut previous = T::default();
    for run in column.chunk_by(|a, b| a == b) {
        varint::put(out, code(previous, run[0]));
        varint::put(out, run.len() as u64);
        previous = run[0];
    }
}

pub(crate) fn take_runs<T: Copy + Default>(
    rest: &mut &[u8],
    rows: usize,
    value: impl Fn(T, u64) -> Result<T, BatchError>,
) -> Result<Vec<T>, BatchError> {
    let mut column = Vec::with_capacity(rows);
    let mut previous = T::default();
    while column.len() < rows {
        previous = value(previous, varint::take(rest).ok_or(Inconsistent)?)?;
        let run = varint::take(rest).ok_or(Inconsistent)? as usize;
        if run == 0 || run > rows - column.len() {
            return Err(Inconsistent);
        }
        column.resize(column.len() + run, previous);
    }
    Ok(column)
}
