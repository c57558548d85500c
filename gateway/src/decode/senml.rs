//! SenML packs (RFC 8428), from JSON or CBOR trees.
//!
//! Base fields hold from the record that sets them on (section 4.1). A time below 2^28 is
//! relative to the arrival (section 4.5.3). A field ending in `_` must be understood (4.4),
//! and a `bver` above 10 is refused. Who the reading is of: the address decides where it names
//! a device; else a URN of a device (RFC 9039) does, and else the name up to its last `:` or `/`. A name that
//! is a device and nothing else has the metric `value`; a name with several units in one pack (section 5.1.3)
//! is a series for each, told apart by the tag `unit`.

use super::{Leaf, Named, Node, Reason, Reject, Sink, Stamp, Target, UNIT_BYTES_MAX, keep, printable};
use model::identity::NAME_BYTES_MAX;
use model::tags::push_tag;
use model::time::{self, SECOND_US};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

const LABELS: [(&str, &str); 15] = [
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
    ("7", "ut"),
    ("8", "vd"),
];
const VALUES: [&str; 5] = ["v", "vs", "vb", "vd", "s"];
const BASES: [&str; 6] = ["bver", "bn", "bt", "bu", "bv", "bs"];
const VERSION_MAX: f64 = 10.0;
const RELATIVE_BELOW_S: f64 = 268_435_456.0;
/// The metric of a name that is a device and nothing else.
const BARE: &str = "value";

/// True for an array whose first record has a base name or a name beside a value, and for one whose records
/// have nothing but SenML's fields, a name or a base field among them.
pub(super) fn looks_like(tree: &Node) -> bool {
    let Node::Array(records) = tree else { return false };
    let Some(Node::Object(first)) = records.first() else { return false };
    let has = |name: &str| first.iter().any(|(key, _)| label(key) == name);
    let named = |name: &str| first.iter().any(|(key, node)| label(key) == name && node.as_text().is_some());
    if named("bn") || (named("n") && VALUES.iter().any(|value| has(value))) {
        return true;
    }
    let is_ours = |key: &str| LABELS.iter().any(|(_, name)| *name == label(key)) || key.ends_with('_');
    let fields = || records.iter().filter_map(|record| if let Node::Object(f) = record { Some(f) } else { None });
    let tells = |(key, node): &(String, Node)| match label(key) {
        "n" => node.as_text().is_some(),
        key => BASES.contains(&key),
    };
    let all_ours = fields().count() == records.len() && fields().flatten().all(|(key, _)| is_ours(key));
    all_ours && fields().flatten().any(tells)
}

fn label(key: &str) -> &str {
    LABELS.iter().find(|(number, _)| *number == key).map_or(key, |(_, name)| name)
}

/// The field of a record, by its name or its number.
fn get<'r>(record: &'r [(String, Node)], name: &str) -> Option<&'r Node> {
    record.iter().find(|(key, _)| label(key) == name).map(|(_, node)| node)
}

#[derive(Clone, Copy, Default)]
struct Base<'p> {
    name: &'p str,
    time_s: f64,
    unit: Option<&'p str>,
    value: Option<f64>,
    sum: Option<f64>,
}

