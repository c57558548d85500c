//! Readings over HTTP, answered after their commit: `POST /v1/readings`, and line protocol as InfluxDB's
//! clients send it (`/api/v2/write`, `/api/v3/write_lp`, `/write`).
//!
//! Always holds: a 2xx means that something of the body is on disk; a body of which nothing could be kept is
//! 422 (400 for line protocol, as InfluxDB has it); a body is taken in parts, so that memory does not grow
//! with what it decodes to.

use super::body::{self, Taken};
use super::{Client, Shared, Site};
use crate::decode::Reject;
use crate::decode::line::{Lines, Precision};
use crate::decode::posted::Body as Kind;
use crate::journal::{DISK_FULL, Parcel};
use crate::listen::Receipt;
use crate::listen::admit::{Admitted, Origin, Taking};
use crate::metrics::Protocol;
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use daemon::http::params::Params;
use daemon::http::reply::{Problem, json};
use serde::Serialize;
use std::time::Duration;
use tokio::sync::oneshot;

#[derive(Serialize)]
struct Outcome {
    accepted: usize,
    rejected: Vec<Named>,
    /// What was kept, but not as it was sent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<Named>,
}

#[derive(Serialize)]
struct Named {
    index: usize,
    reason: String,
}

impl Outcome {
    fn of(admitted: Admitted) -> Self {
        let named = |(index, reject): (usize, Reject)| Named { index, reason: reject.to_string() };
        let (notes, rejected) = admitted.rejects.into_iter().partition::<Vec<_>, _>(|(_, reject)| reject.kept);
        Outcome {
            accepted: admitted.accepted,
            rejected: rejected.into_iter().map(named).collect(),
            notes: notes.into_iter().map(named).collect(),
        }
    }
}

