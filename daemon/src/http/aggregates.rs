//! `GET /v1/aggregates`: statistics over windows.

use super::params::Params;
use super::reply::{Accept, JsonValue, Problem, csv, csv_value, cursor, json, table};
use crate::aggregates::{Answer, GroupBy, Question, Range, Row, is_count};
use crate::config::Span;
use crate::table::of_aggregates;
use axum::response::Response;
use model::aggregate::{Stat, Window};
use model::time::SECOND_US;
use model::{Micros, time};
use serde::{Serialize, Serializer};
use serde_json::Map;
use std::sync::Arc;
use std::time::Duration;

/// What the resource takes.
pub const PARAMS: &[&str] =
    &["device", "metric", "from", "to", "window", "every", "stats", "group_by", "fill", "limit", "cursor"];
const STATS: &str = "count,mean,min,max";
const STATS_MAX: usize = 64;
/// Windows that may overlap at one time.
const EVERY_MAX: i64 = 10_000;

#[derive(Serialize)]
struct Body<'a> {
    window: &'a str,
    rows: Vec<JsonRow<'a>>,
    /// "exact", or the greatest relative error of those that came from sketches.
    #[serde(skip_serializing_if = "Option::is_none")]
    quantile_error: Option<f64>,
    #[serde(flatten)]
    notes: &'a Map<String, serde_json::Value>,
    next: Option<&'a str>,
}

struct JsonRow<'a> {
    row: &'a Row,
    group_by: &'a [String],
    stats: &'a [(String, bool)],
}

impl Serialize for JsonRow<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = s.serialize_map(None)?;
        for (name, value) in self.group_by.iter().zip(&self.row.group) {
            map.serialize_entry(name, &value.as_deref())?;
        }
        map.serialize_entry("start", &time::format(self.row.start_us))?;
        map.serialize_entry("end", &time::format(self.row.end_us))?;
        for ((name, whole), value) in self.stats.iter().zip(&self.row.values) {
            map.serialize_entry(name, &JsonValue(value.as_ref(), *whole))?;
        }
        map.serialize_entry("complete", &self.row.complete)?;
        if let Some(us) = self.row.resolution_us {
            map.serialize_entry("sealed", &true)?;
            map.serialize_entry("resolution", &Span(Duration::from_micros(us as u64)).to_string())?;
        }
        map.end()
    }
}

/// A question over HTTP, and what its answer must look like.
pub struct Asking {
    /// What is asked.
    pub question: Question,
    window: String,
    form: Accept,
}

impl Asking {
    /// Reads the parameters.
    pub fn read(params: &Params, form: Accept, now_us: Micros) -> Result<Self, Problem> {
        let text = params.one("window").unwrap_or("all").to_owned();
        let window: Window = text.parse().map_err(|e| Problem::bad_request(format!("window: {e}")))?;
        // A relative range moves on between pages; the cursor holds it still.
        let cursor_place: Option<(Vec<Option<String>>, i64, i64, i64)> = params.cursor()?;
        let range = match &cursor_place {
            Some((_, _, from_us, to_us)) => Range::within(*from_us, *to_us),
            None => params.range(now_us)?,
        };
        let question = Question {
            filter: params.filter(),
            range,
            window,
            every_us: every(params, window)?,
            group_by: group_by(params)?,
            stats: stats(params)?,
            fill: fill(params, window)?,
            limit: params.limit(10_000, 100_000)?,
            after: cursor_place.map(|(group, start_us, _, _)| (group, start_us)),
        };
        Ok(Asking { question, window: text, form })
    }

