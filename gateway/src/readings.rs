//! Readings as columns: what leaves the decoders, enters the journal and fills the windows.
//!
//! Always holds: all columns but `texts` are equally long; `texts` is sorted by row; a row
//! whose kind is text has its text in `texts` and 0 in `number`. Columns, because a commit
//! moves thousands of readings at once and a copy of a column is a `memcpy`.

use model::{Micros, Value};

/// What a reading is and how its time came about, one byte per row.
pub(crate) mod flag {
    /// Mask of the value's kind.
    pub(crate) const KIND: u8 = 0b11;
    /// The value is a number.
    pub(crate) const NUMBER: u8 = 0;
    /// The value is a boolean, 0 or 1 in the number column.
    pub(crate) const BOOL: u8 = 1;
    /// The value is a state text.
    pub(crate) const TEXT: u8 = 2;
    /// The device gave the time.
    pub(crate) const STAMPED: u8 = 1 << 2;
    /// The device gave a time before 2000; the gateway's receive time stands in for it.
    pub(crate) const RESTAMPED: u8 = 1 << 3;
    /// The time lies beyond the skew bound in the future.
    pub(crate) const FUTURE: u8 = 1 << 4;
    /// Nobody vouched for the gateway's own clock: should it turn out to have been wrong, a time that
    /// the gateway gave is put right.
    pub(crate) const CLOCK_UNSET: u8 = 1 << 5;
    /// An integer beyond 2^53, kept as the nearest f64.
    pub(crate) const INEXACT: u8 = 1 << 6;
    /// The time that the gateway gave has been put right since.
    pub(crate) const MOVED: u8 = 1 << 7;
}

/// Readings of any series, in the order in which they arrived.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Readings {
    /// Series ids, see [`crate::catalog`].
    pub series: Vec<u32>,
    /// Event times.
    pub time_us: Vec<Micros>,
    /// See [`flag`].
    pub flags: Vec<u8>,
    /// Numbers, booleans as 0 and 1, zero for texts.
    pub number: Vec<f64>,
    /// Row and text of every state text.
    pub texts: Vec<(u32, Box<str>)>,
}

impl Readings {
    /// How many readings.
    pub fn len(&self) -> usize {
        self.series.len()
    }

    /// True without readings.
    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// Adds a number: the common case, and the quick one.
    #[inline]
    pub fn push_number(&mut self, series: u32, time_us: Micros, number: f64, flags: u8) {
        self.series.push(series);
        self.time_us.push(time_us);
        self.flags.push(flags);
        self.number.push(number);
    }

    /// Adds any reading; `flags` without its kind.
    pub fn push(&mut self, series: u32, time_us: Micros, value: Value, flags: u8) {
        match value {
            Value::Number(n) => self.push_number(series, time_us, n, flags | flag::NUMBER),
            Value::Bool(b) => self.push_number(series, time_us, f64::from(u8::from(b)), flags | flag::BOOL),
            Value::Text(text) => {
                self.texts.push((self.len() as u32, text));
                self.push_number(series, time_us, 0.0, flags | flag::TEXT);
            }
        }
    }

    /// Moves all of `other` to the end; `other` stays with its capacity.
    pub fn append(&mut self, other: &mut Readings) {
        let offset = self.len() as u32;
        self.series.append(&mut other.series);
        self.time_us.append(&mut other.time_us);
        self.flags.append(&mut other.flags);
        self.number.append(&mut other.number);
        self.texts.extend(other.texts.drain(..).map(|(row, text)| (row + offset, text)));
    }

    /// The earliest and the latest event time; zeros without readings.
    pub fn span(&self) -> (Micros, Micros) {
        let times = || self.time_us.iter().copied();
        (times().min().unwrap_or_default(), times().max().unwrap_or_default())
    }

    /// Keeps the first `length` readings.
    pub fn truncate(&mut self, length: usize) {
        self.series.truncate(length);
        self.time_us.truncate(length);
        self.flags.truncate(length);
        self.number.truncate(length);
        self.texts.truncate(self.texts.partition_point(|(row, _)| (*row as usize) < length));
    }

    /// Forgets everything but the capacity.
    pub fn clear(&mut self) {
        self.series.clear();
        self.time_us.clear();
        self.flags.clear();
        self.number.clear();
        self.texts.clear();
    }

    /// The value of a row.
    pub fn value(&self, row: usize) -> Value {
        match self.flags[row] & flag::KIND {
            flag::BOOL => Value::Bool(self.number[row] != 0.0),
            flag::TEXT => Value::Text(self.text(row).unwrap_or_default().into()),
            _ => Value::Number(self.number[row]),
        }
    }

    /// The text of a row that has one.
    pub fn text(&self, row: usize) -> Option<&str> {
        if self.flags[row] & flag::KIND != flag::TEXT {
            return None;
        }
        let at = self.texts.binary_search_by_key(&(row as u32), |(row, _)| *row).ok()?;
        Some(&self.texts[at].1)
    }

    /// Bytes of memory in use, roughly; queues are bounded by it.
    pub fn bytes(&self) -> usize {
        self.len() * 21 + self.texts.iter().map(|(_, text)| text.len() + 24).sum::<usize>()
    }
}

