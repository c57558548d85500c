//! A document as a tree.
//!
//! Keeps what a map type would lose: repeated keys, numbers beyond f64, the order of fields.

/// A node of a JSON or CBOR document.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// `null`, `NaN`, CBOR `undefined`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number, exactly.
    Integer(i128),
    /// Any other finite number.
    Number(f64),
    /// A whole number beyond 128 bits, rounded.
    Huge(f64),
    /// An infinity, or a number beyond f64: its text.
    NotFinite(String),
    /// A text.
    Text(String),
    /// Something that is no reading, for example CBOR bytes: its kind.
    Unsupported(&'static str),
    /// An array.
    Array(Vec<Node>),
    /// An object; keys may repeat.
    Object(Vec<(String, Node)>),
}

/// How deep a document may nest.
pub const DEPTH_MAX: usize = 32;
/// How many nodes a document may have.
pub const NODES_MAX: usize = 200_000;

impl Node {
    /// The first value under `key` of an object.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match self {
            Node::Object(fields) => fields.iter().find(|(k, _)| k == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text of a text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number of a number.
    pub fn as_number(&self) -> Option<f64> {
        match self {
            Node::Integer(n) => Some(*n as f64),
            Node::Number(n) | Node::Huge(n) => Some(*n),
            _ => None,
        }
    }
}
