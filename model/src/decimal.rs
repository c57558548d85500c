//! Numbers as whole numbers of their last decimal.
//!
//! Sensors write `21.5`, not 21.5 to the last bit: whole numbers of tenths compress far better
//! than floats. Always holds: a number is scaled only where that gives it back to the bit.

use crate::{Summary, varint};

/// Numbers that suit no scale.
pub const RAW: u8 = 255;
const POWERS: [f64; 8] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7];

/// What a number is multiplied with.
pub fn power(decimals: u8) -> Option<f64> {
    POWERS.get(usize::from(decimals)).copied()
}

/// `n` as a whole number of `10^-decimals`, if that gives `n` back to the bit.
#[inline]
pub fn scaled(n: f64, decimals: u8) -> Option<i64> {
    let power = POWERS[usize::from(decimals)];
    let whole = (n * power).round();
    let kept = whole as i64;
    let exact = whole.abs() < 9e15 && (kept as f64 / power).to_bits() == n.to_bits();
    exact.then_some(kept)
}

/// The fewest decimals that suit most numbers; [`RAW`] where none do.
pub fn choose_decimals(numbers: &[f64]) -> u8 {
    let (mut decimals, mut unsuited) = (0, 0);
    for &n in numbers {
        if scaled(n, decimals).is_some() {
            continue;
        }
        match (decimals + 1..POWERS.len() as u8).find(|&d| scaled(n, d).is_some()) {
            Some(more) => decimals = more,
            None => unsuited += 1,
        }
        if unsuited * 4 > numbers.len() {
            return RAW;
        }
    }
    decimals
}

/// Calls `each` with every number, scaled; one that does not suit repeats the one before and
/// is returned with its row.
#[inline]
pub fn scale(numbers: &[f64], decimals: u8, mut each: impl FnMut(i64)) -> Vec<(usize, f64)> {
    let (mut unsuited, mut previous) = (Vec::new(), 0);
    for (row, &n) in numbers.iter().enumerate() {
        previous = scaled(n, decimals).unwrap_or_else(|| {
            unsuited.push((row, n));
            previous
        });
        each(previous);
    }
    unsuited
}

/// Appends what [`scale`] returned, raw.
pub fn put_unsuited(out: &mut Vec<u8>, unsuited: &[(usize, f64)]) {
    varint::put(out, unsuited.len() as u64);
    for &(row, n) in unsuited {
        varint::put(out, row as u64);
        out.extend(n.to_le_bytes());
    }
}

/// Puts numbers that suited no scale back into their rows; `None` if there are no such rows.
pub fn take_unsuited(rest: &mut &[u8], numbers: &mut [f64]) -> Option<()> {
    for _ in 0..varint::take(rest)? {
        let row = varint::take(rest)? as usize;
        *numbers.get_mut(row)? = varint::take_f64(rest)?;
    }
    Some(())
}

/// The sum in units of the last decimal, if that is within a thousandth of the error that an
/// answer may have.
pub fn whole_sum(summary: &Summary, power: f64) -> Option<i64> {
    if summary.count == 0 {
        return Some(0);
    }
    let magnitude = summary.count as f64 * summary.min.abs().max(summary.max.abs());
    nearly_whole(summary.sum * power, magnitude * power * 1e-12)
}

/// The sum of squares times the count in units of the square of the last decimal, likewise: an
/// error of it moves the standard deviation by half of it over count, n - 1 and deviation.
pub fn whole_square(summary: &Summary, power: f64) -> Option<i64> {
    let Some(stddev) = summary.stddev() else { return Some(0) };
    let count = summary.count as f64;
    let largest = summary.min.abs().max(summary.max.abs());
    let scale = count * power * power;
    let allowed = (2.0 * stddev * (count - 1.0) * largest * 1e-12).max(largest * largest * 1e-24 * count);
    nearly_whole(summary.m2 * scale, allowed * scale)
}

fn nearly_whole(n: f64, allowed: f64) -> Option<i64> {
    let whole = n.round();
    (whole.abs() < 9e15 && (whole - n).abs() <= allowed).then_some(whole as i64)
}
