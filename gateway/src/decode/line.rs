//! InfluxDB line protocol, so that Telegraf and its like can send here.
//!
//! `measurement,tag=value field=1.5,other="text" 1465839830100400200`. The device is the tag
//! `device`, else `host`, else the measurement; the metric is the field, joined to the
//! measurement by a `.` where the measurement is not the device. Source: the InfluxDB 2
//! reference, "Line protocol".

use super::object::push_leaf;
use super::text::{TEXT_BYTES_MAX, is_missing};
use super::{Decoded, Node, Reason, Reject, Stamp};
use model::Micros;
use std::str::FromStr;

/// The unit of the stamps of a request, its `precision`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Millis,
    /// Microseconds.
    Micros,
    /// Nanoseconds, the default.
    #[default]
    Nanos,
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "s" => Ok(Precision::Seconds),
            "ms" => Ok(Precision::Millis),
            "us" | "u" => Ok(Precision::Micros),
            "ns" | "n" => Ok(Precision::Nanos),
            other => Err(format!("{other:?} is not ns, us, ms or s")),
        }
    }
}

impl Precision {
    fn micros(self, n: i64) -> Option<Micros> {
        match self {
            Precision::Seconds => n.checked_mul(1_000_000),
            Precision::Millis => n.checked_mul(1_000),
            Precision::Micros => Some(n),
            Precision::Nanos => Some(n.div_euclid(1_000)),
        }
        .filter(|us| (model::time::FIRST_US..=model::time::LAST_US).contains(us))
    }
}

/// Decodes a body of lines; a bad line is a reject that names its number, from 1.
pub fn decode(body: &str, precision: Precision) -> Decoded {
    let mut out = Decoded::default();
    for (i, line) in body.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Err(detail) = one(line, precision, &mut out) {
            out.rejects.push(Reject::leaf(Reason::Malformed, format!("line {}", i + 1), detail));
        }
    }
    out
}

fn one(line: &str, precision: Precision, out: &mut Decoded) -> Result<(), String> {
    let parts = split(line, ' ');
    let (head, fields, stamp) = match parts.as_slice() {
        [head, fields] => (head, fields, Stamp::None),
        [head, fields, stamp] => (head, fields, read_stamp(stamp, precision)?),
        _ => return Err("a line is: measurement[,tags] fields [time]".into()),
    };
    let mut names = split(head, ',').into_iter();
    let measurement = unescape(names.next().unwrap_or_default());
    let tags: Vec<(String, String)> = names.map(pair).collect::<Result<_, _>>()?;
    let tag = |name: &str| tags.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let device = tag("device").or_else(|| tag("host"));
    for field in split(fields, ',') {
        let (key, node) = match pair(field).and_then(|(key, value)| Ok((key, read_value(&value, field)?))) {
            Ok(read) => read,
            Err(detail) => {
                out.rejects.push(Reject::leaf(Reason::Malformed, format!("{measurement} {field}"), detail));
                continue;
            }
        };
        let metric = match &device {
            Some(_) => format!("{measurement}.{key}"),
            None => key,
        };
        let before = out.readings.len();
        push_leaf(out, metric, node, stamp, None);
        for reading in &mut out.readings[before..] {
            reading.device = Some(device.clone().unwrap_or_else(|| measurement.clone()));
        }
    }
    Ok(())
}

fn read_stamp(text: &str, precision: Precision) -> Result<Stamp, String> {
    let number: i64 = text.parse().map_err(|_| format!("time {text:?} is not a whole number"))?;
    precision.micros(number).map(Stamp::At).ok_or_else(|| format!("time {text} is out of range"))
}

fn read_value(value: &str, field: &str) -> Result<Node, String> {
    let bad = || format!("field {field:?} has no readable value");
    if let Some(text) = value.strip_prefix('"') {
        let text = text.strip_suffix('"').ok_or_else(bad)?;
        let text = text.replace("\\\"", "\"").replace("\\\\", "\\");
        if is_missing(&text) {
            return Ok(Node::Null);
        }
        return if text.len() > TEXT_BYTES_MAX {
            Err(format!("text of {} bytes", text.len()))
        } else {
            Ok(Node::Text(text))
        };
    }
    match value {
        "t" | "T" | "true" | "True" | "TRUE" => return Ok(Node::Bool(true)),
        "f" | "F" | "false" | "False" | "FALSE" => return Ok(Node::Bool(false)),
        _ => {}
    }
    if let Some(integer) = value.strip_suffix(['i', 'u']) {
        return integer.parse().map(Node::Integer).map_err(|_| bad());
    }
    match value.parse::<f64>() {
        Ok(n) if n.is_finite() => Ok(Node::Number(n)),
        Ok(n) if n.is_nan() => Ok(Node::Null),
        Ok(_) => Ok(Node::NotFinite(value.into())),
        Err(_) => Err(bad()),
    }
}

/// Splits at `at` outside quotes and not behind a backslash; runs of it count as one.
fn split(text: &str, at: char) -> Vec<&str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            c if c == at && !quoted => {
                if start < i {
                    parts.push(&text[start..i]);
                }
                start = i + 1;
            }
            _ => {}
        }
    }
    if start < text.len() {
        parts.push(&text[start..]);
    }
    parts
}

fn pair(text: &str) -> Result<(String, String), String> {
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '=' => {
                let value = &text[i + 1..];
                let value = if value.starts_with('"') { value.to_owned() } else { unescape(value) };
                return Ok((unescape(&text[..i]), value));
            }
            _ => {}
        }
    }
    Err(format!("{text:?} is not key=value"))
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(&next @ (',' | ' ' | '='))) => {
                out.push(next);
                chars.next();
            }
            _ => out.push(c),
        }
    }
    out
}
