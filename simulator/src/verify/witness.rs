//! The witness: what a series must, may and must not hold according to the ledger.
//!
//! Arrives: ledger entries and the readings that a gateway says it stores. Leaves: the readings that
//! the series is to be judged by, and every stored reading that contradicts the ledger.
//! Always holds, per identity (series, time): acknowledged means stored; stored means sent; of several
//! values sent with one identity, those that were acknowledged before a later one was sent, and were
//! sent only once, are superseded by it. Unstamped readings are matched by value: at least as often
//! stored as acknowledged, at most as often as sent. Deliberately absent: aggregates.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value as Json;

use super::ask::Stored;
use super::compare::Difference;
use super::statistics::{Range, Sample};
use crate::clock;
use crate::ledger::read::Entry;

/// A value as the ledger and a gateway's answer have it in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Value {
    /// The bits of a number that is not a negative zero.
    Number(u64),
    Flag(bool),
}

impl Value {
    fn of_number(number: f64) -> Self {
        Self::Number((number + 0.0).to_bits())
    }

    fn of_text(text: &str) -> Option<Self> {
        match text {
            "true" => Some(Self::Flag(true)),
            "false" => Some(Self::Flag(false)),
            number => number.parse().ok().map(Self::of_number),
        }
    }

    fn of_json(json: &Json) -> Option<Self> {
        match json {
            Json::Bool(on) => Some(Self::Flag(*on)),
            other => other.as_f64().map(Self::of_number),
        }
    }

    /// As aggregates see it.
    pub(crate) fn as_number(self) -> f64 {
        match self {
            Self::Number(bits) => f64::from_bits(bits),
            Self::Flag(on) => f64::from(u8::from(on)),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Number(bits) => f64::from_bits(bits).to_string(),
            Self::Flag(on) => on.to_string(),
        }
    }
}

/// Everything the ledgers say about one series.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) device: Arc<str>,
    pub(crate) metric: Arc<str>,
    stamped: BTreeMap<i64, Vec<Sent>>,
    unstamped: HashMap<Value, Quota>,
}

/// One stamped reading.
#[derive(Debug, Clone, Copy)]
struct Sent {
    value: Value,
    attempt_count: u64,
    /// Positions across all ledgers in the order of events.
    sent_at: usize,
    acked_at: Option<usize>,
}

/// How often an unstamped value has to be stored, and how often it may be.
#[derive(Debug, Clone, Copy, Default)]
struct Quota {
    acked_count: u64,
    attempt_count: u64,
}

/// What a series is judged by.
#[derive(Debug)]
pub(crate) struct Settled {
    /// In the order of time.
    pub(crate) samples: Vec<Sample>,
    pub(crate) differences: Vec<Difference>,
}

/// Groups the entries of several ledgers by series; a later ledger is a later run.
pub(crate) fn series(ledgers: Vec<Vec<Entry>>) -> Vec<Series> {
    let mut found: BTreeMap<(Arc<str>, Arc<str>), Series> = BTreeMap::new();
    let mut offset = 0;
    for entries in ledgers {
        let last_line = entries.iter().map(|entry| entry.acked_line.unwrap_or(entry.sent_line)).max();
        for entry in entries {
            let key = (entry.device.clone(), entry.metric.clone());
            found.entry(key).or_insert_with(|| Series::empty(&entry)).add(&entry, offset);
        }
        offset += last_line.unwrap_or(0) + 1;
    }
    found.into_values().collect()
}

impl Series {
    fn empty(entry: &Entry) -> Self {
        Self {
            device: entry.device.clone(),
            metric: entry.metric.clone(),
            stamped: BTreeMap::new(),
            unstamped: HashMap::new(),
        }
    }

    fn add(&mut self, entry: &Entry, offset: usize) {
        // The simulator sends nothing else, so anything else is a ledger by another hand.
        let Some(value) = Value::of_text(&entry.value) else { return };
        match entry.time_us {
            Some(time_us) => self.stamped.entry(time_us).or_default().push(Sent {
                value,
                attempt_count: entry.attempt_count,
                sent_at: offset + entry.sent_line,
                acked_at: entry.acked_line.map(|line| offset + line),
            }),
            None => {
                let quota = self.unstamped.entry(value).or_default();
                quota.acked_count += u64::from(entry.acked_line.is_some());
                quota.attempt_count += entry.attempt_count;
            }
        }
    }

