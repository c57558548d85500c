//! A document as a tree, and a leaf of it.
//!
//! Keeps what a map type would lose: repeated keys, numbers beyond f64, the order of fields. Always holds: a
//! document has at most [`NODES_MAX`] nodes and [`DEPTH_MAX`] levels, so that what a payload becomes is
//! bounded, however small it was packed.

use super::{Reason, Reject, text};

/// A node of a JSON or CBOR document.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
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
pub(crate) const DEPTH_MAX: usize = 32;
/// How many nodes a document may have.
pub(crate) const NODES_MAX: usize = 200_000;

/// Counts the nodes of one document while it is read.
#[derive(Debug)]
pub(super) struct Count {
    left: usize,
}

impl Count {
    /// None yet.
    pub(super) fn new() -> Self {
        Count { left: NODES_MAX }
    }

    /// Another node, so deep.
    pub(super) fn enter(&mut self, depth: usize) -> Result<(), Reject> {
        let too_large = |detail: String| Reject::whole(Reason::TooLarge, detail);
        if depth > DEPTH_MAX {
            return Err(too_large(format!("nested deeper than {DEPTH_MAX} levels")));
        }
        let left = self.left.checked_sub(1);
        self.left = left.ok_or_else(|| too_large(format!("more than {NODES_MAX} values in one payload")))?;
        Ok(())
    }
}

/// What stands for one value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Leaf<'a> {
    /// There is none.
    Missing,
    /// A boolean.
    Bool(bool),
    /// A finite number.
    Number(f64),
    /// A finite number that stands for a whole one which f64 cannot hold.
    Inexact(f64),
    /// An infinity, or a number beyond f64: its text.
    NotFinite(&'a str),
    /// A state.
    Text(&'a str),
    /// Something that is no reading: its kind.
    Unsupported(&'static str),
}

impl Leaf<'_> {
    /// A whole number, flagged where f64 rounds it.
    pub(super) fn integer(n: i128) -> Self {
        let rounded = n as f64;
        if rounded as i128 == n { Leaf::Number(rounded) } else { Leaf::Inexact(rounded) }
    }
}

impl Node {
    /// The first value under `key` of an object.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match self {
            Node::Object(fields) => fields.iter().find(|(k, _)| k == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text of a text.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number of a number.
    pub(crate) fn as_number(&self) -> Option<f64> {
        match self {
            Node::Integer(n) => Some(*n as f64),
            Node::Number(n) | Node::Huge(n) => Some(*n),
            _ => None,
        }
    }

    /// What it says as a value; a text means what it spells.
    pub(super) fn leaf(&self) -> Leaf<'_> {
        match self {
            Node::Null => Leaf::Missing,
            Node::Bool(b) => Leaf::Bool(*b),
            Node::Integer(n) => Leaf::integer(*n),
            Node::Number(n) => Leaf::Number(*n),
            Node::Huge(n) => Leaf::Inexact(*n),
            Node::NotFinite(text) => Leaf::NotFinite(text),
            Node::Text(text) => text::read(text),
            Node::Unsupported(kind) => Leaf::Unsupported(kind),
            Node::Array(_) | Node::Object(_) => Leaf::Unsupported("a structure"),
        }
    }
}
