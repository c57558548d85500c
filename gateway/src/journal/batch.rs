//! Readings of one commit as bytes.
//!
//! Columnar and compressed: runs of series ids and flags, zigzag varint deltas of times and of
//! numbers scaled to whole decimals (only where that is bit-exact), then LZ4 where it helps.
//! Layout, format 1: `format u8, rows varint, packing u8 (0 plain, 1 LZ4 with size), body,
//! xxh3 of all before, low 32 bits, little-endian`. Always holds: decoding gives back what
//! was encoded to the bit, and damaged bytes are an error, never other readings.

use super::seal::{put_runs, put_texts, seal, take_runs, take_texts, unpack, unseal};
use crate::readings::Readings;
use model::decimal::{RAW, choose_decimals, power, put_unsuited, scale, take_unsuited};
use model::varint;
use std::borrow::Cow;

const FORMAT: u8 = 1;
const PLAIN: u8 = 0;
const LZ4: u8 = 1;
const ROWS_MAX: u64 = 16 << 20;
const BODY_BYTES_MAX: usize = 1 << 30;

/// Why bytes are not a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Written by a newer build.
    #[error("batch format {0} is unknown, this build reads format 1")]
    Format(u8),
    /// The checksum does not match.
    #[error("batch checksum does not match: the page was damaged")]
    Checksum,
    /// The checksum matches and the content contradicts itself.
    #[error("batch is inconsistent")]
    Inconsistent,
}

use BatchError::Inconsistent;

/// Encodes all rows.
pub(crate) fn encode(readings: &Readings) -> Vec<u8> {
    let mut body = Vec::with_capacity(readings.len() * 10 + 16);
    put_runs(&mut body, &readings.series, |previous, id| varint::zigzag(i64::from(id) - i64::from(previous)));
    put_runs(&mut body, &readings.flags, |_, flags| u64::from(flags));
    let mut previous = 0;
    for &time_us in &readings.time_us {
        varint::put_signed(&mut body, time_us.wrapping_sub(previous));
        previous = time_us;
    }
    put_numbers(&mut body, &readings.number);
    put_texts(&mut body, &readings.texts);
    let mut out = Vec::with_capacity(body.len() / 2 + 32);
    out.push(FORMAT);
    varint::put(&mut out, readings.len() as u64);
    let packed = lz4_flex::block::compress_prepend_size(&body);
    if packed.len() < body.len() {
        out.push(LZ4);
        out.extend_from_slice(&packed);
    } else {
        out.push(PLAIN);
        out.extend_from_slice(&body);
    }
    seal(out)
}

/// Decodes what [`encode`] wrote.
pub(crate) fn decode(bytes: &[u8]) -> Result<Readings, BatchError> {
    let (rows, mut rest) = unseal(bytes, FORMAT, ROWS_MAX)?;
    let body: Cow<'_, [u8]> = match varint::take_byte(&mut rest).ok_or(Inconsistent)? {
        PLAIN => rest.into(),
        LZ4 => unpack(rest).filter(|body| body.len() <= BODY_BYTES_MAX).ok_or(Inconsistent)?.into(),
        _ => return Err(Inconsistent),
    };
    decode_body(&body, rows)
}

fn decode_body(mut rest: &[u8], rows: usize) -> Result<Readings, BatchError> {
    // Every row has a byte of time at least: nothing is reserved for rows that are only announced.
    if rows > rest.len() {
        return Err(Inconsistent);
    }
    let rest = &mut rest;
    let series = take_runs(rest, rows, |previous: u32, code| {
        let id = i64::from(previous).checked_add(varint::unzigzag(code));
        id.and_then(|id| u32::try_from(id).ok()).ok_or(Inconsistent)
    })?;
    let flags = take_runs(rest, rows, |_, code| u8::try_from(code).map_err(|_| Inconsistent))?;
    let mut time_us = Vec::with_capacity(rows);
    let mut previous = 0_i64;
    for _ in 0..rows {
        previous = previous.wrapping_add(varint::take_signed(rest).ok_or(Inconsistent)?);
        time_us.push(previous);
    }
    let number = take_numbers(rest, rows)?;
    let texts = take_texts(rest)?;
    Ok(Readings { series, time_us, flags, number, texts })
}

