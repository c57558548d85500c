//! Comparing answered windows with recomputed ones.
//!
//! Arrives: the witness's windows and the gateway's rows. Leaves: named differences, and how far the
//! inexact statistics were off at worst. Always holds: count, min, max, first and last have to be
//! equal; sum and mean within 1e-9 of the magnitudes summed (for the mean: per reading), stddev within
//! 1e-9 of the largest magnitude, quantiles within the sketch's 0.55 %. A window that is missing or
//! not asked for is a difference. Deliberately absent: tolerance for anything that could be exact.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::sync::Arc;

use serde_json::Value as Json;

use super::ask::Row;
use super::statistics::Statistics;
use super::witness::Series;
use crate::clock;

const SUM_ERROR_MAX: f64 = 1e-9;
const QUANTILE_ERROR_MAX: f64 = 0.0055;

/// One thing that is not as the ledger says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) device: Arc<str>,
    pub(crate) metric: Arc<str>,
    /// Length and start of the window, unless a reading itself differs.
    pub(crate) window: Option<String>,
    pub(crate) what: String,
    pub(crate) expected: String,
    pub(crate) got: String,
}

impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "difference: {} {}", self.device, self.metric)?;
        if let Some(window) = &self.window {
            write!(f, ", window {window}")?;
        }
        write!(f, ", {}: expected {}, got {}", self.what, self.expected, self.got)
    }
}

/// How far answers within their tolerance were off.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Tolerance {
    pub(crate) quantile_count: u64,
    pub(crate) quantile_exact_count: u64,
    pub(crate) quantile_worst: f64,
}

impl Tolerance {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.quantile_count += other.quantile_count;
        self.quantile_exact_count += other.quantile_exact_count;
        self.quantile_worst = self.quantile_worst.max(other.quantile_worst);
    }
}

impl Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { quantile_count, quantile_exact_count, quantile_worst } = self;
        let per_cent = quantile_worst * 100.0;
        write!(f, "quantiles: {quantile_exact_count} of {quantile_count} exact, the worst off by {per_cent:.3} %")
    }
}

/// The comparison of one series' windows of one length.
pub(crate) struct Comparison<'a> {
    series: &'a Series,
    window: &'a str,
    tolerance: &'a mut Tolerance,
    pub(crate) differences: Vec<Difference>,
}

impl<'a> Comparison<'a> {
    pub(crate) fn new(series: &'a Series, window: &'a str, tolerance: &'a mut Tolerance) -> Self {
        Self { series, window, tolerance, differences: Vec::new() }
    }

    /// Compares window by window; `expected` maps a start to an end and its statistics.
    pub(crate) fn windows(&mut self, expected: &BTreeMap<i64, (i64, Statistics)>, answered: &[Row]) {
        let mut rows: BTreeMap<i64, &Row> = BTreeMap::new();
        for row in answered {
            if rows.insert(row.start_us, row).is_some() {
                self.differs(row.start_us, "window", "one row", "another with the same start");
            }
        }
        for (start_us, (end_us, statistics)) in expected {
            match rows.remove(start_us) {
                Some(row) => {
                    if row.end_us != *end_us {
                        self.differs(*start_us, "end", &clock::rfc3339(*end_us), &clock::rfc3339(row.end_us));
                    }
                    self.statistics(*start_us, statistics, row);
                }
                None => self.differs(*start_us, "window", &format!("{} readings", statistics.count), "no row"),
            }
        }
        for (start_us, row) in rows {
            self.differs(start_us, "window", "no row", &format!("count {}", text(row.statistics.get("count"))));
        }
    }

    fn statistics(&mut self, start_us: i64, expected: &Statistics, row: &Row) {
        let summed = SUM_ERROR_MAX * expected.magnitude_sum;
        self.near(start_us, row, "count", expected.count as f64, 0.0);
        self.near(start_us, row, "sum", expected.sum, summed);
        self.near(start_us, row, "mean", expected.mean, summed / expected.count as f64);
        self.near(start_us, row, "min", expected.min, 0.0);
        self.near(start_us, row, "max", expected.max, 0.0);
        self.near(start_us, row, "first", expected.first, 0.0);
        self.near(start_us, row, "last", expected.last, 0.0);
        match expected.stddev {
            Some(stddev) => self.near(start_us, row, "stddev", stddev, SUM_ERROR_MAX * expected.magnitude_max),
            None if row.statistics.get("stddev").is_none_or(Json::is_null) => {}
            None => self.differs(start_us, "stddev", "null", &text(row.statistics.get("stddev"))),
        }
        self.quantile(start_us, row, "p50", expected.p50);
        self.quantile(start_us, row, "p95", expected.p95);
    }

    fn near(&mut self, start_us: i64, row: &Row, name: &str, expected: f64, error_max: f64) {
        let got = row.statistics.get(name);
        match got.and_then(number) {
            Some(number) if (number - expected).abs() <= error_max => {}
            _ => self.differs(start_us, name, &expected.to_string(), &text(got)),
        }
    }

    fn quantile(&mut self, start_us: i64, row: &Row, name: &str, expected: f64) {
        let got = row.statistics.get(name);
        let Some(number) = got.and_then(number) else {
            return self.differs(start_us, name, &expected.to_string(), &text(got));
        };
        let off = (number - expected).abs();
        let relative = if off == 0.0 { 0.0 } else { off / expected.abs() };
        if relative > QUANTILE_ERROR_MAX {
            return self.differs(start_us, name, &expected.to_string(), &text(got));
        }
        let seen =
            Tolerance { quantile_count: 1, quantile_exact_count: u64::from(off == 0.0), quantile_worst: relative };
        self.tolerance.merge(&seen);
    }

    fn differs(&mut self, start_us: i64, what: &str, expected: &str, got: &str) {
        self.differences.push(Difference {
            device: self.series.device.clone(),
            metric: self.series.metric.clone(),
            window: Some(format!("{} from {}", self.window, clock::rfc3339(start_us))),
            what: what.to_owned(),
            expected: expected.to_owned(),
            got: got.to_owned(),
        });
    }
}

/// A statistic as a number; the first and last state of a contact may come as true or false.
fn number(json: &Json) -> Option<f64> {
    match json {
        Json::Bool(on) => Some(f64::from(u8::from(*on))),
        other => other.as_f64(),
    }
}

fn text(json: Option<&Json>) -> String {
    json.map_or_else(|| "nothing".to_owned(), Json::to_string)
}
