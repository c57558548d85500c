//! Random valid payloads, read by an independent library and by the gateway: both find the same readings.
//!
//! Line protocol is read by InfluxData's own parser, JSON by serde_json, CBOR by minicbor; SenML's records are resolved here,
//! after RFC 8428, section 4. What is generated is spelled at random, too: escapes, spaces, widths, lengths that are not told.

use influxdb_line_protocol::{FieldValue, parse_lines};
use minicbor::data::Token;
use minicbor::decode::Tokenizer;
use model::tags::{push_name, push_tag};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Number, Value, json};
use std::collections::BTreeMap;
use std::iter::Peekable;
use tests::{Gateway, gateway, seed};

/// Payloads of each format.
const PAYLOADS: usize = 400;
/// Whole numbers that every reader tells apart.
const EXACT: i64 = 1 << 53;

/// A metric at a time in µs, and its value.
type Readings = BTreeMap<(String, i64), Value>;

/// What the gateway has of a device.
fn found(gateway: &Gateway, device: &str) -> Readings {
    let rows = gateway.rows(&format!("/v1/readings?device={device}&limit=100000"));
    let row = |row: Value| {
        let time_us = row["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_microsecond();
        ((row["metric"].as_str().unwrap().to_owned(), time_us), plain(&row["value"]))
    };
    rows.into_iter().map(row).collect()
}

/// Numbers compare as what they are worth.
fn plain(value: &Value) -> Value {
    value.as_f64().map_or_else(|| value.clone(), |n| json!(n + 0.0))
}

fn post(gateway: &Gateway, content_type: &str, body: &[u8]) {
    let (status, answer) = gateway.post("/v1/readings", content_type, body);
    let shown = || format!("{}\n{answer}", String::from_utf8_lossy(body));
    assert_eq!(status, 200, "{}", shown());
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert!(answer["rejected"].as_array().unwrap().is_empty() && answer.get("notes").is_none(), "{}", shown());
}

/// What is generated, all from one seed.
struct Random(StdRng);

impl Random {
    fn new() -> Self {
        Random(StdRng::seed_from_u64(seed()))
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.0.random_range(0..n) == 0
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of.choose(&mut self.0).unwrap()
    }

    /// Some moment of the last ten days, in µs.
    fn time_us(&mut self) -> i64 {
        tests::now_s() * 1_000_000 - self.0.random_range(1..864_000_000_000)
    }

    /// A name with whatever might separate something. A backslash stands before letters: InfluxDB's parsers, the one in
    /// Go and the one in Rust, differ on others.
    fn name(&mut self) -> String {
        const PARTS: [&str; 20] =
            ["a", "b", "Z", "0", "9", "_", "-", ".", " ", ",", "=", "\"", "\\a", ";", "%2C", "/", "'", "ä", "温", "🌡"];
        let many = self.0.random_range(1..8);
        let name: String = (0..many).map(|_| self.pick(&PARTS)).collect();
        format!("n{name}")
    }

    /// A state: what stands at its ends is no space, and it is no number.
    fn text(&mut self) -> String {
        const PARTS: [&str; 12] = ["a", "7", " ", "\"", "\\", "\n", "\t", ",", "=", "ß", "温", "🌡"];
        let many = self.0.random_range(0..12);
        let inner: String = (0..many).map(|_| self.pick(&PARTS)).collect();
        format!("s{inner}e")
    }

    fn float(&mut self) -> f64 {
        let exponent = self.0.random_range(-30..30);
        let own: f64 = self.0.random_range(-10.0..10.0);
        own * 10_f64.powi(exponent)
    }

    fn leaf(&mut self) -> Value {
        match self.0.random_range(0..10) {
            0 => Value::Null,
            1 => json!(self.0.random::<bool>()),
            2 | 3 => json!(self.text()),
            4 => json!(self.0.random_range(-EXACT..EXACT)),
            5 | 6 => json!(self.0.random_range(-300..300)),
            _ => json!(self.float()),
        }
    }

    /// Nested metrics.
    fn tree(&mut self, depth: usize) -> Value {
        match self.0.random_range(0..6) {
            0 if depth > 0 => {
                let many = self.0.random_range(1..4);
                Value::Object((0..many).map(|_| (self.name(), self.tree(depth - 1))).collect())
            }
            1 if depth > 0 => {
                let many = self.0.random_range(1..4);
                Value::Array((0..many).map(|_| self.tree(depth - 1)).collect())
            }
            _ => self.leaf(),
        }
    }

    /// An object of metrics with a device and a time beside them.
    fn object(&mut self, device: &str) -> Value {
        let many = self.0.random_range(1..6);
        let mut object: Map<String, Value> = (0..many).map(|_| (self.name(), self.tree(3))).collect();
        let time_us = self.time_us();
        let time = match self.0.random_range(0..5) {
            0 => json!(time_us / 1_000_000),
            1 => json!(time_us / 1_000),
            2 => json!(time_us),
            3 => json!((time_us / 1_000) as f64 / 1e3),
            _ => json!(jiff::Timestamp::from_microsecond(time_us).unwrap().to_string()),
        };
        object.insert(self.pick(&["time", "timestamp", "ts"]).into(), time);
        object.insert("device".into(), json!(device));
        Value::Object(object)
    }

    fn space(&mut self) -> &'static str {
        if self.one_in(4) { self.pick(&[" ", "\n", "\t", "\r\n"]) } else { "" }
    }

    /// JSON, in one of the ways to write it.
    fn json(&mut self, value: &Value, out: &mut String) {
        out.push_str(self.space());
        match value {
            Value::Number(n) => {
                let n = n.as_f64().unwrap();
                match self.0.random_range(0..4) {
                    0 => out.push_str(&format!("{n:e}")),
                    1 => out.push_str(&format!("{n:E}").replace('E', if n.abs() >= 1.0 { "E+" } else { "E" })),
                    _ => out.push_str(&value.to_string()),
                }
            }
            Value::String(text) => self.quoted(text, out),
            Value::Array(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    self.json(item, out);
                }
                out.push(']');
            }
            Value::Object(fields) => {
                out.push('{');
                for (at, (key, value)) in fields.iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    out.push_str(self.space());
                    self.quoted(key, out);
                    out.push_str(self.space());
                    out.push(':');
                    self.json(value, out);
                }
                out.push('}');
            }
            other => out.push_str(&other.to_string()),
        }
        out.push_str(self.space());
    }

    fn quoted(&mut self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            if self.one_in(5) {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            } else if c == '/' && self.one_in(2) {
                out.push_str("\\/");
            } else {
                out.push_str(json!(c.to_string()).to_string().trim_matches('"').trim_end_matches('"'));
                // The quote itself was trimmed with those around it.
                out.push_str(if c == '"' { "\"" } else { "" });
            }
        }
        out.push('"');
    }

    /// The head of a CBOR item, not always the shortest.
    fn head(&mut self, major: u8, n: u64, out: &mut Vec<u8>) {
        let widths = [(23, 0), (0xff, 24), (0xffff, 25), (0xffff_ffff, 26), (u64::MAX, 27)];
        let fits: Vec<u8> = widths.iter().filter(|(most, _)| n <= *most).map(|(_, info)| *info).collect();
        let info = if self.one_in(4) { *fits.choose(&mut self.0).unwrap() } else { fits[0] };
        let bytes = n.to_be_bytes();
        out.push(major << 5 | if info == 0 { n as u8 } else { info });
        out.extend_from_slice(&bytes[8 - [0, 1, 2, 4, 8][usize::from(info.saturating_sub(23))]..]);
    }

    /// CBOR, in one of the ways to write it.
    fn cbor(&mut self, value: &Value, out: &mut Vec<u8>) {
        if self.one_in(20) {
            // A tag that changes nothing.
            self.head(6, 55_799, out);
        }
        match value {
            Value::Null => out.push(if self.one_in(2) { 0xf6 } else { 0xf7 }),
            Value::Bool(is) => out.push(0xf4 + u8::from(*is)),
            Value::Number(n) => match n.as_i64() {
                Some(n) if n >= 0 => self.head(0, n as u64, out),
                Some(n) => self.head(1, (-1 - n) as u64, out),
                None => {
                    let n = n.as_f64().unwrap();
                    if self.one_in(3) {
                        out.push(0xfa);
                        out.extend_from_slice(&(n as f32).to_be_bytes());
                    } else {
                        out.push(0xfb);
                        out.extend_from_slice(&n.to_be_bytes());
                    }
                }
            },
            Value::String(text) => self.cbor_text(text, out),
            Value::Array(items) => {
                let is_open = self.open(4, items.len(), out);
                items.iter().for_each(|item| self.cbor(item, out));
                out.extend(is_open.then_some(0xff));
            }
            Value::Object(fields) => {
                let is_open = self.open(5, fields.len(), out);
                for (key, value) in fields {
                    match key.parse::<i64>() {
                        Ok(n) if n >= 0 => self.head(0, n as u64, out),
                        Ok(n) => self.head(1, (-1 - n) as u64, out),
                        Err(_) => self.cbor_text(key, out),
                    }
                    self.cbor(value, out);
                }
                out.extend(is_open.then_some(0xff));
            }
        }
    }

    /// Begins an array or a map; true if its length is not told.
    fn open(&mut self, major: u8, many: usize, out: &mut Vec<u8>) -> bool {
        let is_open = self.one_in(3);
        if is_open {
            out.push(major << 5 | 31)
        } else {
            self.head(major, many as u64, out)
        }
        is_open
    }

    fn cbor_text(&mut self, text: &str, out: &mut Vec<u8>) {
        if !self.one_in(5) {
            self.head(3, text.len() as u64, out);
            return out.extend_from_slice(text.as_bytes());
        }
        out.push(0x7f);
        for c in text.chars() {
            self.head(3, c.len_utf8() as u64, out);
            out.extend_from_slice(c.to_string().as_bytes());
        }
        out.push(0xff);
    }
}

