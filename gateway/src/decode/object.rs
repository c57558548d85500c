//! Trees of leaves, and the time beside them.
//!
//! An object's leaves are metrics, nested names joined by `.`; on a metric's own topic an
//! object with `value` is that metric. An array is a batch. The time field rules are those of
//! the public interface: `time`, `timestamp`, `ts` always, `t` only beside `value` or when it
//! is plausible as a time.

use super::{Named, Node, Reason, Reject, Sink, Stamp, Target, is_plausible, keep, printable};
use foldhash::fast::RandomState;
use hashbrown::HashSet;
use jiff::tz::TimeZone;
use model::NameError;
use model::identity::NAME_BYTES_MAX;
use model::time::{self, TimeError};

/// The names of time fields; the last only where nothing else is meant.
pub(super) const TIME_FIELDS: [&str; 4] = ["time", "timestamp", "ts", "t"];

/// What becomes of an object whose time cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadTime {
    /// It counts as taken when it arrives, and that is said: its sender cannot be asked.
    Arrival,
    /// It is refused: its sender reads the answer.
    Refuse,
}

/// Decodes a document that is not SenML.
pub(super) fn decode(target: Target<'_>, tree: &Node, zone: &TimeZone, sink: &mut dyn Sink) {
    match tree {
        Node::Array(items) => items.iter().for_each(|item| one(target, item, zone, sink)),
        other => one(target, other, zone, sink),
    }
}

fn one(target: Target<'_>, node: &Node, zone: &TimeZone, sink: &mut dyn Sink) {
    match (node, target.metric) {
        (_, Some("")) => sink.reject(Reject::whole(Reason::BadName, "the metric's name is empty")),
        (Node::Object(fields), metric) => {
            let fields: Vec<_> = without_repeats(fields, "", sink).collect();
            object(Whose { device: None, metric }, &fields, zone, BadTime::Arrival, sink);
        }
        (leaf, Some(metric)) => leaves(None, &mut metric.to_owned(), leaf, Stamp::None, None, sink),
        (_, None) => {
            let detail = "a bare value needs a metric: send it to devices/{device}/{metric}, or name it in an object";
            sink.reject(Reject::whole(Reason::Unsupported, detail));
        }
    }
}

/// Whose leaves an object holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whose<'a> {
    /// Where the object names the device itself.
    pub(super) device: Option<&'a str>,
    /// The metric, where the address or the object names it.
    pub(super) metric: Option<&'a str>,
}

/// Decodes the fields of an object, none of which repeats another's key.
pub(super) fn object(
    whose: Whose<'_>,
    fields: &[(&str, &Node)],
    zone: &TimeZone,
    bad_time: BadTime,
    sink: &mut dyn Sink,
) {
    let has_value = whose.metric.is_some() && fields.iter().any(|(key, _)| *key == "value");
    let (stamp, time_at) = match find_stamp(fields, has_value, zone) {
        Ok(found) => found,
        Err((at, detail)) if bad_time == BadTime::Arrival => {
            let detail = format!("{detail}; the readings count as taken when they arrived");
            sink.reject(Reject::kept(Reason::BadTime, printable(fields[at].0), detail));
            (Stamp::None, Some(at))
        }
        Err((at, detail)) => return sink.reject(Reject::leaf(Reason::BadTime, printable(fields[at].0), detail)),
    };
    let unit_at =
        has_value.then(|| fields.iter().position(|(key, node)| *key == "unit" && node.as_text().is_some())).flatten();
    let unit = unit_at.and_then(|at| fields[at].1.as_text());
    let mut path = String::new();
    for (at, (key, node)) in fields.iter().enumerate() {
        if Some(at) == time_at || Some(at) == unit_at {
            continue;
        }
        path.clear();
        let is_value = has_value && *key == "value";
        if let Some(metric) = whose.metric {
            path.push_str(metric);
        }
        if whose.metric.is_none() {
            path.push_str(key);
        } else if !is_value {
            path.push('.');
            path.push_str(key);
        }
        leaves(whose.device, &mut path, node, stamp, unit.filter(|_| is_value), sink);
    }
}

