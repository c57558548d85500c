//! `POST /v1/readings` and `POST /api/v2/write`: readings over HTTP, answered after their commit.

use super::{Shared, Site};
use crate::decode::line::{self, Precision};
use crate::decode::posted::{self, Body as Kind};
use crate::decode::{Decoded, Target};
use crate::journal::{DISK_FULL, Parcel};
use crate::listen::Receipt;
use crate::metrics::Protocol;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use daemon::http::params::Params;
use daemon::http::reply::{Problem, json};
use flate2::read::MultiGzDecoder;
use serde::Serialize;
use std::io::Read;
use std::time::Duration;
use tokio::sync::{SemaphorePermit, oneshot};

#[derive(Serialize)]
struct Outcome {
    accepted: usize,
    rejected: Vec<Rejected>,
}

#[derive(Serialize)]
struct Rejected {
    index: usize,
    reason: String,
}

/// Rejects of one body that are kept with their payload.
const REJECTS_KEPT: usize = 20;
/// Rejects that an answer names; all are counted and the first are kept.
const REJECTS_NAMED: usize = 1_000;

/// `POST /v1/readings`.
pub(super) async fn readings(State(site): State<Shared>, request: Request) -> Result<Response, Problem> {
    Params::read(request.uri().query(), &[])?;
    let kind = body_kind(request.headers())?;
    let taken = read_body(&site, request).await?;
    site.metrics.messages(Protocol::Http).inc();
    let body = &taken.bytes;
    let items = posted::decode(body, kind, &site.admission.zone);
    let items = items.map_err(|reject| {
        site.metrics.reject(reject.reason);
        Problem::bad_request(reject.to_string())
    })?;
    let mut parcel = Parcel::default();
    let arrival = site.admission.arrival();
    let mut outcome = Outcome { accepted: 0, rejected: Vec::new() };
    for item in items {
        let decoded = Decoded { readings: item.readings, rejects: item.rejects, missing: item.missing };
        let admitted = site.admission.decoded("/v1/readings", Target::default(), decoded, body, arrival, &mut parcel);
        parcel.rejects.truncate(REJECTS_KEPT);
        outcome.accepted += admitted.accepted;
        let named = REJECTS_NAMED.saturating_sub(outcome.rejected.len());
        let rejected = |reject: crate::decode::Reject| Rejected { index: item.index, reason: reject.to_string() };
        outcome.rejected.extend(admitted.rejects.into_iter().take(named).map(rejected));
    }
    commit(&site, parcel).await?;
    Ok(json(&outcome))
}

/// `POST /api/v2/write`.
pub(super) async fn lines(State(site): State<Shared>, request: Request) -> Result<Response, Problem> {
    let params = Params::read(request.uri().query(), &["org", "orgID", "bucket", "precision"])?;
    let precision: Precision = params.parsed("precision")?.unwrap_or_default();
    let taken = read_body(&site, request).await?;
    let body = &taken.bytes;
    site.metrics.messages(Protocol::Http).inc();
    let text = std::str::from_utf8(body).map_err(|_| Problem::bad_request("the body is not UTF-8"))?;
    let decoded = line::decode(text, precision);
    let mut parcel = Parcel::default();
    let arrival = site.admission.arrival();
    let admitted = site.admission.decoded("/api/v2/write", Target::default(), decoded, body, arrival, &mut parcel);
    commit(&site, parcel).await?;
    match admitted.rejects.first() {
        None => Ok(StatusCode::NO_CONTENT.into_response()),
        Some(first) => Err(Problem::bad_request(format!(
            "partial write: {} readings kept, {} rejected, the first: {first}",
            admitted.accepted,
            admitted.rejects.len()
        ))),
    }
}