/// A CBOR document as minicbor reads it.
fn read_cbor(bytes: &[u8]) -> Value {
    let mut tokens = Tokenizer::new(bytes).map(Result::unwrap).peekable();
    let value = cbor_value(&mut tokens);
    assert!(tokens.next().is_none());
    value
}

fn cbor_value<'b>(tokens: &mut Peekable<impl Iterator<Item = Token<'b>>>) -> Value {
    let ended = |tokens: &mut Peekable<_>| tokens.next_if_eq(&Token::Break).is_some();
    match tokens.next().unwrap() {
        Token::Bool(is) => json!(is),
        Token::U8(n) => json!(n),
        Token::U16(n) => json!(n),
        Token::U32(n) => json!(n),
        Token::U64(n) => json!(n),
        Token::I8(n) => json!(n),
        Token::I16(n) => json!(n),
        Token::I32(n) => json!(n),
        Token::I64(n) => json!(n),
        Token::Int(n) => json!(i64::try_from(n).unwrap()),
        Token::F16(n) | Token::F32(n) => json!(f64::from(n)),
        Token::F64(n) => json!(n),
        Token::String(text) => json!(text),
        Token::Null | Token::Undefined => Value::Null,
        Token::Tag(_) => cbor_value(tokens),
        Token::Array(many) => (0..many).map(|_| cbor_value(tokens)).collect(),
        Token::Map(many) => Value::Object((0..many).map(|_| cbor_field(tokens)).collect()),
        Token::BeginString => {
            let mut text = String::new();
            while !ended(tokens) {
                text.push_str(cbor_value(tokens).as_str().unwrap());
            }
            json!(text)
        }
        Token::BeginArray => {
            let mut items = Vec::new();
            while !ended(tokens) {
                items.push(cbor_value(tokens));
            }
            Value::Array(items)
        }
        Token::BeginMap => {
            let mut fields = Map::new();
            while !ended(tokens) {
                fields.extend([cbor_field(tokens)]);
            }
            Value::Object(fields)
        }
        other => panic!("{other:?} was not generated"),
    }
}

