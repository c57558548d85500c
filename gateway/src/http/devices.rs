//! `/v1/devices`: who is there, with the latest value of each metric.

use super::ingest::commit;
use super::{Shared, Site};
use crate::catalog::{Latest, Series};
use crate::journal::Parcel;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use daemon::http::params::{Asked, Params, Segment};
use daemon::http::reply::{Accept, JsonValue, Problem, TEXTS, csv, csv_value, cursor, json};
use model::aggregate::glob;
use model::{Micros, time};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A device that was heard no longer ago than this is online.
const ONLINE_US: Micros = 300 * time::SECOND_US;
pub(super) const PARAMS: &[&str] = &["device", "limit", "cursor"];

#[derive(Serialize)]
struct Page {
    rows: Vec<Device>,
    next: Option<String>,
}

#[derive(Serialize)]
struct Device {
    id: String,
    labels: BTreeMap<String, String>,
    last_seen: Option<String>,
    online: bool,
    readings: u64,
    metrics: Vec<Metric>,
}

struct Metric {
    series: Arc<Series>,
    latest: Option<Latest>,
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("metric", &*self.series.metric)?;
        map.serialize_entry("unit", &self.series.unit().as_deref())?;
        map.serialize_entry("value", &JsonValue(self.latest.as_ref().map(|latest| &latest.value), false))?;
        map.serialize_entry("time", &self.latest.as_ref().map(|latest| time::format(latest.time_us)))?;
        map.serialize_entry("readings", &self.latest.as_ref().map_or(0, |latest| latest.readings))?;
        map.end()
    }
}

fn describe(site: &Site, id: &str, series: Vec<Arc<Series>>) -> Device {
    let catalog = site.engine.catalog();
    let metrics: Vec<Metric> =
        series.into_iter().map(|series| Metric { latest: catalog.latest(series.id), series }).collect();
    let seen_us = metrics.iter().filter_map(|metric| Some(metric.latest.as_ref()?.received_us)).max();
    Device {
        id: id.to_owned(),
        labels: catalog.labels(id).iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        last_seen: seen_us.map(time::format),
        online: seen_us.is_some_and(|seen_us| site.engine.now_us() - seen_us <= ONLINE_US),
        readings: metrics.iter().filter_map(|metric| Some(metric.latest.as_ref()?.readings)).sum(),
        metrics,
    }
}

/// `GET /v1/devices`.
pub(super) async fn list(State(site): State<Shared>, asked: Asked) -> Result<Response, Problem> {
    let (params, form) = asked.read(PARAMS, TEXTS)?;
    let limit = params.limit(1_000, 10_000)?;
    let after: Option<String> = params.cursor()?;
    let patterns = params.all("device");
    let catalog = site.engine.catalog();
    let mut names: Vec<_> = catalog.devices().iter().map(|device| device.name.clone()).collect();
    names.sort_unstable();
    names.retain(|name| patterns.is_empty() || patterns.iter().any(|pattern| glob(pattern, name)));
    let begin = after.map_or(0, |after| names.partition_point(|name| **name <= *after));
    let names = &names[begin..];
    let next = (names.len() > limit).then(|| cursor(&&*names[limit - 1]));
    let shown = names.iter().take(limit);
    let rows = shown.map(|name| describe(&site, name, catalog.series_of(name).unwrap_or_default())).collect();
    Ok(match form {
        Accept::Json => json(&Page { rows, next }),
        _ => as_csv(&rows, next.as_deref()),
    })
}

/// One line per metric.
fn as_csv(devices: &[Device], next: Option<&str>) -> Response {
    let line = |device: &Device, metric: &Metric| {
        let latest = metric.latest.as_ref();
        vec![
            device.id.clone(),
            metric.series.metric.to_string(),
            metric.series.unit().as_deref().unwrap_or_default().to_owned(),
            csv_value(latest.map(|latest| &latest.value), false),
            latest.map(|latest| time::format(latest.time_us)).unwrap_or_default(),
            device.last_seen.clone().unwrap_or_default(),
            device.online.to_string(),
            latest.map_or(0, |latest| latest.readings).to_string(),
        ]
    };
    let lines = devices.iter().flat_map(|device| device.metrics.iter().map(move |metric| line(device, metric)));
    csv(&["device", "metric", "unit", "value", "time", "last_seen", "online", "readings"], lines, next)
}

