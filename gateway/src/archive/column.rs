//! Columns of numbers as bytes.
//!
//! Through `pco`: whole numbers as they are, others as whole decimals where that gives them
//! back to the bit and as floats otherwise. What is too short for `pco` is zigzag varint
//! deltas. docs/decisions/0004 has the measurements that chose `pco`.

use crate::journal::batch::BatchError::{self, Inconsistent};
use model::decimal::{RAW, choose_decimals, power, put_unsuited, scale, take_unsuited};
use model::varint;
use pco::ChunkConfig;
use pco::standalone::{simple_compress, simple_decompress_into};

/// `pco` needs some numbers to learn from.
const ROWS_FOR_PCO: usize = 48;

pub(super) fn put_whole(out: &mut Vec<u8>, numbers: &[i64]) {
    if numbers.len() < ROWS_FOR_PCO {
        let mut previous = 0;
        for &n in numbers {
            varint::put_signed(out, n.wrapping_sub(previous));
            previous = n;
        }
    } else {
        put_packed(out, simple_compress(numbers, &ChunkConfig::default()));
    }
}

pub(super) fn take_whole(rest: &mut &[u8], rows: usize) -> Result<Vec<i64>, BatchError> {
    if rows >= ROWS_FOR_PCO {
        return unpack(rest, rows);
    }
    let mut previous = 0_i64;
    let next = |_| {
        previous = previous.wrapping_add(varint::take_signed(rest).ok_or(Inconsistent)?);
        Ok(previous)
    };
    (0..rows).map(next).collect()
}

/// Scaled numbers; what does not suit repeats the one before and is listed behind, raw.
pub(super) fn put_numbers(out: &mut Vec<u8>, numbers: &[f64]) {
    let decimals = choose_decimals(numbers);
    out.push(decimals);
    if decimals == RAW && numbers.len() >= ROWS_FOR_PCO {
        return put_packed(out, simple_compress(numbers, &ChunkConfig::default()));
    }
    if decimals == RAW {
        return numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
    }
    let mut whole = Vec::with_capacity(numbers.len());
    let unsuited = scale(numbers, decimals, |n| whole.push(n));
    put_whole(out, &whole);
    put_unsuited(out, &unsuited);
}

pub(super) fn take_numbers(rest: &mut &[u8], rows: usize) -> Result<Vec<f64>, BatchError> {
    let decimals = varint::take_byte(rest).ok_or(Inconsistent)?;
    if decimals == RAW && rows >= ROWS_FOR_PCO {
        return unpack(rest, rows);
    }
    if decimals == RAW {
        return (0..rows).map(|_| varint::take_f64(rest).ok_or(Inconsistent)).collect();
    }
    let power = power(decimals).ok_or(Inconsistent)?;
    let mut numbers: Vec<f64> = take_whole(rest, rows)?.into_iter().map(|whole| whole as f64 / power).collect();
    take_unsuited(rest, &mut numbers).ok_or(Inconsistent)?;
    Ok(numbers)
}

fn put_packed(out: &mut Vec<u8>, packed: pco::errors::PcoResult<Vec<u8>>) {
    // Only an invalid configuration is an error here, and ours is the default.
    let packed = packed.expect("pco compresses whatever numbers there are");
    varint::put(out, packed.len() as u64);
    out.extend(packed);
}

fn unpack<T: pco::data_types::Number + Default>(rest: &mut &[u8], rows: usize) -> Result<Vec<T>, BatchError> {
    let length = varint::take(rest).ok_or(Inconsistent)? as usize;
    let (packed, after) = rest.split_at_checked(length).ok_or(Inconsistent)?;
    *rest = after;
    // A few bytes may hold millions of equal numbers.
    let mut numbers = vec![T::default(); rows];
    let read = simple_decompress_into(packed, &mut numbers).map_err(|_| Inconsistent)?;
    if read.finished && read.n_processed == rows { Ok(numbers) } else { Err(Inconsistent) }
}