    /// The answer in the form that was asked for; `notes` stand beside the rows in JSON.
    pub fn reply(&self, answer: &Answer, notes: &Map<String, serde_json::Value>) -> Result<Response, Problem> {
        let Question { stats, range, .. } = &self.question;
        let columns: Vec<(String, bool)> = stats.iter().map(|stat| (stat.to_string(), is_count(*stat))).collect();
        let group_by: Vec<String> = self.question.group_by.iter().map(ToString::to_string).collect();
        let place = |(group, start_us): (&[Option<Arc<str>>], Micros)| {
            let group: Vec<Option<&str>> = group.iter().map(Option::as_deref).collect();
            cursor(&(group, start_us, range.from_us, range.to_us))
        };
        let next = answer.next().map(place);
        Ok(match self.form {
            Accept::Json => json(&Body {
                window: &self.window,
                rows: answer.rows.iter().map(|row| JsonRow { row, group_by: &group_by, stats: &columns }).collect(),
                quantile_error: answer.quantile_error,
                notes,
                next: next.as_deref(),
            }),
            Accept::Csv => as_csv(answer, &group_by, &columns, next.as_deref()),
            form => table(of_aggregates(answer, &group_by, stats), form, next.as_deref())?,
        })
    }
}

fn stats(params: &Params) -> Result<Vec<Stat>, Problem> {
    let given = params.all("stats").join(",");
    let text = if given.is_empty() { STATS } else { &given };
    let stats: Result<Vec<Stat>, _> = text.split(',').map(|name| name.trim().parse()).collect();
    let stats = stats.map_err(|e: model::aggregate::GrammarError| Problem::bad_request(format!("stats: {e}")))?;
    if stats.len() > STATS_MAX {
        return Err(Problem::bad_request(format!("stats: at most {STATS_MAX} at once")));
    }
    Ok(stats)
}

/// From one window's start to the next: for windows that overlap, or leave gaps.
fn every(params: &Params, window: Window) -> Result<Option<Micros>, Problem> {
    let Some(text) = params.one("every") else { return Ok(None) };
    match (text.parse(), window) {
        (Ok(Window::Tumbling(every_us)), Window::Tumbling(length_us)) if length_us / every_us <= EVERY_MAX => {
            Ok(Some(every_us))
        }
        (Ok(Window::Tumbling(_)), Window::Tumbling(_)) => {
            Err(Problem::bad_request(format!("every: a window may be at most {EVERY_MAX} times as long")))
        }
        (Ok(_), _) => Err(Problem::bad_request("every needs a window, and neither may be \"all\"")),
        (Err(e), _) => Err(Problem::bad_request(format!("every: {e}"))),
    }
}

fn group_by(params: &Params) -> Result<Vec<GroupBy>, Problem> {
    let given = params.all("group_by").join(",");
    if given.is_empty() {
        return Ok(vec![GroupBy::Device, GroupBy::Metric]);
    }
    // "all" makes one group of everything.
    if given == "all" {
        return Ok(Vec::new());
    }
    let parse = |name: &str| name.trim().parse().map_err(|e| Problem::bad_request(format!("group_by: {e}")));
    given.split(',').map(parse).collect()
}

/// With `fill=null`, windows without readings are shown too; that needs a range, unless there is one window.
fn fill(params: &Params, window: Window) -> Result<bool, Problem> {
    let has_range = params.one("from").is_some() && params.one("to").is_some();
    match params.one("fill") {
        None | Some("none") => Ok(false),
        Some("null") if has_range || window == Window::All => Ok(has_range),
        Some("null") => Err(Problem::bad_request("fill=null needs from and to")),
        Some(other) => Err(Problem::bad_request(format!("fill: {other:?} is neither null nor none"))),
    }
}

fn as_csv(answer: &Answer, group_by: &[String], columns: &[(String, bool)], next: Option<&str>) -> Response {
    let mut head: Vec<&str> = group_by.iter().map(String::as_str).chain(["start", "end"]).collect();
    head.extend(columns.iter().map(|(name, _)| name.as_str()));
    head.extend(["complete", "resolution_s"]);
    let line = |row: &Row| {
        let mut line: Vec<String> = row.group.iter().map(|part| part.as_deref().unwrap_or_default().into()).collect();
        line.extend([time::format(row.start_us), time::format(row.end_us)]);
        line.extend(columns.iter().zip(&row.values).map(|((_, whole), value)| csv_value(value.as_ref(), *whole)));
        line.push(row.complete.to_string());
        line.push(row.resolution_us.map_or_else(String::new, |us| (us / SECOND_US).to_string()));
        line
    };
    csv(&head, answer.rows.iter().map(line), next)
}
