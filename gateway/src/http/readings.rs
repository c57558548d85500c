//! `GET /v1/readings`: the readings of a range.

use super::{Shared, ask};
use crate::query::readings::{Page, Row};
use crate::table::of_readings;
use axum::extract::State;
use axum::response::Response;
use daemon::http::params::Asked;
use daemon::http::reply::{Accept, JsonValue, Problem, TABLES, csv, csv_value, cursor, json, table};
use model::time;
use serde::{Serialize, Serializer};

pub(super) const PARAMS: &[&str] = &["device", "metric", "from", "to", "limit", "order", "cursor"];

#[derive(Serialize)]
struct Body<'a> {
    rows: Vec<JsonRow<'a>>,
    next: Option<&'a str>,
}

struct JsonRow<'a>(&'a Row);

impl Serialize for JsonRow<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = s.serialize_map(Some(4))?;
        map.serialize_entry("device", &*self.0.device)?;
        map.serialize_entry("metric", &*self.0.metric)?;
        map.serialize_entry("time", &time::format(self.0.time_us))?;
        map.serialize_entry("value", &JsonValue(Some(&self.0.value), false))?;
        map.end()
    }
}

/// `GET /v1/readings`.
pub(super) async fn get(State(site): State<Shared>, asked: Asked) -> Result<Response, Problem> {
    let (params, form) = asked.read(PARAMS, TABLES)?;
    let (filter, range) = (params.filter(), params.range(site.engine.now_us())?);
    let descending = match params.one("order").unwrap_or("asc") {
        "asc" => false,
        "desc" => true,
        other => return Err(Problem::bad_request(format!("order: {other:?} is neither asc nor desc"))),
    };
    let page = Page { descending, limit: params.limit(1_000, 100_000)?, after: params.cursor()? };
    let (rows, more) = ask(&site, move |engine| engine.readings(&filter, range, &page)).await?;
    let last = rows.last().filter(|_| more);
    let next = last.map(|row| cursor(&(row.time_us, &*row.device, &*row.metric)));
    Ok(match form {
        Accept::Json => json(&Body { rows: rows.iter().map(JsonRow).collect(), next: next.as_deref() }),
        Accept::Csv => {
            let line = |row: &Row| {
                let value = csv_value(Some(&row.value), false);
                vec![row.device.to_string(), row.metric.to_string(), time::format(row.time_us), value]
            };
            csv(&["device", "metric", "time", "value"], rows.iter().map(line), next.as_deref())
        }
        Accept::Arrow | Accept::Parquet => table(of_readings(&rows), form, next.as_deref())?,
    })
}