fn cbor_field<'b>(tokens: &mut Peekable<impl Iterator<Item = Token<'b>>>) -> (String, Value) {
    let key = match cbor_value(tokens) {
        Value::String(text) => text,
        number => number.to_string(),
    };
    (key, cbor_value(tokens))
}

/// The readings of an object of metrics; `None` if two have one name.
fn readings_of(object: &Value) -> Option<Readings> {
    let is_time = |key: &str| matches!(key, "time" | "timestamp" | "ts");
    let fields = object.as_object().unwrap();
    let time = fields.iter().find(|(key, _)| is_time(key)).unwrap().1;
    let time_us = match time {
        Value::String(text) => text.parse::<jiff::Timestamp>().unwrap().as_microsecond(),
        // Whole seconds, milliseconds or microseconds, by how large it is, or seconds with a fraction.
        Value::Number(n) => match n.as_f64().unwrap() {
            n if n.fract() != 0.0 => (n * 1e6).round() as i64,
            n if n < 1e11 => n as i64 * 1_000_000,
            n if n < 1e14 => n as i64 * 1_000,
            n => n as i64,
        },
        other => panic!("{other} was not generated"),
    };
    let mut readings = Readings::new();
    let metrics = fields.iter().filter(|(key, _)| !is_time(key) && *key != "device");
    let mut flattened = metrics.map(|(key, value)| flatten(key.clone(), value, time_us, &mut readings));
    flattened.all(|is_new| is_new).then_some(readings)
}

