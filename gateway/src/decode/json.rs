//! JSON (RFC 8259) to a tree, with the two liberties that devices take: `NaN` and `Infinity`
//! are read where a value stands, so that they cost a leaf and not the payload.

use super::node::{DEPTH_MAX, NODES_MAX, Node};
use super::{Reason, Reject};
use jiter::{Jiter, JiterError, Peek};

/// Reads a whole document.
pub(super) fn parse(payload: &[u8]) -> Result<Node, Reject> {
    let mut reader = Reader { json: Jiter::new(payload).with_allow_inf_nan(), nodes_left: NODES_MAX };
    let peek = reader.json.peek().map_err(|e| reader.malformed(&e))?;
    let node = reader.node(peek, 0)?;
    reader.json.finish().map_err(|e| reader.malformed(&e))?;
    Ok(node)
}

struct Reader<'j> {
    json: Jiter<'j>,
    nodes_left: usize,
}

impl Reader<'_> {
    fn node(&mut self, peek: Peek, depth: usize) -> Result<Node, Reject> {
        if depth > DEPTH_MAX {
            return Err(Reject::whole(Reason::TooLarge, format!("nested deeper than {DEPTH_MAX} levels")));
        }
        self.nodes_left = self
            .nodes_left
            .checked_sub(1)
            .ok_or_else(|| Reject::whole(Reason::TooLarge, format!("more than {NODES_MAX} values in one payload")))?;
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
