//! `/v1/status`, health, `/metrics`, `/openapi.json`.

use super::{Shared, look};
use crate::archive::retire::room;
use crate::clock::Quality;
use crate::journal::schema;
use crate::metrics::Usage;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use daemon::http::params::Params;
use daemon::http::reply::{Problem, json, with_type};
use model::time;
use serde_json::{Map, json};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use uplink::Snapshot;

/// `GET /v1/status`.
pub(super) async fn status(State(site): State<Shared>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    Params::read(query.as_deref(), &[])?;
    let (devices, series) = site.engine.catalog().counts();
    let budget_bytes = site.budget_bytes;
    let (room, [replay_from, archived_seq, last_seq]) = look(&site, move |engine| {
        engine.with_store(|db| {
            let room = room(db, engine.store(), budget_bytes)?;
            let last_seq: Option<i64> = db.query_row("SELECT max(seq) FROM batch", [], |row| row.get(0))?;
            let archived_seq = schema::meta::<i64>(db, "archived_seq")?;
            Ok((room, [schema::meta(db, "replay_from")?, archived_seq, last_seq.max(archived_seq)]))
        })
    })
    .await?;
    let file = |suffix: &str| {
        let mut path = site.about.store.clone().into_os_string();
        path.push(suffix);
        std::fs::metadata(path).map_or(0, |metadata| metadata.len())
    };
    let addresses: Map<String, serde_json::Value> =
        site.about.addresses.iter().map(|(name, address)| ((*name).to_owned(), json!(address.to_string()))).collect();
    let now_us = site.engine.now_us();
    let clock = match site.admission.clock.quality() {
        Quality::Vouched => "synchronized",
        Quality::Set => "set",
        Quality::Unset => "unset",
    };
    let metrics = &site.metrics;
    let usage = Usage::now();
    let growth = site.growth.lock().unwrap_or_else(PoisonError::into_inner).bytes_per_day();
    let written: Map<String, serde_json::Value> =
        metrics.written_by_cause().map(|(cause, bytes)| (cause.to_owned(), json!(bytes))).collect();
    Ok(json(&json!({
        "id": site.about.id,
        "incarnation": site.about.incarnation.load(Ordering::Relaxed).to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "started": time::format(site.about.started_us),
        "uptime_s": (now_us - site.about.started_us) / time::SECOND_US,
        "now": time::format(now_us),
        "clock": clock,
        "ready": site.is_ready(),
        "addresses": addresses,
        "devices": devices,
        "series": series,
        "readings": metrics.readings.get(),
        "rejects": metrics.rejects_total(),
        "connections": metrics.connections.get(),
        "subscriptions": site.subscriptions.subscription_count(),
        "retained": site.retained.count(),
        "queue_bytes": site.intake.depth(),
        "disk_full": metrics.disk_full.get() == 1,
        "store": {
            "bytes": file(""), "log_bytes": file("-wal"), "replay_from": replay_from,
            "archived_seq": archived_seq, "last_seq": last_seq, "used_bytes": room.used_bytes,
            "free_bytes": room.free_bytes, "budget_bytes": room.budget_bytes,
            "over_budget": metrics.over_budget.get() == 1, "growth_bytes_per_day": growth,
            "days_left": growth.and_then(|growth| room.days_left(growth)), "written_bytes": written,
        },
        "journal": {
            "commit_delay_ms": metrics.commit_delay_s.get() * 1e3,
            "written_bytes_per_day": metrics.written_per_day.get(),
        },
        "windows": {
            "open": metrics.windows_open.get(),
            "dirty": metrics.windows_dirty.get(),
            "lag_s": metrics.window_lag_s.get(),
        },
        "uplink": site.uplink.as_ref().map(|status| uplink(&status.get(), now_us)),
        "process": {
            "resident_bytes": usage.resident_bytes,
            "cpu_s": usage.cpu_s,
            "written_bytes": usage.written_bytes,
        },
    })))
}

/// How the uplink does.
fn uplink(status: &Snapshot, now_us: i64) -> serde_json::Value {
    let age_s = |us: i64| (now_us - us).max(0) / time::SECOND_US;
    let endpoints: Vec<_> =
        status.endpoints.iter().map(|endpoint| json!({"url": endpoint.url, "breaker": endpoint.state})).collect();
    json!({
        "backlog": status.backlog,
        "oldest_unsent": status.oldest_us.map(time::format),
        "oldest_unsent_age_s": status.oldest_us.map(age_s),
        "last_answer": status.last_answer_us.map(time::format),
        "last_error": status.last_error,
        "summaries": status.summaries,
        "batches": status.batches,
        "bytes": status.bytes,
        "failures": status.failures,
        "replays": status.replays,
        "set_aside": status.set_aside,
        "endpoints": endpoints,
    })
}

/// `GET /healthz`: the process answers.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: readings are taken and committed.
pub(super) async fn readyz(State(site): State<Shared>) -> Result<&'static str, Problem> {
    if !site.is_ready() {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or stopping"));
    }
    if site.metrics.disk_full.get() == 1 {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not ready: the disk is full"));
    }
    Ok("ready\n")
}

/// `GET /metrics`, Prometheus text.
pub(super) async fn metrics(State(site): State<Shared>, headers: HeaderMap) -> Response {
    site.metrics.note_logins(site.auth.refused());
    site.metrics.queue_bytes.set(site.intake.depth() as i64);
    if let Some(status) = &site.uplink {
        site.metrics.note_uplink(&status.get(), site.engine.now_us());
    }
    daemon::http::metrics::answer(&headers, site.metrics.text())
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

    #[test]
    fn the_openapi_document_lists_the_paths_and_parameters_that_are_served() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        let source = include_str!("../http.rs");
        let served = source.lines().filter_map(|line| line.trim().strip_prefix(".route(\"")?.split('"').next());
        let mut served: Vec<&str> = served.collect();
        served.sort_unstable();
        let listed: Vec<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let mut listed = listed;
        listed.sort_unstable();
        assert_eq!(listed, served);
        for (path, taken) in [
            ("/v1/readings", super::super::readings::PARAMS),
            ("/v1/aggregates", super::super::aggregates::PARAMS),
            ("/v1/devices", super::super::devices::PARAMS),
            ("/v1/rejects", super::super::rejects::PARAMS),
            ("/v1/live", super::super::live::PARAMS),
            ("/v1/sniff", super::super::sniff::PARAMS),
        ] {
            let listed = document["paths"][path]["get"]["parameters"].as_array().unwrap().iter();
            let resolve = |parameter: &serde_json::Value| match parameter["$ref"].as_str() {
                Some(reference) => document.pointer(&reference[1..]).unwrap()["name"].clone(),
                None => parameter["name"].clone(),
            };
            let listed = listed.map(|p| resolve(p).as_str().unwrap().to_owned());
            // Taken by all that answer in several forms.
            let mut listed: Vec<String> = listed.filter(|name| name != "format").collect();
            let mut taken: Vec<&str> = taken.to_vec();
            listed.sort();
            taken.sort_unstable();
            assert_eq!(listed, taken, "{path}");
        }
    }
}
