//! Query parameters: each known by name, unknown ones are errors.

use super::reply::{Accept, Problem, accept, form, read_cursor};
use crate::aggregates::{Filter, Range, parse_time};
use axum::extract::{FromRequestParts, Path};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::str::FromStr;

/// The parameters of a request.
#[derive(Debug)]
pub struct Params {
    pairs: Vec<(String, String)>,
}

/// What a request asks for: its query and the forms that it accepts, not yet read.
#[derive(Debug)]
pub struct Asked {
    query: Option<String>,
    headers: HeaderMap,
}

impl<S: Sync> FromRequestParts<S> for Asked {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Asked { query: parts.uri.query().map(str::to_owned), headers: parts.headers.clone() })
    }
}

/// What a path names, a device for example; what cannot be read is an error like any other.
#[derive(Debug)]
pub struct Segment<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segment<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(named)) => Ok(Segment(named)),
            Err(e) => Err(Problem::bad_request(format!("the path cannot be read: {}", e.body_text()))),
        }
    }
}

impl Asked {
    /// Its parameters, of those that are known, and the form of the answer.
    pub fn read(&self, known: &[&str], forms: &[Accept]) -> Result<(Params, Accept), Problem> {
        let params = Params::read(self.query.as_deref(), &[known, &["format"]].concat())?;
        let form = match params.one("format") {
            Some(name) => form(name, forms)?,
            None => accept(&self.headers, forms)?,
        };
        Ok((params, form))
    }
}

/// The end of an open range.
const FOREVER_US: i64 = model::time::LAST_US;
/// The beginning of one.
const BEGINNING_US: i64 = model::time::FIRST_US;

impl Params {
    /// Reads a query string that may hold `known` parameters.
    pub fn read(query: Option<&str>, known: &[&str]) -> Result<Self, Problem> {
        let pairs: Vec<(String, String)> =
            form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect();
        // Where metrics are chosen, they can be by their tags.
        let is_tag =
            |name: &str| known.contains(&"metric") && name.strip_prefix("tag:").is_some_and(|tag| !tag.is_empty());
        match pairs.iter().find(|(name, _)| !known.contains(&name.as_str()) && !is_tag(name)) {
            Some((name, _)) => {
                let list = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                Err(Problem::bad_request(format!("unknown parameter {name:?}; this resource takes: {list}")))
            }
            None => Ok(Params { pairs }),
        }
    }

    /// All values of a parameter that may repeat.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.pairs
            .iter()
            .filter(|(key, value)| key == name && !value.is_empty())
            .map(|(_, value)| value.clone())
            .collect()
    }

    /// The value of a parameter.
    pub fn one(&self, name: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// The value of a parameter, parsed.
    pub fn parsed<T: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<Option<T>, Problem> {
        let parse = |text: &str| text.parse().map_err(|e| Problem::bad_request(format!("{name}: {text:?}: {e}")));
        self.one(name).map(parse).transpose()
    }

    /// `limit`, from 1 to `most`.
    pub fn limit(&self, default: usize, most: usize) -> Result<usize, Problem> {
        let Some(text) = self.one("limit") else { return Ok(default) };
        let limit = text.parse().ok().filter(|limit| (1..=most).contains(limit));
        limit.ok_or_else(|| Problem::bad_request(format!("limit: {text:?} is not a whole number from 1 to {most}")))
    }

    /// `cursor`.
    pub fn cursor<T: DeserializeOwned>(&self) -> Result<Option<T>, Problem> {
        self.one("cursor").map(read_cursor).transpose()
    }

    /// `device`, `metric` and `tag:NAME`.
    pub fn filter(&self) -> Filter {
        let mut tags: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in &self.pairs {
            if let Some(tag) = name.strip_prefix("tag:") {
                tags.entry(tag.to_owned()).or_default().push(value.clone());
            }
        }
        Filter { devices: self.all("device"), metrics: self.all("metric"), tags: tags.into_iter().collect() }
    }

    /// `from` and `to`; without them, everything there is.
    pub fn range(&self, now_us: i64) -> Result<Range, Problem> {
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
