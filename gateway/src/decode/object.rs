//! Trees of leaves, and the time beside them.
//!
//! An object's leaves are metrics, nested names joined by `.`; on a metric's own topic an
//! object with `value` is that metric. An array is a batch. The time field rules are those of
//! the public interface: `time`, `timestamp`, `ts` always, `t` only beside `value` or when it
//! is plausible as a time.

use super::text::{self, TEXT_BYTES_MAX};
use super::{Decoded, Node, Reading, Reason, Reject, Stamp, Target};
use jiff::tz::TimeZone;
use model::identity::NAME_BYTES_MAX;
use model::time::{self, PLAUSIBLE_FROM_US, TimeError};
use model::{NameError, Value, check_name};
use std::collections::HashSet;

/// Decodes a document that is not SenML.
pub(super) fn decode(target: Target<'_>, tree: Node, zone: &TimeZone, out: &mut Decoded) {
    match tree {
        Node::Array(items) => {
            for item in items {
                one(target, item, zone, out);
            }
        }
        other => one(target, other, zone, out),
    }
}

fn one(target: Target<'_>, node: Node, zone: &TimeZone, out: &mut Decoded) {
    match (node, target.metric) {
        (Node::Object(fields), metric) => object(metric, fields, zone, out),
        (leaf, Some(metric)) => leaves(metric.to_owned(), leaf, Stamp::None, None, out),
        (_, None) => {
            let detail = "a bare value needs a metric: send it to devices/{device}/{metric}, or name it in an object";
            out.rejects.push(Reject::whole(Reason::Unsupported, detail));
        }
    }
}

fn object(metric: Option<&str>, fields: Vec<(String, Node)>, zone: &TimeZone, out: &mut Decoded) {
    let mut fields = without_repeats(fields, "", out);
    let has_value = metric.is_some() && fields.iter().any(|(key, _)| key == "value");
    let stamp = take_stamp(&mut fields, has_value, zone, out);
    let unit = if has_value { take_unit(&mut fields) } else { None };
    for (key, node) in fields {
        match metric {
            Some(metric) if has_value && key == "value" => leaves(metric.into(), node, stamp, unit.clone(), out),
            Some(metric) => leaves(format!("{metric}.{key}"), node, stamp, None, out),
            None => leaves(key, node, stamp, None, out),
        }
    }
}

fn take_unit(fields: &mut Vec<(String, Node)>) -> Option<String> {
    let at = fields.iter().position(|(key, node)| key == "unit" && node.as_text().is_some())?;
    fields.remove(at).1.as_text().map(str::to_owned)
}

/// Of keys that repeat, the last counts and the earlier ones are rejects.
fn without_repeats(fields: Vec<(String, Node)>, path: &str, out: &mut Decoded) -> Vec<(String, Node)> {
    let mut seen = HashSet::with_capacity(fields.len());
    let mut kept: Vec<(String, Node)> = Vec::with_capacity(fields.len());
    for (key, node) in fields.into_iter().rev() {
        if seen.insert(key.clone()) {
            kept.push((key, node));
        } else {
            let leaf = if path.is_empty() { key } else { format!("{path}.{key}") };
            out.rejects.push(Reject::leaf(Reason::DuplicateKey, leaf, "the key is there twice; the last one counts"));
        }
    }
    kept.reverse();
    kept
}

fn take_stamp(fields: &mut Vec<(String, Node)>, has_value: bool, zone: &TimeZone, out: &mut Decoded) -> Stamp {
    for name in ["time", "timestamp", "ts", "t"] {
        let Some(at) =
            fields.iter().position(|(key, _)| key == name || (name.len() > 2 && key.eq_ignore_ascii_case(name)))
        else {
            continue;
        };
        let read = read_stamp(&fields[at].1, zone);
        if name == "t" && !has_value && !matches!(read, Ok(Stamp::At(us)) if us >= PLAUSIBLE_FROM_US) {
            continue;
        }
        let (key, _) = fields.remove(at);
        return read.unwrap_or_else(|detail| {
            out.rejects.push(Reject::leaf(Reason::BadTime, key, detail));
            Stamp::None
        });
    }
    Stamp::None
}