/// Of keys that repeat, the last counts and the earlier ones are rejects.
pub(super) fn without_repeats<'f>(
    fields: &'f [(String, Node)],
    path: &str,
    sink: &mut dyn Sink,
) -> impl Iterator<Item = (&'f str, &'f Node)> + use<'f> {
    const FEW: usize = 16;
    let mut repeated = Vec::new();
    if fields.len() <= FEW {
        let again = |at: usize| fields[at + 1..].iter().any(|(key, _)| *key == fields[at].0);
        repeated.extend((0..fields.len()).filter(|&at| again(at)));
    } else {
        let mut seen: HashSet<&str, RandomState> =
            HashSet::with_capacity_and_hasher(fields.len(), RandomState::default());
        repeated.extend((0..fields.len()).rev().filter(|&at| !seen.insert(&fields[at].0)));
        repeated.reverse();
    }
    for &at in &repeated {
        let key = &fields[at].0;
        let leaf = if path.is_empty() { printable(key) } else { printable(&format!("{path}.{key}")) };
        sink.reject(Reject::leaf(Reason::DuplicateKey, leaf, "the key is there twice; the last one counts"));
    }
    let mut skip = repeated.into_iter().peekable();
    fields.iter().enumerate().filter_map(move |(at, (key, node))| match skip.next_if_eq(&at) {
        Some(_) => None,
        None => Some((key.as_str(), node)),
    })
}

/// The stamp and the field that holds it, or the field and what is wrong with it.
fn find_stamp(
    fields: &[(&str, &Node)],
    has_value: bool,
    zone: &TimeZone,
) -> Result<(Stamp, Option<usize>), (usize, String)> {
    for name in TIME_FIELDS {
        let is_named = |key: &str| key == name || (name.len() > 1 && key.eq_ignore_ascii_case(name));
        let Some(at) = fields.iter().position(|(key, _)| is_named(key)) else { continue };
        let read = read_stamp(fields[at].1, zone);
        if name == "t" && !has_value && !matches!(read, Ok(stamp) if is_plausible(stamp)) {
            continue;
        }
        return read.map(|stamp| (stamp, Some(at))).map_err(|detail| (at, detail));
    }
    Ok((Stamp::None, None))
}

/// Reads a time field.
pub(super) fn read_stamp(node: &Node, zone: &TimeZone) -> Result<Stamp, String> {
    let read = match node {
        Node::Null => return Ok(Stamp::None),
        Node::Integer(n) => match i64::try_from(*n) {
            Ok(n) => time::from_digits(n, zone),
            Err(_) => Err(TimeError::OutOfRange(n.to_string())),
        },
        Node::Number(n) if n.fract() == 0.0 && n.abs() < 9e15 => time::from_digits(*n as i64, zone),
        Node::Number(n) | Node::Huge(n) => time::from_epoch(*n).map(|us| (us, None)),
        Node::Text(text) => time::parse_local(text.trim_end_matches('\0'), zone),
        _ => return Err("a time is RFC 3339 text or an epoch number".into()),
    };
    match read {
        Ok((earlier, Some(later))) => Ok(Stamp::Twice(earlier, later)),
        Ok((us, None)) => Ok(Stamp::At(us)),
        Err(e) => Err(e.to_string()),
    }
}

fn leaves(device: Option<&str>, path: &mut String, node: &Node, stamp: Stamp, unit: Option<&str>, sink: &mut dyn Sink) {
    let length = path.len();
    match node {
        // Nothing below can have a name any more; building its path would only cost.
        Node::Object(_) | Node::Array(_) if length > NAME_BYTES_MAX => {
            let detail = format!("metric {}", NameError::TooLong(length));
            sink.reject(Reject::leaf(Reason::BadName, printable(path), detail));
        }
        Node::Object(fields) => {
            for (key, node) in without_repeats(fields, path, sink) {
                path.push('.');
                path.push_str(key);
                leaves(device, path, node, stamp, None, sink);
                path.truncate(length);
            }
        }
        Node::Array(items) => {
            for (i, node) in items.iter().enumerate() {
                path.push_str(&format!(".{i}"));
                leaves(device, path, node, stamp, None, sink);
                path.truncate(length);
            }
        }
        leaf => keep(Named { device, metric: path }, leaf.leaf(), stamp, unit, sink),
    }
}