/// `POST /v1/readings`.
pub(super) async fn readings(
    State(site): State<Shared>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, Problem> {
    Params::read(request.uri().query(), &[])?;
    let kind = body_kind(request.headers())?;
    let taken = body::read(&site, &client, request).await?;
    site.metrics.messages(Protocol::Http).inc();
    let mut parcel = Parcel::default();
    let arrival = site.admission.arrival();
    let origin = Origin { source: "/v1/readings", client: client.name() };
    let admitted =
        decoding(taken.bytes.len(), || site.admission.posted(origin, kind, &taken.bytes, arrival, &mut parcel));
    let admitted = admitted.map_err(|reject| Problem::bad_request(reject.to_string()))?;
    commit(&site, parcel).await?;
    // Values that say that there is none have been understood.
    let nothing = admitted.accepted == 0 && admitted.missing == 0;
    let mut response = json(&Outcome::of(admitted));
    if nothing {
        *response.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    }
    Ok(response)
}

/// `POST /api/v2/write`.
pub(super) async fn lines(
    State(site): State<Shared>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, Problem> {
    write(&site, &client, request, "/api/v2/write").await
}

/// `POST /write`, as InfluxDB 1 has it; user and password may stand in the query.
pub(super) async fn lines_v1(
    State(site): State<Shared>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, Problem> {
    write(&site, &client, request, V1).await
}

/// `POST /api/v3/write_lp`.
pub(super) async fn lines_v3(
    State(site): State<Shared>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, Problem> {
    write(&site, &client, request, "/api/v3/write_lp").await
}

/// What any version of InfluxDB takes here: clients of one send what another knows.
const WRITE_PARAMS: &[&str] =
    &["org", "orgID", "bucket", "db", "rp", "precision", "consistency", "u", "p", "accept_partial", "no_sync"];
/// Where InfluxDB 1 takes lines.
const V1: &str = "/write";
/// Rows that go to the journal at once: the memory of a body's readings is that of so many.
const ROWS_AT_ONCE: usize = 20_000;

async fn write(site: &Site, client: &Client, request: Request, source: &'static str) -> Result<Response, Problem> {
    let params = Params::read(request.uri().query(), WRITE_PARAMS)?;
    let precision: Precision = params.parsed("precision")?.unwrap_or_default();
    let taken = body::read(site, client, request).await?;
    site.metrics.messages(Protocol::Http).inc();
    // As InfluxDB has it: clients of version 1 ask with a write of nothing whether they may write at all, and those of
    // version 2 count on a refusal there. A body of blank lines and comments is no fault in either.
    if taken.bytes.is_empty() && source != V1 {
        return Err(Problem::bad_request("the body is empty: send lines of line protocol"));
    }
    let admitted = take_lines(site, client, source, &taken, precision).await?;
    let Some(first) = admitted.first_lost() else { return Ok(StatusCode::NO_CONTENT.into_response()) };
    let (kept, lost) = (admitted.accepted, admitted.rejected);
    Err(Problem::bad_request(format!("partial write: {kept} readings kept, {lost} rejected, the first: {first}")))
}

async fn take_lines(
    site: &Site,
    client: &Client,
    source: &'static str,
    taken: &Taken,
    precision: Precision,
) -> Result<Admitted, Problem> {
    let origin = Origin { source, client: client.name() };
    let mut taking = Taking::of_lines(&site.admission, origin, site.admission.arrival(), &taken.bytes);
    let mut lines = Lines::new(&taken.bytes);
    loop {
        let mut parcel = Parcel::default();
        let more = decoding(taken.bytes.len(), || taking.lines(&mut lines, precision, ROWS_AT_ONCE, &mut parcel));
        if !more {
            commit(site, parcel).await?;
            return Ok(taking.finish());
        }
        // Those before are committed when the last part is: commits keep the order of arrival.
        check_disk(site)?;
        site.intake.push(&mut parcel).await.map_err(|_| Problem::stopping())?;
        tokio::task::yield_now().await;
    }
}

/// Decodes a body of so many bytes. What takes a while lets the other tasks of its thread go elsewhere first.
fn decoding<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    const LARGE_BYTES: usize = 256 << 10;
    if bytes <= LARGE_BYTES { work() } else { tokio::task::block_in_place(work) }
}

fn body_kind(headers: &HeaderMap) -> Result<Kind, Problem> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "" | "application/json" | "text/json" => Ok(Kind::Json),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Kind::Lines),
        "application/senml+json" => Ok(Kind::SenmlJson),
        "application/senml+cbor" => Ok(Kind::SenmlCbor),
        "application/cbor" => Ok(Kind::Cbor),
        // Also what a form of a web page, or curl -d without a header, says.
        other => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!(
                "{other} is not taken here: say with the header content-type that it is application/json, \
                 application/x-ndjson, application/cbor, application/senml+json or application/senml+cbor"
            ),
        )),
    }
}

/// How often a request that waits looks whether the disk is full.
const FULL_DISK_TICK: Duration = Duration::from_secs(1);

fn check_disk(site: &Site) -> Result<(), Problem> {
    if site.metrics.disk_full.get() == 1 {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, DISK_FULL));
    }
    Ok(())
}

/// Waits until the parcel is on disk.
pub(super) async fn commit(site: &Site, mut parcel: Parcel) -> Result<(), Problem> {
    check_disk(site)?;
    let (done, mut committed) = oneshot::channel();
    // Nobody may be waiting any more; the readings are kept all the same.
    let receipt = Receipt::Call(Box::new(move || done.send(()).unwrap_or(())));
    parcel.receipts.push((0, receipt));
    site.intake.push(&mut parcel).await.map_err(|_| Problem::stopping())?;
    loop {
        match tokio::time::timeout(FULL_DISK_TICK, &mut committed).await {
            Ok(committed) => return committed.map_err(|_| Problem::stopping()),
            // Not acknowledged: it may still be stored once there is space, and sent again.
            Err(_) => check_disk(site)?,
        }
    }
}