fn flatten(name: String, value: &Value, time_us: i64, into: &mut Readings) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => {
            fields.iter().all(|(key, value)| flatten(format!("{name}.{key}"), value, time_us, into))
        }
        Value::Array(items) => {
            items.iter().enumerate().all(|(at, value)| flatten(format!("{name}.{at}"), value, time_us, into))
        }
        leaf => into.insert((name, time_us), plain(leaf)).is_none(),
    }
}

#[test]
fn json_says_what_serde_json_reads() {
    let (gateway, mut random) = (gateway().start(), Random::new());
    let mut tried = 0;
    for n in 0..PAYLOADS {
        let (device, mut text) = (format!("d{n}"), String::new());
        let object = random.object(&device);
        random.json(&object, &mut text);
        let Some(wanted) = readings_of(&serde_json::from_str(&text).unwrap()) else { continue };
        if wanted.is_empty() {
            continue;
        }
        post(&gateway, "application/json", text.as_bytes());
        assert_eq!(found(&gateway, &device), wanted, "{text}");
        tried += 1;
    }
    assert!(tried > PAYLOADS / 2, "{tried}");
}

#[test]
fn cbor_says_what_minicbor_reads() {
    let (gateway, mut random) = (gateway().start(), Random::new());
    let mut tried = 0;
    for n in 0..PAYLOADS {
        let (device, mut bytes) = (format!("d{n}"), Vec::new());
        let object = random.object(&device);
        random.cbor(&object, &mut bytes);
        // A time as a float of 32 bits is another time.
        let Some(wanted) = readings_of(&read_cbor(&bytes)).filter(|wanted| !wanted.is_empty()) else { continue };
        post(&gateway, "application/cbor", &bytes);
        assert_eq!(found(&gateway, &device), wanted, "{object}");
        tried += 1;
    }
    assert!(tried > PAYLOADS / 2, "{tried}");
}

