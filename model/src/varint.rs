//! Whole numbers in as few bytes as they need: LEB128, signed ones by zigzag (the encodings of
//! Protocol Buffers). Reading takes from the front of a slice; `None` means that it ends too
//! early or the number is too long.

/// Appends `n`.
#[inline]
pub fn put(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Appends `n`, small in either direction.
#[inline]
pub fn put_signed(out: &mut Vec<u8>, n: i64) {
    put(out, zigzag(n));
}

/// Small positive numbers for small numbers of either sign.
#[inline]
pub fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

/// The reverse of [`zigzag`].
#[inline]
pub fn unzigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

/// Takes a number.
#[inline]
pub fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut n = 0_u64;
    for (i, &byte) in rest.iter().enumerate().take(10) {
        n |= u64::from(byte & 0x7f) << (7 * i as u32).min(63);
        if byte < 0x80 {
            *rest = &rest[i + 1..];
            return Some(n);
        }
    }
    None
}

/// Takes a signed number.
#[inline]
pub fn take_signed(rest: &mut &[u8]) -> Option<i64> {
    take(rest).map(unzigzag)
}

/// Takes one byte.
pub fn take_byte(rest: &mut &[u8]) -> Option<u8> {
    let (&first, after) = rest.split_first()?;
    *rest = after;
    Some(first)
}

/// Takes eight bytes, little-endian.
pub fn take_f64(rest: &mut &[u8]) -> Option<f64> {
    let (raw, after) = rest.split_first_chunk::<8>()?;
    *rest = after;
    Some(f64::from_le_bytes(*raw))
}

/// Takes a length and so many bytes of UTF-8.
pub fn take_str<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let length = usize::try_from(take(rest)?).ok()?;
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    std::str::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(n: u64, signed: i64) {
            let mut bytes = Vec::new();
            put(&mut bytes, n);
            put_signed(&mut bytes, signed);
            let rest = &mut bytes.as_slice();
            prop_assert_eq!((take(rest), take_signed(rest)), (Some(n), Some(signed)));
            prop_assert!(rest.is_empty());
            prop_assert_eq!(take(&mut &bytes[..0]), None);
        }
    }
}
