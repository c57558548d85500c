//! Windows as rows.
//!
//! A row is a window of a device with all its metrics, as columns that are arrays. Versions
//! order rows of one window: the higher one stays. Always holds: of windows of different
//! lengths that overlap only those of one life of the store stay, and of one life the longest,
//! so that nothing counts twice.

use model::{Micros, Sketch, Summary, Value, varint};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Which of two rows of a window is the later one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The life of the gateway's store.
    pub incarnation: u64,
    /// Rises within it.
    pub revision: u64,
}

/// Whose window, and which.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Where the device lives.
    pub slot: u16,
    /// Whose device.
    pub gateway: Arc<str>,
    /// The device.
    pub device: Arc<str>,
    /// How long the window is.
    pub length_us: Micros,
    /// Its start.
    pub start_us: Micros,
}

/// A window of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Whose, and which.
    pub key: Key,
    /// Which version of it.
    pub version: Version,
    /// When the cloud received it.
    pub received_us: Micros,
    /// By metric.
    pub metrics: BTreeMap<Arc<str>, Summary>,
}

/// A device that is no more, or a metric of one: what a version below this holds of it is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Floor {
    /// The metric; `None` is the whole device.
    pub metric: Option<Arc<str>>,
    /// What is of this version, or of a later one, is another of the same name.
    pub version: Version,
    /// When the cloud heard of it.
    pub received_us: Micros,
}

impl Floor {
    /// Takes away what is no more; false if nothing is left.
    pub fn strip<V>(&self, metrics: &mut BTreeMap<Arc<str>, V>) -> bool {
        match &self.metric {
            None => metrics.clear(),
            Some(metric) => drop(metrics.remove(metric)),
        }
        !metrics.is_empty()
    }
}

/// A row without what is no more; `None` if nothing is left of it.
pub fn above<'a>(row: &'a Row, floors: &[Floor]) -> Option<Cow<'a, Row>> {
    let version = row.version;
    let mut row = Cow::Borrowed(row);
    for floor in floors.iter().filter(|floor| version < floor.version) {
        let touched = floor.metric.as_ref().is_none_or(|metric| row.metrics.contains_key(metric));
        if touched && !floor.strip(&mut row.to_mut().metrics) {
            return None;
        }
    }
    Some(row)
}

/// A sealed hour without what is no more: it has no version, but what was all received before is of before.
pub fn sealed_above<'a>(row: &'a Row, floors: &[Floor]) -> Option<Cow<'a, Row>> {
    let received_us = row.received_us;
    let mut row = Cow::Borrowed(row);
    for floor in floors.iter().filter(|floor| received_us <= floor.received_us) {
        if !floor.strip(&mut row.to_mut().metrics) {
            return None;
        }
    }
    Some(row)
}

/// A window of the same device that overlaps one of another length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Other {
    /// How long it is.
    pub length_us: Micros,
    /// The life of the store that it is of.
    pub incarnation: u64,
}

impl Row {
    /// True if a window of another length that is there already stays instead of this one.
    pub fn yields_to(&self, other: Other) -> bool {
        (other.incarnation, other.length_us) > (self.version.incarnation, self.key.length_us)
    }
}

/// Readings by metric.
pub type Counts = BTreeMap<String, u64>;

impl Row {
    /// True if windows that lie in it, of the same life, come to the same readings: they say more than it does.
    pub fn adds_nothing_to(&self, within: &Counts) -> bool {
        let count = |(name, summary): (&Arc<str>, &Summary)| (name.to_string(), summary.count + summary.texts);
        self.metrics.iter().map(count).filter(|(_, many)| *many > 0).collect::<Counts>() == *within
    }
}

impl Key {
    /// A number that two copies of a row share, for comparing shards: of its identity and version.
    pub fn digest(&self, version: Version) -> u64 {
        let Key { gateway, device, length_us, start_us, .. } = self;
        let mut bytes = Vec::with_capacity(64);
        for name in [gateway, device] {
            varint::put(&mut bytes, name.len() as u64);
            bytes.extend(name.as_bytes());
        }
        varint::put_signed(&mut bytes, *length_us);
        varint::put_signed(&mut bytes, *start_us);
        varint::put(&mut bytes, version.incarnation);
        varint::put(&mut bytes, version.revision);
        xxh3_64(&bytes)
    }
}

/// All sketches of a row as one text of bytes: for each its length, then itself.
pub fn put_sketches<'a>(sketches: impl Iterator<Item = &'a Sketch>) -> Vec<u8> {
    let mut out = Vec::new();
    for sketch in sketches {
        let bytes = sketch.to_bytes();
        varint::put(&mut out, bytes.len() as u64);
        out.extend(bytes);
    }
    out
}

/// The reverse of [`put_sketches`]; `None` if the bytes are damaged.
pub fn take_sketches(mut rest: &[u8], many: usize) -> Option<Vec<Sketch>> {
    let mut sketches = Vec::with_capacity(many);
    for _ in 0..many {
        let length = usize::try_from(varint::take(&mut rest)?).ok()?;
        let (bytes, after) = rest.split_at_checked(length)?;
        sketches.push(Sketch::from_bytes(bytes).ok()?);
        rest = after;
    }
    rest.is_empty().then_some(sketches)
}

/// A value as JSON has it: `first` and `last` are numbers or texts.
pub fn value_to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Number(n) => serde_json::Value::from(*n),
        Value::Bool(b) => serde_json::Value::from(u8::from(*b)),
        Value::Text(text) => serde_json::Value::from(&**text),
    }
}

/// The reverse of [`value_to_json`].
pub fn value_of_json(value: &serde_json::Value) -> Option<Value> {
    match value {
        serde_json::Value::Number(n) => n.as_f64().map(Value::Number),
        serde_json::Value::String(text) => Some(Value::Text(text.as_str().into())),
        _ => None,
    }
}
