//! CBOR (RFC 8949) to a tree. Integer map keys become their decimal text.

use super::node::{DEPTH_MAX, NODES_MAX, Node};
use super::{Reason, Reject};
use ciborium::Value;

/// True if the first byte can start a CBOR map, array or self-described document, none of
/// which can start UTF-8 text (RFC 8949, section 3.4.6).
pub(super) fn looks_like(payload: &[u8]) -> bool {
    matches!(payload.first(), Some(0x80..=0xbf)) || payload.starts_with(&[0xd9, 0xd9, 0xf7])
}

/// Reads a whole document.
pub(super) fn parse(payload: &[u8]) -> Result<Node, Reject> {
    let malformed = |detail: String| Reject::whole(Reason::Malformed, format!("not CBOR: {detail}"));
    let mut rest = payload;
    let value: Value =
        ciborium::de::from_reader_with_recursion_limit(&mut rest, DEPTH_MAX + 2).map_err(|e| match e {
            ciborium::de::Error::RecursionLimitExceeded => {
                Reject::whole(Reason::TooLarge, format!("nested deeper than {DEPTH_MAX} levels"))
            }
            ciborium::de::Error::Io(_) => malformed("it ends too early".into()),
            ciborium::de::Error::Syntax(at) => malformed(format!("syntax error at byte {at}")),
            ciborium::de::Error::Semantic(_, what) => malformed(what),
        })?;
    if !rest.is_empty() {
        return Err(malformed(format!("{} bytes follow the document", rest.len())));
    }
    let mut nodes_left = NODES_MAX;
    convert(value, &mut nodes_left)
}

fn convert(value: Value, nodes_left: &mut usize) -> Result<Node, Reject> {
    *nodes_left = nodes_left
        .checked_sub(1)
        .ok_or_else(|| Reject::whole(Reason::TooLarge, format!("more than {NODES_MAX} values in one payload")))?;
    Ok(match value {
        Value::Null => Node::Null,
        Value::Bool(b) => Node::Bool(b),
        Value::Integer(n) => Node::Integer(n.into()),
        Value::Float(n) if n.is_nan() => Node::Null,
        Value::Float(n) if n.is_infinite() => Node::NotFinite(n.to_string()),
        Value::Float(n) => Node::Number(n),
        Value::Text(text) => Node::Text(text),
        Value::Bytes(_) => Node::Unsupported("a byte string"),
        Value::Tag(tag, inner) => tagged(tag, *inner, nodes_left)?,
        Value::Array(items) => {
            Node::Array(items.into_iter().map(|item| convert(item, nodes_left)).collect::<Result<_, _>>()?)
        }
        Value::Map(fields) => {
            let mut object = Vec::with_capacity(fields.len());
            for (key, value) in fields {
                object.push((key_text(key)?, convert(value, nodes_left)?));
            }
            Node::Object(object)
        }
        _ => Node::Unsupported("a CBOR simple value"),
    })
}

/// Times (tags 0 and 1) and the self-description (55799) are their content; so is any other
/// tag but the bignums, whose content is bytes.
fn tagged(tag: u64, inner: Value, nodes_left: &mut usize) -> Result<Node, Reject> {
    match (tag, &inner) {
        (2 | 3, Value::Bytes(bytes)) => {
            let magnitude = bytes.iter().fold(0.0_f64, |n, &b| n * 256.0 + f64::from(b));
            let n = if tag == 2 { magnitude } else { -1.0 - magnitude };
            Ok(if n.is_finite() { Node::Huge(n) } else { Node::NotFinite("a bignum".into()) })
        }
        _ => convert(inner, nodes_left),
    }
}

fn key_text(key: Value) -> Result<String, Reject> {
    match key {
        Value::Text(text) => Ok(text),
        Value::Integer(n) => Ok(i128::from(n).to_string()),
        _ => Err(Reject::whole(Reason::Unsupported, "a CBOR map key is neither text nor integer")),
    }
}
