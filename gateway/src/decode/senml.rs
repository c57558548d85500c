//! SenML packs (RFC 8428), from JSON or CBOR trees.
//!
//! Base fields hold from the record that sets them on (section 4.1). A time below 2^28 is
//! relative to the arrival (section 4.5.3). A field ending in `_` must be understood (4.4),
//! and a `bver` above 10 is refused. Who the reading is of: the address decides where it names
//! a device; else the name up to its last `:` or `/` is the device.

use super::object::push_leaf;
use super::text::is_missing;
use super::{Decoded, Node, Reason, Reject, Stamp, Target};
use model::identity::NAME_BYTES_MAX;
use model::time::{self, SECOND_US};

const LABELS: [(&str, &str); 14] = [
    ("-1", "bver"),
    ("-2", "bn"),
    ("-3", "bt"),
    ("-4", "bu"),
    ("-5", "bv"),
    ("-6", "bs"),
    ("0", "n"),
    ("1", "u"),
    ("2", "v"),
    ("3", "vs"),
    ("4", "vb"),
    ("5", "s"),
    ("6", "t"),
    ("8", "vd"),
];
const VALUES: [&str; 5] = ["v", "vs", "vb", "vd", "s"];
const VERSION_MAX: f64 = 10.0;
const RELATIVE_BELOW_S: f64 = 268_435_456.0;

/// True for an array whose first record has a base name, or a name beside a value.
pub(super) fn looks_like(tree: &Node) -> bool {
    let Node::Array(records) = tree else { return false };
    let Some(Node::Object(first)) = records.first() else { return false };
    let has = |name: &str| first.iter().any(|(key, _)| label(key) == name);
    let named = |name: &str| first.iter().any(|(key, node)| label(key) == name && node.as_text().is_some());
    named("bn") || (named("n") && VALUES.iter().any(|value| has(value)))
}

fn label(key: &str) -> &str {
    LABELS.iter().find(|(number, _)| *number == key).map_or(key, |(_, name)| name)
}

#[derive(Default)]
struct Base {
    name: String,
    time_s: f64,
    unit: Option<String>,
    value: Option<f64>,
    sum: Option<f64>,
}

/// Decodes a pack.
pub(super) fn decode(target: Target<'_>, tree: Node, out: &mut Decoded) {
    let Node::Array(records) = tree else {
        out.rejects.push(Reject::whole(Reason::Malformed, "a SenML pack is an array of records"));
        return;
    };
    let names_differ = base_names_differ(&records);
    let mut base = Base::default();
    for (i, record) in records.into_iter().enumerate() {
        let Node::Object(mut fields) = record else {
            out.rejects.push(Reject::leaf(Reason::Malformed, i.to_string(), "a SenML record is an object"));
            continue;
        };
        for (key, _) in &mut fields {
            *key = label(key).to_owned();
        }
        if let Err((reason, detail)) = take_base(&fields, &mut base) {
            out.rejects.push(Reject::leaf(reason, i.to_string(), detail));
            // What cannot be understood may change the meaning of all that follows.
            return;
        }
        one(target, names_differ, &base, &Node::Object(fields), i, out);
    }
}

fn base_names_differ(records: &[Node]) -> bool {
    let name = |record: &Node| record.get("bn").or(record.get("-2")).and_then(Node::as_text).map(str::to_owned);
    let mut names = records.iter().filter_map(name);
    let first = names.next();
    names.any(|name| Some(name) != first)
}

fn take_base(fields: &[(String, Node)], base: &mut Base) -> Result<(), (Reason, String)> {
    for (key, node) in fields {
        let wrong = || (Reason::Malformed, format!("field {key} has the wrong type"));
        match key.as_str() {
            "bn" => {
                base.name = node.as_text().ok_or_else(wrong)?.to_owned();
                if base.name.len() > NAME_BYTES_MAX {
                    return Err((Reason::BadName, format!("bn has more than {NAME_BYTES_MAX} bytes")));
                }
            }
            "bt" => base.time_s = node.as_number().ok_or_else(wrong)?,
            "bu" => base.unit = Some(node.as_text().ok_or_else(wrong)?.to_owned()),
            "bv" => base.value = Some(node.as_number().ok_or_else(wrong)?),
            "bs" => base.sum = Some(node.as_number().ok_or_else(wrong)?),
            "bver" if node.as_number().ok_or_else(wrong)? > VERSION_MAX => {
                return Err((Reason::SenmlUnknown, "bver is above 10, the version of RFC 8428".into()));
            }
            other if other.ends_with('_') => {
                return Err((Reason::SenmlUnknown, format!("field {other} must be understood, and is not")));
            }
            _ => {}
        }
    }
    Ok(())
}

