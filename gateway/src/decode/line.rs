//! InfluxDB line protocol, so that Telegraf and its like can send here.
//!
//! `measurement,tag=value field=1.5,other="text" 1465839830100400200`. A series is the measurement, all tags and
//! the field: the first of `influx.device_tags` that is there names the device, else the measurement does; the
//! metric is measurement, field and the other tags ([`model::tags`]). Always holds: nothing is kept of a line
//! but what is read right now, so that memory does not grow with its fields or tags. Source: the InfluxDB 2
//! reference, "Line protocol"; where it is silent, what InfluxDB's own parser does.

use super::{Leaf, Named, Reason, Reject, Sink, Stamp, keep, printable, text};
use jiff::tz::TimeZone;
use model::Micros;
use model::identity::NAME_BYTES_MAX;
use model::tags::{push_name, push_tag};
use model::time::{self, FIRST_US, LAST_US};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::str::FromStr;

/// The unit of the stamps of a request, its `precision`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Precision {
    /// Told by the magnitude, which is nanoseconds for what real clocks give in nanoseconds: the default.
    #[default]
    Auto,
    /// Hours.
    Hours,
    /// Minutes.
    Minutes,
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Millis,
    /// Microseconds.
    Micros,
    /// Nanoseconds.
    Nanos,
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" | "auto" => Ok(Precision::Auto),
            "h" => Ok(Precision::Hours),
            "m" => Ok(Precision::Minutes),
            "s" | "second" => Ok(Precision::Seconds),
            "ms" | "millisecond" => Ok(Precision::Millis),
            "us" | "u" | "µ" | "microsecond" => Ok(Precision::Micros),
            "ns" | "n" | "nanosecond" => Ok(Precision::Nanos),
            other => Err(format!("{other:?} is not auto, ns, us, ms, s, m or h")),
        }
    }
}

impl Precision {
    fn micros(self, n: i64) -> Option<Micros> {
        match self {
            Precision::Auto => time::from_digits(n, &TimeZone::UTC).ok().map(|(us, _)| us),
            Precision::Hours => n.checked_mul(3_600_000_000),
            Precision::Minutes => n.checked_mul(60_000_000),
            Precision::Seconds => n.checked_mul(1_000_000),
            Precision::Millis => n.checked_mul(1_000),
            Precision::Micros => Some(n),
            Precision::Nanos => Some(n.div_euclid(1_000)),
        }
        .filter(|us| (FIRST_US..=LAST_US).contains(us))
    }
}

/// How lines are read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dialect<'a> {
    /// The unit of stamps.
    pub precision: Precision,
    /// The tags that may name the device; the first that is there does.
    pub device_tags: &'a [String],
}

/// A body on its way through [`Lines::next`].
#[derive(Debug)]
pub(crate) struct Lines<'b> {
    rest: &'b [u8],
    number: usize,
}

/// The most fields of a line: what they come to is in memory at once.
const FIELDS_MAX: usize = 20_000;
/// The most tags that a line may have: with as many, no name is short enough any more.
const TAGS_MAX: usize = 128;

impl<'b> Lines<'b> {
    /// The lines of a body.
    pub(crate) fn new(body: &'b [u8]) -> Self {
        Lines { rest: text::clean(body), number: 0 }
    }

    /// Decodes the next line; false behind the last. A bad line is a reject that names its number, from 1, and
    /// ends at its first line break.
    pub(crate) fn next(&mut self, dialect: Dialect<'_>, sink: &mut dyn Sink) -> bool {
        if self.rest.is_empty() {
            return false;
        }
        let first_end = self.rest.iter().position(|&b| b == b'\n').unwrap_or(self.rest.len());
        let number = self.number + 1;
        sink.element(number);
        let begun = self.rest[..first_end].trim_ascii_start();
        let length = if begun.is_empty() || begun.starts_with(b"#") {
            first_end
        } else {
            self.line(first_end, dialect, sink).unwrap_or_else(|detail| {
                sink.reject(Reject::leaf(Reason::Malformed, format!("line {number}"), detail));
                first_end
            })
        };
        self.number += 1 + self.rest[..length].iter().filter(|&&b| b == b'\n').count();
        self.rest = self.rest.get(length + 1..).unwrap_or_default();
        true
    }

    /// The length of the line that was read, without its break.
    fn line(&self, first_end: usize, dialect: Dialect<'_>, sink: &mut dyn Sink) -> Result<usize, String> {
        // Only a text may hold a line break, and only a text may hold a quote: the common line ends at its first.
        let has_text = self.rest[..first_end].contains(&b'"');
        let bytes = if has_text { self.rest } else { &self.rest[..first_end] };
        let shape = Shape::read(bytes)?;
        let text = |part: &'b [u8]| std::str::from_utf8(part).map_err(|_| "it is not UTF-8".to_owned());
        one(text(shape.head)?, text(shape.fields)?, text(shape.stamp)?, dialect, sink)?;
        Ok(shape.length)
    }
}