/// `GET /v1/devices/{device}`.
pub(super) async fn one(
    State(site): State<Shared>,
    Segment(device): Segment<String>,
    asked: Asked,
) -> Result<Response, Problem> {
    let (_, form) = asked.read(&[], TEXTS)?;
    match site.engine.catalog().series_of(&device) {
        Some(series) => {
            let device = describe(&site, &device, series);
            Ok(match form {
                Accept::Json => json(&device),
                _ => as_csv(std::slice::from_ref(&device), None),
            })
        }
        None => Err(Problem::new(StatusCode::NOT_FOUND, format!("no device {device:?} has sent a reading"))),
    }
}

/// Labels of one device, and the length of their names and values.
const LABELS_MAX: usize = 64;
const LABEL_BYTES_MAX: usize = 255;

/// `PUT /v1/devices/{device}/labels`: sets all labels of a device; the answer is the device.
pub(super) async fn put_labels(
    State(site): State<Shared>,
    Segment(device): Segment<String>,
    RawQuery(query): RawQuery,
    body: Bytes,
) -> Result<Response, Problem> {
    Params::read(query.as_deref(), &[])?;
    let shape = |e: serde_json::Error| {
        Problem::bad_request(format!("labels are a JSON object of texts, for example {{\"site\":\"north\"}}: {e}"))
    };
    let labels: BTreeMap<String, String> = serde_json::from_slice(&body).map_err(shape)?;
    if labels.len() > LABELS_MAX {
        return Err(Problem::bad_request(format!("{} labels; a device has at most {LABELS_MAX}", labels.len())));
    }
    let is_good = |text: &str| text.len() <= LABEL_BYTES_MAX && !text.chars().any(char::is_control);
    if let Some((name, _)) = labels.iter().find(|(name, value)| name.is_empty() || !is_good(name) || !is_good(value)) {
        let limits = format!("at most {LABEL_BYTES_MAX} bytes, no control characters, and the name is not empty");
        return Err(Problem::bad_request(format!("label {name:?}: names and values have {limits}")));
    }
    let catalog = site.engine.catalog();
    let labels = labels.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    if !catalog.set_labels(&device, labels) {
        return Err(Problem::new(StatusCode::NOT_FOUND, format!("no device {device:?} has sent a reading")));
    }
    commit(&site, Parcel::default()).await?;
    Ok(json(&describe(&site, &device, catalog.series_of(&device).unwrap_or_default())))
}

/// What a removal came to.
#[derive(Serialize)]
struct Gone<'a> {
    device: &'a str,
    metrics: Vec<&'a str>,
    readings: u64,
}

/// `DELETE /v1/devices/{device}`: removes a device with its readings, here and, by and by, in the cloud.
pub(super) async fn remove(
    State(site): State<Shared>,
    Segment(device): Segment<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    Params::read(query.as_deref(), &[])?;
    gone(&site, &device, None).await
}

/// `DELETE /v1/devices/{device}/metrics/{metric}`: the same for one metric.
pub(super) async fn remove_metric(
    State(site): State<Shared>,
    Segment((device, metric)): Segment<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    Params::read(query.as_deref(), &[])?;
    gone(&site, &device, Some(&metric)).await
}

async fn gone(site: &Site, device: &str, metric: Option<&str>) -> Result<Response, Problem> {
    let Some(removed) = site.admission.remove(device, metric) else {
        let of = metric.map_or(String::new(), |metric| format!(" with a metric {metric:?}"));
        return Err(Problem::new(StatusCode::NOT_FOUND, format!("there is no device {device:?}{of}")));
    };
    commit(site, Parcel::default()).await?;
    let mut metrics: Vec<&str> = removed.series.iter().map(|series| &*series.metric).collect();
    metrics.sort_unstable();
    tracing::info!("removed from {device}: {}, with {} readings", metrics.join(", "), removed.readings);
    Ok(json(&Gone { device, metrics, readings: removed.readings }))
}
