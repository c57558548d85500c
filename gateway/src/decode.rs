//! Bytes to readings or rejects.
//!
//! Arrives: a payload and where it was addressed ([`Target`]). Leaves, piece by piece into a [`Sink`]: readings
//! still bearing names, and a [`Reject`] for everything that could not be read, naming the leaf. Always holds:
//! pure, no panic on any input, memory bounded by the payload and [`node::NODES_MAX`], and one bad leaf never
//! costs its neighbours. Deliberately absent: the gateway's clock (stamps stay relative until
//! [`crate::listen::admit`]) and series ids.

/// A JSON or CBOR document as a tree that forgets nothing a reject would have to name.
pub(crate) mod node;

/// Bytes to [`node::Node`], JSON.
mod json;

/// Bytes to [`node::Node`], CBOR.
mod cbor;

/// A number, a boolean word, a state text.
mod text;

/// Trees of leaves and the time beside them.
mod object;

/// The common object, read in place.
pub(crate) mod flat;

/// RFC 8428.
mod senml;

/// InfluxDB line protocol.
pub(crate) mod line;

/// What `POST /v1/readings` takes.
pub(crate) mod posted;

/// Topic patterns: which topics are readings, and of whom.
pub(crate) mod topic;

use jiff::tz::TimeZone;
use model::time::PLAUSIBLE_FROM_US;
use model::{Micros, Value, check_name};
pub(crate) use node::{Leaf, Node};
use std::fmt;
pub(crate) use text::number as plain_number;

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
pub(crate) enum Stamp {
    /// Not told.
    None,
    /// A point in time.
    At(Micros),
    /// A local stamp that clocks show twice, when they are put back: the earlier and the later.
    Twice(Micros, Micros),
    /// Relative to its arrival, for example 5 s ago (RFC 8428, section 4.5.3).
    Relative(Micros),
}

/// The longest unit: it is kept for each series and in every answer.
pub(crate) const UNIT_BYTES_MAX: usize = 64;

/// A reading still bearing names.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reading<'a> {
    /// The device, where the payload names it and the address does not.
    pub device: Option<&'a str>,
    /// The metric.
    pub metric: &'a str,
    /// The value.
    pub value: Value,
    /// When.
    pub stamp: Stamp,
    /// The unit, if the payload tells it.
    pub unit: Option<&'a str>,
    /// An integer beyond 2^53, kept as the nearest f64.
    pub inexact: bool,
}

/// Why something was not kept; the label of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// Not the format it claims or seems to be.
    Malformed,
    /// Neither UTF-8 nor CBOR.
    NotUtf8,
    /// Infinity, or a number beyond f64.
    NotFinite,
    /// A device id or metric name that is none.
    BadName,
    /// A time that cannot be read, or not be believed.
    BadTime,
    /// The same key twice in one object, or two values for one moment in one payload.
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
    pub(crate) const ALL: [Reason; 10] = [
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
    pub(crate) fn as_str(self) -> &'static str {
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

/// Something of a payload that was not kept, or not as it was sent, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reject {
    /// The kind of trouble.
    pub reason: Reason,
    /// The leaf it is about; empty for the payload as a whole.
    pub leaf: String,
    /// In a sentence.
    pub detail: String,
    /// The value was kept all the same: only its time or its unit was not.
    pub kept: bool,
}

impl Reject {
    /// About the payload as a whole.
    pub(crate) fn whole(reason: Reason, detail: impl fmt::Display) -> Self {
        Reject::leaf(reason, "", detail)
    }

    /// About one leaf.
    pub(crate) fn leaf(reason: Reason, leaf: impl Into<String>, detail: impl fmt::Display) -> Self {
        Reject { reason, leaf: leaf.into(), detail: detail.to_string(), kept: false }
    }