/// A line by its separators.
struct Shape<'l> {
    head: &'l [u8],
    fields: &'l [u8],
    stamp: &'l [u8],
    length: usize,
}

impl<'l> Shape<'l> {
    fn read(bytes: &'l [u8]) -> Result<Self, String> {
        const WANTED: &str = "a line is: measurement[,tags] fields [time]";
        let begin = bytes.iter().take_while(|b| b.is_ascii_whitespace()).count();
        let head_end = end_of_head(bytes, begin);
        let fields_begin = head_end + bytes[head_end..].iter().take_while(|&&b| b == b' ').count();
        let fields_end =
            end_of_fields(bytes, fields_begin).ok_or("a text has no closing quote, or something follows it")?;
        let line_end = bytes[fields_end..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |at| fields_end + at);
        let stamp = bytes[fields_end..line_end].trim_ascii();
        let fields = bytes[fields_begin..fields_end].trim_ascii_end();
        if fields.iter().filter(|&&byte| byte == b',').count() >= FIELDS_MAX {
            return Err(format!("more than {FIELDS_MAX} fields"));
        }
        if head_end == begin || fields.is_empty() || stamp.contains(&b' ') {
            return Err(WANTED.into());
        }
        Ok(Shape { head: &bytes[begin..head_end], fields, stamp, length: line_end })
    }
}

/// Where the first space stands that no backslash escapes.
fn end_of_head(bytes: &[u8], mut at: usize) -> usize {
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b' ' | b'\n' => return at,
            b'\\' if matches!(bytes.get(at + 1), Some(b' ' | b',' | b'=')) => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Where the fields end: at a space outside of texts. A quote begins a text only behind `=`.
fn end_of_fields(bytes: &[u8], mut at: usize) -> Option<usize> {
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b' ' | b'\n' => return Some(at),
            b'\\' if matches!(bytes.get(at + 1), Some(b' ' | b',' | b'=' | b'"')) => at += 2,
            b'=' if bytes.get(at + 1) == Some(&b'"') => {
                at = end_of_text(bytes, at + 1)?;
                if !matches!(bytes.get(at), None | Some(b',' | b' ' | b'\r' | b'\n')) {
                    return None;
                }
            }
            _ => at += 1,
        }
    }
    Some(bytes.len())
}

/// Behind the quote that closes the text which begins at `at`.
fn end_of_text(bytes: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    None
}

/// What a backslash escapes in measurements and names of fields, and what in tags: InfluxDB's parser in Go differs there.
const NAME: [char; 4] = [',', ' ', '=', '"'];
const TAG: [char; 3] = [',', ' ', '='];

type Tags<'l> = SmallVec<[(Cow<'l, str>, Cow<'l, str>); 8]>;

fn one(head: &str, fields: &str, stamp: &str, dialect: Dialect<'_>, sink: &mut dyn Sink) -> Result<(), String> {
    let stamp = read_stamp(stamp, dialect.precision)?;
    let (measurement, tags) = read_head(head)?;
    let by = dialect.device_tags.iter().find(|name| tags.iter().any(|(key, _)| key == name.as_str()));
    let device = by.and_then(|name| tags.iter().find(|(key, _)| key == name.as_str())).map(|(_, value)| &**value);
    let mut metric = String::new();
    if device.is_some() {
        push_name(&mut metric, &measurement, true);
        metric.push('.');
    }
    let mut suffix = String::new();
    for (key, value) in tags.iter().filter(|(key, _)| Some(&**key) != by.map(String::as_str)) {
        push_tag(&mut suffix, key, value);
    }
    let (length, around) = (metric.len(), metric.len() + suffix.len());
    if around > NAME_BYTES_MAX {
        // No field is short enough: said once, before any name is built.
        return Err(format!("measurement and tags have {around} bytes, a metric's name at most {NAME_BYTES_MAX}"));
    }
    let device = device.unwrap_or(&measurement);
    let mut rest = fields;
    while !rest.is_empty() {
        let (key, value, behind) = match field(rest) {
            Ok(read) => read,
            Err((bad, behind)) => {
                let detail = "a field is key=value";
                sink.reject(Reject::leaf(Reason::Malformed, printable(&format!("{measurement} {bad}")), detail));
                rest = behind;
                continue;
            }
        };
        rest = behind;
        metric.truncate(length);
        // Without a device's tag the measurement is not in the name, and a `.` in the field's does not end it.
        push_name(&mut metric, &unescape(key, &NAME), by.is_none());
        metric.push_str(&suffix);
        let mut spare = String::new();
        match read_value(value, &mut spare) {
            Some(leaf) => keep(Named { device: Some(device), metric: &metric }, leaf, stamp, None, sink),
            None => {
                let leaf = printable(&format!("{measurement} {key}={value}"));
                sink.reject(Reject::leaf(Reason::Malformed, leaf, "the field has no readable value"));
            }
        }
    }
    Ok(())
}

