//! Bytes to readings or rejects.
//!
//! Arrives: a payload and where it was addressed ([`Target`]). Leaves: readings still bearing
//! names, a count of missing values, and a [`Reject`] for everything that could not be read,
//! naming the leaf. Always holds: pure, no panic on any input, and one bad leaf never costs
//! its neighbours. Deliberately absent: the gateway's clock (stamps stay relative until
//! [`crate::listen::admit`]) and series ids.

/// A JSON or CBOR document as a tree that forgets nothing a reject would have to name.
pub mod node;

/// Bytes to [`node::Node`], JSON.
mod json;

/// Bytes to [`node::Node`], CBOR.
mod cbor;

/// A number, a boolean word, a state text.
mod text;

/// Trees of leaves and the time beside them.
mod object;

/// RFC 8428.
mod senml;

/// InfluxDB line protocol.
pub mod line;

/// What `POST /v1/readings` takes.
pub mod posted;

/// Topic patterns: which topics are readings, and of whom.
pub mod topic;

use jiff::tz::TimeZone;
use model::{Micros, Value};
pub use node::Node;
use std::fmt;
pub use text::number as plain_number;

/// Where a payload was addressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Target<'a> {
    /// The device, if the address names one.
    pub device: Option<&'a str>,
    /// The metric, if the address names one.
    pub metric: Option<&'a str>,
}

/// What the sender says the payload is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Told by its shape.
    #[default]
    Auto,
    /// A number, a boolean or a state text.
    Text,
    /// JSON, SenML recognised by shape.
    Json,
    /// CBOR, SenML recognised by shape.
    Cbor,
    /// SenML, JSON or CBOR (RFC 8428).
    Senml,
}

/// When a reading was taken, as its sender tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stamp {
    /// Not told.
    None,
    /// A point in time.
    At(Micros),
    /// A local stamp that clocks show twice, when they are put back: the earlier and the later.
    Twice(Micros, Micros),
    /// Relative to its arrival, for example 5 s ago (RFC 8428, section 4.5.3).
    Relative(Micros),
}

/// A reading still bearing names.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The device, where the payload names it and the address does not.
    pub device: Option<String>,
    /// The metric.
    pub metric: String,
    /// The value.
    pub value: Value,
    /// When.
    pub stamp: Stamp,
    /// The unit, if the payload tells it.
    pub unit: Option<String>,
    /// An integer beyond 2^53, kept as the nearest f64.
    pub inexact: bool,
}

/// Why something was not kept; the label of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Not the format it claims or seems to be.
    Malformed,
    /// Neither UTF-8 nor CBOR.
    NotUtf8,
    /// Infinity, or a number beyond f64.
    NotFinite,
    /// A device id or metric name that is none.
    BadName,
    /// A time that cannot be read.
    BadTime,
    /// The same key twice in one object.
    DuplicateKey,
    /// A state text, nesting or number of leaves beyond the limit.
    TooLarge,
    /// A value of a kind that is no reading, or nobody to attribute it to.
    Unsupported,
    /// A SenML field that must be understood and is not.
    SenmlUnknown,
    /// The limit on devices or series.
    Limit,
}

impl Reason {
    /// Every reason, for counters that start at zero.
    pub const ALL: [Reason; 10] = [
        Reason::Malformed,
        Reason::NotUtf8,
        Reason::NotFinite,
        Reason::BadName,
        Reason::BadTime,
        Reason::DuplicateKey,
        Reason::TooLarge,
        Reason::Unsupported,
        Reason::SenmlUnknown,
        Reason::Limit,
    ];

    /// The reason in one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed",
            Reason::NotUtf8 => "not_utf8",
            Reason::NotFinite => "not_finite",
            Reason::BadName => "bad_name",
            Reason::BadTime => "bad_time",
            Reason::DuplicateKey => "duplicate_key",
            Reason::TooLarge => "too_large",
            Reason::Unsupported => "unsupported",
            Reason::SenmlUnknown => "senml_unknown",
            Reason::Limit => "limit",
        }
    }
}

/// Something of a payload that was not kept, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// The kind of trouble.
    pub reason: Reason,
    /// The leaf it is about; empty for the payload as a whole.
    pub leaf: String,
    /// In a sentence.
    pub detail: String,
}

impl Reject {
    /// About the payload as a whole.
    pub fn whole(reason: Reason, detail: impl fmt::Display) -> Self {
        Reject::leaf(reason, "", detail)
    }

    /// About one leaf.
    pub fn leaf(reason: Reason, leaf: impl Into<String>, detail: impl fmt::Display) -> Self {
        Reject { reason, leaf: leaf.into(), detail: detail.to_string() }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.leaf.as_str() {
            "" => f.write_str(&self.detail),
            leaf => write!(f, "{leaf}: {}", self.detail),
        }
    }
}

/// What a payload held.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decoded {
    /// What can be kept.
    pub readings: Vec<Reading>,
    /// What cannot.
    pub rejects: Vec<Reject>,
    /// Values that say that there is none (`null`, `"unknown"`).
    pub missing: u32,
}

impl Decoded {
    fn of_reject(reject: Reject) -> Self {
        Decoded { rejects: vec![reject], ..Decoded::default() }
    }
}

/// Decodes `payload`, which was sent to `target`; local stamps are taken in `zone`.
pub fn decode(target: Target<'_>, format: Format, payload: &[u8], zone: &TimeZone) -> Decoded {
    match read_tree(format, payload) {
        Ok(Some(tree)) => from_tree(target, format, tree, zone),
        Ok(None) => from_text(target, payload),
        Err(reject) => Decoded::of_reject(reject),
    }
}

/// Decodes a document that is already a tree.
pub fn from_tree(target: Target<'_>, format: Format, tree: Node, zone: &TimeZone) -> Decoded {
    let mut out = Decoded::default();
    if format == Format::Senml || senml::looks_like(&tree) {
        senml::decode(target, tree, &mut out);
    } else {
        object::decode(target, tree, zone, &mut out);
    }
    out
}

/// A payload that is a document, as a tree; `None` if it is plain text.
fn read_tree(format: Format, payload: &[u8]) -> Result<Option<Node>, Reject> {
    match format {
        Format::Text => Ok(None),
        Format::Json => json::parse(payload).map(Some),
        Format::Cbor => cbor::parse(payload).map(Some),
        Format::Senml | Format::Auto => match payload.trim_ascii_start().first() {
            Some(b'{' | b'[' | b'"') => json::parse(payload).map(Some),
            _ if cbor::looks_like(payload) => cbor::parse(payload).map(Some),
            _ => Ok(None),
        },
    }
}

fn from_text(target: Target<'_>, payload: &[u8]) -> Decoded {
    let mut out = Decoded::default();
    let Some(metric) = target.metric else {
        let kind = if payload.trim_ascii().is_empty() { "an empty payload" } else { "plain text" };
        let detail = format!("{kind} needs a metric: send it to devices/{{device}}/{{metric}}, or send a JSON object");
        return Decoded::of_reject(Reject::whole(Reason::Unsupported, detail));
    };
    match text::read_bytes(payload) {
        Ok(leaf) => object::push_leaf(&mut out, metric.into(), leaf, Stamp::None, None),
        Err(reject) => out.rejects.push(reject),
    }
    out
}

#[cfg(test)]
mod tests;