    /// About a leaf that was kept, but not as it was sent.
    pub(crate) fn kept(reason: Reason, leaf: impl Into<String>, detail: impl fmt::Display) -> Self {
        Reject { kept: true, ..Reject::leaf(reason, leaf, detail) }
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

/// Takes what a payload holds, piece by piece.
pub(crate) trait Sink {
    /// What can be kept.
    fn reading(&mut self, reading: Reading<'_>);
    /// What cannot.
    fn reject(&mut self, reject: Reject);
    /// A value that says that there is none (`null`, `"unknown"`).
    fn missing(&mut self);
    /// What follows belongs to this element of the payload, from 0.
    fn element(&mut self, _index: usize) {}
}

/// Decodes `payload`, which was sent to `target`; local stamps are taken in `zone`.
pub(crate) fn decode(target: Target<'_>, format: Format, payload: &[u8], zone: &TimeZone, sink: &mut dyn Sink) {
    match read_tree(format, payload) {
        Ok(Some(tree)) => from_tree(target, format, &tree, zone, sink),
        Ok(None) => from_text(target, payload, sink),
        Err(reject) => sink.reject(reject),
    }
}

/// Decodes a document that is already a tree.
fn from_tree(target: Target<'_>, format: Format, tree: &Node, zone: &TimeZone, sink: &mut dyn Sink) {
    if format == Format::Senml || senml::looks_like(tree) {
        senml::decode(target, tree, sink);
    } else {
        object::decode(target, tree, zone, sink);
    }
}

/// A payload that is a document, as a tree; `None` if it is plain text.
fn read_tree(format: Format, payload: &[u8]) -> Result<Option<Node>, Reject> {
    match format {
        Format::Text => Ok(None),
        Format::Json => json::parse(payload).map(Some),
        Format::Cbor => cbor::parse(payload).map(Some),
        Format::Senml | Format::Auto if cbor::looks_like(payload) => cbor::parse(payload).map(Some),
        Format::Senml | Format::Auto => match text::clean(payload).trim_ascii_start().first() {
            Some(b'{' | b'[' | b'"') => json::parse(payload).map(Some),
            _ => Ok(None),
        },
    }
}

fn from_text(target: Target<'_>, payload: &[u8], sink: &mut dyn Sink) {
    let Some(metric) = target.metric else {
        let kind = if payload.trim_ascii().is_empty() { "an empty payload" } else { "plain text" };
        let detail = format!("{kind} needs a metric: send it to devices/{{device}}/{{metric}}, or send a JSON object");
        return sink.reject(Reject::whole(Reason::Unsupported, detail));
    };
    match text::read_bytes(payload) {
        Ok(leaf) => keep(Named { device: None, metric }, leaf, Stamp::None, None, sink),
        Err(reject) => sink.reject(reject),
    }
}

/// Whose value a leaf is.
#[derive(Debug, Clone, Copy)]
struct Named<'a> {
    /// Where the payload names it.
    device: Option<&'a str>,
    metric: &'a str,
}

/// Keeps one leaf, counts it as missing, or rejects it by name.
fn keep(name: Named<'_>, leaf: Leaf<'_>, stamp: Stamp, unit: Option<&str>, sink: &mut dyn Sink) {
    let mut inexact = false;
    let value = match leaf {
        Leaf::Missing => return sink.missing(),
        Leaf::Bool(b) => Ok(Value::Bool(b)),
        Leaf::Number(n) => Ok(Value::Number(n)),
        Leaf::Inexact(n) => {
            inexact = true;
            Ok(Value::Number(n))
        }
        Leaf::NotFinite(text) => Err((Reason::NotFinite, format!("{text} is beyond the finite 64-bit numbers"))),
        Leaf::Text(text) if text.len() > text::TEXT_BYTES_MAX => {
            let (length, limit) = (text.len(), text::TEXT_BYTES_MAX);
            Err((Reason::TooLarge, format!("a state text of {length} bytes, the limit is {limit}")))
        }
        Leaf::Text(text) if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) => {
            Err((Reason::Malformed, "a state text with control characters".into()))
        }
        Leaf::Text(text) => Ok(Value::Text(text.into())),
        Leaf::Unsupported(kind) => Err((Reason::Unsupported, format!("{kind} is no reading"))),
    };
    let Named { device, metric } = name;
    match (value, check_name(metric)) {
        (_, Err(e)) => sink.reject(Reject::leaf(Reason::BadName, printable(metric), format!("metric {e}"))),
        (Err((reason, detail)), _) => sink.reject(Reject::leaf(reason, metric, detail)),
        (Ok(value), Ok(())) => sink.reading(Reading { device, metric, value, stamp, unit, inexact }),
    }
}

/// Rejects what cannot name a device.
pub(crate) fn check_device(name: &str) -> Result<(), Reject> {
    check_name(name).map_err(|e| Reject::leaf(Reason::BadName, printable(name), format!("device {e}")))
}

/// The beginning of a name that may hold anything.
pub(crate) fn printable(name: &str) -> String {
    name.chars().take(64).flat_map(char::escape_default).collect()
}

/// A stamp of the year 1970 is what a clock that nobody has set gives: seconds since it was switched on.
pub(crate) fn is_unset(us: Micros) -> bool {
    const DAY_US: Micros = 86_400 * model::time::SECOND_US;
    // A day before, for zones behind UTC whose clocks begin at their own midnight.
    (-DAY_US..365 * DAY_US).contains(&us)
}

/// True for a time that a set clock plausibly stamps: in the year 2000 or later.
fn is_plausible(stamp: Stamp) -> bool {
    matches!(stamp, Stamp::At(us) | Stamp::Twice(us, _) if us >= PLAUSIBLE_FROM_US)
}

#[cfg(test)]
mod tests;