fn read_head(head: &str) -> Result<(Cow<'_, str>, Tags<'_>), String> {
    let (measurement, mut rest) = cut(head, b',');
    let mut tags = Tags::new();
    while let Some(more) = rest {
        let (tag, behind) = cut(more, b',');
        rest = behind;
        let (key, value) = match cut(tag, b'=') {
            // An `=` in a value has to be escaped: else a comma before it was escaped by mistake.
            (key, Some(value)) if !key.is_empty() && !value.is_empty() && cut(value, b'=').1.is_none() => {
                (unescape(key, &TAG), unescape(value, &TAG))
            }
            _ => return Err(format!("tag {:?} is not key=value", printable(tag))),
        };
        if tags.len() == TAGS_MAX {
            return Err(format!("more than {TAGS_MAX} tags"));
        }
        tags.push((key, value));
    }
    tags.sort();
    if let Some(pair) = tags.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(format!("tag {:?} is there twice", printable(&pair[0].0)));
    }
    if measurement.is_empty() {
        return Err("the measurement is missing".into());
    }
    Ok((unescape(measurement, &NAME), tags))
}

/// The text before a separator that no backslash escapes, and the text behind it, if it is there.
fn cut(text: &str, separator: u8) -> (&str, Option<&str>) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' if matches!(bytes.get(at + 1), Some(b' ' | b',' | b'=')) => at += 2,
            byte if byte == separator => return (&text[..at], Some(&text[at + 1..])),
            _ => at += 1,
        }
    }
    (text, None)
}

/// Key, value and what follows the comma behind them; or what is no field, and the same. Nothing behind the field is
/// looked at.
fn field(text: &str) -> Result<(&str, &str, &str), (&str, &str)> {
    let bytes = text.as_bytes();
    let (mut at, mut equals) = (0, None);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' if equals.is_none() && matches!(bytes.get(at + 1), Some(b' ' | b',' | b'=' | b'"')) => at += 2,
            b'=' if equals.is_none() => {
                equals = Some(at);
                at = if bytes.get(at + 1) == Some(&b'"') {
                    end_of_text(bytes, at + 1).unwrap_or(bytes.len())
                } else {
                    at + 1
                };
            }
            b',' => break,
            _ => at += 1,
        }
    }
    let (own, behind) = (&text[..at], text.get(at + 1..).unwrap_or_default());
    match equals.filter(|&equals| equals > 0) {
        Some(equals) => Ok((&own[..equals], &own[equals + 1..], behind)),
        None => Err((own, behind)),
    }
}

fn read_stamp(text: &str, precision: Precision) -> Result<Stamp, String> {
    if text.is_empty() {
        return Ok(Stamp::None);
    }
    let number: i64 = text.parse().map_err(|_| format!("time {:?} is not a whole number", printable(text)))?;
    precision.micros(number).map(Stamp::At).ok_or_else(|| format!("time {text} is out of range"))
}

fn read_value<'v>(value: &'v str, spare: &'v mut String) -> Option<Leaf<'v>> {
    if let Some(quoted) = value.strip_prefix('"') {
        let quoted = quoted.strip_suffix('"')?;
        if !quoted.contains('\\') {
            return Some(text::read(quoted));
        }
        let mut chars = quoted.chars().peekable();
        while let Some(c) = chars.next() {
            let escaped = if c == '\\' { chars.next_if(|next| matches!(next, '"' | '\\')) } else { None };
            spare.push(escaped.unwrap_or(c));
        }
        return Some(text::read(spare));
    }
    match value {
        "t" | "T" => return Some(Leaf::Bool(true)),
        "f" | "F" => return Some(Leaf::Bool(false)),
        _ => {}
    }
    if let Some(integer) = value.strip_suffix(['i', 'u']) {
        return integer.parse().map(Leaf::integer).ok();
    }
    text::numeric(value).or_else(|| match text::read(value) {
        Leaf::Text(_) => None,
        Leaf::Missing if value.is_empty() => None,
        leaf => Some(leaf),
    })
}

/// A name without the backslashes before what may be escaped in it; any other backslash is itself.
fn unescape<'t>(text: &'t str, escaped: &[char]) -> Cow<'t, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let next = if c == '\\' { chars.next_if(|next| escaped.contains(next)) } else { None };
        out.push(next.unwrap_or(c));
    }
    Cow::Owned(out)
}