impl<'p> Base<'p> {
    fn take(&mut self, fields: &'p [(String, Node)]) -> Result<(), (Reason, String)> {
        for (key, node) in fields {
            let wrong = || (Reason::Malformed, format!("field {} has the wrong type", printable(key)));
            match label(key) {
                "bn" => {
                    self.name = node.as_text().ok_or_else(wrong)?;
                    if self.name.len() > NAME_BYTES_MAX {
                        return Err((Reason::BadName, format!("bn has more than {NAME_BYTES_MAX} bytes")));
                    }
                }
                "bt" => self.time_s = node.as_number().ok_or_else(wrong)?,
                "bu" => self.unit = Some(node.as_text().ok_or_else(wrong)?),
                "bv" => self.value = Some(node.as_number().ok_or_else(wrong)?),
                "bs" => self.sum = Some(node.as_number().ok_or_else(wrong)?),
                "bver" if node.as_number().ok_or_else(wrong)? > VERSION_MAX => {
                    return Err((Reason::SenmlUnknown, "bver is above 10, the version of RFC 8428".into()));
                }
                other if other.ends_with('_') => {
                    let detail = format!("field {} must be understood, and is not", printable(other));
                    return Err((Reason::SenmlUnknown, detail));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The unit of a record's number.
    fn unit_of(&self, record: &'p [(String, Node)]) -> Option<&'p str> {
        let is_number = get(record, "vb").or(get(record, "vs")).is_none();
        get(record, "u").and_then(Node::as_text).or(self.unit.filter(|_| is_number))
    }
}

/// Decodes a pack.
pub(super) fn decode(target: Target<'_>, tree: &Node, sink: &mut dyn Sink) {
    let Node::Array(records) = tree else {
        return sink.reject(Reject::whole(Reason::Malformed, "a SenML pack is an array of records"));
    };
    let names_differ = base_names_differ(records);
    let ambiguous = several_units(records);
    let mut base = Base::default();
    for (i, record) in records.iter().enumerate() {
        sink.element(i);
        let Node::Object(fields) = record else {
            sink.reject(Reject::leaf(Reason::Malformed, i.to_string(), "a SenML record is an object"));
            continue;
        };
        if let Err((reason, detail)) = base.take(fields) {
            // What cannot be understood may change the meaning of all that follows.
            return sink.reject(Reject::leaf(
                reason,
                i.to_string(),
                format!("{detail}; the records from here on are left out"),
            ));
        }
        one(target, names_differ, &ambiguous, &base, fields, i, sink);
    }
}

fn base_names_differ(records: &[Node]) -> bool {
    let name = |record: &Node| record.get("bn").or(record.get("-2")).and_then(Node::as_text).map(str::to_owned);
    let mut names = records.iter().filter_map(name);
    let first = names.next();
    names.any(|name| Some(name) != first)
}

/// The names that have more than one unit in this pack.
fn several_units(records: &[Node]) -> BTreeSet<String> {
    let mut base = Base::default();
    let mut units: BTreeMap<String, &str> = BTreeMap::new();
    let mut several = BTreeSet::new();
    for record in records {
        let Node::Object(fields) = record else { continue };
        if base.take(fields).is_err() {
            break;
        }
        let own = get(fields, "n").and_then(Node::as_text).unwrap_or_default();
        // One that is longer is left out anyway: comparing it for every record would only cost.
        if let Some(unit) = base.unit_of(fields).filter(|unit| unit.len() <= UNIT_BYTES_MAX)
            && own.len() <= NAME_BYTES_MAX
        {
            let name = format!("{}{own}", base.name);
            match units.get(&name) {
                Some(known) if *known != unit => drop(several.insert(name)),
                Some(_) => {}
                None => drop(units.insert(name, unit)),
            }
        }
    }
    several
}

fn one(
    target: Target<'_>,
    names_differ: bool,
    ambiguous: &BTreeSet<String>,
    base: &Base<'_>,
    record: &[(String, Node)],
    i: usize,
    sink: &mut dyn Sink,
) {
    let has_value = VALUES.iter().any(|value| get(record, value).is_some());
    let only_base = record.iter().all(|(key, _)| BASES.contains(&label(key)));
    if !has_value && (only_base || (base.value.is_none() && base.sum.is_none())) {
        return;
    }
    let own = get(record, "n").and_then(Node::as_text).unwrap_or_default();
    let full = format!("{}{own}", base.name);
    let Some((device, mut metric)) = name(target, names_differ, base.name, own, &full) else {
        let detail = "the record has no name: give n or bn, or address a device and metric";
        return sink.reject(Reject::leaf(Reason::BadName, i.to_string(), detail));
    };
    let stamp = match stamp(base.time_s, get(record, "t")) {
        Ok(stamp) => stamp,
        Err(detail) => {
            let detail = format!("{detail}; the reading counts as taken when it arrived");
            sink.reject(Reject::kept(Reason::BadTime, format!("{i}.t"), detail));
            Stamp::None
        }
    };
    let unit = base.unit_of(record);
    if let Some(unit) = unit
        && unit.len() <= UNIT_BYTES_MAX
        && ambiguous.contains(&full)
    {
        push_tag(metric.to_mut(), "unit", unit);
    }
    if let Some(leaf) = value(base, record) {
        keep(Named { device, metric: &metric }, leaf, stamp, unit, sink);
    }
    let own_sum = get(record, "s");
    if own_sum.is_some() || (!has_value && base.sum.is_some()) {
        let sum = plus(base.sum, own_sum.unwrap_or(&Node::Integer(0)));
        let (name, tags) = metric.split_at(model::tags::base(&metric).len());
        keep(Named { device, metric: &format!("{name}.sum{tags}") }, sum, stamp, None, sink);
    }
}

/// Device (where the address names none) and metric.
fn name<'n>(
    target: Target<'n>,
    names_differ: bool,
    base: &'n str,
    own: &'n str,
    full: &'n str,
) -> Option<(Option<&'n str>, Cow<'n, str>)> {
    const SEPARATORS: [char; 5] = [':', '/', '.', '-', '_'];
    let pick = |text: &'n str| (!text.is_empty()).then_some(text);
    let cut = full.rfind([':', '/']);
    match (target.device, target.metric) {
        (_, Some(metric)) if own.is_empty() || own == metric => Some((None, metric.into())),
        (_, Some(metric)) => Some((None, format!("{metric}.{own}").into())),
        (Some(_), None) if names_differ => Some((None, pick(full)?.into())),
        (Some(_), None) if own.is_empty() && urn_of_device(full).is_some_and(|(_, rest)| rest.is_empty()) => {
            Some((None, BARE.into()))
        }
        (Some(_), None) => Some((None, pick(own).or_else(|| pick(&full[cut.map_or(0, |at| at + 1)..]))?.into())),
        (None, None) if !own.is_empty() && base.ends_with(SEPARATORS) => {
            Some((Some(pick(base.trim_end_matches(SEPARATORS))?), own.into()))
        }
        (None, None) => match urn_of_device(full) {
            Some((device, "")) => Some((Some(device), BARE.into())),
            Some((device, metric)) => Some((Some(device), metric.into())),
            None if !base.is_empty() && !own.is_empty() => Some((Some(base), own.into())),
            None => Some((Some(pick(&full[..cut?])?), pick(&full[cut? + 1..])?.into())),
        },
    }
}

/// The device that a URN names (`urn:dev:ow:10e2073a01080063`, RFC 9039; `urn:uuid:...`), and what follows it.
fn urn_of_device(name: &str) -> Option<(&str, &str)> {
    let begins = |prefix: &str| name.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix));
    let id = if begins("urn:uuid:") {
        "urn:uuid:".len()
    } else if begins("urn:dev:") {
        let kind = "urn:dev:".len();
        kind + name[kind..].find(':')? + 1
    } else {
        return None;
    };
    let end = name[id..].find([':', '/', '_']).map_or(name.len(), |at| id + at);
    (end > id).then(|| (&name[..end], name.get(end + 1..).unwrap_or_default()))
}

fn value<'r>(base: &Base<'_>, record: &'r [(String, Node)]) -> Option<Leaf<'r>> {
    if let Some(v) = get(record, "v") {
        return Some(plus(base.value, v));
    }
    if let Some(text) = get(record, "vs") {
        return Some(match text {
            Node::Text(_) | Node::Null => text.leaf(),
            _ => Leaf::Unsupported("a SenML vs that is not a text"),
        });
    }
    if get(record, "vd").is_some() {
        return Some(Leaf::Unsupported("a SenML data value (vd)"));
    }
    match get(record, "vb") {
        Some(Node::Bool(b)) => Some(Leaf::Bool(*b)),
        Some(_) => Some(Leaf::Unsupported("a SenML vb that is not a boolean")),
        None if get(record, "s").is_none() => base.value.map(Leaf::Number),
        None => None,
    }
}

fn plus<'r>(base: Option<f64>, node: &'r Node) -> Leaf<'r> {
    match (base, node.as_number(), node) {
        (Some(base), Some(n), _) if (base + n).is_finite() => Leaf::Number(base + n),
        (Some(_), Some(_), _) => Leaf::NotFinite("base plus value"),
        (_, _, Node::Text(_) | Node::Bool(_)) => Leaf::Unsupported("a SenML v that is not a number"),
        (_, _, other) => other.leaf(),
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
