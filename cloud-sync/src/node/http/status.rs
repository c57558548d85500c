//! `/v1/status`, health, metrics.

use super::Shared;
use crate::node::intake::now_us;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use daemon::http::params::Params;
use daemon::http::reply::{Problem, json};
use model::time;
use serde_json::{Map, Value, json};

/// `GET /v1/status`.
pub(super) async fn status(State(site): State<Shared>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    Params::read(query.as_deref(), &[])?;
    let view = site.router.view();
    let addresses: Map<String, Value> =
        site.addresses.iter().map(|(name, address)| ((*name).to_owned(), json!(address.to_string()))).collect();
    let now_us = now_us();
    Ok(json(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started": time::format(site.started_us),
        "uptime_s": (now_us - site.started_us) / time::SECOND_US,
        "now": time::format(now_us),
        "addresses": addresses,
        "map_version": view.version,
        "shards": view.map.shards.len(),
        "moving": view.map.transits.len(),
        "summaries": site.metrics.summaries.get(),
        "windows": site.metrics.windows.get(),
        "push_bytes": site.metrics.bytes.get(),
    })))
}

/// `GET /metrics`, Prometheus text.
pub(super) async fn metrics(State(site): State<Shared>, headers: HeaderMap) -> Response {
    daemon::http::metrics::answer(&headers, site.metrics.text())
}

/// `GET /healthz`: the process answers.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: the map can be read.
pub(super) async fn readyz(State(site): State<Shared>) -> Result<&'static str, Problem> {
    match site.router.refresh().await {
        Ok(_) => Ok("ready\n"),
        Err(e) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {e}"))),
    }
}
