//! Plain payloads: a number, a boolean word, a state text, or the word for "no value".

use super::node::Node;
use super::{Reason, Reject};

/// The longest state text, in bytes.
pub(super) const TEXT_BYTES_MAX: usize = 1_024;

/// Reads a plain decimal number, and nothing but that: the quick way for the common payload.
#[inline]
pub fn number(payload: &[u8]) -> Option<f64> {
    if payload.is_empty() || payload.len() > 15 {
        return None; // beyond 15 digits exactness needs a closer look
    }
    let digits = payload.strip_prefix(b"-").unwrap_or(payload);
    if !digits.iter().all(|b| b.is_ascii_digit() || *b == b'.') || !digits.first()?.is_ascii_digit() {
        return None;
    }
    std::str::from_utf8(payload).ok()?.parse().ok()
}

/// Reads any plain payload.
pub(super) fn read_bytes(payload: &[u8]) -> Result<Node, Reject> {
    match std::str::from_utf8(payload) {
        Ok(text) => Ok(read(text)),
        Err(e) => {
            Err(Reject::whole(Reason::NotUtf8, format!("neither UTF-8 text nor CBOR: bad byte at {}", e.valid_up_to())))
        }
    }
}

/// Reads a plain text as a leaf.
pub(super) fn read(text: &str) -> Node {
    let text = text.trim();
    if let Some(node) = word(text) {
        return node;
    }
    if looks_numeric(text) {
        return numeric(text);
    }
    Node::Text(text.into())
}

/// True for a word that says that there is no value.
pub(super) fn is_missing(text: &str) -> bool {
    matches!(word(text.trim()), Some(Node::Null))
}

/// The words that are not states: booleans, and the absence of a value.
pub(super) fn word(text: &str) -> Option<Node> {
    const TRUE: [&str; 3] = ["true", "on", "open"];
    const FALSE: [&str; 3] = ["false", "off", "closed"];
    const MISSING: [&str; 5] = ["", "null", "nan", "unknown", "unavailable"];
    const INFINITE: [&str; 6] = ["inf", "+inf", "-inf", "infinity", "+infinity", "-infinity"];
    let is = |words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if text.len() > 11 {
        None
    } else if is(&TRUE) {
        Some(Node::Bool(true))
    } else if is(&FALSE) {
        Some(Node::Bool(false))
    } else if is(&MISSING) {
        Some(Node::Null)
    } else if is(&INFINITE) {
        Some(Node::NotFinite(text.into()))
    } else {
        None
    }
}

/// True for decimal notation: a sign, digits, a point, an exponent, and at least one digit.
pub(super) fn looks_numeric(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().any(|b| b.is_ascii_digit())
        && digits.parse::<f64>().is_ok()
}

fn numeric(text: &str) -> Node {
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    if let Ok(integer) = unsigned.parse::<i128>() {
        return Node::Integer(integer);
    }
    match unsigned.parse::<f64>() {
        Ok(n) if !n.is_finite() => Node::NotFinite(text.chars().take(40).collect()),
        Ok(n) if unsigned.bytes().all(|b| b.is_ascii_digit() || b == b'-') => Node::Huge(n),
        Ok(n) => Node::Number(n),
        Err(_) => Node::Text(text.into()),
    }
}
