//! CBOR (RFC 8949) to a tree. Integer map keys become their decimal text.
//!
//! Items are counted as they are read and nothing is reserved for lengths that are only announced, so that
//! a few bytes stay a few.

use super::node::{Count, Node};
use super::{Reason, Reject};
use ciborium_ll::{Decoder, Error, Header};

/// True if the first byte can start a CBOR map, array, self-described document or a float of just this
/// length, none of which can be UTF-8 text (RFC 8949, section 3.4.6).
pub(super) fn looks_like(payload: &[u8]) -> bool {
    matches!(
        (payload.first(), payload.len()),
        (Some(0x80..=0xbf), _) | (Some(0xf9), 3) | (Some(0xfa), 5) | (Some(0xfb), 9)
    ) || payload.starts_with(&[0xd9, 0xd9, 0xf7])
}

/// Reads a whole document.
pub(super) fn parse(payload: &[u8]) -> Result<Node, Reject> {
    let mut reader = Reader { decoder: Decoder::from(payload), count: Count::new() };
    let header = reader.pull()?;
    let node = reader.node(header, 0)?;
    match payload.len() - reader.decoder.offset() {
        0 => Ok(node),
        rest => Err(malformed(format!("{rest} bytes follow the document"))),
    }
}

fn malformed(detail: impl std::fmt::Display) -> Reject {
    Reject::whole(Reason::Malformed, format!("not CBOR: {detail}"))
}

fn wrong<E>(error: Error<E>) -> Reject {
    match error {
        Error::Io(_) => malformed("it ends too early"),
        Error::Syntax(at) => malformed(format!("syntax error at byte {at}")),
    }
}

struct Reader<'p> {
    decoder: Decoder<&'p [u8]>,
    count: Count,
}

impl Reader<'_> {
    fn pull(&mut self) -> Result<Header, Reject> {
        self.decoder.pull().map_err(wrong)
    }

    fn node(&mut self, header: Header, depth: usize) -> Result<Node, Reject> {
        self.count.enter(depth)?;
        Ok(match header {
            Header::Positive(n) => Node::Integer(n.into()),
            Header::Negative(n) => Node::Integer(-1 - i128::from(n)),
            Header::Float(n) if n.is_nan() => Node::Null,
            Header::Float(n) if n.is_infinite() => Node::NotFinite(n.to_string()),
            Header::Float(n) => Node::Number(n),
            Header::Simple(20) => Node::Bool(false),
            Header::Simple(21) => Node::Bool(true),
            Header::Simple(22 | 23) => Node::Null,
            Header::Simple(_) => Node::Unsupported("a CBOR simple value"),
            Header::Text(length) => Node::Text(self.text(length)?),
            Header::Bytes(length) => {
                self.bytes(length)?;
                Node::Unsupported("a byte string")
            }
            Header::Array(length) => self.array(length, depth)?,
            Header::Map(length) => self.map(length, depth)?,
            Header::Tag(tag) => self.tagged(tag, depth)?,
            Header::Break => return Err(malformed("a break where a value should stand")),
        })
    }

    fn array(&mut self, length: Option<usize>, depth: usize) -> Result<Node, Reject> {
        let mut items = Vec::new();
        while let Some(header) = self.next(length, items.len())? {
            items.push(self.node(header, depth + 1)?);
        }
        Ok(Node::Array(items))
    }

    fn map(&mut self, length: Option<usize>, depth: usize) -> Result<Node, Reject> {
        let mut fields = Vec::new();
        while let Some(header) = self.next(length, fields.len())? {
            let key = match header {
                Header::Text(length) => self.text(length)?,
                Header::Positive(n) => n.to_string(),
                Header::Negative(n) => (-1 - i128::from(n)).to_string(),
                _ => return Err(Reject::whole(Reason::Unsupported, "a CBOR map key is neither text nor integer")),
            };
            let header = self.pull()?;
            fields.push((key, self.node(header, depth + 1)?));
        }
        Ok(Node::Object(fields))
    }

    /// The header of the next item of an array or map that has had `had`; `None` behind the last.
    fn next(&mut self, length: Option<usize>, had: usize) -> Result<Option<Header>, Reject> {
        match length {
            Some(length) if had == length => Ok(None),
            Some(_) => self.pull().map(Some),
            None => self.pull().map(|header| (header != Header::Break).then_some(header)),
        }
    }

    fn text(&mut self, length: Option<usize>) -> Result<String, Reject> {
        let (mut text, mut buffer) = (String::new(), [0; 256]);
        let mut segments = self.decoder.text(length);
        while let Some(mut segment) = segments.pull().map_err(wrong)? {
            while let Some(part) = segment.pull(&mut buffer).map_err(wrong)? {
                text.push_str(part);
            }
        }
        Ok(text)
    }

    fn bytes(&mut self, length: Option<usize>) -> Result<Vec<u8>, Reject> {
        let (mut bytes, mut buffer) = (Vec::new(), [0; 256]);
        let mut segments = self.decoder.bytes(length);
        while let Some(mut segment) = segments.pull().map_err(wrong)? {
            while let Some(part) = segment.pull(&mut buffer).map_err(wrong)? {
                bytes.extend_from_slice(part);
            }
        }
        Ok(bytes)
    }

    /// Bignums (2, 3), decimal fractions (4) and bigfloats (5) are numbers; times (0, 1), the self-description
    /// (55799) and any other tag are their content (RFC 8949, section 3.4).
    fn tagged(&mut self, tag: u64, depth: usize) -> Result<Node, Reject> {
        let header = self.pull()?;
        match (tag, header) {
            (2 | 3, Header::Bytes(length)) => {
                let magnitude = self.bytes(length)?.iter().fold(0.0_f64, |n, &b| n * 256.0 + f64::from(b));
                let n = if tag == 2 { magnitude } else { -1.0 - magnitude };
                Ok(if n.is_finite() { Node::Huge(n) } else { Node::NotFinite("a bignum".into()) })
            }
            (4 | 5, _) => {
                let content = self.node(header, depth + 1)?;
                Ok(fraction(tag, &content))
            }
            _ => self.node(header, depth + 1),
        }
    }
}

/// Mantissa times ten or two to the exponent, rounded once.
fn fraction(tag: u64, content: &Node) -> Node {
    const NONE: Node = Node::Unsupported("a fraction without an exponent and a mantissa");
    let Node::Array(parts) = content else { return NONE };
    let [Node::Integer(exponent), mantissa] = parts.as_slice() else { return NONE };
    let Some(own) = mantissa.as_number() else { return NONE };
    // Beyond these, whatever the mantissa is, it comes to nothing or to too much.
    let exponent = (*exponent).clamp(-100_000, 100_000) as i32;
    let n = match (tag, mantissa) {
        (4, Node::Integer(mantissa)) => format!("{mantissa}e{exponent}").parse().unwrap_or(f64::NAN),
        (4, _) => own * 10_f64.powi(exponent),
        // In two steps: neither overflows where the product does not.
        _ => own * 2_f64.powi(exponent / 2) * 2_f64.powi(exponent - exponent / 2),
    };
    if n.is_finite() { Node::Number(n) } else { Node::NotFinite("a decimal fraction".into()) }
}
