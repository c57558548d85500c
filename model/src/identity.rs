//! Names and places.
//!
//! A device id or metric name is UTF-8, 1 to 255 bytes, without control characters. A
//! device's *slot* decides which shard keeps it; the hash is fixed for ever, so its golden
//! vectors are tests.

use xxhash_rust::xxh3::xxh3_64;

/// The longest device id or metric name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// How many slots device ids are spread over.
pub const SLOTS: u16 = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 14;

/// Why a text cannot name a device or metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Zero bytes.
    #[error("name is empty")]
    Empty,
    /// More than [`NAME_BYTES_MAX`] bytes.
    #[error("name has {0} bytes, the limit is 255")]
    TooLong(usize),
    /// A character of Unicode's category Cc.
    #[error("name has a control character")]
    Control,
}

/// Accepts `name` as a device id or metric name, or says why not.
pub fn check_name(name: &str) -> Result<(), NameError> {
    match name.len() {
        0 => Err(NameError::Empty),
        n if n > NAME_BYTES_MAX => Err(NameError::TooLong(n)),
        _ if name.chars().any(char::is_control) => Err(NameError::Control),
        _ => Ok(()),
    }
}

/// The slot of a device: the top 14 bits of `xxh3_64` (seed 0) of its id's bytes.
pub fn slot(device: &str) -> u16 {
    (xxh3_64(device.as_bytes()) >> (u64::BITS - SLOT_BITS)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_printable_text() {
        assert_eq!(check_name("küche/ofen"), Ok(()));
        assert_eq!(check_name(""), Err(NameError::Empty));
        assert_eq!(check_name("a\nb"), Err(NameError::Control));
        assert_eq!(check_name("a\u{85}b"), Err(NameError::Control));
        assert_eq!(check_name(&"x".repeat(256)), Err(NameError::TooLong(256)));
        assert_eq!(check_name(&"x".repeat(255)), Ok(()));
    }

    #[test]
    fn slots_follow_the_golden_vectors() {
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(xxh3_64(b"dev-1"), 0x61bc_331d_d76d_7aa0);
        assert_eq!(slot(""), 0x2d06_8005_38d3_94c2_u64.wrapping_shr(50) as u16);
        assert!(slot("dev-1") < SLOTS);
    }
}