    /// The tightest range around the readings; none if the gateway has chosen some of their times.
    pub(crate) fn range(&self) -> Option<Range> {
        if !self.unstamped.is_empty() {
            return None;
        }
        let (first, last) = (self.stamped.keys().next()?, self.stamped.keys().next_back()?);
        Some(Range { from_us: *first, to_us: last + 1 })
    }

    /// Confronts the ledger with what is stored.
    pub(crate) fn settle(&self, stored: &[Stored]) -> Settled {
        let mut settled = Settled { samples: Vec::new(), differences: Vec::new() };
        let mut by_time: BTreeMap<i64, &Json> = BTreeMap::new();
        for Stored { time_us, value } in stored {
            if by_time.insert(*time_us, value).is_some() {
                settled.differences.push(self.differs(*time_us, "one reading", "another with the same time"));
            }
        }
        for (time_us, candidates) in &self.stamped {
            let answer = by_time.remove(time_us);
            self.settle_identity(*time_us, candidates, answer, &mut settled);
        }
        self.settle_unstamped(by_time, &mut settled);
        settled.samples.sort_by_key(|(time_us, _)| *time_us);
        settled
    }

    fn settle_identity(&self, time_us: i64, candidates: &[Sent], answer: Option<&Json>, settled: &mut Settled) {
        let possible: Vec<Value> = possible(candidates);
        // Where several values are possible, the last one sent is the best guess.
        let likely = *possible.last().expect("the last one sent is never superseded");
        let is_due = candidates.iter().any(|sent| sent.acked_at.is_some());
        let judged = match answer {
            None if is_due => {
                settled.differences.push(self.differs(time_us, &likely.text(), "nothing"));
                Some(likely)
            }
            None => None,
            Some(json) => match Value::of_json(json).filter(|value| possible.contains(value)) {
                Some(value) => Some(value),
                None => {
                    settled.differences.push(self.differs(time_us, &likely.text(), &json.to_string()));
                    Some(likely)
                }
            },
        };
        settled.samples.extend(judged.map(|value| (time_us, value.as_number())));
    }

    /// Matches the stored readings that no stamped one accounts for.
    fn settle_unstamped(&self, rest: BTreeMap<i64, &Json>, settled: &mut Settled) {
        let mut stored_counts: HashMap<Value, u64> = HashMap::new();
        for (time_us, json) in rest {
            match Value::of_json(json).filter(|value| self.unstamped.contains_key(value)) {
                Some(value) => {
                    *stored_counts.entry(value).or_default() += 1;
                    settled.samples.push((time_us, value.as_number()));
                }
                None => {
                    settled.differences.push(self.differs(time_us, "nothing, it was never sent", &json.to_string()))
                }
            }
        }
        let mut quotas: Vec<_> = self.unstamped.iter().collect();
        quotas.sort_unstable_by_key(|(value, _)| **value);
        for (value, quota) in quotas {
            let stored_count = stored_counts.get(value).copied().unwrap_or(0);
            if !(quota.acked_count..=quota.attempt_count).contains(&stored_count) {
                let expected = match quota.acked_count == quota.attempt_count {
                    true => format!("{} times {}", quota.acked_count, value.text()),
                    false => format!("{} to {} times {}", quota.acked_count, quota.attempt_count, value.text()),
                };
                settled.differences.push(self.difference(
                    "unstamped readings",
                    &expected,
                    &format!("{stored_count} times"),
                ));
            }
        }
    }

    fn differs(&self, time_us: i64, expected: &str, got: &str) -> Difference {
        self.difference(&format!("reading at {}", clock::rfc3339(time_us)), expected, got)
    }

    fn difference(&self, what: &str, expected: &str, got: &str) -> Difference {
        Difference {
            device: self.device.clone(),
            metric: self.metric.clone(),
            window: None,
            what: what.to_owned(),
            expected: expected.to_owned(),
            got: got.to_owned(),
        }
    }
}

/// The values that an identity may have, in the order of sending.
fn possible(candidates: &[Sent]) -> Vec<Value> {
    let is_superseded = |one: &Sent| {
        // A second copy of it may still have been on its way when the first was acknowledged.
        let settled_at = one.acked_at.filter(|_| one.attempt_count == 1);
        candidates
            .iter()
            .any(|other| other.acked_at.is_some() && settled_at.is_some_and(|settled_at| settled_at < other.sent_at))
    };
    candidates.iter().filter(|sent| !is_superseded(sent)).map(|sent| sent.value).collect()
}