/// Reads a time field.
pub(super) fn read_stamp(node: &Node, zone: &TimeZone) -> Result<Stamp, String> {
    let read = match node {
        Node::Null => return Ok(Stamp::None),
        Node::Integer(n) => match i64::try_from(*n) {
            Ok(n) => time::from_epoch_integer(n),
            Err(_) => Err(TimeError::OutOfRange(n.to_string())),
        },
        Node::Number(n) | Node::Huge(n) => time::from_epoch(*n),
        Node::Text(text) => match time::parse_local(text, zone) {
            Ok((earlier, Some(later))) => return Ok(Stamp::Twice(earlier, later)),
            read => read.map(|(us, _)| us),
        },
        _ => return Err("a time is RFC 3339 text or an epoch number".into()),
    };
    read.map(Stamp::At).map_err(|e| e.to_string())
}

fn leaves(path: String, node: Node, stamp: Stamp, unit: Option<String>, out: &mut Decoded) {
    match node {
        // Nothing below can have a name any more; building its path would only cost.
        Node::Object(_) | Node::Array(_) if path.len() > NAME_BYTES_MAX => {
            let detail = format!("metric {}", NameError::TooLong(path.len()));
            out.rejects.push(Reject::leaf(Reason::BadName, printable(&path), detail));
        }
        Node::Object(fields) => {
            for (key, node) in without_repeats(fields, &path, out) {
                leaves(format!("{path}.{key}"), node, stamp, None, out);
            }
        }
        Node::Array(items) => {
            for (i, node) in items.into_iter().enumerate() {
                leaves(format!("{path}.{i}"), node, stamp, None, out);
            }
        }
        Node::Text(t) => push_leaf(out, path, from_json_text(t), stamp, unit),
        leaf => push_leaf(out, path, leaf, stamp, unit),
    }
}

/// A JSON text that spells a boolean, a number or "no value" means it, as in a plain payload;
/// a number with leading zeros is more likely an article number and stays a text.
fn from_json_text(text: String) -> Node {
    let digits = text.strip_prefix('-').unwrap_or(&text);
    let coded = digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.");
    match text::word(text.trim()) {
        Some(node) => node,
        None if text::looks_numeric(&text) && !coded => text::read(&text),
        None => Node::Text(text),
    }
}

/// Keeps one leaf, counts it as missing, or rejects it by name.
pub(super) fn push_leaf(out: &mut Decoded, metric: String, leaf: Node, stamp: Stamp, unit: Option<String>) {
    let mut inexact = false;
    let value = match leaf {
        Node::Null => {
            out.missing += 1;
            return;
        }
        Node::Bool(b) => Ok(Value::Bool(b)),
        Node::Number(n) => Ok(Value::Number(n)),
        Node::Integer(n) => {
            inexact = n as f64 as i128 != n;
            Ok(Value::Number(n as f64))
        }
        Node::Huge(n) => {
            inexact = true;
            Ok(Value::Number(n))
        }
        Node::NotFinite(text) => Err((Reason::NotFinite, format!("{text} is beyond the finite 64-bit numbers"))),
        Node::Text(text) if text.len() > TEXT_BYTES_MAX => {
            Err((Reason::TooLarge, format!("a state text of {} bytes, the limit is {TEXT_BYTES_MAX}", text.len())))
        }
        Node::Text(text) if text.chars().any(char::is_control) => {
            Err((Reason::Malformed, "a state text with control characters".into()))
        }
        Node::Text(text) => Ok(Value::Text(text.into())),
        Node::Unsupported(kind) => Err((Reason::Unsupported, format!("{kind} is no reading"))),
        Node::Array(_) | Node::Object(_) => Err((Reason::Unsupported, "a structure is no reading".into())),
    };
    match (value, check_name(&metric)) {
        (_, Err(e)) => out.rejects.push(Reject::leaf(Reason::BadName, printable(&metric), format!("metric {e}"))),
        (Err((reason, detail)), _) => out.rejects.push(Reject::leaf(reason, metric, detail)),
        (Ok(value), Ok(())) => out.readings.push(Reading { device: None, metric, value, stamp, unit, inexact }),
    }
}

fn printable(name: &str) -> String {
    name.chars().take(64).flat_map(char::escape_default).collect()
}
