//! `GET /v1/readings`: the readings of a range.

use super::{Shared, ask};
use crate::query::readings::{Page, Row, Rows};
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

struct JsonRow<'a>(&'a Rows, &'a Row);

impl Serialize for JsonRow<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = s.serialize_map(Some(4))?;
        let JsonRow(rows, row) = self;
        let (device, metric) = rows.names(row);
        map.serialize_entry("device", device)?;
        map.serialize_entry("metric", metric)?;
        map.serialize_entry("time", &time::format(row.time_us))?;
        map.serialize_entry("value", &JsonValue(Some(&row.value), false))?;
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
    let answer = ask(&site, move |engine| engine.readings(&filter, range, &page)).await?;
    let last = answer.rows.last().filter(|_| answer.more);
    let next = last.map(|row| {
        let (device, metric) = answer.names(row);
        cursor(&(row.time_us, device, metric))
    });
    let rows = answer.rows.iter();
    Ok(match form {
        Accept::Json => json(&Body { rows: rows.map(|row| JsonRow(&answer, row)).collect(), next: next.as_deref() }),
        Accept::Csv => {
            let line = |row: &Row| {
                let value = csv_value(Some(&row.value), false);
                let (device, metric) = answer.names(row);
                vec![device.to_owned(), metric.to_owned(), time::format(row.time_us), value]
            };
            csv(&["device", "metric", "time", "value"], rows.map(line), next.as_deref())
        }
        Accept::Arrow | Accept::Parquet => table(of_readings(&answer), form, next.as_deref())?,
    })
}
