//! Asking a gateway over HTTP.
//!
//! Arrives: a series, a range, a window. Leaves: the rows of the answer, all pages of them.
//! Always holds: names are percent-encoded byte by byte, so any UTF-8 can be asked for; rows of other
//! series (a name may look like a pattern) are left out. Deliberately absent: any judgement of the
//! rows, and any retry.

use std::fmt::Write;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use super::statistics::Range;
use crate::clock;

const PAGE_ROWS: usize = 10_000;
const TIMEOUT: Duration = Duration::from_secs(60);
const BODY_BYTES_MAX: u64 = 256 << 20;
/// Every statistic that the witness can recompute.
pub(crate) const STATS: &str = "count,sum,mean,min,max,first,last,stddev,p50,p95";

/// Why there is no answer to compare.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("cannot ask {url}: {source}")]
    Http { url: String, source: Box<ureq::Error> },
    #[error("{url} answered {status}: {body}")]
    Status { url: String, status: u16, body: String },
    #[error("{url} answered something else than agreed: {reason}")]
    Form { url: String, reason: String },
}

/// How to prove who asks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Login<'a> {
    None,
    /// `NAME:PASSWORD`.
    Basic(&'a str),
    Bearer(&'a str),
}

/// A gateway that can be asked.
#[derive(Debug)]
pub(crate) struct Gateway {
    agent: ureq::Agent,
    base: String,
    authorization: Option<String>,
}

/// A stored reading.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    pub(crate) time_us: i64,
    pub(crate) value: Json,
}

/// One answered window.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) start_us: i64,
    pub(crate) end_us: i64,
    /// Statistics by name.
    pub(crate) statistics: Map<String, Json>,
}

#[derive(Deserialize)]
struct Page<T> {
    rows: Vec<T>,
    #[serde(default)]
    next: Option<String>,
}

#[derive(Deserialize)]
struct ReadingRow {
    device: String,
    metric: String,
    time: String,
    value: Json,
}

#[derive(Deserialize)]
struct WindowRow {
    device: String,
    metric: String,
    start: String,
    end: String,
    #[serde(flatten)]
    statistics: Map<String, Json>,
}

impl Gateway {
    pub(crate) fn new(base: &str, login: Login<'_>) -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT));
        let authorization = match login {
            Login::None => None,
            Login::Basic(user) => Some(format!("Basic {}", BASE64_STANDARD.encode(user))),
            Login::Bearer(token) => Some(format!("Bearer {token}")),
        };
        Self { agent: config.build().into(), base: base.to_owned(), authorization }
    }

    /// All stored readings of a series within a range.
    pub(crate) fn readings(&self, device: &str, metric: &str, range: Range) -> Result<Vec<Stored>, AskError> {
        let url = self.url("readings", device, metric, range, "");
        self.pages(&url, |row: ReadingRow| {
            if (row.device.as_str(), row.metric.as_str()) != (device, metric) {
                return Ok(None);
            }
            Ok(Some(Stored { time_us: time(&row.time)?, value: row.value }))
        })
    }

    /// All windows of a series within a range.
    pub(crate) fn aggregates(
        &self,
        device: &str,
        metric: &str,
        range: Range,
        window: &str,
    ) -> Result<Vec<Row>, AskError> {
        let rest = format!("&window={}&stats={STATS}", encoded(window));
        let url = self.url("aggregates", device, metric, range, &rest);
        self.pages(&url, |row: WindowRow| {
            if (row.device.as_str(), row.metric.as_str()) != (device, metric) {
                return Ok(None);
            }
            Ok(Some(Row { start_us: time(&row.start)?, end_us: time(&row.end)?, statistics: row.statistics }))
        })
    }

    fn url(&self, resource: &str, device: &str, metric: &str, range: Range, rest: &str) -> String {
        format!(
            "{}/v1/{resource}?device={}&metric={}&from={}&to={}{rest}&limit={PAGE_ROWS}",
            self.base,
            encoded(device),
            encoded(metric),
            encoded(&clock::rfc3339(range.from_us)),
            encoded(&clock::rfc3339(range.to_us)),
        )
    }

    /// Follows the cursor to the last page; `pick` reads one row or leaves it out.
    fn pages<T: DeserializeOwned, R>(
        &self,
        url: &str,
        mut pick: impl FnMut(T) -> Result<Option<R>, String>,
    ) -> Result<Vec<R>, AskError> {
        let (mut picked, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let page_url = match &cursor {
                Some(cursor) => format!("{url}&cursor={}", encoded(cursor)),
                None => url.to_owned(),
            };
            let unagreed = |reason: String| AskError::Form { url: page_url.clone(), reason };
            let body = self.get(&page_url)?;
            let page: Page<T> = serde_json::from_slice(&body).map_err(|error| unagreed(error.to_string()))?;
            for row in page.rows {
                picked.extend(pick(row).map_err(unagreed)?);
            }
            match page.next {
                None => return Ok(picked),
                next if next == cursor => return Err(unagreed("the cursor does not advance".to_owned())),
                next => cursor = next,
            }
        }
    }

    fn get(&self, url: &str) -> Result<Vec<u8>, AskError> {
        let failed = |source| AskError::Http { url: url.to_owned(), source: Box::new(source) };
        let mut request = self.agent.get(url).header("Accept", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut response = request.call().map_err(failed)?;
        let status = response.status();
        let body = response.body_mut().with_config().limit(BODY_BYTES_MAX).read_to_vec().map_err(failed)?;
        if status.is_success() {
            return Ok(body);
        }
        let body = String::from_utf8_lossy(&body).chars().take(500).collect();
        Err(AskError::Status { url: url.to_owned(), status: status.as_u16(), body })
    }
}

fn time(text: &str) -> Result<i64, String> {
    clock::parse_time(text).map_err(|error| error.to_string())
}

/// Percent-encoding of everything but the unreserved characters (RFC 3986, 2.3).
fn encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => write!(out, "%{byte:02X}").expect("writing to a string cannot fail"),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_byte_by_byte() {
        assert_eq!(encoded("halle 3/süd&x=1+1%"), "halle%203%2Fs%C3%BCd%26x%3D1%2B1%25");
        assert_eq!(encoded("sim-0001_a.b~c"), "sim-0001_a.b~c");
    }
}
