//! The gateway's HTTP interface: one file per resource.
//!
//! Arrives: requests. Leaves: answers in JSON or CSV, errors as RFC 9457 problems that say
//! what to do. Always holds: a reading posted is answered after its commit; a question runs on
//! a thread of its own, few at a time; nobody without credentials gets past [`guard`] where
//! credentials are asked for, but for liveness and readiness.

/// `/v1/aggregates`.
mod aggregates;
/// `/v1/devices`.
mod devices;
/// `POST /v1/readings` and `POST /api/v2/write`.
mod ingest;
/// `/v1/live`.
mod live;
/// `/v1/readings`.
mod readings;
/// `/v1/rejects`.
mod rejects;
/// `/v1/status`, health, `/metrics`, `/openapi.json`.
mod status;

use crate::archive::retire::Growth;
use crate::journal::Intake;
use crate::listen::admit::Admission;
use crate::listen::mqtt::retained::Retained;
use crate::listen::mqtt::router::Router as Subscriptions;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::query::Engine;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::{get, post, put};
use cloud_sync::uplink::{Identity, Status as UplinkStatus};
use daemon::auth::Auth;
use daemon::http::reply::Problem;
pub(crate) use ingest::INGEST_UNIT_BYTES;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Facts about this gateway for `/v1/status`.
#[derive(Debug, Clone)]
pub struct About {
    /// The gateway's id and the store's incarnation.
    pub identity: Identity,
    /// When it started.
    pub started_us: i64,
    /// Bound addresses by listener.
    pub addresses: Vec<(&'static str, SocketAddr)>,
    /// The store's file.
    pub store: std::path::PathBuf,
}

/// What all requests share.
pub struct Site {
    /// The door to the journal's rows.
    pub admission: Arc<Admission>,
    /// The queue before the journal.
    pub intake: Arc<Intake>,
    /// Answers.
    pub engine: Arc<Engine>,
    /// How many questions run at once.
    pub questions: Semaphore,
    /// Events.
    pub live: Arc<Live>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Subscriptions, for the status.
    pub subscriptions: Arc<Subscriptions>,
    /// Retained messages, for the status.
    pub retained: Arc<Retained>,
    /// Who may come in.
    pub auth: Arc<Auth>,
    /// Requests without credentials may come in.
    pub anonymous: bool,
    /// `http.max_body`.
    pub body_max: usize,
    /// `http.ingest_memory`, in units.
    pub ingest_memory: Semaphore,
    /// How many units that is.
    pub ingest_units: usize,
    /// `http.max_live`.
    pub live_max: usize,
    /// How the uplink does, if there is one.
    pub uplink: Option<Arc<UplinkStatus>>,
    /// For the status.
    pub about: About,
    /// How the store grows.
    pub growth: Arc<Mutex<Growth>>,
    /// `retention.disk_budget`.
    pub budget_bytes: Option<u64>,
    /// The gateway takes readings.
    pub ready: AtomicBool,
    /// The gateway stops: streams end.
    pub stop: CancellationToken,
}

type Shared = Arc<Site>;

/// Every path, with the methods it takes; the OpenAPI document lists the same.
fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/readings", get(readings::get).post(ingest::readings))
        .route("/api/v2/write", post(ingest::lines))
        .route("/v1/devices", get(devices::list))
        .route("/v1/devices/{device}", get(devices::one))
        .route("/v1/devices/{device}/labels", put(devices::put_labels))
        .route("/v1/aggregates", get(aggregates::get))
        .route("/v1/rejects", get(rejects::get))
        .route("/v1/live", get(live::get))
        .route("/v1/status", get(status::status))
        .route("/metrics", get(status::metrics))
        .route("/openapi.json", get(status::openapi))
        .route("/healthz", get(status::healthz))
        .route("/readyz", get(status::readyz))
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
}

async fn nothing_here(request: Request) -> Problem {
    let detail = format!("{} is no resource here; /openapi.json lists them", request.uri().path());
    Problem::new(StatusCode::NOT_FOUND, detail)
}

async fn wrong_method(request: Request) -> Problem {
    let detail =
        format!("{} does not take {}; /openapi.json lists what it takes", request.uri().path(), request.method());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

/// Lets in who may come in.
async fn guard(State(site): State<Shared>, request: Request, next: Next) -> Result<Response, Problem> {
    let open = matches!(request.uri().path(), "/healthz" | "/readyz");
    if open || site.anonymous || !site.auth.has_users() {
        return Ok(next.run(request).await);
    }
    let credentials = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let right = match credentials {
        Some(credentials) => site.auth.authorization(credentials).await,
        None => false,
    };
    if right {
        return Ok(next.run(request).await);
    }
    let detail = "give the name and password (Basic) or the token (Bearer) of a user that `tidegate user add` made";
    Err(Problem::new(StatusCode::UNAUTHORIZED, detail))
}

/// Serves until `stop`, then finishes the requests under way.
pub async fn serve(listener: TcpListener, site: Shared, stop: CancellationToken) {
    let app = routes().layer(axum::middleware::from_fn_with_state(Arc::clone(&site), guard)).with_state(site);
    let served = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(e) = served {
        tracing::error!("HTTP ended: {e}");
    }
}

/// Runs a question on a thread where it may block, when it is its turn.
async fn ask<T: Send + 'static>(
    site: &Shared,
    question: impl FnOnce(&Engine) -> Result<T, crate::query::QueryError> + Send + 'static,
) -> Result<T, Problem> {
    let _turn = site.questions.acquire().await.map_err(|_| Problem::stopping())?;
    let engine = Arc::clone(&site.engine);
    match tokio::task::spawn_blocking(move || question(&engine)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            tracing::error!("a question could not be answered: {error}");
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
        }
        Err(_) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the question ended in a panic; see the log")),
    }
}

impl Site {
    /// The gateway takes readings from now on, or no more.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }
}