/// Readings of one series in order of time, each time once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Points {
    /// Event times, rising.
    pub time_us: Vec<Micros>,
    /// See [`flag`].
    pub flags: Vec<u8>,
    /// Numbers, booleans as 0 and 1, zero for texts.
    pub number: Vec<f64>,
    /// Row and text of every state text, by row.
    pub texts: Vec<(u32, Box<str>)>,
}

impl Points {
    /// How many readings.
    pub fn len(&self) -> usize {
        self.time_us.len()
    }

    /// True without readings.
    pub fn is_empty(&self) -> bool {
        self.time_us.is_empty()
    }

    /// Adds a reading; one with the time of the last replaces it.
    #[inline]
    pub fn push(&mut self, time_us: Micros, flags: u8, number: f64, text: Option<&str>) {
        debug_assert!(self.time_us.last().is_none_or(|&last| last <= time_us));
        if self.time_us.last() == Some(&time_us) {
            self.truncate(self.len() - 1);
        }
        if let Some(text) = text {
            self.texts.push((self.len() as u32, text.into()));
        }
        self.time_us.push(time_us);
        self.flags.push(flags);
        self.number.push(number);
    }

    /// Keeps the first `length` readings.
    pub fn truncate(&mut self, length: usize) {
        self.time_us.truncate(length);
        self.flags.truncate(length);
        self.number.truncate(length);
        self.texts.truncate(self.texts.partition_point(|(row, _)| (*row as usize) < length));
    }

    /// The text of a row that has one.
    pub fn text(&self, row: usize) -> Option<&str> {
        if self.flags[row] & flag::KIND != flag::TEXT {
            return None;
        }
        let at = self.texts.binary_search_by_key(&(row as u32), |(row, _)| *row).ok()?;
        Some(&self.texts[at].1)
    }

    /// The value of a row.
    pub fn value(&self, row: usize) -> Value {
        match self.flags[row] & flag::KIND {
            flag::BOOL => Value::Bool(self.number[row] != 0.0),
            flag::TEXT => Value::Text(self.text(row).unwrap_or_default().into()),
            _ => Value::Number(self.number[row]),
        }
    }

    /// The rows in `[from_us, to_us)`.
    pub fn between(&self, from_us: Micros, to_us: Micros) -> std::ops::Range<usize> {
        let begin = self.time_us.partition_point(|&us| us < from_us);
        begin..begin + self.time_us[begin..].partition_point(|&us| us < to_us)
    }

    /// A copy of some rows.
    pub fn slice(&self, rows: std::ops::Range<usize>) -> Points {
        let texts = self.texts.iter().filter(|(row, _)| rows.contains(&(*row as usize)));
        Points {
            time_us: self.time_us[rows.clone()].to_vec(),
            flags: self.flags[rows.clone()].to_vec(),
            number: self.number[rows.clone()].to_vec(),
            texts: texts.map(|(row, text)| (row - rows.start as u32, text.clone())).collect(),
        }
    }

    /// Adds later-committed readings; of two with one time the added one counts.
    pub fn merge(&mut self, newer: &Points) {
        let Some(&first_us) = newer.time_us.first() else { return };
        // Usually all of it is later; otherwise only what is not stands to be merged.
        let older = self.slice(self.between(first_us, Micros::MAX));
        self.truncate(self.len() - older.len());
        let (mut a, mut b) = (0, 0);
        while a < older.len() || b < newer.len() {
            let take_older = b >= newer.len() || (a < older.len() && older.time_us[a] <= newer.time_us[b]);
            let (from, row) = if take_older { (&older, a) } else { (newer, b) };
            self.push(from.time_us[row], from.flags[row], from.number[row], from.text(row));
            if take_older { a += 1 } else { b += 1 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn points(rows: &BTreeMap<Micros, Value>) -> Points {
        let mut points = Points::default();
        for (&time_us, value) in rows {
            match value {
                Value::Number(n) => points.push(time_us, flag::NUMBER, *n, None),
                Value::Bool(b) => points.push(time_us, flag::BOOL, f64::from(u8::from(*b)), None),
                Value::Text(text) => points.push(time_us, flag::TEXT, 0.0, Some(text)),
            }
        }
        points
    }

    fn values() -> impl Strategy<Value = BTreeMap<Micros, Value>> {
        let value = prop_oneof![
            (0..9_i32).prop_map(|n| Value::Number(f64::from(n))),
            any::<bool>().prop_map(Value::Bool),
            "[ab]".prop_map(|text| Value::Text(text.into())),
        ];
        prop::collection::btree_map(0..40_i64, value, 0..30)
    }

    proptest! {
        #[test]
        fn merging_is_what_inserting_one_by_one_would_be(older in values(), newer in values(), from in 0..40_i64) {
            let mut merged = points(&older);
            merged.merge(&points(&newer));
            let mut want = older;
            want.extend(newer);
            prop_assert_eq!(&merged, &points(&want));
            let rows = merged.between(from, from + 9);
            let part: BTreeMap<_, _> = want.range(from..from + 9).map(|(k, v)| (*k, v.clone())).collect();
            prop_assert_eq!(merged.slice(rows), points(&part));
        }
    }
}
