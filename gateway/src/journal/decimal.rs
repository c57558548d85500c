//! Numbers as whole numbers of their last decimal.
//!
//! Sensors write `21.5`, not 21.5 to the last bit: whole numbers of tenths compress far better
//! than floats. Always holds: a number is scaled only where that gives it back to the bit.

use super::batch::BatchError::{self, Inconsistent};
use model::varint;

/// Numbers that suit no scale.
pub(crate) const RAW: u8 = 255;
const POWERS: [f64; 8] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7];

/// What a number is multiplied with.
pub(crate) fn power(decimals: u8) -> Option<f64> {
    POWERS.get(usize::from(decimals)).copied()
}

/// `n` as a whole number of `10^-decimals`, if that gives `n` back to the bit.
#[inline]
fn scaled(n: f64, decimals: u8) -> Option<i64> {
    let power = POWERS[usize::from(decimals)];
    let whole = (n * power).round();
    let kept = whole as i64;
    let exact = whole.abs() < 9e15 && (kept as f64 / power).to_bits() == n.to_bits();
    exact.then_some(kept)
}

/// The fewest decimals that suit most numbers; [`RAW`] where none do.
pub(crate) fn choose_decimals(numbers: &[f64]) -> u8 {
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
pub(crate) fn scale(numbers: &[f64], decimals: u8, mut each: impl FnMut(i64)) -> Vec<(usize, f64)> {
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
pub(crate) fn put_unsuited(out: &mut Vec<u8>, unsuited: &[(usize, f64)]) {
    varint::put(out, unsuited.len() as u64);
    for &(row, n) in unsuited {
        varint::put(out, row as u64);
        out.extend(n.to_le_bytes());
    }
}

/// Puts numbers that suited no scale back into their rows.
pub(crate) fn take_unsuited(rest: &mut &[u8], numbers: &mut [f64]) -> Result<(), BatchError> {
    for _ in 0..varint::take(rest).ok_or(Inconsistent)? {
        let row = varint::take(rest).ok_or(Inconsistent)? as usize;
        *numbers.get_mut(row).ok_or(Inconsistent)? = varint::take_f64(rest).ok_or(Inconsistent)?;
    }
    Ok(())
}