/// A pack's records after RFC 8428, section 4.6: base fields hold on, names are joined, values and times added.
fn resolve(pack: &Value) -> Readings {
    let (mut name, mut time, mut value) = (String::new(), 0.0, None);
    let mut readings = Readings::new();
    for record in pack.as_array().unwrap() {
        let field = |label: &str, number: &str| record.get(label).or_else(|| record.get(number));
        if let Some(bn) = field("bn", "-2") {
            name = bn.as_str().unwrap().to_owned();
        }
        if let Some(bt) = field("bt", "-3") {
            time = bt.as_f64().unwrap();
        }
        if let Some(bv) = field("bv", "-5") {
            value = bv.as_f64();
        }
        let full = format!("{name}{}", field("n", "0").and_then(Value::as_str).unwrap_or_default());
        let at_us = ((time + field("t", "6").and_then(Value::as_f64).unwrap_or(0.0)) * 1e6).round() as i64;
        let metric = full.split_once('/').unwrap().1.to_owned();
        let own = field("v", "2").map(|v| json!(v.as_f64().unwrap() + value.unwrap_or(0.0)));
        let own = own.or_else(|| field("vb", "4").cloned()).or_else(|| field("vs", "3").cloned());
        if let Some(own) = own.or_else(|| value.map(|value| json!(value))) {
            readings.insert((metric, at_us), plain(&own));
        }
    }
    readings
}

impl Random {
    fn pack(&mut self, device: &str) -> Value {
        let base_s = self.time_us() / 1_000_000;
        let many = self.0.random_range(1..12);
        let mut records = Vec::new();
        for n in 0..many {
            let mut record = Map::new();
            if n == 0 || self.one_in(6) {
                record.insert("bn".into(), json!(format!("{device}/")));
                record.insert("bt".into(), json!(base_s + n));
            }
            if self.one_in(5) {
                record.insert("bver".into(), json!(10));
            }
            if self.one_in(6) {
                record.insert(
                    "bv".into(),
                    Value::Number(Number::from_f64(f64::from(self.0.random_range(-99..99)) / 2.0).unwrap()),
                );
            }
            // A name has its kind, and every record a time of its own.
            let kind = self.0.random_range(0..4);
            record.insert("n".into(), json!(format!("{}{kind}", self.pick(&["a", "b.c", "d_e", "f-g"]))));
            record.insert("t".into(), json!(f64::from(self.0.random_range(0..900)) + f64::from(n as i32) / 64.0));
            match kind {
                0 => record.insert("vb".into(), json!(self.0.random::<bool>())),
                1 => record.insert("vs".into(), json!(self.text())),
                _ if self.one_in(2) => record.insert("v".into(), json!(self.float())),
                _ => record.insert("v".into(), json!(self.0.random_range(-1000..1000))),
            };
            records.push(Value::Object(record));
        }
        Value::Array(records)
    }
}

/// The numbers that CBOR has for SenML's labels (RFC 8428, table 4).
fn numbered(pack: &Value) -> Value {
    const LABELS: [(&str, &str); 9] = [
        ("bver", "-1"),
        ("bn", "-2"),
        ("bt", "-3"),
        ("bv", "-5"),
        ("n", "0"),
        ("v", "2"),
        ("vs", "3"),
        ("vb", "4"),
        ("t", "6"),
    ];
    let number = |label: &str| LABELS.iter().find(|(of, _)| *of == label).unwrap().1.to_owned();
    let record = |record: &Value| {
        let fields = record.as_object().unwrap().iter();
        Value::Object(fields.map(|(label, value)| (number(label), value.clone())).collect())
    };
    pack.as_array().unwrap().iter().map(record).collect()
}

#[test]
fn a_senml_pack_says_what_its_rfc_makes_of_it() {
    let (gateway, mut random) = (gateway().start(), Random::new());
    for n in 0..PAYLOADS {
        let device = format!("d{n}");
        let pack = random.pack(&device);
        let wanted = if random.one_in(2) {
            let mut text = String::new();
            random.json(&pack, &mut text);
            post(&gateway, "application/senml+json", text.as_bytes());
            resolve(&serde_json::from_str(&text).unwrap())
        } else {
            let mut bytes = Vec::new();
            random.cbor(&numbered(&pack), &mut bytes);
            post(&gateway, "application/senml+cbor", &bytes);
            resolve(&read_cbor(&bytes))
        };
        assert_eq!(found(&gateway, &device), wanted, "{pack}");
    }
}