fn one(target: Target<'_>, names_differ: bool, base: &Base, record: &Node, i: usize, out: &mut Decoded) {
    let has_value = VALUES.iter().any(|value| record.get(value).is_some());
    if !has_value && base.value.is_none() {
        return; // a record of base fields alone
    }
    let own = record.get("n").and_then(Node::as_text).unwrap_or_default();
    let Some((device, metric)) = name(target, names_differ, &base.name, own) else {
        let detail = "the record has no name: give n or bn, or address a device and metric";
        out.rejects.push(Reject::leaf(Reason::BadName, i.to_string(), detail));
        return;
    };
    let stamp = match stamp(base.time_s, record.get("t")) {
        Ok(stamp) => stamp,
        Err(detail) => {
            out.rejects.push(Reject::leaf(Reason::BadTime, format!("{i}.t"), detail));
            Stamp::None
        }
    };
    let is_number = record.get("vb").or(record.get("vs")).is_none();
    let base_unit = base.unit.clone().filter(|_| is_number);
    let unit = record.get("u").and_then(Node::as_text).map(str::to_owned).or(base_unit);
    let before = out.readings.len();
    if let Some(node) = value(base, record) {
        push_leaf(out, metric.clone(), node, stamp, unit);
    }
    if let Some(sum) = record.get("s") {
        push_leaf(out, format!("{metric}.sum"), plus(base.sum, sum), stamp, None);
    }
    for reading in &mut out.readings[before..] {
        reading.device.clone_from(&device);
    }
}

/// Device (where the address names none) and metric.
fn name(target: Target<'_>, names_differ: bool, base: &str, own: &str) -> Option<(Option<String>, String)> {
    let full = format!("{base}{own}");
    let cut = full.rfind([':', '/']);
    let tail = &full[cut.map_or(0, |at| at + 1)..];
    let pick = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    match (target.device, target.metric) {
        (_, Some(metric)) if own.is_empty() || own == metric => Some((None, metric.to_owned())),
        (_, Some(metric)) => Some((None, format!("{metric}.{own}"))),
        (Some(_), None) if names_differ => Some((None, pick(&full)?)),
        (Some(_), None) => Some((None, pick(own).or_else(|| pick(tail))?)),
        (None, None) if !base.is_empty() && !own.is_empty() => {
            Some((Some(pick(base.trim_end_matches([':', '/', '.', '-', '_']))?), own.to_owned()))
        }
        (None, None) => Some((Some(pick(&full[..cut?])?), pick(tail)?)),
    }
}

fn value(base: &Base, record: &Node) -> Option<Node> {
    if let Some(v) = record.get("v") {
        return Some(plus(base.value, v));
    }
    if let Some(text) = record.get("vs") {
        return Some(match text {
            Node::Text(word) if is_missing(word) => Node::Null,
            other => other.clone(),
        });
    }
    if record.get("vd").is_some() {
        return Some(Node::Unsupported("a SenML data value (vd)"));
    }
    match record.get("vb") {
        Some(b) => Some(b.clone()),
        None if record.get("s").is_none() => base.value.map(Node::Number),
        None => None,
    }
}

fn plus(base: Option<f64>, node: &Node) -> Node {
    match (base, node.as_number(), node) {
        (Some(base), Some(n), _) if (base + n).is_finite() => Node::Number(base + n),
        (Some(_), Some(_), _) => Node::NotFinite("base plus value".into()),
        (_, _, Node::Text(_) | Node::Bool(_)) => Node::Unsupported("a SenML v that is not a number"),
        (_, _, other) => other.clone(),
    }
}

fn stamp(base_s: f64, own: Option<&Node>) -> Result<Stamp, String> {
    let own_s = match own {
        Some(node) => node.as_number().ok_or("a SenML time is a number of seconds")?,
        None => 0.0,
    };
    let seconds = base_s + own_s;
    if seconds == 0.0 {
        Ok(Stamp::None)
    } else if seconds < RELATIVE_BELOW_S {
        Ok(Stamp::Relative((seconds * SECOND_US as f64).max(time::FIRST_US as f64) as i64))
    } else if seconds < 1e11 {
        time::from_epoch(seconds).map(Stamp::At).map_err(|e| e.to_string())
    } else {
        Err(format!("time {seconds} is beyond year 5138"))
    }
}
