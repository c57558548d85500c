//! Readings of one series as bytes.
//!
//! Columnar: times and numbers as in column.rs, flags as runs. Layout, format 1: `format u8,
//! rows varint, times, flags, numbers, texts, xxh3 of all before, low 32 bits, little-endian`.
//! Always holds: decoding gives back what was encoded to the bit, and damaged bytes are an
//! error, never other readings.

use super::column::{put_numbers, put_whole, take_numbers, take_whole};
use crate::journal::batch::BatchError::{self, Inconsistent};
use crate::journal::seal::{put_runs, put_texts, seal, take_runs, take_texts, unseal};
use crate::readings::Points;
use model::varint;

const FORMAT: u8 = 1;
/// Rows of a chunk; one that would have more is split.
pub(crate) const ROWS_MAX: usize = 16_384;

/// Encodes readings; at most [`ROWS_MAX`].
pub(crate) fn encode(points: &Points) -> Vec<u8> {
    let mut out = vec![FORMAT];
    varint::put(&mut out, points.len() as u64);
    put_whole(&mut out, &points.time_us);
    put_runs(&mut out, &points.flags, |_, flags| u64::from(flags));
    put_numbers(&mut out, &points.number);
    put_texts(&mut out, &points.texts);
    seal(out)
}

/// Decodes what [`encode`] wrote.
pub(crate) fn decode(bytes: &[u8]) -> Result<Points, BatchError> {
    let (rows, rest) = unseal(bytes, FORMAT, ROWS_MAX as u64)?;
    let rest = &mut &*rest;
    let time_us = take_whole(rest, rows)?;
    let flags = take_runs(rest, rows, |_, code| u8::try_from(code).map_err(|_| Inconsistent))?;
    let number = take_numbers(rest, rows)?;
    let texts = take_texts(rest)?;
    Ok(Points { time_us, flags, number, texts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readings::flag;
    use proptest::prelude::*;

    fn points(rows: Vec<(i64, u8, Result<f64, String>)>) -> Points {
        let mut points = Points::default();
        let mut time_us = 1_700_000_000_000_000;
        for (step, flags, value) in rows {
            time_us += step;
            match value {
                Ok(n) => points.push(time_us, flags & !flag::KIND, n, None),
                Err(text) => points.push(time_us, flags & !flag::KIND | flag::TEXT, 0.0, Some(&text)),
            }
        }
        points
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn readings_come_back_to_the_bit(
            rows in prop::collection::vec((1..20_000_000_i64, any::<u8>(), prop_oneof![
                6 => (-500..500_i32).prop_map(|n| Ok(f64::from(n) / 10.0)),
                2 => any::<f64>().prop_map(Ok),
                1 => Just(Ok(-0.0)),
                1 => "[a-zäß]{0,5}".prop_map(Err),
            ]), 0..200),
        ) {
            let points = points(rows);
            let bytes = encode(&points);
            let back = decode(&bytes).unwrap();
            prop_assert_eq!(&back.time_us, &points.time_us);
            prop_assert_eq!(&back.flags, &points.flags);
            prop_assert_eq!(&back.texts, &points.texts);
            let bits = |points: &Points| points.number.iter().map(|n| n.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&back), bits(&points));
        }

        #[test]
        fn damage_is_noticed(at in 0..300_usize, bit in 0..8_u8) {
            let mut bytes = encode(&points((0..100).map(|i| (10_000_000, 0, Ok(f64::from(i % 7) / 4.0))).collect()));
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(decode(&bytes), Err(BatchError::Checksum));
        }
    }

    #[test]
    fn a_day_of_a_sensor_takes_less_than_a_byte_per_reading() {
        let reading = |i: u32| (10_000_000, 0, Ok((21.0 + (f64::from(i) / 500.0).sin() * 3.0 * 10.0).round() / 10.0));
        let bytes = encode(&points((0..8_640).map(reading).collect())).len();
        assert!(bytes < 8_640, "{bytes}");
    }
}
