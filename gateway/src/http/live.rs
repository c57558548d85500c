//! `GET /v1/live`: readings and closed windows as server-sent events.
//!
//! Events are `reading` (`device, metric, time, value`), `window` (`device, metric, start, end,
//! count, mean, min, max, ...`) and, for a listener that does not keep up, `dropped` with how
//! many it missed.

use super::Shared;
use crate::catalog::Series;
use crate::journal::{Committed, SummaryRow};
use crate::live::{self, Event};
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::sse::{self, KeepAlive, Sse};
use daemon::aggregates::Filter;
use daemon::http::params::Params;
use daemon::http::reply::{JsonValue, Problem};
use futures_util::stream::{self, Stream, StreamExt};
use model::time;
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;

pub(super) const PARAMS: &[&str] = &["device", "metric"];

/// One listener.
struct Listener {
    site: Shared,
    events: live::Listener,
    filter: Filter,
    series: Vec<Option<Arc<Series>>>,
}

/// `GET /v1/live`.
pub(super) async fn get(
    State(site): State<Shared>,
    RawQuery(query): RawQuery,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, Problem> {
    let params = Params::read(query.as_deref(), PARAMS)?;
    if site.live.listeners() >= site.live_max {
        let detail = format!("http.max_live ({}) listeners are connected already", site.live_max);
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
    }
    let stop = site.stop.clone();
    let listener = Listener { events: site.live.listen(), filter: params.filter(), series: Vec::new(), site };
    let lots = stream::unfold(listener, |mut listener| async move {
        let lot = listener.next().await?;
        Some((lot, listener))
    });
    let events = lots.flat_map(|lot| stream::iter(lot.into_iter().map(Ok))).take_until(stop.cancelled_owned());
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

impl Listener {
    async fn next(&mut self) -> Option<Vec<sse::Event>> {
        match self.events.recv().await {
            Ok(Event::Readings(committed)) => Some(self.readings(&committed)),
            Ok(Event::Windows(rows)) => Some(rows.iter().filter_map(|row| self.window(row)).collect()),
            Err(RecvError::Lagged(missed)) => {
                self.site.metrics.live_dropped.inc_by(missed);
                Some(vec![sse::Event::default().event("dropped").data(json!({ "events": missed }).to_string())])
            }
            Err(RecvError::Closed) => None,
        }
    }

    /// The series of an id, if the filter lets it through.
    fn series(&mut self, id: u32) -> Option<Arc<Series>> {
        if id as usize >= self.series.len() {
            self.series = self.site.engine.catalog().present().series;
        }
        let series = self.series.get(id as usize)?.as_ref().filter(|series| !series.is_removed())?;
        self.filter.matches(&series.device.name, &series.metric).then(|| Arc::clone(series))
    }

    fn readings(&mut self, committed: &Committed) -> Vec<sse::Event> {
        let readings = &committed.readings;
        let mut events = Vec::new();
        for row in 0..readings.len() {
            let Some(series) = self.series(readings.series[row]) else { continue };
            let value = readings.value(row);
            let data = json!({
                "device": &*series.device.name, "metric": &*series.metric,
                "time": time::format(readings.time_us[row]),
                "value": serde_json::to_value(JsonValue(Some(&value), false)).unwrap_or_default(),
            });
            events.push(sse::Event::default().event("reading").data(data.to_string()));
        }
        events
    }

    fn window(&mut self, row: &SummaryRow) -> Option<sse::Event> {
        let series = self.series(row.series)?;
        let s = &row.summary;
        let some = |n: f64| (s.count > 0).then_some(n);
        let data = json!({
            "device": &*series.device.name, "metric": &*series.metric,
            "start": time::format(row.start_us), "end": time::format(row.start_us + row.length_us),
            "revision": row.revision, "count": s.count, "text_count": s.texts, "sum": some(s.sum), "mean": s.mean(), "min": some(s.min),
            "max": some(s.max), "stddev": s.stddev(), "p50": s.quantile(0.5), "p95": s.quantile(0.95),
        });
        Some(sse::Event::default().event("window").data(data.to_string()))
    }
}
