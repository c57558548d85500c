//! Query parameters: each known by name, unknown ones are errors.

use super::reply::{Problem, read_cursor};
use crate::query::{Filter, Range, parse_time};
use serde::de::DeserializeOwned;
use std::str::FromStr;

/// The parameters of a request.
#[derive(Debug)]
pub(super) struct Params {
    pairs: Vec<(String, String)>,
}

/// The end of an open range.
const FOREVER_US: i64 = model::time::LAST_US;
/// No reading is stamped before.
const BEGINNING_US: i64 = 0;

impl Params {
    /// Reads a query string that may hold `known` parameters.
    pub(super) fn read(query: Option<&str>, known: &[&str]) -> Result<Self, Problem> {
        let pairs: Vec<(String, String)> =
            form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect();
        match pairs.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, _)) => {
                let list = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                Err(Problem::bad_request(format!("unknown parameter {name:?}; this resource takes: {list}")))
            }
            None => Ok(Params { pairs }),
        }
    }

    /// All values of a parameter that may repeat.
    pub(super) fn all(&self, name: &str) -> Vec<String> {
        self.pairs
            .iter()
            .filter(|(key, value)| key == name && !value.is_empty())
            .map(|(_, value)| value.clone())
            .collect()
    }

    /// The value of a parameter.
    pub(super) fn one(&self, name: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// The value of a parameter, parsed.
    pub(super) fn parsed<T: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<Option<T>, Problem> {
        let parse = |text: &str| text.parse().map_err(|e| Problem::bad_request(format!("{name}: {e}")));
        self.one(name).map(parse).transpose()
    }

    /// `limit`, from 1 to `most`.
    pub(super) fn limit(&self, default: usize, most: usize) -> Result<usize, Problem> {
        match self.parsed::<usize>("limit")? {
            Some(limit) if limit == 0 || limit > most => {
                Err(Problem::bad_request(format!("limit: {limit} is not between 1 and {most}")))
            }
            limit => Ok(limit.unwrap_or(default)),
        }
    }

    /// `cursor`.
    pub(super) fn cursor<T: DeserializeOwned>(&self) -> Result<Option<T>, Problem> {
        self.one("cursor").map(read_cursor).transpose()
    }

    /// `device` and `metric`.
    pub(super) fn filter(&self) -> Filter {
        Filter { devices: self.all("device"), metrics: self.all("metric") }
    }

    /// `from` and `to`; without them, everything there is.
    pub(super) fn range(&self, now_us: i64) -> Result<Range, Problem> {
        let time = |name: &str| {
            let parse = |text| parse_time(text, now_us).map_err(|e| Problem::bad_request(format!("{name}: {e}")));
            self.one(name).map(parse).transpose()
        };
        let range = Range::within(time("from")?.unwrap_or(BEGINNING_US), time("to")?.unwrap_or(FOREVER_US));
        if range.from_us >= range.to_us {
            return Err(Problem::bad_request("from is not before to: a range is [from, to)"));
        }
        Ok(range)
    }
}
