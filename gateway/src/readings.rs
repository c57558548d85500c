//! Readings as columns: what leaves the decoders, enters the journal and fills the windows.
//!
//! Always holds: all columns but `texts` are equally long; `texts` is sorted by row; a row
//! whose kind is text has its text in `texts` and 0 in `number`. Columns, because a commit
//! moves thousands of readings at once and a copy of a column is a `memcpy`.

use model::{Micros, Value};

/// What a reading is and how its time came about, one byte per row.
pub mod flag {
    /// Mask of the value's kind.
    pub const KIND: u8 = 0b11;
    /// The value is a number.
    pub const NUMBER: u8 = 0;
    /// The value is a boolean, 0 or 1 in the number column.
    pub const BOOL: u8 = 1;
    /// The value is a state text.
    pub const TEXT: u8 = 2;
    /// The device gave the time.
    pub const STAMPED: u8 = 1 << 2;
    /// The device gave a time before 2000; the gateway's receive time stands in for it.
    pub const RESTAMPED: u8 = 1 << 3;
    /// The time lies beyond the skew bound in the future.
    pub const FUTURE: u8 = 1 << 4;
    /// The gateway's own clock was not known to be set.
    pub const CLOCK_UNSET: u8 = 1 << 5;
    /// An integer beyond 2^53, kept as the nearest f64.
    pub const INEXACT: u8 = 1 << 6;
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
