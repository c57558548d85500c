//! `/v1/devices`, `/v1/gateways`, `/v1/summaries`.

use super::{Shared, notes, refuses_partial};
use crate::intake::now_us;
use crate::query;
use crate::shard::{Beat, Known};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use daemon::http::params::{Asked, Segment};
use daemon::http::reply::{Accept, Problem, TEXTS, csv, cursor, json};
use model::{Micros, time};
use serde_json::{Value, json};
use wire::HeldWindow;

/// A gateway that has not been heard of for so long is silent.
const SILENT_US: Micros = 120 * time::SECOND_US;

/// `GET /v1/gateways`: who is there, who is silent, and how far each has got.
pub(super) async fn gateways(State(site): State<Shared>, asked: Asked) -> Result<Response, Problem> {
    let (params, form) = asked.read(&["partial"], TEXTS)?;
    let (beats, missing) = query::beats(&site.router, site.config.query.timeout.0).await?;
    let notes = notes(&missing, refuses_partial(&params)? || form == Accept::Csv)?;
    let now_us = now_us();
    let silent = |beat: &Beat| now_us - beat.seen_us > SILENT_US;
    let oldest = |beat: &Beat| (beat.oldest_us > 0).then(|| time::format(beat.oldest_us));
    if form == Accept::Csv {
        let head = [
            "id",
            "last_seen",
            "silent",
            "backlog",
            "oldest_unsent",
            "clock_offset_s",
            "version",
            "incarnation",
            "disputed",
        ];
        let line = |beat: &Beat| {
            vec![
                beat.gateway.clone(),
                time::format(beat.seen_us),
                silent(beat).to_string(),
                beat.backlog.to_string(),
                oldest(beat).unwrap_or_default(),
                ((beat.now_us - beat.seen_us) as f64 / 1e6).to_string(),
                beat.version.clone(),
                beat.incarnation.to_string(),
                beat.disputed.to_string(),
            ]
        };
        return Ok(csv(&head, beats.iter().map(line), None));
    }
    let row = |beat: &Beat| {
        json!({
            "id": beat.gateway, "last_seen": time::format(beat.seen_us), "silent": silent(beat),
            "backlog": beat.backlog, "oldest_unsent": oldest(beat),
            "clock_offset_s": (beat.now_us - beat.seen_us) as f64 / 1e6,
            "version": beat.version, "incarnation": beat.incarnation.to_string(),
            "disputed": beat.disputed,
        })
    };
    let mut body = notes;
    body.insert("rows".into(), json!(beats.iter().map(row).collect::<Vec<Value>>()));
    Ok(json(&body))
}

/// `GET /v1/devices`: by id, with the gateway that each is at.
pub(super) async fn devices(State(site): State<Shared>, asked: Asked) -> Result<Response, Problem> {
    let (params, form) = asked.read(&["device", "limit", "cursor", "partial"], TEXTS)?;
    let limit = params.limit(1_000, 10_000)?;
    let after: Option<(String, String)> = params.cursor()?;
    let patterns = params.all("device");
    let asked = |shard: std::sync::Arc<dyn crate::shard::Shard>, fences| {
        let (patterns, after) = (patterns.clone(), after.clone());
        async move { shard.devices(patterns, after, limit + 1, fences).await }
    };
    let (parts, missing) = query::scatter(&site.router, &[], &patterns, site.config.query.timeout.0, asked).await?;
    let mut known: Vec<Known> = parts.into_iter().flatten().collect();
    known.sort_by(|a, b| (&a.device, &a.gateway).cmp(&(&b.device, &b.gateway)));
    let more = known.len() > limit;
    known.truncate(limit);
    let next = known.last().filter(|_| more).map(|last| cursor(&(&*last.device, &*last.gateway)));
    let notes = notes(&missing, refuses_partial(&params)? || form == Accept::Csv)?;
    if form == Accept::Csv {
        let line = |known: &Known| {
            let last = known.last_us.map(time::format).unwrap_or_default();
            vec![known.device.to_string(), known.gateway.to_string(), last, known.metrics.join(" ")]
        };
        return Ok(csv(&["id", "gateway", "last_window", "metrics"], known.iter().map(line), next.as_deref()));
    }
    let row = |known: &Known| {
        json!({
            "id": &*known.device, "gateway": &*known.gateway, "labels": known.labels, "metrics": known.metrics,
            "last_window": known.last_us.map(time::format),
        })
    };
    let mut body = notes;
    body.insert("rows".into(), json!(known.iter().map(row).collect::<Vec<Value>>()));
    body.insert("next".into(), json!(next));
    Ok(json(&body))
}

/// `GET /v1/summaries?gateway=`: the windows that are held of a gateway, with their versions.
pub(super) async fn summaries(State(site): State<Shared>, asked: Asked) -> Result<Response, Problem> {
    let (params, _) = asked.read(&["gateway", "limit", "cursor"], &[Accept::Json])?;
    let gateway = params.one("gateway").ok_or_else(|| Problem::bad_request("gateway: whose windows?"))?.to_owned();
    let limit = params.limit(10_000, 50_000)?;
    let after: Option<(String, Micros, Micros)> = params.cursor()?;
    let asked = |shard: std::sync::Arc<dyn crate::shard::Shard>, fences| {
        let (gateway, after) = (gateway.clone(), after.clone());
        async move { shard.windows(gateway, after, limit + 1, fences).await }
    };
    let (parts, missing) = query::scatter(&site.router, &[], &[], site.config.query.timeout.0, asked).await?;
    notes(&missing, true)?;
    let mut windows: Vec<HeldWindow> = parts.into_iter().flatten().collect();
    windows.sort_by(|a, b| (&a.device, a.length_us, a.start_us).cmp(&(&b.device, b.length_us, b.start_us)));
    let more = windows.len() > limit;
    windows.truncate(limit);
    let next = windows.last().filter(|_| more).map(|last| cursor(&(&last.device, last.length_us, last.start_us)));
    Ok(json(&json!({"rows": windows, "next": next})))
}

/// `DELETE /v1/gateways/{gateway}`: it is not waited for any more, and whoever comes under its id is taken. Its windows
/// stay; it is there again when it is heard of.
pub(super) async fn forget(State(site): State<Shared>, Segment(gateway): Segment<String>) -> Result<Response, Problem> {
    forget_sender(&site, &gateway, true).await
}

/// `POST /v1/gateways/{gateway}/accept`: the next store that sends under the id is taken, whatever was known of another.
pub(super) async fn accept(State(site): State<Shared>, Segment(gateway): Segment<String>) -> Result<Response, Problem> {
    forget_sender(&site, &gateway, false).await
}

async fn forget_sender(site: &Shared, gateway: &str, wholly: bool) -> Result<Response, Problem> {
    let view = site.router.view();
    let mut is_known = false;
    for name in view.map.shards.keys() {
        let shard = view.shard(name);
        let forgotten = match shard {
            Ok(shard) => shard.forget_sender(gateway, wholly).await,
            Err(e) => Err(e),
        };
        is_known |= forgotten.map_err(|e| {
            let detail = format!("shard {name}: {e}; try again when it is back");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        })?;
    }
    if !is_known {
        return Err(Problem::new(StatusCode::NOT_FOUND, format!("there is no gateway {gateway:?}")));
    }
    tracing::info!("gateway {gateway}: {}", if wholly { "forgotten" } else { "whoever sends next is accepted" });
    Ok(json(&json!({"gateway": gateway})))
}
