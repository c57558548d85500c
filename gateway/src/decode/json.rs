//! JSON (RFC 8259) to a tree, with the liberties that devices take: where a number should stand, what C and
//! Python print in its place (`nan`, `-nan(ind)`, `inf`, `None`, `+21.5`, `021.5`, nothing at all) is read as
//! it is in a plain payload, so that it costs a leaf and not the payload.

use super::node::{Count, Leaf, Node};
use super::{Reason, Reject, text};
use jiter::{Jiter, JiterError, Peek};

/// Reads a whole document.
pub(super) fn parse(payload: &[u8]) -> Result<Node, Reject> {
    let payload = text::clean(payload);
    match read(payload) {
        Err(reject) if reject.reason == Reason::Malformed => match mended(payload) {
            Some(mended) => read(&mended).map_err(|_| reject),
            None => Err(reject),
        },
        read => read,
    }
}

fn read(payload: &[u8]) -> Result<Node, Reject> {
    let mut reader = Reader { json: Jiter::new(payload).with_allow_inf_nan(), count: Count::new() };
    let peek = reader.json.peek().map_err(|e| reader.malformed(&e))?;
    let node = reader.node(peek, 0)?;
    reader.json.finish().map_err(|e| reader.malformed(&e))?;
    Ok(node)
}

struct Reader<'j> {
    json: Jiter<'j>,
    count: Count,
}

impl Reader<'_> {
    fn node(&mut self, peek: Peek, depth: usize) -> Result<Node, Reject> {
        self.count.enter(depth)?;
        match peek {
            Peek::Null => self.json.known_null().map(|()| Node::Null).map_err(|e| self.malformed(&e)),
            Peek::True | Peek::False => self.json.known_bool(peek).map(Node::Bool).map_err(|e| self.malformed(&e)),
            Peek::String => match self.json.known_str() {
                Ok(text) => Ok(Node::Text(text.to_owned())),
                Err(e) => Err(self.malformed(&e)),
            },
            Peek::Array => self.array(depth),
            Peek::Object => self.object(depth),
            number => match self.json.known_number_bytes(number) {
                Ok(bytes) => Ok(number_node(bytes)),
                Err(e) => Err(self.malformed(&e)),
            },
        }
    }

    fn array(&mut self, depth: usize) -> Result<Node, Reject> {
        let mut items = Vec::new();
        let mut next = self.json.known_array().map_err(|e| self.malformed(&e))?;
        while let Some(peek) = next {
            items.push(self.node(peek, depth + 1)?);
            next = self.json.array_step().map_err(|e| self.malformed(&e))?;
        }
        Ok(Node::Array(items))
    }

    fn object(&mut self, depth: usize) -> Result<Node, Reject> {
        let mut fields = Vec::new();
        let mut key = match self.json.known_object() {
            Ok(key) => key.map(str::to_owned),
            Err(e) => return Err(self.malformed(&e)),
        };
        while let Some(name) = key {
            let peek = self.json.peek().map_err(|e| self.malformed(&e))?;
            fields.push((name, self.node(peek, depth + 1)?));
            key = match self.json.next_key() {
                Ok(key) => key.map(str::to_owned),
                Err(e) => return Err(self.malformed(&e)),
            };
        }
        Ok(Node::Object(fields))
    }

    fn malformed(&self, error: &JiterError) -> Reject {
        let at = self.json.error_position(error.index);
        Reject::whole(Reason::Malformed, format!("not JSON: {} at {at}", error.error_type))
    }
}

fn number_node(bytes: &[u8]) -> Node {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    match text {
        "NaN" | "-NaN" => return Node::Null,
        "Infinity" | "-Infinity" => return Node::NotFinite(text.into()),
        _ => {}
    }
    if !text.contains(['.', 'e', 'E'])
        && let Ok(integer) = text.parse::<i128>()
    {
        return Node::Integer(integer);
    }
    match text.parse::<f64>() {
        Ok(n) if n.is_finite() && text.contains(['.', 'e', 'E']) => Node::Number(n),
        Ok(n) if n.is_finite() => Node::Huge(n),
        _ => Node::NotFinite(text.chars().take(40).collect()),
    }
}

/// The document with what should be a number, and is spelled as JSON does not allow, spelled as JSON does;
/// `None` if there is nothing of the kind. Texts stay as they are.
fn mended(payload: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(payload.len() + 64);
    let (mut at, mut is_mended) = (0, false);
    let mut before = b' ';
    while let Some(&byte) = payload.get(at) {
        if out.len() > payload.len() * 2 + 64 {
            return None; // words for numbers are not as short as that
        }
        match byte {
            b'"' => {
                let end = end_of_text(payload, at);
                out.extend_from_slice(&payload[at..end]);
                at = end;
            }
            _ if byte.is_ascii_whitespace() => {
                out.push(byte);
                at += 1;
                continue;
            }
            b',' | b'}' if before == b':' => {
                out.extend_from_slice(b"null");
                is_mended = true;
            }
            b'{' | b'}' | b'[' | b']' | b':' | b',' => {
                out.push(byte);
                at += 1;
            }
            _ => {
                let length = payload[at..].iter().position(|b| b",:]}[{\"".contains(b)).unwrap_or(payload.len() - at);
                let token = &payload[at..at + length];
                match spelled(token.trim_ascii_end()) {
                    Some(number) => {
                        is_mended = true;
                        out.extend_from_slice(number.as_bytes());
                    }
                    None => out.extend_from_slice(token),
                }
                at += length;
            }
        }
        before = byte;
    }
    is_mended.then_some(out)
}

/// Behind the closing quote of the text that begins at `at`.
fn end_of_text(payload: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while let Some(&byte) = payload.get(end) {
        match byte {
            b'"' => return end + 1,
            b'\\' => end += 2,
            _ => end += 1,
        }
    }
    payload.len()
}

/// A number or a word for none that JSON spells differently.
fn spelled(token: &[u8]) -> Option<String> {
    let token = std::str::from_utf8(token).ok()?;
    match text::numeric(token).unwrap_or_else(|| text::read(token)) {
        Leaf::Missing => Some("null".into()),
        Leaf::Bool(b) => Some(b.to_string()),
        Leaf::NotFinite(text) if !text.starts_with(|c: char| c.is_ascii_digit()) => {
            Some(if text.starts_with('-') { "-Infinity" } else { "Infinity" }.into())
        }
        Leaf::Number(n) if token.starts_with(['+', '.', '0', '-']) || token.ends_with('.') => Some(format!("{n:e}")),
        _ => None,
    }
}
