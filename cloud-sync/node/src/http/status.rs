//! `/v1/status`, health, metrics, `/openapi.json`.

use super::Shared;
use crate::intake::now_us;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use daemon::http::params::Params;
use daemon::http::reply::{Problem, json, with_type};
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

/// `GET /openapi.json`.
pub(super) async fn openapi() -> Response {
    with_type(OPENAPI, "application/json")
}

/// The interface as OpenAPI 3.1.
const OPENAPI: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use super::OPENAPI;
    use serde_json::Value;

    #[test]
    fn the_openapi_document_lists_the_paths_that_are_served() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        let source = include_str!("../http.rs");
        let served = source.lines().filter_map(|line| line.trim().strip_prefix(".route(\"")?.split('"').next());
        let mut served: Vec<&str> = served.collect();
        served.sort_unstable();
        let mut listed: Vec<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        listed.sort_unstable();
        assert_eq!(listed, served);
    }
}
