//! One grammar of values for every way in: a number, a boolean word, a state text, or a word that says
//! that there is none.
//!
//! Arrives: a text, plain, quoted in a document or a field of a line. Leaves: a [`Leaf`]. Always holds: the
//! same text means the same, whatever brought it. Why `open` and `007` are texts:
//! `docs/decisions/0009-values.md`.

use super::{Leaf, Reason, Reject};

/// The longest state text, in bytes.
pub(super) const TEXT_BYTES_MAX: usize = 1_024;

/// Reads a plain decimal number, and nothing but that: the quick way for the common payload. What it reads,
/// [`read`] reads alike.
#[inline]
pub(crate) fn number(payload: &[u8]) -> Option<f64> {
    if payload.is_empty() || payload.len() > 15 {
        return None; // beyond 15 digits exactness needs a closer look
    }
    let digits = payload.strip_prefix(b"-").unwrap_or(payload);
    if !digits.iter().all(|b| b.is_ascii_digit() || *b == b'.') || !digits.first()?.is_ascii_digit() {
        return None;
    }
    let number: f64 = std::str::from_utf8(payload).ok().filter(|text| !is_code(text))?.parse().ok()?;
    // A whole zero has no sign.
    let is_signed = number == 0.0 && payload.starts_with(b"-") && !payload.contains(&b'.');
    (!is_signed).then_some(number)
}

/// A text without what editors put before it (a byte-order mark) and C programs behind it (NULs).
pub(super) fn clean(payload: &[u8]) -> &[u8] {
    let payload = payload.strip_prefix(b"\xef\xbb\xbf").unwrap_or(payload);
    let end = payload.iter().rposition(|&b| b != 0).map_or(0, |at| at + 1);
    &payload[..end]
}

/// Reads any plain payload.
pub(super) fn read_bytes(payload: &[u8]) -> Result<Leaf<'_>, Reject> {
    match std::str::from_utf8(clean(payload)) {
        Ok(text) => Ok(read(text)),
        Err(e) => {
            Err(Reject::whole(Reason::NotUtf8, format!("neither UTF-8 text nor CBOR: bad byte at {}", e.valid_up_to())))
        }
    }
}

/// Reads a text as a leaf.
pub(super) fn read(text: &str) -> Leaf<'_> {
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    match word(text) {
        Some(leaf) => leaf,
        None if is_code(text) => Leaf::Text(text),
        None => numeric(text).unwrap_or(Leaf::Text(text)),
    }
}

/// True for digits that begin with a zero: an article, a card, a serial number, whose zeros count.
fn is_code(text: &str) -> bool {
    text.len() > 1 && text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit())
}

/// The words that are not states: booleans, and the absence of a value, also as C and Python print it.
fn word(text: &str) -> Option<Leaf<'_>> {
    const TRUE: [&str; 2] = ["true", "on"];
    const FALSE: [&str; 2] = ["false", "off"];
    const MISSING: [&str; 5] = ["", "null", "unknown", "unavailable", "(null)"];
    const INFINITE: [&str; 3] = ["inf", "infinity", "ovf"];
    let is = |text: &str, words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if text.len() > 40 {
        return None;
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if is(text, &TRUE) {
        Some(Leaf::Bool(true))
    } else if is(text, &FALSE) {
        Some(Leaf::Bool(false))
    } else if is(text, &MISSING) || matches!(text, "None" | "undefined") || is_nan(unsigned) {
        Some(Leaf::Missing)
    } else if is(unsigned, &INFINITE) || unsigned.starts_with("1.#INF") {
        Some(Leaf::NotFinite(text))
    } else {
        None
    }
}

/// Not a number, as C libraries print it: `nan`, `nan(0x8000000000000)`, `nan(ind)`, `1.#QNAN0`.
fn is_nan(unsigned: &str) -> bool {
    let microsoft = ["1.#QNAN", "1.#SNAN", "1.#IND"].iter().any(|text| unsigned.starts_with(text));
    let rest = unsigned.get(..3).filter(|nan| nan.eq_ignore_ascii_case("nan")).and(unsigned.get(3..));
    microsoft || rest.is_some_and(|rest| rest.is_empty() || (rest.starts_with('(') && rest.ends_with(')')))
}

/// True for decimal notation: a sign, digits, a point, an exponent, and at least one digit.
fn looks_numeric(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().any(|b| b.is_ascii_digit())
        && digits.parse::<f64>().is_ok()
}

/// Reads decimal notation, where a number and nothing else can stand.
pub(super) fn numeric(text: &str) -> Option<Leaf<'_>> {
    if !looks_numeric(text) {
        return None;
    }
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    if let Ok(integer) = unsigned.parse::<i128>() {
        return Some(Leaf::integer(integer));
    }
    Some(match unsigned.parse::<f64>() {
        Ok(n) if !n.is_finite() => Leaf::NotFinite(text.get(..40).unwrap_or(text)),
        Ok(n) if unsigned.bytes().all(|b| b.is_ascii_digit() || b == b'-') => Leaf::Inexact(n),
        Ok(n) => Leaf::Number(n),
        Err(_) => return None,
    })
}
