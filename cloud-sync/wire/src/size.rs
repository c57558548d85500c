//! How much memory a message takes, before it is decoded.
//!
//! Arrives: the bytes of a `Summaries`. Leaves: an upper bound of what its columns and its windows take, to within a
//! factor of two. Always holds: nothing is allocated; entries of packed columns are counted without being decoded.

use prost::DecodeError;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// What a message comes to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Memory.
    pub(super) bytes: usize,
    /// Devices, and entries for metrics.
    pub(super) names: usize,
}

/// A whole number in a column that has grown to the next power of two.
const NUMBER: usize = 16;
/// A window, a summary in its tree, a device, a label, a text: with what they are kept in.
const WINDOW: usize = 160;
const SUMMARY: usize = 480;
const NAME: usize = 160;
/// A bucket, once decoded.
const BUCKET: usize = 32;

#[derive(Clone, Copy)]
enum Kind {
    Summaries,
    Device,
    Labels,
    Windows,
    Metric,
    Sketches,
    Side,
    /// A sketch as bytes: two numbers for each bucket.
    Other,
    /// Columns of numbers.
    Numbers,
    /// Texts, bytes, pairs: as long as they are.
    Plain,
}

impl Kind {
    /// What stands in a field.
    fn field(self, tag: u32) -> Self {
        match (self, tag) {
            (Kind::Summaries, 1) => Kind::Device,
            (Kind::Summaries, 2) => Kind::Windows,
            (Kind::Summaries, 3) => Kind::Metric,
            (Kind::Device, 2) => Kind::Labels,
            (Kind::Metric, 9) => Kind::Sketches,
            (Kind::Metric, 10 | 11) => Kind::Numbers,
            (Kind::Sketches, 2 | 3) => Kind::Side,
            (Kind::Sketches, 4) => Kind::Other,
            _ => Kind::Plain,
        }
    }

    /// What an entry of a column costs.
    fn entry(self, tag: u32) -> Option<usize> {
        match (self, tag) {
            (Kind::Windows, 1) => Some(NUMBER + WINDOW),
            (Kind::Windows, _) | (Kind::Numbers, _) | (Kind::Sketches, 1) => Some(NUMBER),
            (Kind::Metric, 2) => Some(NUMBER + SUMMARY),
            (Kind::Metric, 3..=6) => Some(NUMBER),
            (Kind::Side, 4) => Some(NUMBER + BUCKET),
            (Kind::Side, _) => Some(NUMBER),
            (Kind::Other, 2) => Some(BUCKET / 2),
            _ => None,
        }
    }
}

/// The size of a `Summaries`.
pub(super) fn of(plain: &[u8]) -> Result<Size, DecodeError> {
    let mut size = Size::default();
    walk(Kind::Summaries, plain, &mut size)?;
    Ok(size)
}

fn walk(kind: Kind, mut rest: &[u8], size: &mut Size) -> Result<(), DecodeError> {
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest)?;
        let entry = kind.entry(tag);
        if wire_type != WireType::LengthDelimited {
            skip_field(wire_type, tag, &mut rest, DecodeContext::default())?;
            size.bytes += entry.unwrap_or(NUMBER);
            continue;
        }
        let length = usize::try_from(decode_varint(&mut rest)?).unwrap_or(usize::MAX);
        let Some((part, after)) = rest.split_at_checked(length) else {
            // The decoder says what is wrong with it.
            rest.advance(rest.len());
            continue;
        };
        rest = after;
        if let Some(entry) = entry {
            // Doubles have eight bytes each; of a varint only the last byte has no high bit.
            let numbers = part.iter().filter(|&&byte| byte < 0x80).count();
            size.bytes += numbers * entry;
            continue;
        }
        size.names += usize::from(matches!((kind, tag), (Kind::Summaries, 1 | 3 | 4)));
        size.bytes += NAME + part.len();
        let below = kind.field(tag);
        if !matches!(below, Kind::Plain) {
            walk(below, part, size)?;
        }
    }
    Ok(())
}