fn body_kind(headers: &HeaderMap) -> Result<Kind, Problem> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "" | "application/json" | "text/json" | "application/x-www-form-urlencoded" => Ok(Kind::Json),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Kind::Lines),
        "application/senml+json" => Ok(Kind::SenmlJson),
        "application/senml+cbor" => Ok(Kind::SenmlCbor),
        "application/cbor" => Ok(Kind::Cbor),
        other => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!(
                "{other} is not taken here: send application/json, application/x-ndjson, application/cbor, \
                 application/senml+json or application/senml+cbor"
            ),
        )),
    }
}

/// A body, and the memory that it takes of `http.ingest_memory` until its readings are committed.
struct Taken<'a> {
    bytes: Bytes,
    _memory: SemaphorePermit<'a>,
}

async fn read_body(site: &Site, request: Request) -> Result<Taken<'_>, Problem> {
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let gzip = request.headers().contains_key(header::CONTENT_ENCODING);
    // What is packed, or does not say how long it is, may become as long as is allowed.
    let bytes = declared.filter(|_| !gzip).unwrap_or(site.body_max).min(site.body_max);
    let wanted = (bytes / INGEST_UNIT_BYTES + 1).min(site.ingest_units);
    let memory = site.ingest_memory.acquire_many(wanted as u32).await.map_err(|_| Problem::stopping())?;
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body took more than a minute: send smaller ones");
    let bytes = tokio::time::timeout(BODY_PATIENCE, read_bytes(site, request)).await.map_err(late)??;
    Ok(Taken { bytes, _memory: memory })
}

async fn read_bytes(site: &Site, request: Request) -> Result<Bytes, Problem> {
    let gzip = match request.headers().get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok()) {
        None | Some("identity") => false,
        Some("gzip") => true,
        Some(other) => {
            let detail = format!("content encoding {other:?} is not taken here: send gzip or none");
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
        }
    };
    let too_large = || {
        let detail = format!("the body is larger than http.max_body ({} bytes): send it in parts", site.body_max);
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    };
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|bytes: usize| bytes > site.body_max) {
        return Err(too_large());
    }
    let body = to_bytes(request.into_body(), site.body_max).await.map_err(|e| {
        let source = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
        if source.contains("length limit") { too_large() } else { Problem::bad_request("the body ended too early") }
    })?;
    if !gzip {
        return Ok(body);
    }
    let mut plain = Vec::new();
    let read = MultiGzDecoder::new(&body[..]).take(site.body_max as u64 + 1).read_to_end(&mut plain);
    read.map_err(|e| Problem::bad_request(format!("the body is not gzip: {e}")))?;
    if plain.len() > site.body_max { Err(too_large()) } else { Ok(plain.into()) }
}

/// How long a body may take to come: it takes room that others wait for.
const BODY_PATIENCE: Duration = Duration::from_secs(60);
/// What `http.ingest_memory` is counted in.
pub(crate) const INGEST_UNIT_BYTES: usize = 1 << 10;
/// How often a request that waits looks whether the disk is full.
const FULL_DISK_TICK: Duration = Duration::from_secs(1);

/// Waits until the parcel is on disk.
pub(super) async fn commit(site: &Site, mut parcel: Parcel) -> Result<(), Problem> {
    let full = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, DISK_FULL);
    if site.metrics.disk_full.get() == 1 {
        return Err(full());
    }
    let (done, mut committed) = oneshot::channel();
    // Nobody may be waiting any more; the readings are kept all the same.
    let receipt = Receipt::Call(Box::new(move || done.send(()).unwrap_or(())));
    parcel.receipts.push((0, receipt));
    site.intake.push(&mut parcel).await.map_err(|_| Problem::stopping())?;
    loop {
        match tokio::time::timeout(FULL_DISK_TICK, &mut committed).await {
            Ok(committed) => return committed.map_err(|_| Problem::stopping()),
            // Not acknowledged: it may still be stored once there is space, and sent again.
            Err(_) if site.metrics.disk_full.get() == 1 => return Err(full()),
            Err(_) => {}
        }
    }
}