impl Random {
    /// A name with backslashes before what separates, and elsewhere as they come.
    fn escaped(&mut self, name: &str, separators: &[char]) -> String {
        name.chars().flat_map(|c| separators.contains(&c).then_some('\\').into_iter().chain([c])).collect()
    }

    fn field(&mut self) -> String {
        match self.0.random_range(0..9) {
            0 => format!("{}i", self.0.random_range(-EXACT..EXACT)),
            1 => format!("{}u", self.0.random_range(0..EXACT)),
            2 => self.pick(&["t", "T", "true", "True", "TRUE", "f", "F", "false", "False", "FALSE"]).to_owned(),
            3 | 4 => {
                let text = self.text();
                format!("\"{}\"", self.escaped(&text, &['"', '\\']))
            }
            5 => format!("{:e}", self.float()),
            6 => format!("{}", self.0.random_range(-50..50)),
            _ => format!("{}", self.float()),
        }
    }

    fn line(&mut self, device: &str, time_ns: i64) -> String {
        let measurement = self.name();
        let mut line = self.escaped(&measurement, &[',', ' ']);
        let mut tags = vec![("host".to_owned(), device.to_owned())];
        tags.extend((0..self.0.random_range(0..4)).map(|_| (self.name(), self.name())));
        for (key, value) in tags {
            let key = self.escaped(&key, &[',', ' ', '=']);
            line.push_str(&format!(",{key}={}", self.escaped(&value, &[',', ' ', '='])));
        }
        for at in 0..self.0.random_range(1..6) {
            let key = self.name();
            let key = self.escaped(&key, &[',', ' ', '=']);
            line.push_str(if at == 0 { " " } else { "," });
            line.push_str(&format!("{key}={}", self.field()));
        }
        format!("{line} {time_ns}")
    }
}

/// The readings of a body as InfluxData's parser reads it; `None` if it does not, if a point has a tag or
/// a field twice, or no host, or a name is too long.
fn read_lines(body: &str) -> Option<Readings> {
    let mut readings = Readings::new();
    for line in parse_lines(body) {
        let line = line.ok()?;
        let mut tags: Vec<_> =
            line.series.tag_set.iter().flatten().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        tags.sort();
        if tags.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return None;
        }
        for (key, value) in &line.field_set {
            let mut name = String::new();
            push_name(&mut name, line.series.measurement.as_str(), true);
            name.push('.');
            push_name(&mut name, key.as_str(), false);
            tags.iter().filter(|(key, _)| key != "host").for_each(|(key, value)| push_tag(&mut name, key, value));
            let value = match value {
                FieldValue::I64(n) => json!(n),
                FieldValue::U64(n) => json!(n),
                FieldValue::F64(n) => json!(n),
                FieldValue::String(text) => json!(text.as_str()),
                FieldValue::Boolean(is) => json!(is),
            };
            let has_host = tags.iter().any(|(key, _)| key == "host");
            if !has_host
                || name.len() > 255
                || readings.insert((name, line.timestamp? / 1_000), plain(&value)).is_some()
            {
                return None;
            }
        }
    }
    Some(readings)
}

#[test]
fn line_protocol_says_what_influxdata_reads() {
    let (gateway, mut random) = (gateway().start(), Random::new());
    let mut tried = 0;
    for n in 0..PAYLOADS {
        let (device, begin_us, mut body) = (format!("d{n}"), random.time_us(), String::new());
        for at in 0..random.0.random_range(1..6) {
            if random.one_in(5) {
                body.push_str(random.pick(&["\n", "# a comment, with = and \"\n", "   \n"]));
            }
            let within_us = random.0.random_range(0..1_000);
            body.push_str(&random.line(&device, (begin_us + at) * 1_000 + within_us));
            body.push('\n');
        }
        let Some(wanted) = read_lines(&body) else { continue };
        let (status, answer) = gateway.post("/api/v2/write", "text/plain", body.as_bytes());
        assert_eq!((status, &*answer), (204, ""), "{body}");
        assert_eq!(found(&gateway, &device), wanted, "{body}");
        tried += 1;
    }
    assert!(tried > PAYLOADS / 2, "{tried}");
}
