//! The common object, read in place: `{"time":1714564800,"value":21.5}`, `{"temperature":21.5,"humidity":40}`.
//!
//! Arrives: a payload. Leaves: its fields in order, borrowed, or `None` for anything but plain keys with plain
//! numbers, booleans and one time: the tree reads that. Always holds: what is read here, the tree reads alike
//! (a property test compares them); nothing is allocated.

use super::object::TIME_FIELDS;
use super::{Stamp, is_plausible};
use jiff::tz::TimeZone;
use model::time;
use smallvec::SmallVec;

/// A field's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Plain {
    /// A number.
    Number(f64),
    /// A boolean.
    Bool(bool),
}

/// An object of plain fields.
#[derive(Debug, PartialEq)]
pub(crate) struct Flat<'p> {
    /// When.
    pub stamp: Stamp,
    /// Keys and values.
    pub fields: SmallVec<[(&'p str, Plain); 8]>,
}

/// Objects with more fields are left to the tree.
const FIELDS_MAX: usize = 32;

/// Reads an object; `has_value` says that it was sent to a metric, whose value is `value`.
pub(crate) fn read<'p>(payload: &'p [u8], is_metric: bool, zone: &TimeZone) -> Option<Flat<'p>> {
    let mut rest = Rest(payload);
    rest.byte(b'{')?;
    let (mut fields, mut stamp, mut has_value) = (SmallVec::new(), None, false);
    loop {
        let key = rest.text()?;
        rest.byte(b':')?;
        let is_time = key.len() <= 9 && TIME_FIELDS.iter().any(|name| key.eq_ignore_ascii_case(name));
        if is_time {
            // Two of them, or `T` beside `t`: which one counts, the tree knows.
            if stamp.is_some() {
                return None;
            }
            let at = match rest.peek()? {
                b'"' => time::parse_local(rest.text()?, zone).ok()?,
                _ => {
                    let digits = rest.token();
                    let whole = std::str::from_utf8(digits).ok()?;
                    if whole.len() > 1 && whole.starts_with('0') {
                        return None;
                    }
                    time::from_digits(whole.parse().ok()?, zone).ok()?
                }
            };
            let read = match at {
                (us, None) => Stamp::At(us),
                (us, Some(later)) => Stamp::Twice(us, later),
            };
            stamp = Some((key, read));
        } else {
            if fields.len() == FIELDS_MAX || fields.iter().any(|(known, _)| *known == key) {
                return None;
            }
            has_value |= is_metric && key == "value";
            fields.push((key, rest.plain()?));
        }
        match rest.next()? {
            b',' => {}
            b'}' if rest.peek().is_none() => break,
            _ => return None,
        }
    }
    let stamp = match stamp {
        None => Stamp::None,
        // `t` is a time only beside a value or where it is plausible as one; `T` is a metric.
        Some((key, read)) if key.len() > 1 || (key == "t" && (has_value || is_plausible(read))) => read,
        Some(_) => return None,
    };
    Some(Flat { stamp, fields })
}

/// What has not been read yet.
struct Rest<'p>(&'p [u8]);

impl<'p> Rest<'p> {
    fn skip_space(&mut self) {
        while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = self.0 {
            self.0 = rest;
        }
    }

    fn peek(&mut self) -> Option<u8> {
        self.skip_space();
        self.0.first().copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.0 = &self.0[1..];
        Some(byte)
    }

    fn byte(&mut self, wanted: u8) -> Option<()> {
        (self.next()? == wanted).then_some(())
    }

    /// A text without escapes; names and stamps have none.
    fn text(&mut self) -> Option<&'p str> {
        self.byte(b'"')?;
        let end = self.0.iter().position(|&b| b == b'"' || b == b'\\' || b < 0x20)?;
        let (text, rest) = self.0.split_at(end);
        self.0 = rest.strip_prefix(b"\"")?;
        (!text.is_empty()).then(|| std::str::from_utf8(text).ok()).flatten()
    }

    fn token(&mut self) -> &'p [u8] {
        let end = self.0.iter().position(|b| b",}] \t\r\n".contains(b)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(end);
        self.0 = rest;
        token
    }

    fn plain(&mut self) -> Option<Plain> {
        self.skip_space();
        match self.token() {
            b"true" => Some(Plain::Bool(true)),
            b"false" => Some(Plain::Bool(false)),
            token => {
                let digits = token.strip_prefix(b"-").unwrap_or(token);
                let is_padded = matches!(digits, [b'0', b'0'..=b'9', ..]) || digits.ends_with(b".");
                if is_padded { None } else { super::plain_number(token).map(Plain::Number) }
            }
        }
    }
}
