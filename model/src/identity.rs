//! Names and places.
//!
//! A device id or metric name is UTF-8, 1 to 255 bytes, without control characters. Device ids are
//! unique at their gateway only, so the *slot* of both decides which shard keeps a device; the hash
//! is fixed for ever, and its golden vectors are tests.

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

/// The slot of a gateway's device: the top 14 bits of `xxh3_64` (seed 0) of both names, each behind
/// its length in one byte. A gateway itself is at the slot of its device without a name.
pub fn slot(gateway: &str, device: &str) -> u16 {
    let mut bytes = [0; 2 * (1 + NAME_BYTES_MAX)];
    let mut end = 0;
    for name in [gateway, device] {
        debug_assert!(name.len() <= NAME_BYTES_MAX, "names are checked");
        let name = &name.as_bytes()[..name.len().min(NAME_BYTES_MAX)];
        bytes[end] = name.len() as u8;
        bytes[end + 1..][..name.len()].copy_from_slice(name);
        end += 1 + name.len();
    }
    top_bits(xxh3_64(&bytes[..end]))
}

/// The slot of a device in clouds that were founded before gateways counted: that of its id alone.
pub fn slot_of_device(device: &str) -> u16 {
    top_bits(xxh3_64(device.as_bytes()))
}

fn top_bits(hash: u64) -> u16 {
    (hash >> (u64::BITS - SLOT_BITS)) as u16
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
        assert_eq!([slot_of_device(""), slot_of_device("dev-1")], [2_881, 6_255]);
        // By another implementation of the hash (Python's xxhash).
        let golden = [
            ("", "", 3_273),
            ("g", "", 5_602),
            ("", "g", 15_337),
            ("site-1", "temp", 6_327),
            ("site-2", "temp", 4_236),
            ("ab", "c", 12_673),
            ("a", "bc", 7_099),
        ];
        assert_eq!(golden.map(|(gateway, device, _)| slot(gateway, device)), golden.map(|(.., slot)| slot));
        let longest = "ü".repeat(127) + "x";
        assert_eq!(slot(&longest, &longest), 1_006);
    }

    #[test]
    fn one_name_at_many_gateways_is_spread_evenly() {
        let mut counts = [0_u32; 10];
        for site in 0..10_000 {
            counts[usize::from(slot(&format!("site-{site}"), "temp")) * 10 / usize::from(SLOTS)] += 1;
        }
        // Within 2 % of all, wherever the borders of shards are.
        assert!(counts.iter().all(|&count| count.abs_diff(1_000) < 200), "{counts:?}");
    }
}