/// Scaled numbers as deltas; what does not suit is a zero delta and listed behind, raw.
fn put_numbers(out: &mut Vec<u8>, numbers: &[f64]) {
    let decimals = choose_decimals(numbers);
    out.push(decimals);
    if decimals == RAW {
        numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
        return;
    }
    let mut previous = 0;
    let unsuited = scale(numbers, decimals, |whole| {
        varint::put_signed(out, whole - previous);
        previous = whole;
    });
    put_unsuited(out, &unsuited);
}

fn take_numbers(rest: &mut &[u8], rows: usize) -> Result<Vec<f64>, BatchError> {
    let decimals = varint::take_byte(rest).ok_or(Inconsistent)?;
    if decimals == RAW {
        return (0..rows).map(|_| varint::take_f64(rest).ok_or(Inconsistent)).collect();
    }
    let power = power(decimals).ok_or(Inconsistent)?;
    let mut numbers = Vec::with_capacity(rows);
    let mut previous = 0_i64;
    for _ in 0..rows {
        previous = previous.wrapping_add(varint::take_signed(rest).ok_or(Inconsistent)?);
        numbers.push(previous as f64 / power);
    }
    take_unsuited(rest, &mut numbers).ok_or(Inconsistent)?;
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Value;
    use proptest::prelude::*;
    use xxhash_rust::xxh3::xxh3_64;

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            4 => (-99_999..99_999_i32).prop_map(|n| Value::Number(f64::from(n) / 100.0)),
            1 => any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(Value::Number),
            1 => Just(Value::Number(-0.0)),
            1 => any::<bool>().prop_map(Value::Bool),
            1 => "\\PC{0,12}".prop_map(|t| Value::Text(t.into())),
        ]
    }

    prop_compose! {
        fn readings()(rows in prop::collection::vec((0..50_u32, any::<i64>(), value(), 0..32_u8), 0..300)) -> Readings {
            let mut readings = Readings::default();
            for (series, time_us, value, flags) in rows {
                readings.push(series, time_us, value, flags << 2);
            }
            readings
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back_to_the_bit(readings in readings()) {
            let back = decode(&encode(&readings)).unwrap();
            let bits = |r: &Readings| r.number.iter().map(|n| n.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&back), bits(&readings));
            prop_assert_eq!(back, readings);
        }

        #[test]
        fn a_flipped_bit_is_found(readings in readings(), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
            let mut bytes = encode(&readings);
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            // With a checksum that matches, so that the content is looked at.
            bytes.insert(0, FORMAT);
            let sum = xxh3_64(&bytes) as u32;
            bytes.extend(sum.to_le_bytes());
            let _ = decode(&bytes);
        }
    }

    /// Of a batch that is damaged and has a checksum that matches.
    #[test]
    fn what_is_only_announced_is_not_reserved() {
        let sealed = |content: &[u8]| seal([&[FORMAT], content].concat());
        let mut many_rows = Vec::new();
        varint::put(&mut many_rows, ROWS_MAX);
        many_rows.extend([PLAIN, 0, 1]);
        let huge_body = [&[1, LZ4], &(BODY_BYTES_MAX as u32).to_le_bytes()[..], &[0x10, 0]].concat();
        let mut far_series = vec![2, PLAIN, 2, 1];
        varint::put_signed(&mut far_series, i64::MAX);
        far_series.extend([1; 20]);
        for content in [many_rows, huge_body, far_series] {
            assert_eq!(decode(&sealed(&content)), Err(Inconsistent), "{content:?}");
        }
    }

    #[test]
    fn a_sensor_reading_takes_a_few_bytes() {
        let mut readings = Readings::default();
        for i in 0..1_000 {
            let n = f64::from(2_000 + i * 7 % 90) / 100.0;
            readings.push_number(i as u32 % 50, 1_700_000_000_000_000 + i64::from(i) * 137, n, 0);
        }
        let bytes = encode(&readings).len();
        assert!(bytes < 6_000, "{bytes} bytes for 1000 readings");
    }
}
